"""The source of drawn videos."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from sam2_jax.data.annotated import FrameMasks, Video, VideoList
from sam2_jax.data.masks import frame_name
from sam2_jax.data.procedural.frames import Scene, render
from sam2_jax.data.procedural.scenes import MIN_AREA, make_plain_scene, make_scene
from sam2_jax.data.procedural.textures import sort_pictures
from sam2_jax.data.videos import Frames

_ENDLESS = 1_000_000  # videos of a source that has no count


def drawn_videos(
    seed: int,
    num_frames: int,
    size: int,
    first: int = 0,
    count: int = -1,
    is_plain: bool = False,
    pictures: Sequence[str] = (),
) -> VideoList:
    """Opens a source of drawn videos, each determined by its index and the arguments; nothing is drawn yet.

    Objects are numbered from 1. A clip may start with those of which more than a few pixels are visible.

    Args:
        seed: which videos.
        num_frames: of every video.
        size: side of the square frames in pixels.
        first: index of the first video.
        count: how many; -1 is a million.
        is_plain: a few large shapes of one colour each over a smooth background, and nothing else.
        pictures: paths of pictures, besides what is drawn: textures are cut from them, and those with
            transparent parts become objects.

    Raises:
        FileNotFoundError: a picture is missing.
        ValueError: an argument is out of range, or a file is no picture.
    """
    if seed < 0 or first < 0 or count < -1 or num_frames < 1 or size < 16:
        raise ValueError(
            f"seed {seed}, first {first}, count {count}, num_frames {num_frames}, size {size}: seed >= 0, "
            "first >= 0, count >= -1, num_frames >= 1 and size >= 16 are expected"
        )
    make = make_plain_scene
    if not is_plain:
        make = functools.partial(make_scene, collection=sort_pictures(pictures))
    indices = range(first, first + (_ENDLESS if count == -1 else count))
    return VideoList(
        indices, functools.partial(_open, seed=seed, num_frames=num_frames, size=size, make=make)
    )


def _open(index: int, seed: int, num_frames: int, size: int, make: Callable[..., Scene]) -> Video:
    frames = _DrawnFrames((seed, index), num_frames, size, make)
    names = [frame_name(t) for t in range(num_frames)]
    return Video(f"procedural {seed}/{index}", names, frames, range(num_frames), frames.masks)


class _DrawnFrames(Frames):
    """Frames of a scene that is made when the first is read, each drawn on its own with its masks."""

    def __init__(self, key: tuple[int, int], num_frames: int, size: int, make: Callable):
        self.height = self.width = size
        self._key, self._num_frames, self._make = key, num_frames, make
        self._last: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        return self._num_frames

    @functools.cached_property
    def scene(self) -> Scene:
        return self._make(np.random.default_rng(self._key), self._num_frames, self.height)

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        last = self._last
        if last is None or last[0] != index:
            rng = np.random.default_rng((*self._key, index))
            self._last = last = index, render(self.scene, index, rng)
        return last[1]

    def _read(self, index: int) -> np.ndarray:
        return self._draw(index)[0]

    def masks(self, index: int) -> FrameMasks:
        """Masks of the objects of which a pixel is visible."""
        if not self.exists(index):
            raise IndexError(f"no frame {index}: there are {len(self)} frames")
        ids = self._draw(index)[1]
        areas = np.bincount(ids.ravel())
        areas[0] = 0
        return FrameMasks(
            np.flatnonzero(areas).tolist(),
            lambda object_id: ids == object_id,
            ids.shape,
            visible=np.flatnonzero(areas >= MIN_AREA * ids.size).tolist(),
        )
