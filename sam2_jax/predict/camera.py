"""The stream predictor under the names of the fork that programs with cameras were written for.

segment-anything-2-real-time has no video to open: frames come one at a time, prompts are on the current one.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_jax.build import build_model
from sam2_jax.checkpoint import Checkpoint
from sam2_jax.predict.session import FrameMasks, InferenceState
from sam2_jax.predict.stream import SAM2StreamPredictor
from sam2_jax.predict.video import POSTPROCESSING


class SAM2CameraPredictor(SAM2StreamPredictor):
    """Frames of a camera, one at a time.

    predictor = build_sam2_camera_predictor("sam2.1_hiera_tiny", checkpoint)
    predictor.load_first_frame(frame)
    predictor.add_new_prompt(0, 1, bbox=[[100, 100], [300, 300]])
    for frame in camera:
        obj_ids, mask_logits = predictor.track(frame)
    """

    def load_first_frame(self, img: np.ndarray) -> None:
        """Starts anew with a frame.

        Args:
          img: (H, W, 3) uint8 RGB.

        Raises:
          ValueError: it is not a frame.
        """
        self.reset_state()
        self.add_frame(img)

    def add_conditioning_frame(self, img: np.ndarray) -> None:
        """Takes the next frame, to be prompted; objects are tracked to it."""
        self.add_frame(img)

    @property
    def condition_state(self) -> InferenceState:
        """The session, which answers the keys of the original's state."""
        return self._state

    def add_new_prompt(
        self,
        frame_idx: int,
        obj_id: int | str,
        points: Any = None,
        labels: Any = None,
        bbox: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
    ) -> FrameMasks:
        """Points at an object on the current frame.

        Args:
          frame_idx: the current frame; 0 after `load_first_frame`.
          obj_id: the object.
          points: (P, 2) points (x, y) in pixels.
          labels: (P,) 1 object, 0 background; 1 for all when None.
          bbox: (4,) or (2, 2) x0, y0, x1, y1.
          clear_old_points: replace earlier points of the object on this frame.
          normalize_coords: False means that coordinates are in [0, 1] already.

        Returns:
          frame_idx, the object ids, and their mask logits (N, 1, H, W) on this frame.

        Raises:
          RuntimeError: there is no frame yet.
          ValueError: as in the video predictor, or another frame than the current one.
        """
        self._check_current(frame_idx)
        if points is not None and labels is None:
            labels = np.ones(np.shape(points)[:-1], np.int32)
        ids, masks = self.add_new_points_or_box(
            obj_id, points, labels, clear_old_points, normalize_coords, bbox
        )
        return frame_idx, ids, masks

    def add_new_points(
        self,
        frame_idx: int,
        obj_id: int | str,
        points: Any,
        labels: Any,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
    ) -> FrameMasks:
        """`add_new_prompt` with points."""
        return self.add_new_prompt(
            frame_idx, obj_id, points, labels, None, clear_old_points, normalize_coords
        )

    def add_new_mask(  # pyright: ignore[reportIncompatibleMethodOverride]  (the fork's order)
        self, frame_idx: int, obj_id: int | str, mask: Any
    ) -> FrameMasks:
        """Gives the mask of an object on the current frame; returns and raises as `add_new_prompt`."""
        self._check_current(frame_idx)
        return frame_idx, *super().add_new_mask(obj_id, mask)

    def _check_current(self, frame_idx: int) -> None:
        if frame_idx != self._current():
            raise ValueError(
                f"The prompt is on frame {frame_idx} and the stream is at {self.frame_idx}: only the current "
                "frame can be prompted."
            )


def build_sam2_camera_predictor(
    config_file: str | os.PathLike | None = None,
    ckpt_path: str | os.PathLike | Checkpoint | None = None,
    device: Any = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> SAM2CameraPredictor:
    """Builds a predictor for a camera; arguments and errors as for `build_sam2`."""
    del device
    built = build_model(
        config_file,
        ckpt_path,
        POSTPROCESSING if apply_postprocessing else {},
        mode=mode,
        hydra_overrides_extra=hydra_overrides_extra,
        **kwargs,
    )
    return SAM2CameraPredictor(built)
