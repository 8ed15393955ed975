"""Frames as decoders and other libraries hand them over."""

import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.data.videos import open_frames
from tests.parity.reference_scene import scene

CLIP = scene(4, 24, 32)


class Reader:
    """Decodes the frame it is asked for, as readers of videos do."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.asked.append(i)
        return CLIP[i]


@pytest.mark.parametrize("make", [jnp.asarray, np.asarray, list, tuple])
def test_an_array_of_any_library_is_a_video(make):
    with open_frames(make(CLIP)) as frames:
        assert (len(frames), frames.height, frames.width) == (4, 24, 32)
        np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in frames]), CLIP)


def test_a_reader_is_asked_for_one_frame_at_a_time():
    reader = Reader()
    with open_frames(reader) as frames:
        np.testing.assert_array_equal(frames[2], CLIP[2])
    assert reader.asked == [0, 2]


@pytest.mark.parametrize(
    ("clip", "hint"),
    [
        (CLIP[..., 0], "np.stack"),
        (CLIP.transpose(0, 3, 1, 2), "transpose"),
        (CLIP / np.float32(255), r"\(frame \* 255\)"),
        (np.dstack([CLIP[0], CLIP[0][..., :1]])[None], "Drop the alpha"),
    ],
    ids=["grey", "channels first", "float", "alpha"],
)
def test_what_is_no_video_says_how_to_make_it_one(clip, hint):
    with pytest.raises(ValueError, match=rf"frame 0 is .*{hint}"):
        open_frames(clip)


def test_what_is_no_frames_at_all_is_refused():
    for source in ({0: CLIP[0]}, {1}, 5):
        with pytest.raises(ValueError, match="cannot read frames from"):
            open_frames(source)
