"""Pictures, masks and overlays: what is read from files, and what is written for people and tools.

picture file  ->  (H, W, 3) uint8 RGB            frames (H, W, 3)  ->  H.264 mp4
mask PNG     <->  (H, W) ids                     mask (H, W)      <->  COCO RLE
image (H, W, 3), masks (N, H, W), prompts        ->  overlay (H, W, 3)
"""

import colorsys
import contextlib
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

MAX_SIDE = 16384
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


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture as RGB.

    An orientation stored in EXIF is not applied: the original does not either, and prompts are
    given in the pixels of the file.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, is cut short, or is absurdly large.
    """
    with _open_picture(path) as image:
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _open_picture(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Opens and decodes a picture, with one-sentence errors."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {os.fspath(path)}")
    try:
        image = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{os.fspath(path)} is too large to be read: {error}") from error
    except OSError as error:
        raise ValueError(f"{os.fspath(path)} is not a picture that can be read") from error
    with image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(
                f"{os.fspath(path)} is {image.width}x{image.height}; "
                f"at most {MAX_SIDE} pixels a side are read"
            )
        try:
            image.load()
        # Pillow reports damaged pixels by several unrelated types.
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise ValueError(
                f"{os.fspath(path)} is damaged or cut short: its pixels cannot be decoded"
            ) from error
        yield image


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes frames as an H.264 mp4 that browsers play.

    The file appears when it is complete: an interrupted run leaves none, and an older file of
    that name stays until then. Odd sizes are made even by repeating the last row or column.

    Args:
        path: the file to write; its folder must exist.
        frames: (H, W, 3) uint8 RGB each, all of one size; consumed one at a time.
        fps: frames a second.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: no frames, a frame of another shape or type, or `fps` not above 0.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no such folder: {folder}")
    if not 0 < fps < 1000:
        raise ValueError(f"fps is {fps}; a number above 0 and below 1000 is expected")
    partial = os.path.join(folder, f".{name}.{os.getpid()}.partial")
    try:
        _encode_video(partial, frames, fps)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def _encode_video(path: str, frames: Iterable[np.ndarray], fps: float) -> None:
    import av

    shape = None
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # 1001 is the denominator of the broadcast rates.
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "medium"}
        for index, frame in enumerate(frames):
            frame = np.asarray(frame)
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
                raise ValueError(
                    f"frame {index} is {frame.shape} {frame.dtype}; (H, W, 3) uint8 is expected"
                )
            if shape is None:
                shape = frame.shape
                stream.height, stream.width = (side + side % 2 for side in shape[:2])
            if frame.shape != shape:
                raise ValueError(f"frame {index} is {frame.shape}, but the first is {shape}")
            even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if shape is None:
            raise ValueError("there are no frames to write")
        container.mux(stream.encode())


def davis_palette() -> np.ndarray:
    """Returns the (256, 3) uint8 colours of DAVIS and PASCAL VOC masks.

    The bits of an id are dealt out to red, green and blue in turn, highest bits first.
    """
    ids = np.arange(256)[:, None]
    channel = np.arange(3)
    palette = np.zeros((256, 3), np.int64)
    for bit in range(3):
        palette |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return palette.astype(np.uint8)


def write_palette_png(path: str | os.PathLike, ids: np.ndarray) -> None:
    """Writes a mask as DAVIS does: a PNG of mode P whose pixel values are the ids.

    Args:
        path: the file to write.
        ids: (H, W) uint8, 0 the background.

    Raises:
        ValueError: another shape or type.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise ValueError(f"ids are {ids.shape} {ids.dtype}; (H, W) uint8 is expected")
    image = Image.fromarray(ids)
    image.putpalette(davis_palette().tobytes())
    image.save(path, format="PNG")


