"""Preparation: pictures to model input, prompts to static sizes.

The model sees a square of S pixels, whatever the shape of the picture (aspect ratio is not kept).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sam2_jax.data.arrays import rgb_hint
from sam2_jax.data.media import rgb_picture, warn_of_orientation
from sam2_jax.model.sam2 import IMAGE_MEAN, IMAGE_STD
from sam2_jax.ops.bicubic import resize_bicubic
from sam2_jax.outputs import as_array
from sam2_jax.structs import Prompt


def bucket(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least n and `least`: one program serves the whole bucket."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def check_image(image: np.ndarray | Image.Image) -> np.ndarray:
    """Returns an image as (H, W, 3) array, uint8 or of floats in [0, 1]; a PIL image may have any mode.

    Raises:
      ValueError: it has no pixels, not three channels, another type, or floats outside of [0, 1].
    """
    if isinstance(image, Image.Image):
        warn_of_orientation(image, "the picture")
        image = rgb_picture(image)
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"The image has shape {array.shape}; expected (height, width, 3), RGB channels last."
            f"{rgb_hint(array)}"
        )
    if array.dtype == np.uint8:
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"The image is of type {array.dtype}; expected uint8 in 0...255 or float in 0...1."
            + _scaling_hint(array, "image.astype(np.uint8)")
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # so that NaN fails as well
        raise ValueError(
            f"The image has float values from {low:g} to {high:g}; expected finite ones in 0...1."
            + _scaling_hint(array, "image / 255")
        )
    return array


def _scaling_hint(array: np.ndarray, of_bytes: str) -> str:
    """Says how to bring values into a range that is taken; numbers above 255 would wrap or be clipped."""
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        return " Replace what is not finite first, for example by np.nan_to_num."
    if low >= 0 and high <= 255:  # of floats the greatest is above 1
        return f" Convert it by {of_bytes}."
    return " Scale it, for example by np.interp(image, (image.min(), image.max()), (0, 1))."


def image_to_input(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) float32 as the original's image predictor: antialiased bilinear on floats.

    uint8 is scaled to [0, 1]; floats are taken as they are.
    """
    scale = 255 if image.dtype == np.uint8 else 1

    def shrink(channel):  # one at a time, in one copy: pictures may have a hundred megapixels
        floats = channel.astype(np.float32)
        floats /= scale
        resized = Image.fromarray(floats).resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    resized = np.stack([shrink(image[..., c]) for c in range(3)], -1)
    return (resized - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)


def frame_to_input(
    frame: np.ndarray, size: int, device: jax.Device | None = None
) -> np.ndarray | jax.Array:
    """(H, W, 3) uint8 -> (size, size, 3) uint8 as the original's video loader: Pillow's bicubic.

    It stays on the host for a CPU, and is on the device for any other.
    """
    return resize_bicubic(frame, size, size, device=device)


def mask_to_input(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) mask -> (size, size) float32 of 0 and 1: antialiased bilinear, 0.5 and above is inside."""
    mask = np.asarray(mask)
    if mask.shape == (size, size):
        return (mask != 0).astype(np.float32)
    resized = Image.fromarray((mask != 0).astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return (np.asarray(resized) >= 0.5).astype(np.float32)


def join_prompts(
    points: np.ndarray | None, labels: np.ndarray | None, box: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Joins clicks and a box into points and labels; a box is two points, labelled 2 and 3, before the clicks.

    Args:
      points: (..., P, 2) (x, y), or None.
      labels: (..., P), 1 or 0, or None.
      box: (4,), (N, 4) or (N, 1, 4) x0, y0, x1, y1, or corners (2, 2) or (N, 2, 2); nothing of any shape is
        no box, N 0; or None.

    Returns:
      (N, P', 2) float32 and (N, P') int32; N is 1 unless the arguments have a leading axis.

    Raises:
      ValueError: shapes that do not fit, or labels that mean nothing.
    """
    if (points is None) != (labels is None):
        raise ValueError(
            "Points and labels must be given together: one label (1 object, 0 background) a point."
        )
    points, labels, box = as_array(points), as_array(labels), as_array(box)
    parts = []
    if box is not None:
        box = np.asarray(box, np.float32)
        # A detector that found nothing gives arrays of no size, of any shape.
        is_box = box.shape[-1:] == (4,) or box.shape[-2:] == (2, 2) or not box.size
        if not is_box or (box.ndim == 3 and box.shape[-1] == 4 and box.shape[1] != 1):
            raise ValueError(
                f"The box has shape {box.shape}; expected (4,) or (N, 4): x0, y0, x1, y1, or corners "
                "(2, 2) or (N, 2, 2)."
            )
        corners = box.reshape(-1, 2, 2)
        parts.append((corners, np.tile(np.array([2, 3], np.int32), (len(corners), 1))))
    if points is not None:
        points, labels = np.asarray(points, np.float32), np.asarray(labels)
        if points.ndim == 2 and labels.ndim == 1:
            points, labels = points[None], labels[None]
        if points.ndim != 3 or points.shape[-1] != 2 or labels.shape != points.shape[:2]:
            raise ValueError(
                f"Points have shape {points.shape} and labels {labels.shape}; expected (P, 2) and (P,), "
                "or (N, P, 2) and (N, P)."
            )
        if not np.isin(labels, (-1, 0, 1, 2, 3)).all():
            raise ValueError(
                f"Labels are {sorted(set(labels.ravel().tolist()))}; expected 1 (object) or 0 (background)."
            )
        parts.append((points, labels.astype(np.int32)))
    if not parts:
        return np.zeros((1, 0, 2), np.float32), np.zeros((1, 0), np.int32)
    counts = [len(p) for p, _ in parts]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{counts[0]} boxes do not go with {counts[1]} sets of points; expected as many sets: points "
            f"({counts[0]}, P, 2) and labels ({counts[0]}, P), or a call for each box."
        )
    return np.concatenate([p for p, _ in parts], 1), np.concatenate([x for _, x in parts], 1)


