"""The script that compiles for TPUs, run as a user runs it; `make pods` has the compiler for it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_jax.model.sam2 import param_shapes
from tests import toy

ROOT = Path(__file__).parents[1]

CONFIG = """
from sam2_jax.experiment import Dataset, Experiment, Interaction, Mesh, to_config_dict

HIERA = {
    "embed_dim": 8,
    "stages": (1, 2, 2, 1),
    "global_attention_blocks": (3,),
    "window_sizes": (8, 4, 2, 2),
}
SIZES = {"image_size": 64, "hidden_dim": 32, "memory_dim": 8, "memory_attention_layers": 1}


def get_config():
    return to_config_dict(
        Experiment(
            model_overrides={"hiera": HIERA, "dtype": "bfloat16"} | SIZES,
            datasets={"clips": Dataset(num_frames=2, max_objects=1)},
            interaction=Interaction(max_initial_frames=1, max_corrected_frames=1, num_corrections=1),
            mesh=Mesh(data=1, fsdp=-1),
        )
    )
"""


def compile_for(tmp_path, *flags):
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, str(ROOT / "scripts" / "compile_for.py"), "--quick", *flags]
    command += [f"--config={tmp_path / 'config.py'}", f"--json={tmp_path / 'report.json'}"]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900
    )


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; run `make pods`"
)


@needs_libtpu
@pytest.mark.parametrize("what", ["train", "inference"])
def test_a_step_compiles_for_four_chips(tmp_path, what):
    result = compile_for(tmp_path, "--topology=v5e:2x2", f"--what={what}")
    assert result.returncode == 0, result.stderr
    assert f"sam2.1_hiera_tiny, {what}, v5e:2x2" in result.stdout
    assert "| chips | 4 |" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cost"]["flops"] > 1e7
    assert report["cost"]["unknown_loops"] == 0
    num_params = sum(x.size for x in param_shapes_of_the_config())
    collectives = report["cost"]["collectives"]
    if what == "inference":
        assert not collectives, "videos have nothing to do with each other"
        assert report["arguments"] > 4 * num_params
    else:
        # Parameters are gathered once, and gradients added up once, in float32; small ones are whole.
        assert 3.6 * num_params < collectives["all-gather"][1] <= 4 * num_params
        # Of arrays as small as these, the compiler makes some sums whole and cuts them afterwards.
        added_up = collectives["reduce-scatter"][1] + collectives["all-reduce"][1]
        assert 3.6 * num_params < added_up <= 5.5 * num_params
        # Parameters and both moments are cut; small arrays fill whole tiles of a TPU's memory all the same.
        assert report["arguments"] < 12 * num_params


def param_shapes_of_the_config():
    import jax

    return jax.tree.leaves(param_shapes(toy.config()))


@needs_libtpu
def test_a_topology_that_does_not_exist_is_an_error_of_one_line(tmp_path):
    result = compile_for(tmp_path, "--topology=v5e:3x5")
    assert result.returncode == 1
    assert "there is no topology 'v5e:3x5'" in result.stderr
    assert "Traceback" not in result.stderr
