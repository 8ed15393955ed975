"""Compiling for TPUs that are not there: what a program needs of every chip, before one is rented.

The TPU compiler (libtpu, which `jax[tpu]` brings) runs on any Linux machine. It wants the program, the shapes
of its arguments and the name of a topology such as `v5e:16x16`.
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

_GIB = 2**30
# Else libtpu asks a cloud's metadata server who it is, and lets one process on a machine compile.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What one chip is asked for, in bytes, floating-point operations and seconds.

    Attributes:
      chips: that the program is compiled for.
      arguments: parameters, optimizer state and the chip's part of the batch.
      outputs: those that do not take the place of an argument.
      temporaries: everything in between, at the worst moment.
      program: the machine code.
      cost: products and communication of one run.
      lower_seconds: of tracing and lowering.
      compile_seconds: of the TPU compiler.
    """

    chips: int
    arguments: int
    outputs: int
    temporaries: int
    program: int
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
        rows.append(("products, TFLOP a chip", f"{self.cost.flops / 1e12:.2f}"))
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


@contextlib.contextmanager
def _optimisation(level: str | None) -> Iterator[None]:
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level or before)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(str(error)) from error
        raise


def compile_ahead(
    function: Callable, arguments: Sequence[Any], chips: int, is_quick: bool = False
) -> Report:
    """Compiles a jitted function and reports what it needs.

    Args:
      function: from `jax.jit`, with shardings over devices from `tpu_devices`.
      arguments: trees of `jax.ShapeDtypeStruct`.
      chips: the number of devices.
      is_quick: compiles without optimising, some seven times faster; temporaries then are an upper bound.

    Raises:
      MemoryError: when the program does not fit the memory of a chip; the message tells by how much.
    """
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    middle = time.perf_counter()
    with _optimisation("O0" if is_quick else None):
        compiled = _compile(lowered)
    end = time.perf_counter()
    memory = compiled.memory_analysis()
    return Report(
        chips=chips,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        cost=hlo.cost(compiled.as_text()),
        lower_seconds=middle - start,
        compile_seconds=end - middle,
    )
