"""Compiling for TPUs that are not there: what a program needs of every chip, before one is rented.

The TPU compiler (libtpu) runs on any Linux machine. It needs the program, the shapes of its arguments and the
name of a topology such as `v5e:16x16`.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sam2_jax.parallel import hlo


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one chip is asked for. Bytes, floating-point operations and seconds.

    Attributes:
      chips: of the topology.
      arguments: held while the program runs: parameters, optimizer state, its part of the batch.
      outputs: those that do not take the place of an argument.
      temporaries: everything in between.
      peak: all of it at the worst moment, as the compiler counts it.
      program: the machine code.
      cost: of one execution of the program.
      lower_seconds: tracing and lowering.
      compile_seconds: the TPU compiler.
    """

    chips: int
    arguments: int
    outputs: int
    temporaries: int
    peak: int
    program: int
    cost: hlo.Cost
    lower_seconds: float
    compile_seconds: float


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Returns the devices of a TPU topology by name, for a mesh; nothing can run on them.

    Args:
      topology: generation and chips, such as `v5e:2x4`, `v5p:4x4x4`; with `,N` for N slices, such as
        `v5e:16x16,2`.

    Raises:
      ValueError: for an unknown topology.
      RuntimeError: when libtpu is not installed.
    """
    # Without it, libtpu asks the metadata server of a cloud machine, for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    name, _, slices = topology.partition(",")
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, num_slices=int(slices or 1)
        )
    except NotImplementedError as error:
        raise RuntimeError(
            "libtpu is not installed; pip install 'jax[tpu]' of the same version as jax."
        ) from error
    return found.devices
