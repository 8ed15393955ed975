"""Overlays: masks, and the prompts that they came from, drawn over a picture.

image (H, W, 3), masks (N, H, W), prompts  ->  overlay (H, W, 3)
"""

import colorsys
import zlib
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from sam2_jax.data.masks import check_masks

OVERLAY_OPACITY = 0.5

# Told apart by colour-blind eyes as well, after Okabe and Ito, and bright enough for video.
FIRST_COLORS = (
    (40, 150, 255),  # blue
    (255, 145, 0),  # orange
    (0, 205, 150),  # green
    (255, 80, 170),  # pink
    (250, 230, 50),  # yellow
    (120, 225, 255),  # sky
    (225, 70, 30),  # vermilion
)
POSITIVE, NEGATIVE, BOX = (0, 180, 90), (225, 40, 50), (0, 230, 120)


def object_color(object_id: int | str) -> tuple[int, int, int]:
    """Returns the RGB colour in which an object is drawn, the same in every frame and run."""
    index = zlib.crc32(object_id.encode()) if isinstance(object_id, str) else object_id - 1
    if 0 <= index < len(FIRST_COLORS):
        return FIRST_COLORS[index]
    # Steps of the golden ratio never come back close to a hue that was just used.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_overlay(
    image: np.ndarray,
    masks: np.ndarray,
    ids: Sequence[int | str],
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
) -> np.ndarray:
    """Draws masks, and the prompts that they came from, over an image.

    Args:
        image: (H, W, 3) uint8 RGB; left as it is.
        masks: (N, H, W) bool.
        ids: N object ids, which choose the colours.
        points: (P, 2) prompt points (x, y) in pixels.
        labels: (P,) 1 for a point on the object, 0 for one beside it; all 1 where absent.
        boxes: (K, 4) prompt boxes (x0, y0, x1, y1) in pixels.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: shapes do not fit.
    """
    masks = check_masks(masks, ids)
    if image.shape != (*masks.shape[1:], 3) or image.dtype != np.uint8:
        raise ValueError(
            f"the image is {image.shape} {image.dtype}; "
            f"{(*masks.shape[1:], 3)} uint8, as large as the masks, is expected"
        )
    overlay = image.copy()
    thickness = 2 if min(image.shape[:2]) >= 360 else 1
    for mask, object_id in zip(masks, ids, strict=True):
        _draw_mask(overlay, mask, np.array(object_color(object_id)), thickness)
    for box in [] if boxes is None else np.reshape(boxes, (-1, 4)):
        _draw_box(overlay, box, thickness)
    points = np.reshape([] if points is None else points, (-1, 2))
    labels = np.ones(len(points)) if labels is None else np.reshape(labels, -1)
    for point, label in zip(points, labels, strict=True):
        _draw_point(overlay, point, label > 0)
    return overlay


def _draw_mask(image: np.ndarray, mask: np.ndarray, color: np.ndarray, thickness: int) -> None:
    """Fills a mask with a see-through colour and lines its inner edge, in place."""
    image[mask] = (1 - OVERLAY_OPACITY) * image[mask] + OVERLAY_OPACITY * color
    # Outside the image counts as inside the mask: the border of the image is no contour.
    inner = ndimage.binary_erosion(mask, iterations=thickness, border_value=1)
    image[mask & np.logical_not(inner)] = (color + 2 * np.array([255, 255, 255])) // 3


def _draw_box(image: np.ndarray, box: np.ndarray, thickness: int) -> None:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = np.round(box).astype(int).tolist()
    rows, columns = np.arange(height)[:, None], np.arange(width)
    inside = (rows >= y0) & (rows <= y1) & (columns >= x0) & (columns <= x1)
    inner = ndimage.binary_erosion(inside, np.ones((3, 3)), thickness)
    image[inside & np.logical_not(inner)] = BOX


def _draw_point(image: np.ndarray, point: np.ndarray, is_positive: bool) -> None:
    """Draws a white-rimmed disc with a plus or a minus, so that colour is not the only sign."""
    height, width = image.shape[:2]
    radius = max(5.0, min(height, width) / 60)
    x, y = (float(coordinate) for coordinate in point)
    top, left = max(0, int(y - radius - 1)), max(0, int(x - radius - 1))
    bottom, right = max(0, int(y + radius + 2)), max(0, int(x + radius + 2))
    patch = image[top:bottom, left:right]
    rows, columns = top + np.arange(patch.shape[0])[:, None], left + np.arange(patch.shape[1])
    dx, dy = np.abs(columns - x), np.abs(rows - y)
    distance = np.hypot(dx, dy)
    arm, half_width = 0.55 * radius, 0.12 * radius
    sign = np.maximum(dx - arm, dy - half_width)
    if is_positive:
        sign = np.minimum(sign, np.maximum(dy - arm, dx - half_width))
    color = POSITIVE if is_positive else NEGATIVE
    for edge, paint in (
        (distance - radius, (255, 255, 255)),
        (distance - 0.8 * radius, color),
        (sign, (255, 255, 255)),
    ):
        coverage = np.clip(0.5 - edge, 0, 1)[..., None]
        patch[:] = np.round(patch * (1 - coverage) + np.array(paint) * coverage)
