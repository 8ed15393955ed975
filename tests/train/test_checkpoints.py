import gc
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sam2_jax.train.checkpoints import Checkpoints, _checksum

# After an error Orbax drops what it no longer waits for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _drop_it_here():
    yield
    gc.collect()


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    ema: dict | None


def state(seed: int, sharding=None) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "kernel": rng.standard_normal((16, 64), np.float32),
        "half": jnp.asarray(rng.standard_normal(8), jnp.bfloat16),
        "is_odd": np.arange(8) % 2 == 1,
    }
    tree = State(np.int32(seed), params, None)
    return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)


def target(sharding=None) -> State:
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0)
    )


def on_mesh(*shape: int) -> NamedSharding:
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec())


def save_steps(folder, steps, **kwargs) -> None:
    with Checkpoints(folder, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), {"data": f"position {step}"})


def assert_same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_comes_back_as_it_was(tmp_path):
    save_steps(tmp_path, [3])
    with Checkpoints(tmp_path) as checkpoints:
        step, restored, record = checkpoints.restore(target())
    assert (step, record) == (3, {"data": "position 3"})
    assert_same(restored, state(3))
    assert restored.params["half"].dtype == jnp.bfloat16


def test_nothing_is_restored_from_an_empty_folder(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(target()) is None


def test_comes_back_on_another_mesh(tmp_path):
    spread = on_mesh(2, 4)
    cut = NamedSharding(spread.mesh, PartitionSpec("b"))
    saved = state(1, spread)
    saved.params["kernel"] = jax.device_put(saved.params["kernel"], cut)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
    other = on_mesh(8, 1)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(target(other)).state
    assert_same(restored, state(1))
    assert restored.params["kernel"].sharding == other


def test_checksums_do_not_depend_on_the_mesh_and_see_every_change():
    x = np.random.default_rng(0).standard_normal((8, 12, 4), np.float32)
    spread = on_mesh(2, 4)
    cut = jax.device_put(x, NamedSharding(spread.mesh, PartitionSpec("b", "a")))
    assert _checksum(cut) == _checksum(jnp.asarray(x))
    swapped, flipped = x.copy(), x.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    flipped.view(np.uint32)[7, 0, 3] ^= 1
    changed = (x, swapped, flipped, x.swapaxes(0, 2))
    assert len({int(_checksum(jnp.asarray(y))) for y in changed}) == 4


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ({"keep_last": 2, "keep_best": 1}, [2, 4, 5]),
        ({"keep_last": 1, "keep_best": 2}, [2, 3, 5]),
        ({"keep_last": 2, "keep_best": 0}, [4, 5]),
    ],
)
def test_keeps_the_last_and_the_best(tmp_path, keep, expected):
    scores = {1: 0.1, 2: 0.9, 3: 0.5, 4: None, 5: 0.2}
    for steps in ([1, 2, 3], [4, 5]):  # scores are found again after a restart
        with Checkpoints(tmp_path, **keep) as checkpoints:
            for step in steps:
                checkpoints.save(step, state(step), {}, scores[step])
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == expected


def test_zero_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0"):
        Checkpoints(tmp_path, keep_last=0)


def garble(path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGES = {
    "garbled": garble,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_no_damaged_file_goes_unnoticed(tmp_path, damage, caplog):
    """Whichever file of the newest checkpoint is hit, what comes back is whole."""
    save_steps(tmp_path / "good", [1, 2])
    files = [path for path in (tmp_path / "good" / "2").rglob("*") if path.is_file()]
    num_set_aside = 0
    for path in files:
        folder = tmp_path / "hit"
        shutil.copytree(tmp_path / "good", folder)
        damage(folder / path.relative_to(tmp_path / "good"))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sam2_jax"), Checkpoints(folder) as checkpoints:
            step, restored, record = checkpoints.restore(target())
            assert record == {"data": f"position {step}"}, path
            assert_same(restored, state(step))
            if step == 1:
                num_set_aside += 1
                assert "The checkpoint of step 2 is damaged" in caplog.text
                assert (folder / "damaged_2").is_dir()
        shutil.rmtree(folder)
    assert num_set_aside >= 3


def test_a_damaged_older_checkpoint_does_no_harm(tmp_path):
    save_steps(tmp_path, [1, 2, 3])
    shutil.rmtree(tmp_path / "1" / "state")  # as if killed while it was deleted
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    garble(tmp_path / "2" / "record" / "metadata")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(target()).step == 3
        checkpoints.save(4, state(4), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


def test_damaged_twice_at_one_step(tmp_path):
    save_steps(tmp_path, [1], keep_last=5)
    for _ in range(2):
        save_steps(tmp_path, [2], keep_last=5)
        (tmp_path / "2" / "record" / "metadata").unlink()
        with Checkpoints(tmp_path, keep_last=5) as checkpoints:
            assert checkpoints.restore(target()).step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "damaged_2", "damaged_2_2"]


def test_if_no_checkpoint_is_whole_all_stay(tmp_path):
    """Perhaps it is not they that are at fault, but the file system."""
    save_steps(tmp_path, [1, 2])
    for step in ("1", "2"):
        (tmp_path / step / "record" / "metadata").unlink()
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            ValueError, match=r"no checkpoint in .* is whole; that of step 2: ValueError"
        ),
    ):
        checkpoints.restore(target())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_checkpoint_of_another_state_is_an_error_and_stays(tmp_path):
    save_steps(tmp_path, [1])
    other = target()
    other.params["kernel"] = jax.ShapeDtypeStruct((16, 32), jnp.float32)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"params/kernel is float32 of shape \(16, 64\) in it"):
            checkpoints.restore(other)
        assert checkpoints.restore(target()).step == 1


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    save_steps(tmp_path, [1])
    half = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", half)
    save_steps(tmp_path, [3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


@pytest.fixture
def full_disk():
    """A switch: from then on no file grows beyond a kilobyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_error_and_the_last_good_checkpoint_stays(tmp_path, full_disk, caplog):
    save_steps(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    full_disk()
    with caplog.at_level(logging.CRITICAL, "absl"):  # Orbax logs its stack
        checkpoints.save(2, state(2), {})
        with pytest.raises(OSError, match=r"could not be written .*last good one is of step 1"):
            checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(target()).step == 1