def check_points(
    points: np.ndarray, labels: np.ndarray, height: int, width: int, is_pixels: bool
) -> None:
    """Checks that points and boxes lie in the picture; its border belongs to it.

    Args:
      points: (N, P, 2) (x, y) from `join_prompts`; boxes are pairs of points.
      labels: (N, P) 1 and 0 clicks, 2 and 3 corners of a box; others are not looked at.
      height: of the picture.
      width: of the picture.
      is_pixels: coordinates are pixels of the picture; else parts of it, in [0, 1].

    Raises:
      ValueError: a coordinate is not finite, a click is outside of the picture, or a box has nothing of
        the picture in it. Boxes may stick out, as those of detectors do.
    """
    limit = np.array([width, height] if is_pixels else [1, 1])
    size = f"the picture, {width} x {height} pixels"
    if not is_pixels:
        size += " (normalize_coords=False: coordinates are parts of it, 0 to 1)"
    is_used = labels >= 0
    for x, y in points[is_used & ~np.isfinite(points).all(-1)][:1]:
        raise ValueError(f"The point ({x:g}, {y:g}) is not finite; expected a place in {size}.")
    is_outside = ((points < 0) | (points > limit)).any(-1)
    for x, y in points[np.isin(labels, (0, 1)) & is_outside][:1]:
        raise ValueError(f"The point ({x:g}, {y:g}) is outside of {size}.")
    is_box = (labels[:, :-1] == 2) & (labels[:, 1:] == 3)
    for first, last in zip(points[:, :-1][is_box], points[:, 1:][is_box], strict=True):
        box = ", ".join(f"{v:g}" for v in (*first, *last))
        # Boxes from the first to the last pixel of thin things have no width. Corners in the other order are
        # taken as they are, as the original takes them.
        if (np.minimum(first, last) >= limit).any() or (np.maximum(first, last) < 0).any():
            raise ValueError(f"The box ({box}) is outside of {size}.")


def check_mask_logits(mask_input: np.ndarray | None, size: int) -> np.ndarray:
    """Returns mask prompts, (1, size, size) or (N, 1, size, size), as (N, size, size) float32; N is 0 for None.

    Raises:
      ValueError: another size, or values that are not finite.
    """
    if mask_input is None:
        return np.zeros((0, size, size), np.float32)
    mask = np.asarray(as_array(mask_input), np.float32)
    if mask.ndim not in (3, 4) or mask.shape[-3:] != (1, size, size):
        raise ValueError(
            f"mask_input has shape {mask.shape}; expected (1, {size}, {size}) logits, as `predict` "
            "returns them for one mask."
        )
    if not np.isfinite(mask).all():
        raise ValueError("mask_input has values that are not finite; expected logits of a mask.")
    return mask.reshape(-1, size, size)


def scale_points(
    points: np.ndarray, height: int, width: int, size: int, is_pixels: bool
) -> np.ndarray:
    """Scales (..., 2) points, in pixels of the picture or in [0, 1], to the S x S input."""
    unit = points / np.array([width, height], np.float32) if is_pixels else points
    return (unit * size).astype(np.float32)


def pad_points(points: np.ndarray, labels: np.ndarray) -> Prompt:
    """Makes a prompt of static size from (N, P, 2) points and (N, P) labels.

    The decoder expects exactly one -1 token after the points; what fills up the bucket is -2, which no
    attention sees. Without any point there is no token at all.
    """
    n, p = labels.shape
    size = bucket(p + 1, 4)
    padded = np.zeros((n, size, 2), np.float32)
    padded[:, :p] = points
    padded_labels = np.full((n, size), -2, np.int32)
    padded_labels[:, :p] = labels
    if p:
        padded_labels[:, p] = -1
    return Prompt(padded, padded_labels)


def join_padded(prompts: Sequence[Prompt]) -> Prompt:
    """Joins prompts from `pad_points` along N, and fills N up to its bucket with prompts of nothing."""
    width = max(prompt.labels.shape[1] for prompt in prompts)
    total = sum(len(prompt.labels) for prompt in prompts)

    def join(parts, fill):
        widened = [
            np.pad(
                x, [(0, 0), (0, width - x.shape[1])] + [(0, 0)] * (x.ndim - 2), constant_values=fill
            )
            for x in parts
        ]
        return pad_rows(np.concatenate(widened), bucket(total), fill)

    points, labels = join([p.points for p in prompts], 0), join([p.labels for p in prompts], -2)
    masks = [prompt.mask_logits for prompt in prompts]
    given = [mask for mask in masks if mask is not None]
    if not given:
        return Prompt(points, labels)
    nothing = lambda prompt: np.zeros((len(prompt.labels), *given[0].shape[1:]), np.float32)
    filled = [nothing(p) if p.mask_logits is None else p.mask_logits for p in prompts]
    is_given = [np.full(len(p.labels), p.mask_logits is not None) for p in prompts]
    return Prompt(
        points,
        labels,
        mask_logits=pad_rows(np.concatenate(filled), bucket(total)),
        has_mask_logits=pad_rows(np.concatenate(is_given), bucket(total)),
    )


def pad_rows(x: Any, size: int, fill: float = 0) -> Any:
    """(n, ...) -> (size, ...), filled up with `fill`, on the host or the device."""
    if len(x) == size:
        return x
    pad = jnp.pad if isinstance(x, jax.Array) else np.pad
    return pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
