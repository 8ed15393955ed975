import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_jax.data import clips
from sam2_jax.data.annotated import FrameMasks, Video
from sam2_jax.data.videos import FrameList

HEIGHT, WIDTH = 6, 8


def drawn(num_frames, seen):
    """Frame t is of value t; object i is on the frames of `seen[i]`, and fills i pixels of row 0."""

    def masks(index):
        found = {}
        for object_id, frames in seen.items():
            found[object_id] = np.zeros((HEIGHT, WIDTH), bool)
            found[object_id][0, :object_id] = index in frames
        return FrameMasks(list(found), found.__getitem__, (HEIGHT, WIDTH))

    pictures = FrameList([np.full((HEIGHT, WIDTH, 3), t, np.uint8) for t in range(num_frames)])
    names = [str(t) for t in range(num_frames)]
    return Video("drawn", names, pictures, range(num_frames), masks)


def sample(video, num_frames=3, max_objects=2, seed=0, **options):
    return clips.sample_clip(video, num_frames, max_objects, np.random.default_rng(seed), **options)


@settings(max_examples=60, deadline=None)
@given(
    num_frames=st.integers(1, 5),
    stride=st.integers(1, 3),
    extra=st.integers(0, 20),
    max_objects=st.integers(1, 4),
    reverse=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_window(num_frames, stride, extra, max_objects, reverse, seed, data):
    total = (num_frames - 1) * stride + 1 + extra
    listed = range(0, total, stride)
    starts = listed[num_frames - 1 :] if reverse else listed[: len(listed) - num_frames + 1]
    seen = {i: data.draw(st.sets(st.sampled_from(range(total)))) for i in (1, 2, 3)}
    seen[4] = {data.draw(st.sampled_from(starts))}  # one window fits at least
    clip = sample(drawn(total, seen), num_frames, max_objects, seed, stride=stride, reverse=reverse)

    frames = clip.frames[:, 0, 0, 0].astype(int)
    assert clip.frames.shape == (num_frames, HEIGHT, WIDTH, 3)
    assert set(frames) <= set(listed)
    assert (np.diff(frames) == (-stride if reverse else stride)).all()
    assert clip.masks.shape[1] == min(max_objects, sum(frames[0] in f for f in seen.values()))
    assert clip.masks[0].any((1, 2)).all()
    ids = clip.masks[0].sum((1, 2)).tolist()
    assert len(set(ids)) == len(ids)
    for n, object_id in enumerate(ids):
        areas = clip.masks[:, n].sum((1, 2)).tolist()
        assert areas == [object_id * (t in seen[object_id]) for t in frames]
    assert clip.name == (f"drawn: frames {frames[0]}-{frames[-1]}" if total > 1 else "drawn")


def test_all_windows_and_objects_are_drawn():
    video = drawn(6, {1: {0, 2, 3}, 2: {2}, 3: {2, 5}})
    taken = [sample(video, 3, 2, seed) for seed in range(60)]
    assert {int(clip.frames[0, 0, 0, 0]) for clip in taken} == {0, 2, 3}
    pairs = {frozenset(c.masks[0].sum((1, 2)).tolist()) for c in taken if c.frames[0, 0, 0, 0] == 2}
    assert pairs == {frozenset(p) for p in ((1, 2), (1, 3), (2, 3))}


def test_time_runs_backwards_as_often_as_asked():
    video = drawn(9, {1: range(9)})
    turned = [
        np.diff(sample(video, 2, 1, seed, reverse=0.25).frames[:, 0, 0, 0].astype(int))[0] < 0
        for seed in range(400)
    ]
    assert 0.18 < np.mean(turned) < 0.32


def test_videos_that_do_not_serve():
    with pytest.raises(ValueError, match=r"drawn has 2 annotated frames.*a clip takes 3"):
        sample(drawn(4, {1: range(4)}), 3, stride=2)
    with pytest.raises(ValueError, match="drawn shows no object on a frame"):
        sample(drawn(4, {1: {2, 3}}), 3)


def test_only_annotated_frames_are_taken():
    video = dataclasses.replace(drawn(20, {1: range(20)}), annotated=[0, 4, 8, 12, 16])
    for seed in range(10):
        frames = sample(video, 3, 1, seed).frames[:, 0, 0, 0].tolist()
        assert frames in ([0, 4, 8], [4, 8, 12], [8, 12, 16])
    assert sample(video, 3, 1, stride=2).frames[:, 0, 0, 0].tolist() == [0, 8, 16]


def test_a_stride_is_drawn_for_every_clip():
    steps = lambda total, **options: {
        int(
            np.diff(
                sample(drawn(total, {1: range(total)}), 3, 1, seed, **options).frames[:2, 0, 0, 0]
            )[0]
        )
        for seed in range(30)
    }
    assert steps(20, max_stride=4) == {1, 2, 3, 4}
    assert steps(20, stride=2, max_stride=3) == {2, 3}
    assert steps(5, max_stride=4) == {1, 2}  # a clip of stride 3 would take 7 frames
    assert steps(20, stride=2) == {2}
    with pytest.raises(ValueError, match="drawn has 2 annotated frames"):
        sample(drawn(4, {1: range(4)}), 3, stride=2, max_stride=3)


def test_videos_are_truncated():
    video = dataclasses.replace(drawn(20, {1: range(20)}), annotated=[0, 4, 8, 12, 16])
    for seed in range(10):
        assert sample(video, 3, 1, seed, truncate=3).frames[:, 0, 0, 0].tolist() == [0, 4, 8]
        assert sample(video, 2, 1, seed, stride=2, truncate=3).frames[:, 0, 0, 0].tolist() == [0, 8]
    with pytest.raises(ValueError, match="drawn has 2 annotated frames"):
        sample(video, 3, truncate=2)
    assert len({int(sample(video, 2, 1, s, truncate=0).frames[0, 0, 0, 0]) for s in range(40)}) == 4


def test_sizes_that_do_not_fit():
    one = lambda size: FrameMasks([1], lambda _: np.ones(size, bool), size)
    frames = FrameList([np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((7, 9, 3), np.uint8)])
    video = Video("drawn", ["0", "1"], frames, [0, 1], lambda _: one((HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match=r"frame 1 is 9x7, but the first frame is 8x6"):
        clips.read_clip(video, [0, 1], [1])
    video = dataclasses.replace(video, read_masks=lambda _: one((3, 4)))
    with pytest.raises(ValueError, match=r"masks of frame 0 of drawn are 4x3, but .* 8x6"):
        clips.read_clip(video, [0, 1], [1])
