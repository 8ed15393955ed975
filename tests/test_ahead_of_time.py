"""Reports on compiled programs, here for the CPU; tests/test_compile_for.py has TPUs."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from sam2_jax import experiment
from sam2_jax.parallel.mesh import make_mesh

SCRIPT = Path(__file__).parents[1] / "scripts" / "ahead_of_time.py"
spec = importlib.util.spec_from_file_location("ahead_of_time", SCRIPT)
ahead_of_time = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = ahead_of_time  # where dataclasses look for it
spec.loader.exec_module(ahead_of_time)
compile_ahead = ahead_of_time.compile_ahead
gpu_devices, tpu_devices = ahead_of_time.gpu_devices, ahead_of_time.tpu_devices


@pytest.fixture(scope="module")
def report():
    """Of a product whose left side is cut in eight."""
    mesh = make_mesh(experiment.Mesh(8, 1, 1))
    cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    function = jax.jit(jnp.matmul, in_shardings=(cut, whole), out_shardings=cut)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 32), (32, 64))]
    return compile_ahead(function, shapes, list(mesh.devices.flat), is_quick=True)


def test_a_report_is_of_one_chip(report):
    assert report.chips == 8
    assert report.arguments == 4 * (256 // 8 * 32 + 32 * 64)
    assert report.outputs == 4 * 256 // 8 * 64
    assert report.flops == 2 * 256 // 8 * 32 * 64
    assert report.total >= report.arguments + report.outputs
    assert jax.config.jax_optimization_level != "O0", "the setting is of one compilation"


def test_a_report_can_be_read_by_people_and_programs(report):
    lines = report.table().splitlines()
    assert lines[1] == "|---|---|"
    assert {"| chips | 8 |", "| loops | 0 |", "| conditionals | 0 |"} <= set(lines)
    assert all(line.count("|") == 3 for line in lines)
    values = json.loads(report.json())
    assert values["flops"] == report.flops
    assert values["total"] == report.total


def fail(error):
    def function(*args, **kwargs):
        raise error

    return function


def test_a_topology_that_does_not_exist_is_named(monkeypatch):
    error = jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such chips")
    monkeypatch.setattr(topologies, "get_topology_desc", fail(error))
    with pytest.raises(ValueError, match=r"there is no topology 'v5e:7x9' .*such as v5e:2x4"):
        tpu_devices("v5e:7x9")


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setattr(topologies, "get_topology_desc", fail(RuntimeError("not installed")))
    with pytest.raises(RuntimeError, match="libtpu is not installed; `make pods`"):
        tpu_devices("v5e:2x4")


def test_a_missing_compiler_for_gpus_is_told(monkeypatch):
    monkeypatch.setattr(topologies, "get_topology_desc", fail(RuntimeError("no such platform")))
    with pytest.raises(RuntimeError, match=r"\(no such platform\); pip install 'jax\[cuda13\]'"):
        gpu_devices()


def test_slices_are_asked_for_by_number(monkeypatch):
    asked = {}

    def record(grid, platform, num_slices):
        asked.update(grid=grid, platform=platform, num_slices=num_slices)
        return topologies.TopologyDescription([])

    monkeypatch.setattr(topologies, "get_topology_desc", record)
    assert tpu_devices("2*v5e:16x16") == []
    assert asked == {"grid": "v5e:16x16", "platform": "tpu", "num_slices": 2}


def test_a_program_that_does_not_fit_says_so():
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: used 20G of 15.75G hbm")

    class Traced:
        jaxpr = jax.make_jaxpr(lambda: 0)()

        def lower(self):
            return Lowered()

    class Function:
        def trace(self, *arguments):
            return Traced()

    with pytest.raises(MemoryError, match=r"20G of 15\.75G"):
        compile_ahead(Function(), (), jax.devices()[:1])
