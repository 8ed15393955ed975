"""Clips that training and validation cut out of videos.

Video  ->  Clip: frames (T, H, W, 3) uint8 RGB, masks (T, O, H, W) bool, ignored (T, H, W) bool
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sam2_jax.data.annotated import Video


@dataclasses.dataclass(frozen=True)
class Clip:
    """Consecutive annotated frames of a video and some of its objects.

    Attributes:
        name: the video and its frames.
        frames: (T, H, W, 3) uint8 RGB.
        masks: (T, O, H, W) bool; all False where an object is not visible.
        ignored: (T, H, W) bool, the pixels of which it is not known what they show; None if the dataset has no
            label for them.
    """

    name: str
    frames: np.ndarray
    masks: np.ndarray
    ignored: np.ndarray | None = None


def sample_clip(
    video: Video,
    num_frames: int,
    max_objects: int,
    rng: np.random.Generator,
    stride: int = 1,
    reverse: float = 0.0,
    max_stride: int = 0,
    truncate: int = -1,
) -> Clip:
    """Draws a clip: any window of frames whose first one shows an object.

    Args:
        video: the source.
        num_frames: T, consecutive ones of every stride-th annotated frame.
        max_objects: if the first frame shows more, a random subset is taken.
        rng: source of randomness.
        stride: 1 is every annotated frame.
        reverse: chance that time runs backwards.
        max_stride: if above `stride`, one from `stride` to this is drawn, as far as the video is long enough.
        truncate: how many annotated frames are used, the first ones; below 1 is all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the video is too short, no window starts with an object, or a file is damaged.
    """
    listed = np.asarray(video.annotated, int)[: truncate if truncate > 0 else None]
    if max_stride > stride:
        longest = (len(listed) - 1) // max(num_frames - 1, 1)
        stride = int(rng.integers(stride, max(stride, min(max_stride, longest)) + 1))
    listed = listed[::stride]
    if len(listed) < num_frames:
        raise ValueError(
            f"{video.name} has {len(listed)} annotated frames to choose from; a clip takes {num_frames}"
        )
    if rng.random() < reverse:
        listed = listed[::-1]
    # Windows in random order until one fits, which is the same as drawing among those that do.
    for start in rng.permutation(len(listed) - num_frames + 1):
        ids = video.object_ids(int(listed[start]))
        if ids:
            break
    else:
        raise ValueError(f"{video.name} shows no object on a frame that a clip could start from")
    chosen = rng.choice(ids, min(len(ids), max_objects), replace=False).tolist()
    return read_clip(video, listed[start : start + num_frames].tolist(), chosen)


def read_clip(video: Video, indices: Sequence[int], object_ids: Sequence[int]) -> Clip:
    """Reads given annotated frames and objects of a video.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: frames and masks differ in size, or a file is damaged.
    """
    frames = np.zeros((len(indices), *video.size, 3), np.uint8)
    masks = np.zeros((len(indices), len(object_ids), *video.size), bool)
    ignored = None
    for t in np.argsort(indices):  # video files are decoded forward only
        frames[t] = video.frames[indices[t]]
        by_id = video.masks(indices[t])
        if by_id.ignored is not None:
            ignored = np.zeros_like(masks[:, 0]) if ignored is None else ignored
            ignored[t] = by_id.ignored
        for o, object_id in enumerate(object_ids):
            if object_id in by_id:
                masks[t, o] = by_id[object_id]
    names = video.frame_names[indices[0]], video.frame_names[indices[-1]]
    place = f": frames {names[0]}-{names[1]}" if len(video.frame_names) > 1 else ""
    return Clip(video.name + place, frames, masks, ignored)
