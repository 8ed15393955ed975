"""Segment everything in a picture: the original's `SAM2AutomaticMaskGenerator`.

A grid of clicks over the picture, and over crops of it, is decoded in batches. Of all answers those stay
that the model is sure of, that do not depend on the threshold, and that no better one repeats.

crop  ->  features;  clicks (P, 2)  ->  candidates  ->  filters, suppression  ->  masks (H, W)

Candidates stay maps of S/4 cells until the end: on the device they are enlarged only to be measured, and
once more, as bits, when they survived.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sam2_jax.build import Model, load_pretrained
from sam2_jax.config import POSTPROCESSING_IMAGE
from sam2_jax.data.masks import encode_rle
from sam2_jax.predict import postprocessing, preprocessing
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.structs import Prompt

_EDGE = 20  # pixels; a box that ends so close to the edge of a crop is cut off by it
_SIZE_STEP = 256  # sides are rounded up to it: one program serves photos of similar size
_MASKS_AT_ONCE = 16  # enlarged by one call
_OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class Candidates(NamedTuple):
    """K masks that were found in crops of a picture.

    Attributes:
      masks: (K, S/4, S/4) float32 logits in the crop.
      ious: (K,) predicted IoU.
      stability: (K,) how little the mask depends on the threshold, 0 to 1.
      boxes: (K, 4) int x0, y0, x1, y1, first and last pixels of the mask in the picture.
      points: (K, 2) the click (x, y) in pixels of the picture.
      crops: (K, 4) int x0, y0, x1, y1, the crop.
    """

    masks: np.ndarray
    ious: np.ndarray
    stability: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    crops: np.ndarray

    def take(self, index: np.ndarray) -> "Candidates":
        """Those at an index, or where a bool array is True."""
        return Candidates(*(x[index] for x in self))


def _join(parts: list[Candidates]) -> Candidates:
    return Candidates(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def point_grid(n: int) -> np.ndarray:
    """(n * n, 2) middles (x, y) of the cells of an n x n grid over the unit square, x fastest."""
    middles = (np.arange(n) + 0.5) / n
    return np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)


def crop_boxes(
    height: int, width: int, num_layers: int, overlap_ratio: float
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Overlapping crops of a picture: layer 0 is the picture, layer i has 2**i by 2**i crops.

    Args:
      height: of the picture.
      width: of the picture.
      num_layers: layers beside layer 0.
      overlap_ratio: overlap of the crops of layer 1, as a part of the shorter side; halved with each layer.

    Returns:
      Pairs of the layer and (x0, y0, x1, y1), the latter not included. Crops without any pixel, of very
      small pictures, are left out.
    """
    found = [(0, (0, 0, width, height))]
    for layer in range(1, num_layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(height, width) * 2 / n)
        w, h = (math.ceil((overlap * (n - 1) + side) / n) for side in (width, height))
        for i in range(n):
            for k in range(n):
                x, y = i * (w - overlap), k * (h - overlap)
                if x < width and y < height:
                    found.append((layer, (x, y, min(x + w, width), min(y + h, height))))
    return found


