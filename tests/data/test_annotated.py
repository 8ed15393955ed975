import dataclasses

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.annotated import NO_FRAMES, FrameMasks, Video, VideoList
from sam2_jax.data.masks import write_object_masks, write_palette_png
from sam2_jax.data.readers import frames_only, object_masks, palette_masks
from sam2_jax.data.videos import FrameList

SIZE = (6, 8)


def masks_at(index):
    """Object 3 on even frames, object 5 empty."""
    full = np.full(SIZE, index % 2 == 0)
    return FrameMasks([5, 3], lambda i: full & (i == 3), SIZE)


def video(num_frames=5, annotated=(0, 1, 4)):
    frames = FrameList([np.full((*SIZE, 3), t, np.uint8) for t in range(num_frames)])
    names = [f"f{t}" for t in range(num_frames)]
    return Video("v", names, frames, annotated, masks_at)


def test_only_wanted_masks_are_decoded():
    decoded = []
    masks = FrameMasks([3, 5], lambda i: decoded.append(i) or np.ones(SIZE, bool), SIZE)
    assert list(masks) == [3, 5]
    assert len(masks) == 2
    assert 3 in masks
    assert 4 not in masks
    assert not decoded
    assert masks[5].all()
    assert decoded == [5]
    with pytest.raises(KeyError):
        masks[4]
    known = FrameMasks([3, 5], lambda i: decoded.append(i), SIZE, visible=[5])
    assert known.visible() == [5]
    assert decoded == [5]


def test_masks_of_several_sizes_are_an_error():
    masks = FrameMasks([1, 2], lambda i: np.ones((i, 4), bool), (1, 4))
    assert masks[1].all()
    with pytest.raises(ValueError, match="object 2 is 4x2, but the others of its frame are 4x1"):
        masks[2]


def test_objects_of_a_frame_and_of_a_video():
    assert video().object_ids(0) == [3]
    assert video().object_ids(1) == []
    assert video().object_ids() == [3]
    assert video().size == dataclasses.replace(video(), frames=NO_FRAMES).size == SIZE
    with pytest.raises(ValueError, match="there are no masks of frame 2"):
        Video("v", ["a"]).masks(2)


def test_first_frames():
    first = video().first(2)
    assert first.frame_names == ["f0", "f1"]
    assert len(first.frames) == 2
    assert first.annotated == [0, 1]
    assert video().first(None).frame_names == video().frame_names


def test_closing_reaches_the_frames():
    closed = []
    frames = FrameList([np.zeros((*SIZE, 3), np.uint8)])
    frames.close = lambda: closed.append(1)
    with Video("v", ["0"], frames):
        assert not closed
    assert closed
    Video("v", ["0"]).close()


def write_frames(folder, names):
    folder.mkdir()
    for t, name in enumerate(names):
        Image.new("RGB", SIZE[::-1], (t, t, t)).save(folder / f"{name}.png")


def test_masks_are_joined_to_frames_by_name(tmp_path):
    write_frames(tmp_path / "frames", ["2", "10", "9", "11"])
    (tmp_path / "masks").mkdir()
    for name in ("9", "11", "300"):  # the last one belongs to no frame
        ids = np.full(SIZE, int(name) % 256, np.uint8)
        write_palette_png(tmp_path / "masks" / f"{name}.png", ids)
    frames = frames_only("v", str(tmp_path / "frames"))
    joined = frames.with_masks(palette_masks("v", str(tmp_path / "masks")))
    assert list(joined.frame_names) == ["2", "9", "10", "11"]
    assert joined.annotated == (1, 3)
    assert [joined.object_ids(t) for t in joined.annotated] == [[9], [11]]
    assert [frame[0, 0, 0] for frame in joined.frames] == [0, 2, 1, 3]
    assert joined.mask_file.endswith("9.png")
    assert not joined.is_by_object


def test_objects_have_frames_of_their_own(tmp_path):
    write_frames(tmp_path / "frames", ["00000", "00001"])
    for t, ids in ((0, [1, 2]), (1, [2])):
        write_object_masks(tmp_path / "masks", t, ids, np.ones((len(ids), *SIZE), bool))
    frames = frames_only("v", str(tmp_path / "frames"))
    joined = frames.with_masks(object_masks("v", str(tmp_path / "masks")))
    assert joined.is_by_object
    assert [list(joined.masks(t)) for t in joined.annotated] == [[1, 2], [2]]


def test_videos_by_place_and_by_key():
    videos = VideoList(["a", "b"], lambda name: Video(name, ["0"]), "here")
    assert [v.name for v in videos] == ["a", "b"]
    assert videos.open("b").name == videos[1].name == "b"
