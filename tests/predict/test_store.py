"""Arrays under a memory limit: all are there, few are in memory, none is left behind."""

import errno
import gc
import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sam2_jax.predict import store as store_module
from sam2_jax.predict.store import Store


def arrays(count=10, size=100):
    return [np.full((size, 1), i, np.uint8) for i in range(count)]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("limit", "num_files"), [(1000, 0), (999, 1), (450, 6), (50, 10), (0, 10)])
def test_what_exceeds_the_limit_is_on_disk(tmp_path, limit, num_files):
    store = Store(limit, tmp_path)
    given = arrays()
    kept = [store.keep(array) for array in given]
    assert store.num_bytes <= limit
    assert len(files(tmp_path)) == num_files
    for k, array in zip(kept, given, strict=True):
        np.testing.assert_array_equal(k.get(), array)


def test_the_oldest_go_first(tmp_path):
    store = Store(300, tmp_path)
    kept = [store.keep(array) for array in arrays(5)]
    assert sorted(path.name for path in files(tmp_path)) == ["0.npy", "1.npy"]
    del kept


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, bool, np.int32])
def test_types_and_shapes_come_back(tmp_path, dtype):
    store = Store(0, tmp_path)
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = store.keep(array).get()
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)


def test_what_nobody_refers_to_is_gone(tmp_path):
    store = Store(300, tmp_path)
    kept = [store.keep(array) for array in arrays(6)]
    del kept[4], kept[0]
    gc.collect()
    assert store.num_bytes == 200
    assert len(files(tmp_path)) == 2
    assert [k.get()[0, 0] for k in kept] == [1, 2, 3, 5]


def test_the_folder_is_gone_with_the_store(tmp_path):
    store = Store(0, tmp_path)
    kept = store.keep(np.zeros(3))
    assert len(os.listdir(tmp_path)) == 1
    del kept, store
    gc.collect()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    store = Store(300, tmp_path)
    kept = [store.keep(array) for array in arrays(4)]

    def full(file, *_, **__):
        file.write(b"a beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.np.lib.format, "write_array", full)
        with pytest.raises(
            OSError, match=r"memory limit of 300 bytes.*No space left.*spill_folder"
        ):
            store.keep(np.zeros(100, np.uint8))
    assert [k.get()[0, 0] for k in kept] == [0, 1, 2, 3]
    assert len(files(tmp_path)) == 1
    again = store.keep(np.full(100, 9, np.uint8))
    assert again.get()[0] == 9


def test_impossible_limits_and_folders_are_refused(tmp_path):
    for limits in ({"limit": -1}, {"device_limit": -1}):
        with pytest.raises(ValueError, match="-1 bytes"):
            Store(**limits)
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*missing"):
        Store(0, tmp_path / "missing")


def on_device(count=10):
    return [jnp.full((4, 25), i, jnp.uint8) for i in range(count)]


@pytest.mark.parametrize(
    ("device_limit", "limit", "counts"),
    [(1000, 0, (10, 0, 0)), (999, 1000, (9, 1, 0)), (300, 400, (3, 4, 3)), (0, 250, (0, 2, 8))],
)
def test_the_oldest_leave_the_device_first(tmp_path, device_limit, limit, counts):
    store = Store(limit, tmp_path, device_limit)
    kept = [store.keep(array) for array in on_device()]
    found = store.num_device_bytes, store.num_bytes, 100 * len(files(tmp_path))
    assert found == tuple(100 * count for count in counts)
    numbers = sorted(int(path.stem) for path in files(tmp_path))
    assert numbers == list(range(counts[2]))
    for i, k in enumerate(kept):
        array = k.get()
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, np.full((4, 25), i))
    del kept, k
    gc.collect()
    assert (store.num_device_bytes, store.num_bytes, files(tmp_path)) == (0, 0, [])


@pytest.mark.parametrize("limits", [(0, 1000), (1000, 0), (0, 0)])
def test_a_part_is_got_alone_and_keeps_the_whole(tmp_path, limits):
    device_limit, limit = limits
    store = Store(limit, tmp_path, device_limit)
    array = jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4)
    whole = store.keep(array)
    part = whole.at(1).at(2)
    del whole
    gc.collect()
    assert store.num_device_bytes + store.num_bytes + len(files(tmp_path)) > 0
    found = part.get()
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, array[1, 2])
    assert float(part.at(3).get()) == 23
    del part
    gc.collect()
    assert (store.num_device_bytes, store.num_bytes, files(tmp_path)) == (0, 0, [])


def test_where_the_device_is_the_host_nothing_is_kept_twice():
    store = Store()
    kept = store.keep(on_device(1)[0])
    assert (store.num_device_bytes, store.num_bytes) == (0, 100)
    del kept
