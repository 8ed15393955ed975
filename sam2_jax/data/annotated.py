"""A video with its masks, for training and for evaluation: frames and masks by index, read when asked for.

    Video: .frames[i] -> (H, W, 3) uint8 RGB;   .masks(i) -> FrameMasks: (H, W) bool by object id

An image is a video of one frame.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sam2_jax.data.videos import FirstFrames, Frames


class FrameMasks(Mapping[int, np.ndarray]):
    """The masks of a frame by object id, each (H, W) bool and decoded whenever it is asked for.

    Attributes:
        size: (H, W), also where there is no object.
        ignored: (H, W) bool, the pixels of which it is not known what they show; None where all are known.

    Args:
        ids: of the objects.
        decode: gives the mask of one.
        size: (H, W).
        visible: the objects that can be seen, where that is known without decoding.
        ignored: see above.
    """

    def __init__(
        self,
        ids: Sequence[int],
        decode: Callable[[int], np.ndarray],
        size: tuple[int, int],
        visible: Sequence[int] | None = None,
        ignored: np.ndarray | None = None,
    ):
        self._ids, self._decode, self._visible = dict.fromkeys(ids), decode, visible
        self.size, self.ignored = size, ignored

    def __getitem__(self, object_id: int) -> np.ndarray:
        if object_id not in self._ids:
            raise KeyError(object_id)
        mask = self._decode(object_id)
        if mask.shape != self.size:
            raise ValueError(
                f"the mask of object {object_id} is {mask.shape[1]}x{mask.shape[0]}, but the others of "
                f"its frame are {self.size[1]}x{self.size[0]}"
            )
        return mask

    def __contains__(self, object_id: object) -> bool:
        return object_id in self._ids  # Mapping's own would decode

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def visible(self) -> list[int]:
        """Returns the objects whose masks are not empty."""
        if self._visible is not None:
            return list(self._visible)
        return [object_id for object_id, mask in self.items() if mask.any()]


class _NoFrames(Frames):
    """The frames of a video that has only masks."""

    height = width = 0

    def __len__(self) -> int:
        return 0

    def _read(self, index: int) -> np.ndarray:
        raise IndexError(f"no frame {index}")


NO_FRAMES = _NoFrames()


def _no_masks(index: int) -> FrameMasks:
    raise ValueError(f"there are no masks of frame {index}")


@dataclasses.dataclass(frozen=True)
class Video:
    """A video, or an image as a video of one frame, with masks on all frames or some.

    Close it, or use it in a `with` statement, where its frames come from a video file.

    Attributes:
        name: for messages and results, such as the name of its folder.
        frame_names: of all frames, in the order of time; what has the same name belongs together.
        frames: the pictures; `NO_FRAMES` if there are only masks.
        annotated: indices of the frames that have masks, ascending.
        read_masks: gives the masks of one of these; `masks` also checks them.
        is_by_object: each object has files, and so frames, of its own.
        mask_file: a picture of masks whose palette results may use.
    """

    name: str
    frame_names: Sequence[str]
    frames: Frames = NO_FRAMES
    annotated: Sequence[int] = ()
    read_masks: Callable[[int], FrameMasks] = _no_masks
    is_by_object: bool = False
    mask_file: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, of the frames or else of the masks."""
        if self.frames is NO_FRAMES:
            return self.read_masks(self.annotated[0]).size
        return self.frames.height, self.frames.width

    def masks(self, index: int) -> FrameMasks:
        """Returns the masks of an annotated frame.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the masks are not as large as the frames.
        """
        masks = self.read_masks(index)
        if self.frames is not NO_FRAMES and masks.size != self.size:
            raise ValueError(
                f"the masks of frame {self.frame_names[index]} of {self.name} are "
                f"{masks.size[1]}x{masks.size[0]}, but the frames are {self.size[1]}x{self.size[0]}"
                + (
                    ": does an EXIF orientation turn one of them?"
                    if masks.size == self.size[::-1]
                    else ""
                )
            )
        return masks

    def object_ids(self, index: int | None = None) -> list[int]:
        """Returns the objects that can be seen on a frame, or on any frame, ascending."""
        indices = self.annotated if index is None else [index]
        return sorted({i for t in indices for i in self.masks(t).visible()})

    def with_masks(self, other: "Video") -> "Video":
        """Returns these frames with the masks of another video, joined by the names of the frames."""
        places = {other.frame_names[t]: t for t in other.annotated}
        joined = {t: places[name] for t, name in enumerate(self.frame_names) if name in places}
        return dataclasses.replace(
            self,
            annotated=tuple(joined),
            read_masks=lambda index: other.read_masks(joined[index]),
            is_by_object=other.is_by_object,
            mask_file=other.mask_file,
        )

    def first(self, count: int | None) -> "Video":
        """Returns the first frames, all if `count` is None; the caller still closes the whole video."""
        if count is None:
            return self
        return dataclasses.replace(
            self,
            frame_names=self.frame_names[:count],
            frames=self.frames if self.frames is NO_FRAMES else FirstFrames(self.frames, count),
            annotated=[t for t in self.annotated if t < count],
        )

    def only(self, object_id: int) -> "Video":
        """Returns the same with one object and its name; the caller still closes the whole video."""

        def read(index: int) -> FrameMasks:
            masks = self.read_masks(index)
            ids = [object_id] if object_id in masks else []
            return FrameMasks(ids, masks.__getitem__, masks.size, ignored=masks.ignored)

        return dataclasses.replace(self, name=f"{self.name}/{object_id}", read_masks=read)

    def close(self) -> None:
        """Releases what the frames hold open."""
        self.frames.close()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoList(Sequence[Video]):
    """Videos, each opened when asked for: `[i]` by place, `open(key)` by key.

    Attributes:
        keys: in their order; names wherever videos have any that are known before they are opened.
        open: opens one.
        where: what they are and where, for messages.
    """

    def __init__(self, keys: Sequence[Any], open: Callable[[Any], Video], where: str = ""):
        self.keys, self.open, self.where = keys, open, where

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Video:
        return self.open(self.keys[index])
