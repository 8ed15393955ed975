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
    command = [sys.executable, str(ROOT / "scripts" / "compile_for.py"), *flags]
    command.append(f"--json={tmp_path / 'report.json'}")
    environment = os.environ | {
        "XLA_FLAGS": ""
    }  # the tests' own are for programs that run on the CPU
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


def report_of(tmp_path, result):
    assert result.returncode == 0, result.stderr
    return json.loads((tmp_path / "report.json").read_text())


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; run `make pods`"
)


@needs_libtpu
def test_a_training_step_compiles_for_four_chips(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    result = compile_for(
        tmp_path, "--quick", "--topology=v5e:2x2", f"--config={tmp_path / 'config.py'}"
    )
    report = report_of(tmp_path, result)
    assert "sam2.1_hiera_tiny, train, v5e:2x2" in result.stdout
    assert "| chips | 4 |" in result.stdout
    cost = report["cost"]
    assert cost["flops"] > 1e7
    assert cost["unknown_loops"] == 0
    num_params = sum(x.size for x in param_shapes_of_the_config())
    # Parameters are gathered once, and gradients added up once, in float32; small ones are whole.
    assert 3.6 * num_params < cost["collectives"]["all-gather"][1] <= 4 * num_params
    # Of arrays as small as these, the compiler makes some sums whole and cuts them afterwards.
    added_up = cost["collectives"]["reduce-scatter"][1] + cost["collectives"]["all-reduce"][1]
    assert 3.6 * num_params < added_up <= 5.5 * num_params
    # Parameters and both moments are cut; small arrays fill whole tiles of a TPU's memory all the same.
    assert report["arguments"] < 12 * num_params


@needs_libtpu
def test_videos_on_four_chips_have_nothing_to_do_with_each_other(tmp_path):
    size = ["--model=sam2_nano", "--image_size=64", "--objects=2"]
    result = compile_for(tmp_path, "--quick", "--what=inference", "--topology=v5e:2x2", *size)
    report = report_of(tmp_path, result)
    assert "sam2_nano, 2 objects, 1 frame, inference, v5e:2x2" in result.stdout
    assert report["chips"] == 4
    assert not report["cost"]["collectives"]
    assert report["cost"]["cycles"] > 0


def param_shapes_of_the_config():
    import jax

    return jax.tree.leaves(param_shapes(toy.config()))


@needs_libtpu
def test_a_topology_that_does_not_exist_is_an_error_of_one_line(tmp_path):
    result = compile_for(tmp_path, "--what=inference", "--topology=v5e:3x5")
    assert result.returncode == 1
    assert "there is no topology 'v5e:3x5'" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_needs_an_experiment(tmp_path):
    result = compile_for(tmp_path, "--topology=v5e:2x2")
    assert result.returncode == 1
    assert "--config is what --what=train needs" in result.stderr
    assert "Traceback" not in result.stderr
