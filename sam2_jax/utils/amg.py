"""Masks as run lengths, boxes of masks, grids of clicks: what programs import of `sam2.utils.amg`.

Arrays or tensors go in, arrays that answer PyTorch's words come out.
"""

import copy
from collections.abc import ItemsView, Iterator
from typing import Any

import numpy as np

from sam2_jax.data.masks import encode_rle
from sam2_jax.outputs import HostArray, as_array, to_host
from sam2_jax.predict import mask_generator
from sam2_jax.predict.regions import (
    batched_mask_to_box,
    remove_small_regions,
    rle_to_mask,
    run_lengths,
)

__all__ = [
    "MaskData",
    "area_from_rle",
    "batch_iterator",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "build_point_grid",
    "calculate_stability_score",
    "coco_encode_rle",
    "generate_crop_boxes",
    "is_box_near_crop_edge",
    "mask_to_rle_pytorch",
    "remove_small_regions",
    "rle_to_mask",
    "uncrop_boxes_xyxy",
    "uncrop_masks",
    "uncrop_points",
]

build_point_grid = mask_generator.point_grid


def _array(x: Any) -> HostArray:
    return np.array(as_array(x)).view(HostArray)


class MaskData:
    """What is known of K masks, by name: lists and arrays of K; tensors become arrays."""

    def __init__(self, **stats: Any):
        self._stats: dict[str, Any] = {}
        for key, item in stats.items():
            self[key] = item

    def __setitem__(self, key: str, item: Any) -> None:
        self._stats[key] = item if item is None or isinstance(item, list) else _array(item)

    def __delitem__(self, key: str) -> None:
        del self._stats[key]

    def __getitem__(self, key: str) -> Any:
        return self._stats[key]

    def items(self) -> ItemsView[str, Any]:
        """Names and what they hold."""
        return self._stats.items()

    def filter(self, keep: Any) -> None:
        """Keeps those at an index, or where a bool array is True."""
        keep = np.asarray(as_array(keep))
        index = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep
        for key, item in self.items():
            if item is not None:
                self._stats[key] = (
                    [item[i] for i in index] if isinstance(item, list) else item[index]
                )

    def cat(self, new_stats: "MaskData") -> None:
        """Appends other masks, of which the same is known."""
        for key, item in new_stats.items():
            old = self._stats.get(key)
            if old is None:
                self[key] = copy.deepcopy(item)
            else:
                is_list = isinstance(item, list)
                self[key] = old + copy.deepcopy(item) if is_list else np.concatenate([old, item])

    def to_numpy(self) -> None:
        """Makes plain arrays of the arrays."""
        for key, item in self.items():
            if isinstance(item, HostArray):
                self._stats[key] = item.numpy()


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Yields slices of all arguments, which are of one length, `batch_size` at a time."""
    for i in range(0, len(args[0]), batch_size):
        yield [arg[i : i + batch_size] for arg in args]


def uncrop_boxes_xyxy(boxes: Any, crop_box: list[int]) -> HostArray:
    """(K, 4) boxes in a crop -> in the picture."""
    return _array(boxes) + np.tile(crop_box[:2], 2)


def uncrop_points(points: Any, crop_box: list[int]) -> HostArray:
    """(..., 2) points (x, y) in a crop -> in the picture."""
    return _array(points) + np.asarray(crop_box[:2])


def uncrop_masks(masks: Any, crop_box: list[int], orig_h: int, orig_w: int) -> HostArray:
    """(K, h, w) masks of a crop -> (K, orig_h, orig_w), 0 outside of it."""
    x0, y0, x1, y1 = crop_box
    return np.pad(_array(masks), ((0, 0), (y0, orig_h - y1), (x0, orig_w - x1))).view(HostArray)


def is_box_near_crop_edge(
    boxes: Any, crop_box: list[int], orig_box: list[int], atol: float = 20.0
) -> HostArray:
    """(K, 4) boxes in a crop -> (K,) bool, whether one ends at an edge of it that is not the picture's."""
    boxes = uncrop_boxes_xyxy(boxes, crop_box)
    near = lambda edges: np.abs(boxes - np.asarray(edges)) <= atol
    return (near(crop_box) & ~near(orig_box)).any(1)


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
    return [run_lengths(mask) for mask in masks]


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


def calculate_stability_score(
    masks: Any, mask_threshold: float, threshold_offset: float
) -> HostArray:
    """(..., H, W) logits -> IoU of what is above the threshold raised and lowered by the offset."""
    masks = np.asarray(as_array(masks))
    inner = (masks > mask_threshold + threshold_offset).sum((-2, -1))
    outer = (masks > mask_threshold - threshold_offset).sum((-2, -1))
    return to_host(np.asarray(inner / np.maximum(outer, 1), np.float32))
