"""Contact sheets: the frames of a clip side by side, with masks and prompts drawn over them.

images (T, H, W, 3), masks (T, O, H, W)  ->  sheet (H', W', 3)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sam2_jax.data.overlay import draw_overlay

COLUMNS = 4
MAX_SIDE = 512  # pixels of a frame on the sheet; larger ones are shrunk
GAP = 4
WHITE = 255
FONT_SIZE = 16
TITLE_HEIGHT = 24


def contact_sheet(
    images: np.ndarray,
    masks: np.ndarray,
    prompts: Sequence[Mapping[str, Any]] | None = None,
    title: str = "",
) -> np.ndarray:
    """Draws the frames of a clip in rows of four.

    Args:
        images: (T, H, W, 3) uint8 RGB.
        masks: (T, O, H, W) bool; an object has the same colour on all frames.
        prompts: one a frame, the arguments `points`, `labels` and `boxes` of `draw_overlay`, or some.
        title: written above.

    Returns:
        (H', W', 3) uint8 RGB on white.

    Raises:
        ValueError: shapes do not fit.
    """
    prompts = [{}] * len(images) if prompts is None else prompts
    ids = range(1, masks.shape[1] + 1)
    cells = [
        _shrink(draw_overlay(image, frame_masks, ids, **prompt))
        for image, frame_masks, prompt in zip(images, masks, prompts, strict=True)
    ]
    rows = [_join(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)]
    sheet = _join(rows, axis=0)
    return _join([_title(title, sheet.shape[1]), sheet], axis=0) if title else sheet


def stack_sheets(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Puts sheets (H, W, 3) of any sizes below each other on white, narrow ones in rows."""
    columns = max(1, COLUMNS * MAX_SIDE // max(sheet.shape[1] for sheet in sheets))
    rows = [_join(sheets[i : i + columns], axis=1) for i in range(0, len(sheets), columns)]
    return _join(rows, axis=0)


def _shrink(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(picture)


def _join(images: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Joins images along an axis, with a gap between them and white where one is smaller."""
    across = 1 - axis
    size = max(image.shape[across] for image in images)
    parts = []
    for n, image in enumerate(images):
        padding = [(0, 0)] * 3
        padding[across] = (0, size - image.shape[across])
        padding[axis] = (GAP if n else 0, 0)
        parts.append(np.pad(image, padding, constant_values=WHITE))
    return np.concatenate(parts, axis)


def _title(text: str, width: int) -> np.ndarray:
    picture = Image.new("RGB", (width, TITLE_HEIGHT), "white")
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(picture).text((GAP, TITLE_HEIGHT / 2), text, "black", font, anchor="lm")
    return np.asarray(picture)
