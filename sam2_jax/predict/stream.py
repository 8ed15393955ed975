"""Track what is pointed at in frames that arrive one at a time, for ever: cameras and pipes.

A stream is a video session that holds one frame, runs one endless pass, and forgets what a stream cannot go
back to. So its numbers are those of `SAM2VideoPredictor` on the same frames.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from sam2_jax.build import Model, load_pretrained, model_of
from sam2_jax.data.videos import Frames, as_rgb
from sam2_jax.module_like import ModuleLike
from sam2_jax.predict import propagation
from sam2_jax.predict.session import InferenceState
from sam2_jax.predict.video import POSTPROCESSING, SAM2VideoPredictor

_MAX_PROMPTED = 16  # prompted frames that an object remembers


class _Newest(Frames):
    """The newest frame of a stream that never ends."""

    def __init__(self):
        self.newest, self._frame = -1, np.zeros((0, 0, 3), np.uint8)

    def __len__(self) -> int:
        raise TypeError("A stream has no length.")

    def exists(self, index: int) -> bool:
        """Every frame comes at some time."""
        return index >= 0

    def push(self, frame: np.ndarray) -> None:
        """Takes the next frame in place of the last one."""
        index = self.newest + 1
        frame = as_rgb(frame, index)
        if index == 0:
            self.height, self.width = frame.shape[:2]
        self._frame = self._check_size(frame, f"frame {index}")
        self.newest = index

    def _read(self, index: int) -> np.ndarray:
        return self._frame

    __getitem__ = _read


class SAM2StreamPredictor(ModuleLike):
    """Frames one at a time; prompts, new objects and removals on the current one. Memory stays constant.

        predictor = SAM2StreamPredictor(build_sam2_video_predictor("sam2.1_hiera_tiny", checkpoint))
        predictor.add_frame(first)
        predictor.add_new_points_or_box(1, [[210, 350]], [1])
        for frame in camera:
            obj_ids, mask_logits = predictor.track(frame)

    The pointers' time code is that of a video of 16 frames or more. An object remembers the last 16 frames on
    which it was prompted.

    Attributes:
      model: the model and its parameters.
    """

    def __init__(self, model: Model | SAM2VideoPredictor):
        """Makes a predictor for one stream; `model` is from `build_sam2`, or a video predictor."""
        self.model = model_of(model)
        self._predictor = SAM2VideoPredictor(self.model, chunk=1)
        self.reset_state()

    @classmethod
    def from_pretrained(cls, model_id: str | os.PathLike, **kwargs: Any) -> "SAM2StreamPredictor":
        """Loads a released model by its hub name, or a local folder or file; see `load_pretrained`."""
        return cls(load_pretrained(model_id, POSTPROCESSING, **kwargs))

    def reset_state(self) -> None:
        """Forgets all objects and frames: the next frame starts a new stream."""
        self._frames = _Newest()
        self._state = InferenceState(self.model, self._frames)
        self._results: Iterator | None = None
        self._return_logits = True

    @property
    def obj_ids(self) -> list[int | str]:
        """Ids of the objects, in the order of the masks."""
        return self._state.obj_ids

    @property
    def frame_idx(self) -> int:
        """Index of the current frame; -1 before the first."""
        return self._frames.newest

    def add_frame(
        self, frame: np.ndarray, return_logits: bool = True
    ) -> tuple[list[int | str], np.ndarray]:
        """Takes the next frame and tracks all objects to it.

        Args:
          frame: (H, W, 3) uint8 RGB, all of one size.
          return_logits: False is much faster for large frames: only the masks leave the device.

        Returns:
          The object ids, and their masks (N, 1, H, W): float32 logits, or bool; N may be 0.

        Raises:
          ValueError: not a frame, or one of another size. It is not taken, the stream goes on.
        """
        self._frames.push(frame)
        if self._results is None or return_logits != self._return_logits:
            self._return_logits = return_logits
            order = range(self.frame_idx, sys.maxsize)
            one = propagation.Propagation(
                self._state, order, 1, 1, return_logits, reads_ahead=False
            )
            self._results = propagation.run_one(one)
        try:
            _, obj_ids, masks = next(self._results)
        except BaseException:
            self._results = None  # an interrupted pass cannot go on; the next frame starts another
            raise
        self._state.drop_before(self.frame_idx, _MAX_PROMPTED)
        return obj_ids, masks

    track = add_frame

    def add_new_points_or_box(
        self,
        obj_id: int | str,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: np.ndarray | None = None,
    ) -> tuple[list[int | str], np.ndarray]:
        """Points at an object on the current frame; see `SAM2VideoPredictor.add_new_points_or_box`.

        Returns:
          The object ids, and their mask logits (N, 1, H, W) float32 on the current frame.

        Raises:
          RuntimeError: there is no frame yet.
          ValueError: as in the video predictor.
        """
        _, obj_ids, masks = self._predictor.add_new_points_or_box(
            self._state,
            self._current(),
            obj_id,
            points,
            labels,
            clear_old_points,
            normalize_coords,
            box,
        )
        return obj_ids, masks

    def add_new_mask(
        self, obj_id: int | str, mask: np.ndarray
    ) -> tuple[list[int | str], np.ndarray]:
        """Gives the mask of an object on the current frame; see `SAM2VideoPredictor.add_new_mask`.

        Returns, raises: as `add_new_points_or_box`.
        """
        _, obj_ids, masks = self._predictor.add_new_mask(self._state, self._current(), obj_id, mask)
        return obj_ids, masks

    def remove_object(
        self, obj_id: int | str, strict: bool = False
    ) -> tuple[list[int | str], np.ndarray]:
        """Forgets an object; the others keep their ids.

        Returns:
          The ids that are left, and their mask logits on the current frame.

        Raises:
          RuntimeError: there is no frame yet.
          ValueError: there is no such object, with `strict`.
        """
        frame = self._current()
        self._predictor.remove_object(self._state, obj_id, strict, need_output=False)
        return self.obj_ids, self._state.video_masks(frame)

    def get_scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Object score logits (N,) and predicted IoUs (N,) on the current frame; see `SAM2VideoPredictor`."""
        return self._predictor.get_scores(self._state, self._current())

    def _current(self) -> int:
        if self.frame_idx < 0:
            raise RuntimeError("There is no frame yet: call add_frame(frame) first.")
        return self.frame_idx