def read_mask_png(path: str | os.PathLike) -> np.ndarray:
    """Reads the ids of a mask from a palette, grey or black-and-white PNG.

    Pixel values are ids and are never turned into colours; black and white are 0 and 1.

    Returns:
        (H, W) uint8, or uint16 where the file has 16 bits a pixel.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or a coloured one, whose ids cannot be known.
    """
    with _open_picture(path) as image:
        if image.mode not in ("P", "L", "1", "I;16"):
            raise ValueError(
                f"{os.fspath(path)} is a {image.mode} picture; a palette or grey PNG whose pixel "
                "values are object ids is expected"
            )
        return np.asarray(image, np.uint16 if image.mode == "I;16" else np.uint8)


def pack_masks(masks: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Packs the masks of several objects into one picture of ids.

    Args:
        masks: (N, H, W) bool.
        ids: N different ids within 1..255; where masks overlap, the lowest wins.

    Returns:
        (H, W) uint8, 0 the background.

    Raises:
        ValueError: shapes do not fit, or an id is repeated or out of range.
    """
    masks = _check_masks(masks, ids)
    if len(set(ids)) != len(ids) or not all(1 <= i <= 255 for i in ids):
        raise ValueError(f"ids are {list(ids)}; different ids within 1..255 are expected")
    packed = np.zeros(masks.shape[1:], np.uint8)
    for i in np.argsort(ids)[::-1]:
        packed[masks[i]] = ids[i]
    return packed


def _check_masks(masks: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool or len(masks) != len(ids):
        raise ValueError(
            f"masks are {masks.shape} {masks.dtype} for {len(ids)} ids; "
            f"({len(ids)}, H, W) bool is expected"
        )
    return masks


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask as COCO's compressed run lengths, ready for JSON.

    Args:
        mask: (H, W) bool.

    Returns:
        {"size": [H, W], "counts": str}.

    Raises:
        ValueError: another shape or type.
    """
    from pycocotools import mask as coco

    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"the mask is {mask.shape} {mask.dtype}; (H, W) bool is expected")
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Decodes COCO run lengths, compressed (a string) or not (a list).

    Strict, unlike pycocotools, which takes runs that end early for an empty rest.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: not run lengths, or they do not add up to the size.
    """
    try:
        height, width = (operator.index(side) for side in rle["size"])
        counts = rle["counts"]
        runs = _unpack_counts(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        is_valid = runs.ndim == 1 and runs.min(initial=0) >= 0 and runs.sum() == height * width
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError('run lengths {"size": [H, W], "counts": ...} are expected') from error
    if not is_valid or not (0 <= height <= MAX_SIDE and 0 <= width <= MAX_SIDE):
        raise ValueError(f"the run lengths do not add up to a mask of {height} rows x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _unpack_counts(text: str) -> np.ndarray:
    """Reads COCO's text: 5 bits a character, lowest first, each run less the one two before."""
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    is_whole = len(ends) > 0 and ends[-1] == len(codes) - 1
    if not is_whole or codes.min() < 0 or codes.max() > 63 or lengths.max() > 7:
        raise ValueError("not the text of run lengths")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def object_color(object_id: int) -> tuple[int, int, int]:
    """Returns the RGB colour in which an object is drawn, the same in every frame and run."""
    index = object_id - 1
    if 0 <= index < len(FIRST_COLORS):
        return FIRST_COLORS[index]
    # Steps of the golden ratio never come back close to a hue that was just used.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_overlay(
    image: np.ndarray,
    masks: np.ndarray,
    ids: Sequence[int],
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
    masks = _check_masks(masks, ids)
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
    image[mask & ~inner] = (color + 2 * np.array([255, 255, 255])) // 3


def _draw_box(image: np.ndarray, box: np.ndarray, thickness: int) -> None:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = np.round(box).astype(int).tolist()
    rows, columns = np.arange(height)[:, None], np.arange(width)
    inside = (rows >= y0) & (rows <= y1) & (columns >= x0) & (columns <= x1)
    image[inside & ~ndimage.binary_erosion(inside, np.ones((3, 3)), thickness)] = BOX


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
