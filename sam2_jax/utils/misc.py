"""What programs import of `sam2.utils.misc`."""

import os
from typing import Any

import numpy as np
from tqdm import tqdm

from sam2_jax.data.videos import open_frames
from sam2_jax.outputs import HostArray, as_array, to_host
from sam2_jax.predict.postprocessing import fill_holes
from sam2_jax.predict.state_keys import Images
from sam2_jax.utils.amg import batched_mask_to_box

__all__ = [
    "batched_mask_to_box",
    "concat_points",
    "fill_holes_in_mask_scores",
    "load_video_frames",
    "load_video_frames_from_jpg_images",
    "mask_to_box",
    "tqdm",  # programs put another in its place, to be quiet
]


def mask_to_box(masks: Any) -> HostArray:
    """(B, 1, H, W) masks -> (B, 1, 4) boxes x0, y0, x1, y1 of first and last pixels."""
    return to_host(batched_mask_to_box(masks).astype(np.float32))


def fill_holes_in_mask_scores(mask: Any, max_area: int) -> HostArray:
    """(N, 1, h, w) logits with holes of up to `max_area` cells filled, as 0.1.

    Raises:
      ValueError: `max_area` is not positive.
    """
    if max_area <= 0:
        raise ValueError(f"max_area is {max_area}; expected more than 0.")
    return to_host(fill_holes(np.asarray(as_array(mask), np.float32), int(max_area)))


def concat_points(
    old_point_inputs: dict[str, Any] | None, new_points: Any, new_labels: Any
) -> dict[str, Any]:
    """Appends points (B, P, 2) and labels (B, P) to earlier ones, or begins with them."""
    old = old_point_inputs or {}
    join = lambda name, new: np.concatenate(
        [np.asarray(as_array(x)) for x in (old.get(name), new) if x is not None], 1
    ).view(HostArray)
    return {
        "point_coords": join("point_coords", new_points),
        "point_labels": join("point_labels", new_labels),
    }


def load_video_frames(
    video_path: str | os.PathLike, image_size: int, offload_video_to_cpu: bool = True, **_: Any
) -> tuple[Images, int, int]:
    """Opens a video as the model's input.

    Args:
      video_path: a video file or a folder of images.
      image_size: S.
      offload_video_to_cpu: accepted for the original's sake, as its other options are: frames are read
        when asked for.

    Returns:
      The images, (3, S, S) float32 each, and height and width of the video.

    Raises:
      FileNotFoundError, ValueError: it cannot be opened.
    """
    del offload_video_to_cpu
    frames = open_frames(video_path)
    return Images(frames, image_size, "numpy"), frames.height, frames.width


load_video_frames_from_jpg_images = load_video_frames
