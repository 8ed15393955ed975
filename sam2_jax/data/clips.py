"""Videos that are read lazily, and the clips that training cuts out of them.

    Video  ->  Clip: frames (T, H, W, 3) uint8 RGB, masks (T, O, H, W) bool

An image is a video of one frame.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Masks = Mapping[int, np.ndarray]  # (H, W) bool by object id


class Video(abc.ABC):
    """Frames and masks that are read when asked for.

    Attributes:
        name: for messages, such as the name of its folder.
        num_frames: frames that a clip may consist of; those without annotation do not count.
    """

    name: str
    num_frames: int

    @abc.abstractmethod
    def read(self, indices: Sequence[int]) -> tuple[list[np.ndarray], list[Masks]]:
        """Reads frames and their masks.

        Args:
            indices: which, each within 0..num_frames - 1, in any order.

        Returns:
            frames: (H, W, 3) uint8 RGB each.
            masks: of every frame, by object id; an object that is not there has none or an empty one.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged.
        """

    @abc.abstractmethod
    def object_ids(self, index: int) -> list[int]:
        """Returns the objects that a clip which starts at a frame may follow: those seen there."""

    def frame_path(self, index: int) -> str | None:
        """Returns the path of the picture that a frame is read from, None if there is no such file."""
        del index
        return None


class StoredVideo(Video):
    """A video whose frames and masks are kept apart."""

    @abc.abstractmethod
    def frames_at(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Reads frames, (H, W, 3) uint8 RGB each."""

    @abc.abstractmethod
    def masks_on(self, index: int) -> Masks:
        """Reads the masks on a frame."""

    def read(self, indices: Sequence[int]) -> tuple[list[np.ndarray], list[Masks]]:
        """Reads frames and their masks."""
        return self.frames_at(indices), [self.masks_on(index) for index in indices]

    def object_ids(self, index: int) -> list[int]:
        """Returns the objects that are seen on a frame."""
        return [object_id for object_id, mask in self.masks_on(index).items() if mask.any()]


class LazyMasks(Masks):
    """Masks by object id that are decoded when asked for, of frames with many objects."""

    def __init__(self, ids: Sequence[int], decode: Callable[[int], np.ndarray]):
        self._ids, self._decode = dict.fromkeys(ids), decode

    def __getitem__(self, object_id: int) -> np.ndarray:
        if object_id not in self._ids:
            raise KeyError(object_id)
        return self._decode(object_id)

    def __contains__(self, object_id: object) -> bool:
        return object_id in self._ids  # that of Mapping would decode

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class VideoList(Sequence):
    """Videos by key, each opened when asked for."""

    def __init__(self, keys: Sequence[Any], open_video: Callable[[Any], Video]):
        self.keys, self._open = keys, open_video

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Video:
        return self._open(self.keys[index])


@dataclasses.dataclass(frozen=True)
class Clip:
    """Consecutive listed frames of a video and some of its objects.

    Attributes:
        name: the video and its frames.
        frames: (T, H, W, 3) uint8 RGB.
        masks: (T, O, H, W) bool; all False where an object is not to be seen.
    """

    name: str
    frames: np.ndarray
    masks: np.ndarray


def sample_clip(
    video: Video,
    num_frames: int,
    max_objects: int,
    rng: np.random.Generator,
    stride: int = 1,
    reverse: float = 0.0,
) -> Clip:
    """Draws a clip: any window of frames on whose first one an object is seen.

    Args:
        video: where from.
        num_frames: T, consecutive ones of every stride-th listed frame.
        max_objects: of more objects on the first frame a random subset is taken.
        rng: decides.
        stride: 1 is every frame.
        reverse: chance that time runs backwards.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the video is too short, no window starts with an object, or a file is damaged.
    """
    listed = np.arange(0, video.num_frames, stride)
    if len(listed) < num_frames:
        raise ValueError(
            f"{video.name} has {len(listed)} annotated frames to choose from; a clip takes {num_frames}"
        )
    if rng.random() < reverse:
        listed = listed[::-1]
    # Windows in random order until one fits: the same as to draw among those that do.
    for start in rng.permutation(len(listed) - num_frames + 1):
        ids = video.object_ids(int(listed[start]))
        if ids:
            break
    else:
        raise ValueError(f"{video.name} shows no object on a frame that a clip could start from")
    chosen = rng.choice(sorted(ids), min(len(ids), max_objects), replace=False).tolist()
    return read_clip(video, listed[start : start + num_frames].tolist(), chosen)


def read_clip(video: Video, indices: Sequence[int], object_ids: Sequence[int]) -> Clip:
    """Reads given frames and objects of a video.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: frames and masks differ in size, or a file is damaged.
    """
    frames, masks = video.read(indices)
    height, width = frames[0].shape[:2]
    stack = np.zeros((len(frames), len(object_ids), height, width), bool)
    for t, (index, frame, by_id) in enumerate(zip(indices, frames, masks, strict=True)):
        if frame.shape[:2] != (height, width):
            raise ValueError(
                f"frame {index} of {video.name} is {frame.shape[1]}x{frame.shape[0]}, but frame "
                f"{indices[0]} is {width}x{height}; all frames must have one size"
            )
        for o, object_id in enumerate(object_ids):
            if object_id not in by_id:
                continue
            mask = by_id[object_id]
            if mask.shape != (height, width):
                raise ValueError(
                    f"the masks of frame {index} of {video.name} are {mask.shape[1]}x{mask.shape[0]}, "
                    f"but the frame is {width}x{height}"
                )
            stack[t, o] = mask
    place = f": frames {indices[0]}-{indices[-1]}" if video.num_frames > 1 else ""
    return Clip(video.name + place, np.stack(frames), stack)
