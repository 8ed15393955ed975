import itertools
import logging

import numpy as np
import pytest

from sam2_jax.data.annotated import FrameMasks, Video, VideoList
from sam2_jax.data.clips import Clip
from sam2_jax.data.datasets import Procedural
from sam2_jax.data.videos import FrameList
from sam2_jax.evaluate import clips
from sam2_jax.evaluate.clips import clip_scores, held_out_clips, predict_masks, score_names
from tests import toy


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    with toy.counted_programs([(clips, "_track", 0)]):
        yield


VIDEOS = Procedural(num_frames=3, max_objects=2, count=4, seed=1)


def drawn_clip(num_frames: int, num_objects: int) -> Clip:
    """Squares that move to the right."""
    frames = np.full((num_frames, toy.SIZE, toy.SIZE, 3), 40, np.uint8)
    masks = np.zeros((num_frames, num_objects, toy.SIZE, toy.SIZE), bool)
    for t, n in itertools.product(range(num_frames), range(num_objects)):
        masks[t, n, 8 + 24 * n : 24 + 24 * n, 8 + 4 * t : 24 + 4 * t] = True
        frames[t, masks[t, n]] = 220 - 60 * n
    return Clip("squares", frames, masks)


def squares(name: str) -> Video:
    """A square that moves, in 96 x 64 pixels."""
    clip = drawn_clip(4, 1)
    wide = lambda x: np.pad(x, [(0, 0), (0, 32), *[(0, 0)] * (x.ndim - 2)])

    def masks(index):
        if name == "b":
            raise ValueError("b is damaged")
        return FrameMasks([1], lambda _: wide(clip.masks[index, 0]), (64, 96))

    frames = FrameList([wide(frame) for frame in clip.frames])
    return Video(name, ["0", "1", "2", "3"], frames, range(4), masks)


def test_held_out_clips_are_the_same_every_time_and_shared_by_readers():
    whole = list(held_out_clips(VIDEOS, 64))
    parts = [list(held_out_clips(VIDEOS, 64, part, 2)) for part in range(2)]
    assert [clip.name for clip in whole] == [
        c.name for pair in zip(*parts, strict=True) for c in pair
    ]
    for clip, again in zip(whole, held_out_clips(VIDEOS, 64), strict=True):
        np.testing.assert_array_equal(clip.frames, again.frames)
        np.testing.assert_array_equal(clip.masks, again.masks)
        assert clip.frames.shape == (3, 64, 64, 3)
        assert clip.masks.shape[1] <= 2
        assert clip.masks[0].any((1, 2)).all()


def test_held_out_clips_are_resized_to_squares_and_damaged_ones_left_out(monkeypatch, caplog):
    monkeypatch.setattr(Procedural, "open", lambda self, image_size: VideoList("abc", squares))
    with caplog.at_level(logging.WARNING, "sam2_jax"):
        found = list(held_out_clips(VIDEOS, 32))
    assert [clip.name[0] for clip in found] == ["a", "c"]
    assert found[0].frames.shape == (3, 32, 32, 3)
    assert found[0].masks.shape == (3, 1, 32, 32)
    assert found[0].masks.any((1, 2, 3)).all()
    assert "held-out clip left out: b is damaged" in caplog.text


def test_endless_videos_are_no_held_out_set():
    with pytest.raises(ValueError, match="procedural videos need a number"):
        next(held_out_clips(Procedural(), 64))


def test_the_first_mask_is_given_and_the_rest_is_predicted():
    model, clip = toy.model(), drawn_clip(3, 2)
    predicted = predict_masks(model.module, model.params, clip, 2)
    assert predicted.shape == clip.masks.shape
    assert clip_scores(predicted[[0, 0]], Clip("", clip.frames[:2], clip.masks[[0, 0]]))["J"] > [
        0.9
    ]
    # What comes later is not looked at, and objects that fill up the shape change nothing.
    blind = Clip("", clip.frames, clip.masks[:, :1] & (np.arange(3) < 1)[:, None, None, None])
    alone = predict_masks(model.module, model.params, blind, 2)
    np.testing.assert_array_equal(alone, predicted[:, :1])


def test_objects_of_an_image_get_a_click_in_their_middle():
    model, clip = toy.model(), drawn_clip(1, 2)
    prompt = clips._clicks(np.concatenate([clip.masks[0], np.zeros((1, 64, 64), bool)]))
    (x0, y0), (x1, y1) = prompt.points[:2, 0]
    assert 14 <= x0 <= 17
    assert 14 <= y0 <= 17
    assert 38 <= y1 <= 41
    assert x1 == x0
    np.testing.assert_array_equal(prompt.num_points, [1, 1, 0])
    predicted = predict_masks(model.module, model.params, clip, 3)
    assert predicted.shape == (1, 2, 64, 64)


def test_scores_of_videos():
    clip = drawn_clip(3, 2)
    perfect = clip_scores(clip.masks, clip)
    assert perfect == {"J&F": [1, 1], "J": [1, 1], "F": [1, 1]}
    still = clip_scores(np.repeat(clip.masks[:1], 3, 0), clip)
    expected = (
        12 / 20 + 8 / 24
    ) / 2  # moved by a quarter and by half of its width; not the first frame
    np.testing.assert_allclose(still["J"], [expected, expected])
    np.testing.assert_allclose(still["J&F"], np.add(still["J"], still["F"]) / 2)
    gone = Clip("", clip.frames, clip.masks & np.array([True, False])[:, None, None])
    gone.masks[0] = clip.masks[0]
    assert len(clip_scores(clip.masks, gone)["J"]) == 1
    assert tuple(perfect) == score_names(VIDEOS)


def test_what_is_ignored_is_left_out_of_scores():
    clip = drawn_clip(3, 2)
    ignored = np.broadcast_to(np.arange(64)[:, None] >= 40, (3, 64, 64))
    known = Clip("", clip.frames, clip.masks & ~ignored[:, None], ignored)
    assert clip_scores(clip.masks | ignored[:, None], known) == clip_scores(known.masks, known)
    image = Clip("", clip.frames[:1], known.masks[:1], ignored[:1])
    assert clip_scores(clip.masks[:1] | ignored[:1, None], image) == {"iou": [1, 1]}


def test_scores_of_images():
    clip = drawn_clip(1, 2)
    scores = clip_scores(clip.masks & (np.arange(64) < 16), clip)
    assert scores == {"iou": [0.5, 0.5]}
    assert tuple(scores) == score_names(Procedural(num_frames=1))
