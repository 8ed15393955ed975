"""Segment everything in a picture: the original's `SAM2AutomaticMaskGenerator`.

A grid of clicks over the picture, and over crops of it, is decoded in batches. Of all answers those stay
that the model is sure of, that do not depend on the threshold, and that no better one repeats.

crop  ->  features;  clicks (P, 2)  ->  candidates  ->  filters, suppression  ->  masks (H, W)

Candidates are maps of S/4 cells, which never leave the device. There they are enlarged to be measured, and
once more when they survived: seven numbers of each and the bits of the survivors are all that comes down.
Suppression is done on these numbers by the host, in float64, whose rounding decides between equals.

Memory on the device, beside that of the decoder: three batches of maps, and some four more while regions
are cleaned; the maps that passed the filters of one crop and up to 15 more a batch, which is all that grows
with the number of clicks; and enlarged masks of 2**24 pixels, 64 MiB, or a single one that is larger. In
float32 a map has S * S / 4 bytes, 256 KiB at 1024 px: with 32 x 32 clicks in batches of 64 that is 151 MB
and, if no filter drops any, 868 MB.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sam2_jax.build import Model, load_pretrained, model_of
from sam2_jax.config import POSTPROCESSING_IMAGE
from sam2_jax.data.masks import encode_rle
from sam2_jax.model.sam2 import usual_promotion
from sam2_jax.module_like import lets_unknown_pass
from sam2_jax.ops.components import clean_masks
from sam2_jax.outputs import as_array, hand_out
from sam2_jax.predict import postprocessing, preprocessing
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.predict.regions import (
    batched_mask_to_box,
    remove_small_regions,
    rle_to_mask,
    run_lengths,
)
from sam2_jax.structs import Prompt

_EDGE = 20  # pixels; a box that ends so close to the edge of a crop is cut off by it
_PIXELS_AT_ONCE = 2**24  # of enlarged masks
_PAGE = 16  # maps that are kept in one array
_OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class Candidates(NamedTuple):
    """K masks that were found in crops of a picture.

    Attributes:
      maps: (K,) int, where the maps are in the pages of the crop.
      ious: (K,) predicted IoU.
      stability: (K,) how little the mask depends on the threshold, 0 to 1.
      boxes: (K, 4) int x0, y0, x1, y1, first and last pixels of the mask in the picture.
      points: (K, 2) the click (x, y) in pixels of the picture.
      crops: (K, 4) int x0, y0, x1, y1, the crop.
    """

    maps: np.ndarray
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


def _map_chosen(function: Callable, masks: jax.Array, is_chosen: jax.Array, size: int) -> Any:
    """A function of a mask, of those alone that are chosen.

    Args:
      function: of (h, w).
      masks: (K, h, w).
      is_chosen: (K,) bool.
      size: pixels that the function makes of a mask. They decide how many go at once; on CPUs it is one,
        which fits the cache.

    Returns:
      What the function gives, with a leading K; 0 for those that are not chosen.
    """

    def run(masks, is_chosen, at_once):
        k = len(masks)
        chosen_first = jnp.argsort(~is_chosen, stable=True)
        chosen_first = jnp.pad(chosen_first, (0, -k % at_once), constant_values=k)

        def step(i, answers):
            own = jax.lax.dynamic_slice_in_dim(chosen_first, i * at_once, at_once)
            answer = jax.vmap(function)(masks.at[own].get(mode="clip"))
            return jax.tree.map(lambda x, new: x.at[own].set(new, mode="drop"), answers, answer)

        nothing = jax.tree.map(
            lambda x: jnp.zeros((k, *x.shape), x.dtype), jax.eval_shape(function, masks[0])
        )
        num_steps = (is_chosen.sum() + at_once - 1) // at_once
        return jax.lax.fori_loop(0, num_steps, step, nothing)

    at_once = min(max(_PIXELS_AT_ONCE // size, 1), len(masks))
    return jax.lax.platform_dependent(
        masks,
        is_chosen,
        cpu=functools.partial(run, at_once=1),
        default=functools.partial(run, at_once=at_once),
    )


@functools.partial(jax.jit, static_argnums=2)
def _clean(masks: jax.Array, is_chosen: jax.Array, max_area: int) -> jax.Array:
    """Fills holes and removes specks of those maps (K, h, w) that are chosen; the others become 0."""
    # As in the original, the predictor's threshold counts here, not the generator's.
    clean = lambda x: clean_masks(x, max_area, max_area, filled=10.0, removed=-10.0)
    return _map_chosen(clean, masks, is_chosen, math.prod(masks.shape[1:]))


@functools.partial(jax.jit, static_argnums=2)
def _mask_prompts(masks: jax.Array, start: int, size: int) -> jax.Array:
    """Maps (K, h, w) -> (size, h, w), those from `start` on as the decoder takes them."""
    own = jax.lax.dynamic_slice_in_dim(masks, start, size)
    return own.clip(-postprocessing.LOGIT_LIMIT, postprocessing.LOGIT_LIMIT)


@jax.jit
def _take(masks: jax.Array, index: jax.Array) -> jax.Array:
    return masks[index]


@usual_promotion()
def _enlarge(mask, rows, columns):
    """(h, w) logits -> (H, W), minus infinity outside of the crop."""
    wide = jnp.einsum("ij,xj->ix", mask, columns, precision="highest")
    enlarged = postprocessing.blend_rows(wide, rows)
    is_inside = rows.any(1)[:, None] & columns.any(1)
    return jnp.where(is_inside, enlarged, -jnp.inf)


def _first_and_last(is_set):
    """(L,) bool -> positions of the first and the last True."""
    return jnp.argmax(is_set), len(is_set) - 1 - jnp.argmax(is_set[::-1])


@jax.jit
def _measure(masks, is_chosen, rows, columns, threshold, offset):
    """Stability (K,) and boxes (K, 4) in the crop of masks (K, h, w); 0 if empty or not chosen."""

    def measure(mask):
        logits = _enlarge(mask, rows, columns)
        inner, outer = (
            (logits > level).sum() for level in (threshold + offset, threshold - offset)
        )
        highest = logits.max(1)
        y0, y1 = _first_and_last(highest > threshold)
        x0, x1 = _first_and_last(logits.max(0) > threshold)
        box = jnp.where(highest.max() > threshold, jnp.stack([x0, y0, x1, y1]), 0)
        return (inner / jnp.maximum(outer, 1)).astype(jnp.float32), box

    return _map_chosen(measure, masks, is_chosen, len(rows) * len(columns))


@jax.jit
def _binarise(mask, rows, columns, threshold):
    """Map (h, w) -> (H, W / 8) uint8, a bit for each pixel above the threshold."""
    return jnp.packbits(_enlarge(mask, rows, columns) > threshold, -1)


class _Crop:
    """Functions of masks at the size of a crop, padded to static numbers of pixels."""

    def __init__(self, height: int, width: int, mask_size: int):
        self.height, self.width = height, width
        self._weights = [postprocessing.padded_weights(mask_size, side) for side in (height, width)]

    def measure(
        self, masks: jax.Array, is_chosen: jax.Array, threshold: float, offset: float
    ) -> tuple[jax.Array, jax.Array]:
        """Stability (K,) and boxes (K, 4) of masks (K, h, w), on the device; 0 for those not chosen."""
        return _measure(masks, is_chosen, *self._weights, threshold, offset)

    def binarise(self, mask: jax.Array, threshold: float) -> np.ndarray:
        """(H, ceil(W / 8)) uint8 of a map (h, w): the bits of its mask, on the host."""
        bits = jax.device_get(_binarise(mask, *self._weights, threshold))
        return bits[: self.height, : -(-self.width // 8)]


class _Batch(NamedTuple):
    """Answers to clicks on one crop: K candidates, of which those from P * C on are padding.

    Attributes:
      points: (P, 2) clicks in [0, 1], on the host.
      masks: (K, S/4, S/4) logits on the device, as all that follow.
      ious: (K,) predicted IoU.
      is_good: (K,) bool, whether that is enough.
      stability: (K,) of the good ones.
      boxes: (K, 4) in the crop, likewise.
    """

    points: np.ndarray
    masks: jax.Array
    ious: jax.Array
    is_good: jax.Array
    stability: jax.Array
    boxes: jax.Array


@lets_unknown_pass
@dataclasses.dataclass(eq=False)
class SAM2AutomaticMaskGenerator:
    """Finds all masks of a picture without being pointed at anything.

    Attributes:
      model: from `build_sam2`; of a video predictor it is the model.
      points_per_side: clicks along a side of the picture; None if `point_grids` is given.
      points_per_batch: clicks decoded at once.
      pred_iou_thresh: masks stay whose predicted IoU is above it; 0 keeps all. None is the model's own, 0.8 but
        for `sam2_nano`.
      stability_score_thresh: masks stay whose stability is at least it; 0 keeps all. None is the model's own,
        0.95 but for `sam2_nano`.
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
      min_mask_region_area: holes and specks up to this many cells of the S/4 map are filled and removed. None
        is the model's own, 0 but for `sam2_nano`.
      output_mode: "binary_mask", "uncompressed_rle" or "coco_rle".
      use_m2m: decode every mask once more from itself and its click.
      multimask_output: three masks for a click instead of one.

    Raises:
      ValueError: settings that make no sense.
    """

    model: Model = dataclasses.field(repr=False)
    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = None  # pyright: ignore[reportAssignmentType]
    stability_score_thresh: float = None  # pyright: ignore[reportAssignmentType]
    stability_score_offset: float = 1.0
    mask_threshold: float = 0.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[np.ndarray] | None = None
    min_mask_region_area: int = None  # pyright: ignore[reportAssignmentType]
    output_mode: str = "binary_mask"
    use_m2m: bool = False
    multimask_output: bool = True

    def __post_init__(self):
        self.model = model_of(self.model)
        for name in ("pred_iou_thresh", "stability_score_thresh", "min_mask_region_area"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.model.pictures, name))
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
        self.point_grids = self._layers = self._grids()
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
        found, bits = zip(
            *[self._search(image, crop, self._layers[layer], progress) for layer, crop in crops],
            strict=True,
        )
        found, bits = _join(found), list(itertools.chain(*bits))
        if len(crops) > 1:
            crop_areas = (found.crops[:, 2:] - found.crops[:, :2]).prod(1)
            kept = suppress(found.boxes, 1 / crop_areas, self.crop_nms_thresh)
            found, bits = found.take(kept), [bits[i] for i in kept]
        return self._annotate(found, bits, height, width)

    def _search(
        self,
        image: np.ndarray,
        crop: tuple[int, int, int, int],
        grid: np.ndarray,
        progress: Callable[[int], Any] | None,
    ) -> tuple[Candidates, list[np.ndarray]]:
        """Finds the masks of one crop, and the packed bits of each."""
        x0, y0, x1, y1 = crop
        self.predictor.set_image(image[y0:y1, x0:x1])
        pixels = _Crop(y1 - y0, x1 - x0, self.model.config.mask_size)
        # Batches of all layers have one size, so that one program decodes them.
        size = min(self.points_per_batch, max(map(len, self._layers)))
        batches = (
            self._answer(grid[i : i + size], size, pixels) for i in range(0, len(grid), size)
        )
        found, pages = [], []
        # The next batch is under way before the numbers of this one are waited for.
        following = next(batches, None)
        while (batch := following) is not None:
            following = next(batches, None)
            candidates = self._filter(batch, crop, image.shape[:2])
            index = candidates.maps
            found.append(candidates._replace(maps=len(pages) * _PAGE + np.arange(len(index))))
            pages += [
                _take(batch.masks, preprocessing.pad_rows(index[i : i + _PAGE], _PAGE))
                for i in range(0, len(index), _PAGE)
            ]
            if progress is not None:
                progress(len(batch.points))
        self.predictor.reset_predictor()
        found = _join(found)
        found = found.take(suppress(found.boxes, found.ious, self.box_nms_thresh))
        maps = (pages[i // _PAGE][i % _PAGE] for i in found.maps)
        return found, [pixels.binarise(x, self.mask_threshold) for x in maps]

    @property
    def _answers(self) -> int:
        """Masks of a click."""
        return 3 if self.multimask_output else 1

    def _answer(self, points: np.ndarray, size: int, pixels: _Crop) -> _Batch:
        """Decodes and measures what at most `size` clicks (P, 2) in [0, 1] point at."""
        masks, ious = self._decode(points, size)
        is_good = jnp.arange(len(ious)) < len(points) * self._answers
        if self.pred_iou_thresh > 0:
            is_good &= ious > self.pred_iou_thresh
        if self.min_mask_region_area > 0:
            masks = _clean(masks, is_good, self.min_mask_region_area)
        stability, boxes = pixels.measure(
            masks, is_good, self.mask_threshold, self.stability_score_offset
        )
        return _Batch(points, masks, ious, is_good, stability, boxes)

    def _decode(self, points: np.ndarray, size: int) -> tuple[jax.Array, jax.Array]:
        """Clicks (P, 2) in [0, 1] -> (K, S/4, S/4) logits and (K,) IoUs, on the device."""
        n = len(points)
        masks, ious = self._run(self._clicks(points, size), n, self.multimask_output)
        if not self.use_m2m:
            return masks, ious
        points = points.repeat(self._answers, 0)
        refined = []
        for i in range(0, len(points), size):
            own = points[i : i + size]
            prompt = self._clicks(own, size).replace(
                mask_logits=_mask_prompts(masks, i, size),
                has_mask_logits=np.arange(size) < len(own),
            )
            refined.append(self._run(prompt, len(own), False))
        refined += [refined[-1]] * (self._answers - len(refined))  # of padding alone
        masks, ious = (jnp.concatenate(x) for x in zip(*refined, strict=True))
        return masks, ious

    def _clicks(self, points: np.ndarray, size: int) -> Prompt:
        """One click a prompt, filled up to `size` prompts."""
        scaled = (points * self.model.config.image_size).astype(np.float32)
        padded = preprocessing.pad_rows(scaled, size)
        return preprocessing.pad_points(padded[:, None], np.ones((size, 1), np.int32))

    def _run(self, prompt: Prompt, n: int, is_multimask: bool) -> tuple[jax.Array, jax.Array]:
        """Logits (K, S/4, S/4) and IoUs (K,) of prompts, all answers to one after the other."""
        masks, ious = self.predictor.decode(prompt, np.zeros(n, np.int32), is_multimask)
        return masks.reshape(-1, *masks.shape[2:]), ious.ravel()

    def _filter(
        self, batch: _Batch, crop: tuple[int, int, int, int], image_size: tuple[int, int]
    ) -> Candidates:
        """Places masks in the picture that are good, stable, and not cut off by the crop.

        Their `maps` are positions in the batch.
        """
        ious, is_good, stability, boxes = jax.device_get(batch[2:])
        boxes = boxes + np.tile(np.array(crop[:2]), 2)
        is_kept = is_good & ~is_cut(boxes, crop, *image_size)
        if self.stability_score_thresh > 0:
            is_kept &= stability >= self.stability_score_thresh
        index = np.flatnonzero(is_kept)
        x0, y0, x1, y1 = crop
        points = batch.points[index // self._answers] * (x1 - x0, y1 - y0) + (x0, y0)
        crops = np.tile(np.array(crop), (len(index), 1))
        return Candidates(index, ious[index], stability[index], boxes[index], points, crops)

    def _annotate(
        self, found: Candidates, bits: list[np.ndarray], height: int, width: int
    ) -> list[dict[str, Any]]:
        def segment(packed, crop):
            x0, y0, x1, y1 = crop
            full = np.zeros((height, width), bool)
            full[y0:y1, x0:x1] = np.unpackbits(packed, axis=-1, count=x1 - x0)
            return self._encode(full), int(full.sum())

        segmentations = itertools.starmap(segment, zip(bits, found.crops, strict=True))

        def corner_and_size(box):
            return [int(v) for v in (*box[:2], *(box[2:] - box[:2]))]

        return [
            {
                "segmentation": segmentation,
                "area": area,
                "bbox": corner_and_size(found.boxes[i]),
                "predicted_iou": float(found.ious[i]),
                "point_coords": [found.points[i].tolist()],
                "stability_score": float(found.stability[i]),
                "crop_box": corner_and_size(found.crops[i]),
            }
            for i, (segmentation, area) in enumerate(segmentations)
        ]

    def _encode(self, mask: np.ndarray) -> np.ndarray | dict[str, Any]:
        if self.output_mode == "coco_rle":
            return encode_rle(mask)
        return mask if self.output_mode == "binary_mask" else run_lengths(mask)

    @staticmethod
    def postprocess_small_regions(mask_data: Any, min_area: int, nms_thresh: float) -> Any:
        """Fills holes and removes specks in masks of full size, and suppresses what then repeats another.

        Args:
          mask_data: `utils.amg.MaskData` with `rles`, uncompressed run lengths, and `boxes`; changed in place.
          min_area: pixels; smaller regions are filled or removed.
          nms_thresh: of the IoU of two boxes; masks without any change are preferred.

        Returns:
          `mask_data`.
        """
        if not len(mask_data["rles"]):
            return mask_data
        masks, is_changed = [], []
        for rle in mask_data["rles"]:
            mask, is_filled = remove_small_regions(rle_to_mask(rle), min_area, "holes")
            mask, is_removed = remove_small_regions(mask, min_area, "islands")
            masks.append(mask)
            is_changed.append(is_filled or is_removed)
        boxes = batched_mask_to_box(np.stack(masks))
        kept = suppress(boxes, 1.0 - np.array(is_changed), nms_thresh)
        for i in kept:
            if is_changed[i]:
                mask_data["rles"][i] = run_lengths(masks[i])
                mask_data["boxes"][i] = boxes[i]
        mask_data.filter(kept)
        return mask_data

    def refine_with_m2m(
        self, points: Any, point_labels: Any, low_res_masks: Any, points_per_batch: int
    ) -> tuple[Any, Any]:
        """Decodes masks once more from themselves and their clicks.

        Args:
          points: (K, 2) clicks (x, y) in pixels of the model's input.
          point_labels: (K,) their labels.
          low_res_masks: (K, S/4, S/4) logits.
          points_per_batch: clicks decoded at once.

        Returns:
          Logits (K, 1, H, W) in the size of the image that is set in `predictor`, and predicted IoUs (K, 1).
        """
        points, labels, masks = (as_array(x) for x in (points, point_labels, low_res_masks))
        found = [
            self.predictor._predict(
                points[own, None],
                labels[own, None],
                mask_input=masks[own, None],
                multimask_output=False,
                return_logits=True,
            )[:2]
            for i in range(0, len(points), points_per_batch)
            for own in [slice(i, i + points_per_batch)]
        ]
        logits, ious = (
            np.concatenate([np.asarray(x) for x in part]) for part in zip(*found, strict=True)
        )
        return hand_out(logits, self.predictor.outputs), hand_out(ious, self.predictor.outputs)
