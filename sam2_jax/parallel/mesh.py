"""The grid of devices.

A batch is cut over `data` and `fsdp`, parameters and optimizer state over `fsdp`, single matrix products over
`model`. Neighbours along `model` talk most, so it is the axis of the fastest links; slices of a TPU pod that
only a data centre's network joins are cut along `data`, whose one exchange a step is the sum of gradients.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sam2_jax import experiment

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    mesh: experiment.Mesh, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """Lays devices out as the grid that an experiment asks for.

    Args:
      mesh: sizes of the axes; one may be -1, which is what the others leave.
      devices: all of them are used; None takes those of all processes.

    Returns:
      A mesh with the axes `data`, `fsdp` and `model`.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices, or when `data` cannot be spread
        evenly over several slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _resolve(mesh, len(devices))
    # Devices without the attribute, such as CPUs, are all in one slice.
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        data, *inner = shape
        if data % num_slices:
            raise ValueError(
                f"mesh.data is {data}, but the {len(devices)} devices are in {num_slices} slices, over which "
                f"data is spread; make it a multiple of {num_slices}."
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // num_slices, *inner),
            (num_slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _resolve(mesh: experiment.Mesh, num_devices: int) -> tuple[int, int, int]:
    """The sizes of the axes, -1 replaced."""
    sizes = (mesh.data, mesh.fsdp, mesh.model)
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"the mesh is {text}; sizes are positive, and one may be -1.")
    fixed = math.prod(size for size in sizes if size != -1)
    if num_devices % fixed or (-1 not in sizes and fixed != num_devices):
        raise ValueError(
            f"the mesh {text} does not fit {num_devices} devices: its sizes must multiply to "
            f"{num_devices}. Set one of them to -1 to have it computed."
        )
    data, fsdp, model = (num_devices // fixed if size == -1 else size for size in sizes)
    return data, fsdp, model


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Cuts the leading axis of a batch over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_share(mesh: jax.sharding.Mesh, process_index: int | None = None) -> tuple[int, int]:
    """Tells which part of a batch a process feeds to its devices.

    Processes that are neighbours along `model` hold the same rows and feed the same part.

    Args:
      mesh: from `make_mesh`.
      process_index: None is this process.

    Returns:
      Index of the part, and the number of parts, which are of one size.

    Raises:
      ValueError: when the rows of processes overlap only partly; a larger or smaller `model` helps.
    """
    process_index = jax.process_index() if process_index is None else process_index
    rows = mesh.devices.reshape(-1, mesh.shape["model"])
    owners = np.vectorize(lambda device: device.process_index)(rows)
    held = {
        index: tuple(np.flatnonzero((owners == index).any(1)).tolist())
        for index in np.unique(owners).tolist()
    }
    parts = sorted(set(held.values()))
    if sum(map(len, parts)) != len(rows) or len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"with model={mesh.shape['model']}, processes share rows of the batch only partly; choose "
            "mesh.model to divide, or be a multiple of, the devices of a process."
        )
    return parts.index(held[process_index]), len(parts)
