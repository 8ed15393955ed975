"""The script that compiles for chips that are not there, run as a user runs it; `make pods` has libtpu."""

import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sam2_jax.config import get_config
from sam2_jax.model import memory_bank
from sam2_jax.model.sam2 import Sam2, param_shapes
from sam2_jax.structs import Features
from tests import toy

ROOT = Path(__file__).parents[1]

# Of memory attention of tiny, 1024 px, one object, on a v5e: at most 5 ms at 1.5 GHz.
CYCLES = 7_500_000
LAYERS = 4
KERNEL_CYCLES = 1_000_000  # of the two kernels of a layer
OTHER_CYCLES = CYCLES - LAYERS * KERNEL_CYCLES
TEMPORARIES = 96 * 2**20

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


def compile_for(tmp_path, *flags, **variables):
    command = [sys.executable, str(ROOT / "scripts" / "compile_for.py"), *flags]
    command.append(f"--json={tmp_path / 'report.json'}")
    # The tests' own flags are for programs that run on the CPU, and what is cached is not compiled.
    own = {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    environment = os.environ | own | variables
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
    assert report["flops"] > 1e7
    assert cost["unknown_loops"] == 0
    params = param_shapes(toy.config())
    trunk = params["image_encoder"]["trunk"]
    num_params = count(params)
    num_twice = sum(count(part) for name, part in trunk.items() if name.startswith("blocks_"))
    # Parameters are gathered once, those of blocks again in the backward pass, and gradients added up once, in
    # float32; small ones are whole.
    gathered = cost["collectives"]["all-gather"][1]
    assert 3.6 * (num_params + num_twice) < gathered <= 4 * (num_params + num_twice)
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


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


@needs_libtpu
def test_memory_attention_keeps_to_its_budget(tmp_path):
    result = compile_for(tmp_path, "--what=memory_attention", "--topology=v5e:2x2")
    report = report_of(tmp_path, result)
    assert "sam2.1_hiera_tiny, 1 object, 1 frame, memory_attention, v5e:2x2" in result.stdout
    cost = report["cost"]
    assert cost["custom_calls"]["tpu_custom_call"] == 2 * LAYERS
    assert (cost["loops"], cost["conditionals"]) == (0, 0)
    assert 0 < cost["cycles"] <= OTHER_CYCLES
    assert report["temporaries"] <= TEMPORARIES


def numbers(pattern, path):
    return [int(group) for group in re.search(pattern, path.read_text()).groups()]


@needs_libtpu
def test_the_kernels_of_a_layer_keep_to_their_budget(tmp_path):
    """The compiler does not estimate their cycles, but writes how many bundles there are, one a cycle."""
    dump = f"--xla_jf_dump_to={tmp_path} --xla_jf_dump_llo_text=true"
    flags = ["--what=attention", "--topology=v5e:2x2"]
    report = report_of(tmp_path, compile_for(tmp_path, *flags, LIBTPU_INIT_ARGS=dump))
    assert report["cost"]["custom_calls"]["tpu_custom_call"] == 2
    assert report["cost"]["loops"] == 0
    cycles = []
    for analysis in tmp_path.glob("*sam2_attention*schedule-analysis_final_bundles.txt"):
        kernel = re.match(r"(.*)-\d+-schedule", analysis.name)[1]
        (program,) = tmp_path.glob(f"{kernel}-*[0-9]-final_bundles.txt")
        (bundles,) = numbers(r"total scheduled bundles:\s+(\d+)", analysis)
        cycles.append(
            bundles * math.prod(numbers(r"iteration_bounds: \((\d+), (\d+), (\d+)\)", program))
        )
    assert len(cycles) == 2
    assert sum(cycles) <= KERNEL_CYCLES


@pytest.mark.parametrize(
    ("platform", "kernel"), [("tpu", "tpu_custom_call"), ("cuda", "__cudnn$fmhaSoftmax")]
)
def test_memory_attention_is_kernels_and_no_loop(platform, kernel):
    config = get_config("sam2.1_hiera_tiny", dtype="bfloat16")
    bank = jax.eval_shape(functools.partial(memory_bank.empty, config, 1))
    shape = jax.ShapeDtypeStruct
    features = Features(shape((1, config.grid, config.grid, config.hidden_dim), jnp.bfloat16), ())

    def condition(params, bank, features, index):
        return Sam2(config).apply(
            {"params": params}, bank, features, index, method="condition_on_memory"
        )

    traced = jax.jit(condition).trace(param_shapes(config), bank, features, shape((), jnp.int32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(rf"custom_call @{re.escape(kernel)}\(", text)) == 2 * LAYERS
    assert "stablehlo.while" not in text


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
