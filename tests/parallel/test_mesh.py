"""Grids of devices: sizes, slices, and who feeds which rows."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from sam2_jax import experiment
from sam2_jax.parallel.mesh import batch_sharding, batch_share, make_mesh


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What the placement of devices looks at."""

    id: int
    slice_index: int = 0
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "fake"


def fakes(count, per_slice, per_process=1):
    return [FakeDevice(i, i // per_slice, i // per_process) for i in range(count)]


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, 2, -1), (2, 2, 2)),
        ((2, 1, 4), (2, 1, 4)),
    ],
)
def test_what_is_left_is_computed(sizes, shape):
    mesh = make_mesh(experiment.Mesh(*sizes))
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("sizes", [(3, -1, 1), (2, 2, 1), (16, 1, 1), (-1, 1, 16)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(experiment.Mesh(*sizes))


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 8), (-2, 1, 1)])
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes are positive"):
        make_mesh(experiment.Mesh(*sizes))


def test_a_batch_is_cut_over_data_and_fsdp():
    mesh = make_mesh(experiment.Mesh(2, 2, 2))
    sharding = batch_sharding(mesh)
    assert sharding.spec == PartitionSpec(("data", "fsdp"))
    batch = jax.device_put(np.arange(8), sharding)
    rows = {shard.device: shard.data.tolist() for shard in batch.addressable_shards}
    for i, device in enumerate(mesh.devices.flat):
        assert rows[device] == [i // 2 * 2, i // 2 * 2 + 1]


def test_only_data_crosses_slices():
    devices = fakes(16, per_slice=4)
    mesh = make_mesh(experiment.Mesh(-1, 2, 2), devices)
    assert mesh.devices.shape == (4, 2, 2)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices == np.arange(4)[:, None, None]).all()


def test_slices_need_a_share_of_data_each():
    with pytest.raises(ValueError, match="make it a multiple of 4"):
        make_mesh(experiment.Mesh(2, 8, 1), fakes(16, per_slice=4))


@pytest.mark.parametrize(
    ("sizes", "per_process", "shares"),
    [
        ((2, 4, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), 2, [(0, 1)] * 4),
        ((8, 1, 1), 8, [(0, 1)]),
    ],
)
def test_processes_that_hold_the_same_rows_feed_the_same_part(sizes, per_process, shares):
    mesh = make_mesh(experiment.Mesh(*sizes), fakes(8, 8, per_process))
    assert [batch_share(mesh, index) for index in range(len(shares))] == shares


def test_rows_that_are_shared_in_part_are_refused():
    mesh = make_mesh(experiment.Mesh(2, 1, 3), fakes(6, 6, per_process=2))
    with pytest.raises(ValueError, match="only partly"):
        batch_share(mesh, 0)


def test_one_process_feeds_everything():
    assert batch_share(make_mesh(experiment.Mesh(-1, 2, 2))) == (0, 1)
