"""Masks on the host: run lengths, boxes, small regions.

(H, W) bool  <->  {"size": [H, W], "counts": [...]}
"""

from typing import Any

import numpy as np

from sam2_jax.data.masks import boxes_from_masks
from sam2_jax.outputs import HostArray, as_array


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> {"size": [H, W], "counts": [...]}: column by column, runs of 0 and 1 in turn, 0 first."""
    pixels = mask.T.ravel()
    ends = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(ends, prepend=0, append=len(pixels)).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """Run lengths -> (H, W) bool."""
    height, width = rle["size"]
    counts = np.asarray(rle["counts"])
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(width, height).T


def batched_mask_to_box(masks: Any) -> HostArray:
    """(..., H, W) masks -> (..., 4) first and last pixels x0, y0, x1, y1; zeros for an empty mask."""
    masks = np.asarray(as_array(masks)) != 0
    boxes = boxes_from_masks(masks.reshape(-1, *masks.shape[-2:]))
    boxes[:, 2:] += boxes[:, :2] - (boxes[:, 2:] > 0)
    return boxes.reshape(*masks.shape[:-2], 4).view(HostArray)


def remove_small_regions(
    mask: np.ndarray, area_thresh: float, mode: str
) -> tuple[np.ndarray, bool]:
    """Fills holes or removes specks of fewer than `area_thresh` pixels.

    Args:
      mask: (H, W) bool.
      area_thresh: pixels.
      mode: "holes" or "islands". Of islands that are all small the largest stays.

    Returns:
      The mask, and whether anything changed.

    Raises:
      ValueError: another mode.
    """
    from scipy import ndimage

    if mode not in ("holes", "islands"):
        raise ValueError(f"mode is {mode!r}; expected 'holes' or 'islands'.")
    mask = np.asarray(as_array(mask)) != 0
    regions = np.zeros(mask.shape, np.int32)
    ndimage.label(mask ^ (mode == "holes"), np.ones((3, 3)), output=regions)
    areas = np.bincount(regions.ravel())[1:]
    small = 1 + np.flatnonzero(areas < area_thresh)
    if not len(small):
        return mask, False
    if mode == "holes":
        return mask | np.isin(regions, small), True
    if len(small) == len(areas):
        small = small[small != 1 + areas.argmax()]
    return mask & ~np.isin(regions, small), True
