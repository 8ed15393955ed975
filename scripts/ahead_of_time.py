"""Compiling for chips that are not there: what a program needs and does, before one is rented.

The compilers for TPUs (libtpu, which `jax[tpu]` brings) and GPUs (in `jax[cuda13]`) run on any Linux machine.
They want the program, the shapes of its arguments, and which chips: `tpu_devices` and `gpu_devices` name them.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from sam2_jax.parallel import hlo
from sam2_jax.train.metrics import count_flops

_GIB = 2**30
# Else libtpu asks a cloud's metadata server who it is, and lets one process on a machine compile.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What the compiler asks of a GPU, as an H200 answers.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 13 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Report:
    """What one chip is asked for, in bytes, floating-point operations and seconds.

    Attributes:
      chips: that the program is compiled for.
      arguments: parameters, optimizer state and the chip's part of the batch.
      outputs: those that do not take the place of an argument.
      temporaries: everything in between, at the worst moment.
      program: the machine code.
      flops: of matrix products and convolutions, the whole program's shared out evenly.
      cost: kernels, loops and communication of one run.
      lower_seconds: of tracing and lowering.
      compile_seconds: of the TPU compiler.
    """

    chips: int
    arguments: int
    outputs: int
    temporaries: int
    program: int
    flops: float
    cost: hlo.Cost
    lower_seconds: float
    compile_seconds: float

    @property
    def total(self) -> int:
        """Bytes of memory that the program needs."""
        return self.arguments + self.outputs + self.temporaries + self.program

    def table(self) -> str:
        """Returns the report as a Markdown table."""
        rows = [("chips", str(self.chips))]
        for name in ("arguments", "outputs", "temporaries", "program", "total"):
            rows.append((f"{name}, GiB a chip", f"{getattr(self, name) / _GIB:.2f}"))
        for name in ("kernels", "loops", "conditionals"):
            rows.append((name, f"{getattr(self.cost, name):,}"))
        if self.cost.cycles:  # only the TPU compiler estimates them
            rows.append(("cycles, the compiler's estimate", f"{self.cost.cycles:,}"))
        for target, count in sorted(self.cost.custom_calls.items()):
            rows.append((f"calls of {target}", str(count)))
        rows.append(("products, TFLOP a chip", f"{self.flops / 1e12:.2f}"))
        for kind, (count, size) in sorted(self.cost.collectives.items()):
            rows.append((f"{kind}, times and GiB a chip", f"{count}, {size / _GIB:.3f}"))
        rows.append(("lowering, s", f"{self.lower_seconds:.0f}"))
        rows.append(("compiling, s", f"{self.compile_seconds:.0f}"))
        if self.cost.unknown_loops:
            rows.append(("loops of unknown length, counted once", str(self.cost.unknown_loops)))
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])

    def json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(dataclasses.asdict(self) | {"total": self.total}, indent=1)


def tpu_devices(topology: str) -> Sequence[jax.Device]:
    """Returns the chips of a TPU topology, to make a mesh of; nothing can run on them.

    Args:
      topology: generation and grid, such as `v5e:2x4` or `v5p:4x4x4`; `2*v5e:16x16` is two slices.

    Raises:
      ValueError: for a topology that does not exist.
      RuntimeError: when libtpu is not installed.
    """
    from jax.experimental import topologies

    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    slices, _, grid = topology.rpartition("*")
    try:
        found = topologies.get_topology_desc(grid, "tpu", num_slices=int(slices or 1))
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"there is no topology {topology!r} ({error}); one is expected such as v5e:2x4, v5e:16x16, "
            "v5p:4x4x4, v6e:16x16 or 2*v5e:16x16."
        ) from error
    except RuntimeError as error:
        raise RuntimeError(
            "libtpu is not installed; `make pods` makes an environment with it, or install jax[tpu]."
        ) from error
    return found.devices


def gpu_devices() -> Sequence[jax.Device]:
    """Returns one H200, to make a mesh of; nothing can run on it.

    Raises:
      RuntimeError: when JAX's compiler for GPUs is not installed.
    """
    from jax.experimental import topologies

    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # else the driver is asked for
    try:
        found = topologies.get_topology_desc("", "cuda", target_config=_H200, topology="1x1x1")
    except RuntimeError as error:
        raise RuntimeError(
            f"the compiler for GPUs is not installed ({error}); pip install 'jax[cuda13]', for which no GPU is "
            "needed."
        ) from error
    return found.devices


@contextlib.contextmanager
def _optimisation(level: str | None) -> Iterator[None]:
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level or before)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _compile(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    is_tpu_or_cpu = platform in ("tpu", "cpu")
    try:
        # Tuning would run kernels.
        return lowered.compile(None if is_tpu_or_cpu else {"xla_gpu_autotune_level": 0})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(str(error)) from error
        raise


def compile_ahead(
    function: Callable,
    arguments: Sequence[Any],
    devices: Sequence[jax.Device],
    is_quick: bool = False,
) -> Report:
    """Compiles a jitted function and reports what it needs.

    Args:
      function: from `jax.jit`, with shardings over `devices`.
      arguments: trees of `jax.ShapeDtypeStruct`.
      devices: from `tpu_devices` or `gpu_devices`.
      is_quick: compiles without optimising, some seven times faster; temporaries then are an upper bound.

    Raises:
      MemoryError: when the program does not fit the memory of a chip; the message tells by how much.
    """
    start = time.perf_counter()
    traced = function.trace(*arguments)
    lowered = traced.lower()
    middle = time.perf_counter()
    with _optimisation("O0" if is_quick else None):
        compiled = _compile(lowered, devices[0].platform)
    end = time.perf_counter()
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError(
            f"the compiler for {devices[0].platform} does not tell what a program needs."
        )
    return Report(
        chips=len(devices),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=count_flops(traced.jaxpr) / len(devices),
        cost=hlo.cost(compiled.as_text()),
        lower_seconds=middle - start,
        compile_seconds=end - middle,
    )
