"""Masks as run lengths, boxes of masks, grids of clicks: what programs import of `sam2.utils.amg`.

Arrays or tensors go in, arrays that answer PyTorch's words come out.
"""

from typing import Any

import numpy as np

from sam2_jax.data.masks import encode_rle
from sam2_jax.outputs import HostArray, as_array, to_host
from sam2_jax.predict import mask_generator

build_point_grid = mask_generator.point_grid


def build_all_layer_point_grids(
    n_per_side: int, n_layers: int, scale_per_layer: int
) -> list[np.ndarray]:
    """Returns (P, 2) clicks in [0, 1] for each layer: `n_per_side` over `scale_per_layer` to its power."""
    sides = [int(n_per_side / scale_per_layer**layer) for layer in range(n_layers + 1)]
    return [build_point_grid(side) for side in sides]


def generate_crop_boxes(
    im_size: tuple[int, ...], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """Returns x0, y0, x1, y1 of each crop of an image of height and width `im_size`, and their layers."""
    height, width = im_size[:2]
    found = mask_generator.crop_boxes(height, width, n_layers, overlap_ratio)
    return [list(box) for _, box in found], [layer for layer, _ in found]


def mask_to_rle_pytorch(tensor: Any) -> list[dict[str, Any]]:
    """(N, H, W) masks -> run lengths of each: column by column, runs of 0 and 1 in turn, 0 first."""
    masks = np.asarray(as_array(tensor)) != 0
    return [mask_generator.run_lengths(mask) for mask in masks]


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """Run lengths -> (H, W) bool."""
    height, width = rle["size"]
    counts = np.asarray(rle["counts"])
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(width, height).T


def area_from_rle(rle: dict[str, Any]) -> int:
    """Pixels of a mask that is given by run lengths."""
    return sum(rle["counts"][1::2])


def coco_encode_rle(uncompressed_rle: dict[str, Any]) -> dict[str, Any]:
    """Run lengths -> COCO's compressed ones, as text."""
    return encode_rle(rle_to_mask(uncompressed_rle))


def box_xyxy_to_xywh(box_xyxy: Any) -> HostArray:
    """(..., 4) x0, y0, x1, y1 -> x, y, width, height."""
    box = to_host(as_array(box_xyxy)).copy()
    box[..., 2:] -= box[..., :2]
    return box


def batched_mask_to_box(masks: Any) -> HostArray:
    """(..., H, W) masks -> (..., 4) first and last pixels x0, y0, x1, y1; zeros for an empty mask."""
    masks = np.asarray(as_array(masks)) != 0
    edges = []
    for axis in (-2, -1):  # columns, rows
        is_set = masks.any(axis)
        size = is_set.shape[-1]
        edges.append((is_set.argmax(-1), size - 1 - is_set[..., ::-1].argmax(-1)))
    (x0, x1), (y0, y1) = edges
    boxes = np.stack([x0, y0, x1, y1], -1) * masks.any((-2, -1))[..., None]
    return boxes.view(HostArray)


def calculate_stability_score(
    masks: Any, mask_threshold: float, threshold_offset: float
) -> HostArray:
    """(..., H, W) logits -> IoU of what is above the threshold raised and lowered by the offset."""
    masks = np.asarray(as_array(masks))
    inner = (masks > mask_threshold + threshold_offset).sum((-2, -1))
    outer = (masks > mask_threshold - threshold_offset).sum((-2, -1))
    return to_host(np.asarray(inner / np.maximum(outer, 1), np.float32))


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