def is_cut(boxes: np.ndarray, crop: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """(K, 4) boxes -> (K,) bool, whether one ends at an edge of the crop that is not one of the picture."""
    near = lambda edges: np.abs(boxes - np.array(edges)) <= _EDGE
    return (near(crop) & ~near((0, 0, width, height))).any(1)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression: drops boxes that overlap a better one by an IoU above the threshold.

    Args:
      boxes: (K, 4) x0, y0, x1, y1.
      scores: (K,) higher is better; among equals the first is.
      threshold: of the IoU of two boxes; those of no area overlap nothing.

    Returns:
      Indices of the boxes that stay, the best one first.
    """
    order = np.argsort(-scores, kind="stable")
    low, high = boxes[order, :2].astype(np.float64), boxes[order, 2:].astype(np.float64)
    area = (high - low).prod(1)
    is_alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if is_alive[i]:
            overlap = np.minimum(high[i], high[i + 1 :]) - np.maximum(low[i], low[i + 1 :])
            both = overlap.clip(min=0).prod(1)
            is_alive[i + 1 :] &= both <= threshold * (area[i] + area[i + 1 :] - both)
    return order[is_alive]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> {"size": [H, W], "counts": [...]}: column by column, runs of 0 and 1 in turn, 0 first."""
    pixels = mask.T.ravel()
    ends = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(ends, prepend=0, append=len(pixels)).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def _enlarge(mask, rows, columns):
    """(h, w) logits -> (H, W), minus infinity outside of the crop."""
    enlarged = jnp.einsum("yi,ij,xj->yx", rows, mask, columns, precision="highest")
    is_inside = rows.any(1)[:, None] & columns.any(1)
    return jnp.where(is_inside, enlarged, -jnp.inf)


def _first_and_last(is_set):
    """(L,) bool -> positions of the first and the last True."""
    return jnp.argmax(is_set), len(is_set) - 1 - jnp.argmax(is_set[::-1])


@jax.jit
def _measure(masks, rows, columns, threshold, offset):
    """Stability (K,) and boxes (K, 4) in the crop of masks (K, h, w); both are 0 for an empty one."""

    def measure(mask):
        logits = _enlarge(mask, rows, columns)
        inner, outer = (
            (logits > level).sum() for level in (threshold + offset, threshold - offset)
        )
        y0, y1 = _first_and_last(logits.max(1) > threshold)
        x0, x1 = _first_and_last(logits.max(0) > threshold)
        box = jnp.where(logits.max() > threshold, jnp.stack([x0, y0, x1, y1]), 0)
        return inner / jnp.maximum(outer, 1), box

    return jax.lax.map(measure, masks)  # one after the other: an enlarged mask fits the cache


@jax.jit
def _binarise(masks, rows, columns, threshold):
    """Masks (K, h, w) -> (K, H, W / 8) uint8, a bit for each pixel above the threshold."""
    return jax.lax.map(
        lambda mask: jnp.packbits(_enlarge(mask, rows, columns) > threshold, -1), masks
    )


class _Crop:
    """Runs functions of masks at the size of a crop, padded to static numbers of masks and pixels."""

    def __init__(self, height: int, width: int, mask_size: int):
        self.height, self.width = height, width
        padded = [-(-side // _SIZE_STEP) * _SIZE_STEP for side in (height, width)]
        self._weights = [
            preprocessing.pad_rows(postprocessing.resize_weights(mask_size, side), size)
            for side, size in zip((height, width), padded, strict=True)
        ]

    def _run(self, function: Callable, masks: np.ndarray, *thresholds: float) -> Iterator:
        for i in range(0, len(masks), _MASKS_AT_ONCE):
            chunk = masks[i : i + _MASKS_AT_ONCE]
            n, padded = len(chunk), preprocessing.pad_rows(chunk, _MASKS_AT_ONCE)
            answer = function(padded, *self._weights, *thresholds)
            yield jax.tree.map(lambda x, n=n: np.asarray(x)[:n], answer)

    def measure(
        self, masks: np.ndarray, threshold: float, offset: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stability (K,) and boxes (K, 4) of masks (K, h, w)."""
        nothing = (np.zeros(0, np.float32), np.zeros((0, 4), np.int32))
        answers = [nothing, *self._run(_measure, masks, threshold, offset)]
        stability, boxes = (np.concatenate(x) for x in zip(*answers, strict=True))
        return stability, boxes

    def binarise(self, masks: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
        """(H, W) bool of each of the masks (K, h, w)."""
        for packed in self._run(_binarise, masks, threshold):
            for bits in packed:
                pixels = np.unpackbits(bits[: self.height], axis=-1, count=self.width)
                yield pixels.astype(bool)


@dataclasses.dataclass(eq=False)
class SAM2AutomaticMaskGenerator:
    """Finds all masks of a picture without being pointed at anything.

    Attributes:
      model: from `build_sam2`.
      points_per_side: clicks along a side of the picture; None if `point_grids` is given.
      points_per_batch: clicks decoded at once.
      pred_iou_thresh: masks stay whose predicted IoU is above it; 0 keeps all.
      stability_score_thresh: masks stay whose stability is at least it; 0 keeps all.
      stability_score_offset: stability is the part of the mask that stays when the threshold rises from
        this much below `mask_threshold` to as much above it.
      mask_threshold: logits above it are the object.
      box_nms_thresh: of masks of one crop whose boxes have a higher IoU, the one with the best predicted
        IoU stays.
      crop_n_layers: layers of crops that are segmented as well; layer i has 2**i by 2**i.
      crop_nms_thresh: as `box_nms_thresh` between crops, where the mask of the smaller crop stays.
      crop_overlap_ratio: overlap of the crops of layer 1, as a part of the picture's shorter side.
      crop_n_points_downscale_factor: layer i has `points_per_side` over this to the power of i.
      point_grids: (P, 2) clicks (x, y) in [0, 1] for each layer, instead of `points_per_side`.
      min_mask_region_area: holes and specks up to this many cells of the S/4 map are filled and removed.
      output_mode: "binary_mask", "uncompressed_rle" or "coco_rle".
      use_m2m: decode every mask once more from itself and its click.
      multimask_output: three masks for a click instead of one.

    Raises:
      ValueError: settings that make no sense.
    """

    model: Model = dataclasses.field(repr=False)
    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    mask_threshold: float = 0.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[np.ndarray] | None = None
    min_mask_region_area: int = 0
    output_mode: str = "binary_mask"
    use_m2m: bool = False
    multimask_output: bool = True

    def __post_init__(self):
        for name, least in (
            ("points_per_batch", 1),
            ("crop_n_layers", 0),
            ("crop_n_points_downscale_factor", 1),
            ("min_mask_region_area", 0),
            ("stability_score_offset", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ValueError(
                f"crop_overlap_ratio is {self.crop_overlap_ratio}; expected at least 0, below 1."
            )
        if self.output_mode not in _OUTPUT_MODES:
            raise ValueError(
                f"output_mode is {self.output_mode!r}; expected one of {', '.join(_OUTPUT_MODES)}."
            )
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("Give either points_per_side or point_grids, and None for the other.")
        self.point_grids = self._grids()
        self.predictor = SAM2ImagePredictor(
            self.model,
            max_hole_area=self.min_mask_region_area,
            max_sprinkle_area=self.min_mask_region_area,
        )

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> "SAM2AutomaticMaskGenerator":
        """Loads a released model by its hub name, or a local folder or file.

        Args:
          model_id: as for `load_pretrained`.
          **kwargs: attributes of this class; all others go to `build_sam2`.
        """
        own = {field.name for field in dataclasses.fields(cls)} & kwargs.keys()
        options = {name: kwargs.pop(name) for name in own}
        return cls(load_pretrained(model_id, POSTPROCESSING_IMAGE, **kwargs), **options)

    def _grids(self) -> list[np.ndarray]:
        """(P, 2) clicks in [0, 1] for each layer."""
        num_layers = self.crop_n_layers + 1
        if self.point_grids is not None:
            grids = [np.asarray(grid, np.float64) for grid in self.point_grids]
            is_grid = lambda x: (
                x.ndim == 2 and x.shape[1] == 2 and len(x) and ((x >= 0) & (x <= 1)).all()
            )
            if len(grids) != num_layers or not all(is_grid(grid) for grid in grids):
                raise ValueError(
                    f"point_grids has shapes {[grid.shape for grid in grids]}; expected {num_layers} of "
                    "(P, 2), one for each layer, with x and y in 0...1."
                )
            return grids
        sides = [
            int(self.points_per_side / self.crop_n_points_downscale_factor**layer)
            for layer in range(num_layers)
        ]
        if min(sides) < 1:
            raise ValueError(f"The layers have {sides} points a side; expected at least 1 in each.")
        return [point_grid(side) for side in sides]

    def generate(
        self, image: np.ndarray | Image.Image, progress: Callable[[int], Any] | None = None
    ) -> list[dict[str, Any]]:
        """Segments everything in a picture.

        Args:
          image: (H, W, 3) RGB; uint8, or float in [0, 1]; or a PIL image.
          progress: is called after each batch with the number of clicks in it.

        Returns:
          For each mask a dict: `segmentation`, (H, W) bool or the run lengths that `output_mode` asks for;
          `area` in pixels; `bbox` [x, y, width, height] in pixels, the latter two being last less first;
          `predicted_iou`; `stability_score`; `point_coords` [[x, y]] of the click, in pixels; `crop_box`
          [x, y, width, height] of the crop. The best predicted IoU first; with crops, the smallest crops.

        Raises:
          ValueError: it is not an image.
        """
        image = preprocessing.check_image(image)
        height, width = image.shape[:2]
        crops = crop_boxes(height, width, self.crop_n_layers, self.crop_overlap_ratio)
        found = _join(
            [self._search(image, crop, self.point_grids[layer], progress) for layer, crop in crops]
        )
        if len(crops) > 1:
            crop_areas = (found.crops[:, 2:] - found.crops[:, :2]).prod(1)
            found = found.take(suppress(found.boxes, 1 / crop_areas, self.crop_nms_thresh))
        return self._annotate(found, height, width)

    def _search(
        self,
        image: np.ndarray,
        crop: tuple[int, int, int, int],
        grid: np.ndarray,
        progress: Callable[[int], Any] | None,
    ) -> Candidates:
        """Finds the masks of one crop."""
        x0, y0, x1, y1 = crop
        self.predictor.set_image(image[y0:y1, x0:x1])
        pixels = _Crop(y1 - y0, x1 - x0, self.model.config.mask_size)
        # Batches of all layers have one size, so that one program decodes them.
        size = min(self.points_per_batch, max(map(len, self.point_grids)))
        found = []
        for i in range(0, len(grid), size):
            points = grid[i : i + size]
            found.append(self._filter(*self._decode(points, size), crop, pixels, image.shape[:2]))
            if progress is not None:
                progress(len(points))
        self.predictor.reset_predictor()
        found = _join(found)
        return found.take(suppress(found.boxes, found.ious, self.box_nms_thresh))

    def _decode(self, points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Clicks (P, 2) in [0, 1] -> (K, S/4, S/4) logits, (K,) IoUs, and (K, 2) the click of each."""
        prompt = self._clicks(points, size)
        masks, ious = self._run(prompt, len(points), self.multimask_output)
        points = points.repeat(ious.shape[1], 0)
        masks, ious = masks.reshape(-1, *masks.shape[2:]), ious.ravel()
        if self.use_m2m:
            refined = []
            for i in range(0, len(points), size):
                own = slice(i, i + size)
                n = len(points[own])
                logits = np.asarray(masks[own]).clip(
                    -postprocessing.LOGIT_LIMIT, postprocessing.LOGIT_LIMIT
                )
                prompt = self._clicks(points[own], size).replace(
                    mask_logits=preprocessing.pad_rows(logits, size),
                    has_mask_logits=np.arange(size) < n,
                )
                refined.append([x[:, 0] for x in self._run(prompt, n, False)])
            masks, ious = (np.concatenate(x) for x in zip(*refined, strict=True))
        if self.pred_iou_thresh > 0:
            is_good = ious > self.pred_iou_thresh
            masks, ious, points = masks[is_good], ious[is_good], points[is_good]
        return self.predictor.clean(np.asarray(masks)), ious, points

    def _clicks(self, points: np.ndarray, size: int) -> Prompt:
        """One click a prompt, filled up to `size` prompts."""
        scaled = (points * self.model.config.image_size).astype(np.float32)
        padded = preprocessing.pad_rows(scaled, size)
        return preprocessing.pad_points(padded[:, None], np.ones((size, 1), np.int32))

    def _run(self, prompt: Prompt, n: int, is_multimask: bool) -> tuple[np.ndarray, np.ndarray]:
        """Logits (n, C, S/4, S/4) and IoUs (n, C) of the first n prompts."""
        answer = self.predictor.decode(prompt, np.zeros(n, np.int32), is_multimask)
        masks, ious = (np.asarray(x)[:n] for x in answer)
        return masks, ious

    def _filter(
        self,
        masks: np.ndarray,
        ious: np.ndarray,
        points: np.ndarray,
        crop: tuple[int, int, int, int],
        pixels: _Crop,
        image_size: tuple[int, int],
    ) -> Candidates:
        """Keeps masks that are stable and not cut off by the crop, and places them in the picture."""
        corner = np.array(crop[:2])
        stability, boxes = pixels.measure(masks, self.mask_threshold, self.stability_score_offset)
        boxes = boxes + np.tile(corner, 2)
        points = points * (pixels.width, pixels.height) + corner
        found = Candidates(
            masks, ious, stability, boxes, points, np.tile(np.array(crop), (len(masks), 1))
        )
        is_kept = ~is_cut(boxes, crop, *image_size)
        if self.stability_score_thresh > 0:
            is_kept &= stability >= self.stability_score_thresh
        return found.take(is_kept)

    def _annotate(self, found: Candidates, height: int, width: int) -> list[dict[str, Any]]:
        segmentations = {}
        for crop in np.unique(found.crops, axis=0):
            x0, y0, x1, y1 = crop
            index = np.flatnonzero((found.crops == crop).all(1))
            pixels = _Crop(y1 - y0, x1 - x0, self.model.config.mask_size)
            masks = pixels.binarise(found.masks[index], self.mask_threshold)
            for i, mask in zip(index, masks, strict=True):
                full = np.zeros((height, width), bool)
                full[y0:y1, x0:x1] = mask
                segmentations[i] = (self._encode(full), int(full.sum()))

        def corner_and_size(box):
            return [int(v) for v in (*box[:2], *(box[2:] - box[:2]))]

        return [
            {
                "segmentation": segmentations[i][0],
                "area": segmentations[i][1],
                "bbox": corner_and_size(found.boxes[i]),
                "predicted_iou": float(found.ious[i]),
                "point_coords": [found.points[i].tolist()],
                "stability_score": float(found.stability[i]),
                "crop_box": corner_and_size(found.crops[i]),
            }
            for i in range(len(found.ious))
        ]

    def _encode(self, mask: np.ndarray) -> np.ndarray | dict[str, Any]:
        if self.output_mode == "coco_rle":
            return encode_rle(mask)
        return mask if self.output_mode == "binary_mask" else run_lengths(mask)
