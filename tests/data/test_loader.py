"""Batches: their shapes, that they depend on seed and step only, and what becomes of bad samples."""

import dataclasses
import itertools
import logging
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data import loader
from sam2_jax.data.clips import Clip
from sam2_jax.data.datasets import Augment, Palette, Procedural
from sam2_jax.data.masks import write_palette_png

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
AUGMENT = Augment(degrees=25, brightness=0.1, frame_contrast=0.1, gray=0.2, mosaic=0.2, reverse=0.5)


def write_videos(root, names, num_frames=5):
    rng = np.random.default_rng(0)
    for name in names:
        for folder in ("frames", "masks"):
            (root / folder / name).mkdir(parents=True)
        for t in range(num_frames):
            noise = rng.integers(0, 256, (24, 40, 3), np.uint8)
            Image.fromarray(noise).save(root / "frames" / name / f"{t:05d}.jpg")
            ids = np.zeros((24, 40), np.uint8)
            ids[4:16, 4 + t : 16 + t] = 1
            ids[8:20, 22:34] = 2
            write_palette_png(root / "masks" / name / f"{t:05d}.png", ids)
    return Palette(
        frames=str(root / "frames"),
        annotations=str(root / "masks"),
        batch_size=2,
        num_frames=3,
        augment=AUGMENT,
    )


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Videos with clips of three frames and four batches as often as one of two drawn images."""
    videos = write_videos(tmp_path_factory.mktemp("videos"), [f"v{i}" for i in range(5)])
    videos = dataclasses.replace(videos, weight=4.0)
    images = Procedural(count=7, num_frames=1, max_objects=2, batch_size=4)
    return {"videos": videos, "images": images}


def batches(datasets, count, start=0, seed=0, num_workers=0, **processes):
    made = loader.make_loader(datasets, SIZE, seed, num_workers, **processes)
    if start:
        made.set_state(b'{"position": %d}' % start)
    taken = list(itertools.islice(made, count))
    made.close()
    return taken


def assert_same(some, others):
    for (name, batch), (other_name, other) in zip(some, others, strict=True):
        assert name == other_name
        assert batch.keys() == other.keys()
        for key, value in batch.items():
            np.testing.assert_array_equal(value, other[key])


def test_batches(datasets):
    for name, batch in batches(datasets, 10):
        b, t, o = (2, 3, 3) if name == "videos" else (4, 1, 2)
        assert batch["images"].shape == (b, t, SIZE, SIZE, 3)
        assert batch["images"].dtype == np.uint8
        assert batch["masks"].shape == (b, t, o, SIZE, SIZE)
        assert batch["masks"].dtype == bool
        assert batch["is_object"].shape == (b, o)
        np.testing.assert_array_equal(batch["masks"][:, 0].any((2, 3)), batch["is_object"])
        assert not batch["masks"].swapaxes(1, 2)[~batch["is_object"]].any()
        assert len(batch["names"]) == b
        assert all(clip.startswith(f"{name}/") for clip in batch["names"])
        assert batch["replaced"] == 0


def test_a_dead_worker_is_started_again_where_it_was(datasets, caplog):
    made = loader.make_loader(datasets, SIZE, 0, num_workers=1)
    first = next(made)
    for worker in multiprocessing.active_children():
        worker.kill()
    rest = [next(made) for _ in range(4)]  # some had been read ahead
    made.close()
    assert_same([first, *rest], batches(datasets, 5))
    assert "all are started again" in caplog.text


def test_workers_that_die_again_and_again_are_one_error(datasets, monkeypatch):
    made = loader.make_loader(datasets, SIZE, 0, num_workers=0)

    class Dying:
        def __next__(self):
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. S")

        def close(self):
            pass

    monkeypatch.setattr(made, "_start", lambda: Dying())
    with pytest.raises(OSError, match=r"died 3 times in a row: .*exit code -9.*num_workers"):
        next(made)


def test_weights_are_shares_of_the_steps(datasets):
    names = [name for name, _ in batches(datasets, 10)]
    assert names.count("videos") == 8
    one = dataclasses.replace(datasets["videos"], weight=0.1)
    assert {name for name, _ in batches({"only": one}, 3)} == {"only"}
    none = dataclasses.replace(datasets["videos"], weight=0.0)
    assert {name for name, _ in batches({"only": one, "none": none}, 3)} == {"only"}


def test_shares_by_size(datasets):
    """Proportional to multiplier x videos / batch size, as in the original."""
    videos = dataclasses.replace(datasets["videos"], weight=1.0, batch_size=1, multiplier=2.0)  # 10
    images = dataclasses.replace(datasets["images"], count=10, batch_size=2, multiplier=0.5)  # 2.5
    made = loader.make_loader({"videos": videos, "images": images}, SIZE, 0, 0)
    assert made.shares == pytest.approx({"videos": 0.8, "images": 0.2})
    # One epoch of both has every video twice and half of the images.
    assert made.epochs == pytest.approx({"videos": 12.5, "images": 12.5})
    names = [next(made)[0] for _ in range(10)]
    made.close()
    assert names.count("videos") == 8

    halved = dataclasses.replace(images, weight=4.0)
    made = loader.make_loader({"videos": videos, "images": halved}, SIZE, 0, 0)
    assert made.shares == pytest.approx({"videos": 0.5, "images": 0.5})

    by_weight = dataclasses.replace(images, multiplier=0.0)
    with pytest.raises(ValueError, match=r"datasets\.images\.multiplier is 0, but others have one"):
        loader.make_loader({"videos": videos, "images": by_weight}, SIZE, 0, 0)
    only = {"videos": videos, "images": dataclasses.replace(by_weight, weight=0.0)}
    assert loader.make_loader(only, SIZE, 0, 0).shares == {"videos": 1.0}


def test_epochs(datasets):
    """Steps of all datasets until every video of one has come."""
    made = loader.make_loader(datasets, SIZE, 0, 0)
    assert made.shares == pytest.approx({"videos": 0.8, "images": 0.2})
    assert made.epochs == pytest.approx({"videos": 5 / 2 / 0.8, "images": 7 / 4 / 0.2})
    assert loader.make_loader({"endless": Procedural()}, SIZE, 0, 0).epochs == {}


def test_every_video_once_an_epoch_and_in_another_order(datasets):
    dataset = dataclasses.replace(datasets["videos"], batch_size=1)
    clips = [batch["names"][0] for _, batch in batches({"videos": dataset}, 15)]
    epochs = [[clip.split(":")[0] for clip in clips[i : i + 5]] for i in (0, 5, 10)]
    assert all(sorted(epoch) == [f"videos/v{i}" for i in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    windows = {clip for clip in clips if clip.startswith("videos/v0")}
    assert len(windows) > 1  # other frames or the other direction


def test_seed_decides_everything(datasets):
    some = batches(datasets, 5)
    assert_same(some, batches(datasets, 5))
    other = batches(datasets, 5, seed=1)
    assert [b["names"] for _, b in some] != [b["names"] for _, b in other]
    # What a dataset gives does not depend on which others there are.
    alone = batches({"videos": datasets["videos"]}, 3)
    assert_same([x for x in some if x[0] == "videos"][:3], alone)


def test_position_can_be_resumed(datasets):
    whole = batches(datasets, 8)
    running = loader.make_loader(datasets, SIZE, 0, 0)
    for _ in range(3):
        next(running)
    state = running.get_state()
    running.close()
    resumed = loader.make_loader(datasets, SIZE, 0, 0)
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert_same(list(itertools.islice(resumed, 5)), whole[3:])
    resumed.set_state(state)  # back again, also while it runs
    assert_same(list(itertools.islice(resumed, 2)), whole[3:5])
    resumed.close()
    for bad in (b"{}", b"nonsense", b'{"position": -1}', b'{"position": "1"}'):
        with pytest.raises(ValueError, match="is not the position of a loader"):
            resumed.set_state(bad)


@pytest.mark.parametrize("count", [1, 2])
def test_batches_do_not_depend_on_the_number_of_processes(datasets, count):
    whole = batches(datasets, 5, start=2)
    parts = [
        batches(datasets, 5, start=2, process_index=i, process_count=count) for i in range(count)
    ]
    for step, (name, batch) in enumerate(whole):
        shares = [part[step] for part in parts]
        assert {share_name for share_name, _ in shares} == {name}
        for key in ("images", "masks", "is_object", "names"):
            joined = np.concatenate([share[key] for _, share in shares])
            np.testing.assert_array_equal(joined, batch[key])
        assert sum(share["replaced"] for _, share in shares) == batch["replaced"]


def test_batches_do_not_depend_on_the_number_of_workers(datasets):
    assert_same(batches(datasets, 6, start=1, num_workers=2), batches(datasets, 6, start=1))


KILLED_RUN = """
import multiprocessing, os, signal, time
from sam2_jax.data import loader

