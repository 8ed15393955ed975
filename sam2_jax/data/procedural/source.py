"""The source of drawn videos."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from sam2_jax.data.clips import Video
from sam2_jax.data.procedural.frames import Scene, draw_frame, visible_areas
from sam2_jax.data.procedural.scenes import MIN_AREA, make_plain_scene, make_scene
from sam2_jax.data.procedural.textures import sort_pictures

_ENDLESS = 1_000_000  # videos of a source that has no count


class ProceduralVideos(Sequence):
    """A source of drawn videos, each determined by its index and the arguments below."""

    def __init__(
        self,
        seed: int,
        count: int,
        num_frames: int,
        size: int,
        is_plain: bool = False,
        pictures: Sequence[str] = (),
    ):
        """Opens the source; nothing is drawn yet.

        Args:
            seed: which videos.
            count: how many; -1 is a million.
            num_frames: of every video.
            size: side of the square frames in pixels.
            is_plain: a few large shapes of one colour each over a smooth background, and nothing else.
            pictures: paths of pictures, besides what is drawn: textures are cut from them, and those with
                transparent parts become objects.

        Raises:
            FileNotFoundError: a picture is missing.
            ValueError: an argument is out of range, or a file is no picture.
        """
        if seed < 0 or count < -1 or num_frames < 1 or size < 16:
            raise ValueError(
                f"seed {seed}, count {count}, num_frames {num_frames}, size {size}: seed >= 0, "
                "count >= -1, num_frames >= 1 and size >= 16 are expected"
            )
        self._seed, self._num_frames, self._size = seed, num_frames, size
        if is_plain:
            self._make = make_plain_scene
        else:
            self._make = functools.partial(make_scene, collection=sort_pictures(pictures))
        self._count = _ENDLESS if count == -1 else count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> "ProceduralVideo":
        if not 0 <= index < self._count:
            raise IndexError(f"there is no video {index}; the source has {self._count}")
        return ProceduralVideo(self._seed, index, self._num_frames, self._size, self._make)


class ProceduralVideo(Video):
    """A drawn video. Its scene is made when it is first read, a frame whenever it is read."""

    def __init__(
        self, seed: int, index: int, num_frames: int, size: int, make: Callable[..., Scene]
    ):
        self.name = f"procedural {seed}/{index}"
        self.num_frames = num_frames
        self._key, self._size = (seed, index), size
        self._make = make

    def read(self, indices: Sequence[int]) -> tuple[list[np.ndarray], list[dict[int, np.ndarray]]]:
        """Draws frames, each of them independently of the others.

        Args:
            indices: which, each within 0..num_frames - 1, in any order.

        Returns:
            frames: (H, W, 3) uint8 RGB each.
            masks: of every frame the (H, W) bool visible pixels of the objects that have any, by id.

        Raises:
            IndexError: the video has no such frame.
        """
        drawn = [self._draw(index) for index in indices]
        return [frame for frame, _ in drawn], [masks for _, masks in drawn]

    def object_ids(self, index: int) -> list[int]:
        """Returns the objects, from 1, of which more than a few pixels are visible on a frame."""
        self._check(index)
        things, camera = self._scene.things, self._scene.camera
        areas = visible_areas(things, camera, float(index), self._size)
        return [i for i, area in enumerate(areas) if i > 0 and area >= MIN_AREA * self._size**2]

    def _draw(self, index: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        self._check(index)
        frame, ids = draw_frame(self._scene, index, np.random.default_rng((*self._key, index)))
        present = np.flatnonzero(np.bincount(ids.ravel())).tolist()
        return frame, {i: ids == i for i in present if i > 0}

    def _check(self, index: int) -> None:
        if not 0 <= index < self.num_frames:
            raise IndexError(f"{self.name} has no frame {index}; it has {self.num_frames}")

    @functools.cached_property
    def _scene(self) -> Scene:
        return self._make(np.random.default_rng(self._key), self.num_frames, self._size)
