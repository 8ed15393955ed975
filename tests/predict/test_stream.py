"""A stream: the numbers of the video predictor, prompts at any time, and memory that stays as it is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sam2_jax import SAM2StreamPredictor, SAM2VideoPredictor
from sam2_jax.predict import stream as stream_module
from tests import toy
from tests.parity.reference_scene import scene, scene_masks

HEIGHT, WIDTH = 40, 56
FRAMES = scene(
    24, HEIGHT, WIDTH
)  # more than the 16 from which on the time code is that of a stream
CLICKS = np.array([[14.0, 18.0], [40.0, 15.0], [25.0, 33.0]])


@pytest.fixture(scope="module")
def model():
    return toy.model()


@pytest.fixture
def stream(model):
    return SAM2StreamPredictor(model)


def masks_of(stream, frames):
    return [stream.track(frame)[1] for frame in frames]


def test_it_equals_the_video_predictor(model, stream):
    predictor = SAM2VideoPredictor(model)
    state = predictor.init_state(FRAMES)
    expected = {}
    add = predictor.add_new_points_or_box
    expected["first"] = add(state, 0, 1, CLICKS[:1], [1])[2]
    for t, _, masks in predictor.propagate_in_video(state, 0, 7):
        expected[t] = masks
    expected["again"] = add(state, 7, 1, CLICKS[1:2], [0])[2]
    expected["late"] = predictor.add_new_mask(state, 7, "box", scene_masks(8, HEIGHT, WIDTH)[7, 1])[
        2
    ]
    for t, _, masks in predictor.propagate_in_video(state, 8, 7):
        expected[t] = masks
    predictor.remove_object(state, 1)
    for t, _, masks in predictor.propagate_in_video(state, 16):
        expected[t] = masks

    same = lambda found, key: np.testing.assert_array_equal(found[1], expected[key])
    assert stream.add_frame(FRAMES[0])[0] == []
    same(stream.add_new_points_or_box(1, CLICKS[:1], [1]), "first")
    for t in range(1, 8):
        same(stream.track(FRAMES[t]), t)
    same(stream.add_new_points_or_box(1, CLICKS[1:2], [0]), "again")
    same(stream.add_new_mask("box", scene_masks(8, HEIGHT, WIDTH)[7, 1]), "late")
    for t in range(8, 16):
        ids, masks = stream.track(FRAMES[t])
        assert ids == stream.obj_ids == [1, "box"]
        same((ids, masks), t)
    assert stream.remove_object(1)[0] == ["box"]
    for t in range(16, 24):
        same(stream.track(FRAMES[t]), t)
    assert stream.frame_idx == 23


def test_masks_alone_are_where_logits_are_positive(model, stream):
    other = SAM2StreamPredictor(model)
    for each in (stream, other):
        each.add_frame(FRAMES[0])
        each.add_new_points_or_box(1, CLICKS[:1], [1])
        each.add_new_points_or_box(2, CLICKS[1:2], [1])
    for t, frame in enumerate(FRAMES[1:8]):
        _, logits = stream.track(frame)
        _, masks = other.track(frame, return_logits=t == 3)  # and back again
        assert masks.dtype == (np.float32 if t == 3 else bool)
        np.testing.assert_array_equal(masks > 0, logits > 0)


def test_nothing_to_track_is_no_error(stream):
    with pytest.raises(RuntimeError, match="no frame yet"):
        stream.add_new_points_or_box(1, CLICKS[:1], [1])
    for frame in FRAMES[:3]:
        ids, masks = stream.track(frame)
        assert ids == []
        assert masks.shape == (0, 1, HEIGHT, WIDTH)
    stream.add_new_points_or_box(1, CLICKS[:1], [1])
    assert stream.track(FRAMES[3])[1].shape == (1, 1, HEIGHT, WIDTH)
    stream.remove_object(1)
    assert stream.track(FRAMES[4])[1].shape == (0, 1, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="no object 1"):
        stream.remove_object(1, strict=True)


def test_scores_belong_to_the_current_frame(stream):
    stream.add_frame(FRAMES[0])
    stream.add_new_points_or_box(1, CLICKS[:1], [1])
    stream.add_new_points_or_box(2, CLICKS[1:2], [1])
    found = []
    for frame in FRAMES[1:4]:
        stream.track(frame)
        found.append(stream.get_scores())
    assert all(scores.shape == ious.shape == (2,) for scores, ious in found)
    assert len({tuple(scores) for scores, _ in found}) == 3


@pytest.mark.parametrize(
    "frame",
    [
        FRAMES[0].astype(np.float32),
        FRAMES[0][..., :2],
        FRAMES[0][:0],
        FRAMES[0, 0],
        scene(1, HEIGHT, WIDTH + 2)[0],
    ],
)
def test_a_bad_frame_is_refused_and_the_stream_goes_on(model, stream, frame):
    expected = SAM2StreamPredictor(model)
    for each in (stream, expected):
        each.add_frame(FRAMES[0])
        each.add_new_points_or_box(1, CLICKS[:1], [1])
        each.track(FRAMES[1])
    with pytest.raises(ValueError, match="frame"):
        stream.track(frame)
    assert stream.frame_idx == 1
    for one, other in zip(
        masks_of(stream, FRAMES[2:5]), masks_of(expected, FRAMES[2:5]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_stream_starts_anew_after_a_reset(stream):
    found = []
    for _ in range(2):
        stream.add_frame(FRAMES[0])
        stream.add_new_points_or_box(1, CLICKS[:1], [1])
        found.append(masks_of(stream, FRAMES[1:4]))
        stream.reset_state()
        assert (stream.obj_ids, stream.frame_idx) == ([], -1)
    np.testing.assert_array_equal(*found)


def test_what_is_kept_does_not_grow(model, monkeypatch):
    monkeypatch.setattr(stream_module, "_MAX_PROMPTED", 2)
    stream = SAM2StreamPredictor(model)
    stream.add_frame(FRAMES[0])
    sizes = []
    for t in range(1, 48):
        if t % 4 == 1:  # prompted again and again, objects come and go
            stream.add_new_points_or_box(1, CLICKS[t % 3 : t % 3 + 1], [1])
            stream.add_new_points_or_box(100 + t, CLICKS[:1], [1])
            stream.remove_object(96 + t)
        stream.track(FRAMES[t % 24])
        store = stream._state.objects[1]
        kept = (store.points, store.masks, store.prompted, store.tracked, store.pending)
        sizes.append((stream._state.store.num_bytes, *map(len, (*kept, store.directions))))
    assert max(sizes[24:]) == max(sizes[20:28])
    assert max(len(store.prompted) for store in stream._state.objects.values()) <= 2


LONG = """
import resource, sys
import numpy as np
from sam2_jax import SAM2StreamPredictor
from tests import toy
from tests.parity.reference_scene import scene

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

stream = SAM2StreamPredictor(toy.model(image_size=128))
frames = scene(50, 120, 160)
stream.add_frame(frames[0])
stream.add_new_points_or_box(1, [[40, 50]], [1])
stream.add_new_points_or_box(2, box=[80, 20, 140, 90])
for t in range(1, 501):
    stream.track(frames[t % 50])
    if t % 50 == 0:
        print(t, resident(), flush=True)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_resident_memory_is_flat_over_500_frames():
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", LONG],
        cwd=root,
        # glibc takes another arena for a thread at any time, 13 MB were seen, and gives single buffers back
        # at some moments and not at others: with these limits memory that was once used stays.
        env=os.environ
        | {"MALLOC_ARENA_MAX": "1"}
        | dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(1 << 30)),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    resident = {int(t): int(size) for t, size in map(str.split, result.stdout.splitlines())}
    assert len(resident) == 10
    after_warm_up = [size for t, size in resident.items() if t >= 200]
    assert max(after_warm_up) <= 1.02 * after_warm_up[0]
    assert np.median(np.diff(after_warm_up)) < 50 * 4096