def work(ready):
    loader._begin_worker(0, 1)
    ready.set()
    time.sleep(60)

context = multiprocessing.get_context("fork")
ready = context.Event()
worker = context.Process(target=work, args=(ready,), daemon=True)
worker.start()
assert ready.wait(60)
os.kill(worker.pid, signal.SIGTERM)  # is meant for the run, which may have a checkpoint to write
os.kill(worker.pid, signal.SIGINT)
worker.join(0.5)
assert worker.is_alive()
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_run_and_not_before():
    command = [sys.executable, "-W", "ignore", "-c", KILLED_RUN]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr
    worker = int(result.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and is_running(worker):
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(pid):
    """A process that has ended, but has no parent to notice it, counts as ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def damaged(tmp_path):
    """Six videos: whole; without a JPEG; with half a JPEG; without an object; too short; whole."""
    dataset = write_videos(tmp_path, [f"v{i}" for i in range(6)])
    for t in range(5):
        (tmp_path / "frames" / "v1" / f"{t:05d}.jpg").unlink()
        path = tmp_path / "frames" / "v2" / f"{t:05d}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
        path = tmp_path / "masks" / "v3" / f"{t:05d}.png"
        write_palette_png(path, np.zeros((24, 40), np.uint8))
        if t > 1:
            (tmp_path / "masks" / "v4" / f"{t:05d}.png").unlink()
    return dataclasses.replace(dataset, batch_size=6)


def test_bad_samples_are_replaced_logged_and_counted(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        ((_, batch),) = batches({"set": damaged}, 1)
    assert {name.split(":")[0] for name in batch["names"]} == {"set/v0", "set/v5"}
    messages = [r.getMessage() for r in caplog.records if "sample replaced" in r.getMessage()]
    # Threads may have begun with the next batch.
    assert batch["replaced"] >= 4
    assert len(messages) >= batch["replaced"]
    for text in (
        "set/v1: no such file",
        "00000.jpg is damaged or cut short",
        "set/v3: v3 shows no object",
        "set/v4: v4 has 2 annotated frames",
    ):
        assert any(text in message for message in messages), text
    assert_same(batches({"set": damaged}, 1), [("set", batch)])


def test_a_dataset_without_any_good_sample_ends_the_run(damaged):
    bad = dataclasses.replace(damaged, first=1, count=4)
    made = loader.make_loader({"set": bad}, SIZE, 0, 0)
    with pytest.raises(ValueError, match=r"100 samples of datasets\.set in a row cannot be used"):
        next(made)
    made.close()


def test_objects_too_small_to_be_seen_are_left_out():
    masks = np.zeros((2, 3, 8, 8), bool)
    masks[:, 0, 2:4] = masks[1, 1] = masks[0, 2, 0, 0] = True
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    sample = loader.pad_clip(Clip("clip", frames, masks), 4)
    assert sample["is_object"].tolist() == [True, True, False, False]
    np.testing.assert_array_equal(sample["masks"][:, :2], masks[:, [0, 2]])
    assert not sample["masks"][:, 2:].any()
    with pytest.raises(
        ValueError, match="no object of the first frame is as large as a pixel at 8x8"
    ):
        loader.pad_clip(Clip("clip", frames, masks[:, 1:2]), 4)


def test_batches_of_a_dataset_with_a_label_for_unknown_pixels_say_where_they_are(tmp_path):
    videos = write_videos(tmp_path, ["a", "b"])
    ((_, without),) = batches({"set": videos}, 1)
    ((_, batch),) = batches({"set": dataclasses.replace(videos, ignore_label=2)}, 1)
    assert "ignored" not in without
    assert batch["ignored"].shape == (2, 3, SIZE, SIZE)
    assert batch["ignored"].any((1, 2, 3)).all()
    assert not (batch["ignored"][:, :, None] & batch["masks"]).any()
    assert batch["is_object"].tolist() == [[True, False, False]] * 2


@pytest.mark.parametrize(
    ("fields", "processes", "message"),
    [
        ({"batch_size": 3}, 2, "batch_size is 3; a multiple of the 2 processes"),
        ({"batch_size": 0}, 1, "batch_size is 0"),
        ({"weight": -1.0}, 1, "weight is -1.0; it must be at least 0"),
        ({"num_frames": 0}, 1, "num_frames is 0"),
        ({"max_objects": 0}, 1, "max_objects is 0"),
        ({"stride": 0}, 1, "stride is 0"),
        ({"multiplier": -1.0}, 1, "multiplier is -1.0; it must be at least 0"),
        ({"multiplier": 2.0}, 1, "multiplier is 2.0, but its videos have no end; set count"),
        (
            {"augment": Augment(crop=(0.0, 1.0))},
            1,
            r"augment.crop is \(0.0, 1.0\); it must be more than 0",
        ),
        (
            {"augment": Augment(hue=0.6)},
            1,
            "augment.hue is 0.6; it must be at least 0 and at most 0.5",
        ),
        ({"augment": Augment(mosaic_grid=(2, 0))}, 1, r"augment.mosaic_grid is \(2, 0\)"),
    ],
)
def test_settings_that_make_no_sense(fields, processes, message):
    with pytest.raises(ValueError, match=rf"datasets\.set\.{message}"):
        loader.make_loader({"set": Procedural(**fields)}, SIZE, 0, 0, process_count=processes)
