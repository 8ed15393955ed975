"""Masks and boxes as files hold them.

ids (H, W)            <->  palette PNG, 16-bit PNG (read only)
masks (N, H, W)       <->  a folder an object, one PNG a frame
mask (H, W)           <->  COCO run lengths, COCO polygons (read only)
boxes (T, 4) x,y,w,h  <->  text, one line a frame
"""

import io
import operator
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sam2_jax.data.listing import list_folders, warn_once
from sam2_jax.data.media import MAX_SIDE, open_picture, picture_name
from sam2_jax.files import write_file

VOID = 255  # in masks of 8 bits; see `read_labels`
MAX_ID = 65534  # in masks of 16 bits, where 65535 is white
SOFT_EDGE = 127


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


def write_palette_png(
    path: str | os.PathLike, ids: np.ndarray, palette: np.ndarray | None = None
) -> None:
    """Writes a mask as DAVIS does: a PNG of mode P whose pixel values are the ids.

    Args:
        path: the file to write.
        ids: (H, W) uint8, 0 the background; uint16 becomes a grey PNG of 16 bits.
        palette: (K, 3) uint8 colours of the first K ids, such as `read_palette_png` returns; the
            others, and all where it is absent, are DAVIS's.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: another shape or type.
        OSError: the file cannot be written, for example because the disk is full.
    """
    ids, colors = np.asarray(ids), davis_palette()
    if ids.ndim != 2 or ids.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"ids are {ids.shape} {ids.dtype}; (H, W) uint8 or uint16 is expected")
    if palette is not None:
        palette = np.asarray(palette)
        if palette.ndim != 2 or palette.shape[1] != 3 or palette.dtype != np.uint8:
            raise ValueError(
                f"the palette is {palette.shape} {palette.dtype}; (K, 3) uint8 is expected"
            )
        colors[: len(palette)] = palette
    image = Image.fromarray(ids)
    if ids.dtype == np.uint8:
        image.putpalette(colors.tobytes())
    write_file(path, png_bytes(image))


def png_bytes(image: Image.Image) -> bytes:
    """Returns a picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def read_mask_png(path: str | os.PathLike | bytes) -> np.ndarray:
    """Reads the values of a mask, a file or the bytes of one: a palette, grey or black-and-white PNG.

    Pixel values are never turned into colours; black and white are 0 and 1. `read_labels` tells
    which of them are objects.

    Returns:
        (H, W) uint8, or uint16 where the file has 16 bits a pixel.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or a coloured one, whose ids cannot be known.
    """
    return read_palette_png(path)[0]


def read_palette_png(path: str | os.PathLike | bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the values of a mask as `read_mask_png` does, together with its palette.

    Returns:
        ids: (H, W) uint8, or uint16 where the file has 16 bits a pixel.
        palette: (K, 3) uint8 colours of the first K ids; None for a file without a palette.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or a coloured one, whose ids cannot be known.
    """
    with open_picture(path) as image:
        if image.mode == "P":
            colors = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
            return np.asarray(image, np.uint8), colors
        if image.mode.startswith("I"):
            ids = np.asarray(image)
            if ids.min(initial=0) < 0 or ids.max(initial=0) > np.iinfo(np.uint16).max:
                raise ValueError(f"{picture_name(path)} holds ids that are not within 0..65535")
            return ids.astype(np.uint16), None
        if image.mode in ("L", "1"):
            ids = np.asarray(image, np.uint8)
            return ids // _grey_step(path) if image.mode == "L" else ids, None
        return _grey_of_colours(image, picture_name(path)), None


def _grey_of_colours(image: Image.Image, name: str) -> np.ndarray:
    """Returns the values of a grey picture that was saved as a coloured one."""
    advice = (
        "a palette or grey PNG whose pixel values are object ids is expected, or one black-and-white "
        "picture an object"
    )
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise ValueError(f"{name} is a {image.mode} picture; {advice}")
    values = np.asarray(image.convert("RGBA"))
    if values[..., 3].min() < 255:
        raise ValueError(
            f"{name} is transparent in parts, so that its ids cannot be known; {advice}"
        )
    if (values[..., :1] != values[..., 1:3]).any():
        raise ValueError(
            f"{name} is a coloured {image.mode} picture, whose ids cannot be known; {advice}"
        )
    return values[..., 0]


def _grey_step(path: str | os.PathLike | bytes) -> int:
    """The factor by which Pillow spreads grey values of 2 and 4 bits over 0..255."""
    if isinstance(path, bytes):
        header = path[:25]
    else:
        with open(path, "rb") as file:
            header = file.read(25)
    is_png = header.startswith(b"\x89PNG")
    return 255 // (2 ** header[24] - 1) if is_png else 1


def read_labels(picture: str | os.PathLike | bytes) -> np.ndarray:
    """Reads which object each pixel of a picture of masks shows.

    A pixel of value 255 in a picture of 8 bits is void, as in DAVIS and PASCAL VOC: it belongs to no
    object, in training, prompts and scores alike. The toolkit of DAVIS
    (github.com/davisvideochallenge/davis2017-evaluation) counts it as background as well. The only
    exceptions are pictures with no values but 0 and 255, the black-and-white masks of DAVIS 2016: there
    255 is object 1. All values in pictures of 16 bits are ids, unless they are only 0 and 65535.

    Args:
        picture: a file, or the bytes of one.

    Returns:
        (H, W) uint8, or uint16 where the picture has 16 bits a pixel; 0 is no object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or one whose ids cannot be known: coloured, or with soft edges.
    """
    return _objects_of(*read_palette_png(picture), picture)


def read_known_labels(
    picture: str | os.PathLike | bytes, ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads which object each pixel shows, and of which pixels that is not known.

    Args:
        picture: as for `read_labels`.
        ignore_label: value of the pixels that are not known; the others are read as `read_labels` does.

    Returns:
        labels: (H, W) uint8 or uint16, 0 where nothing is known.
        ignored: (H, W) bool, where nothing is known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_labels`.
    """
    values, palette = read_palette_png(picture)
    ignored = values == ignore_label
    return _objects_of(np.where(ignored, 0, values), palette, picture), ignored


def _objects_of(
    labels: np.ndarray, palette: np.ndarray | None, picture: str | os.PathLike | bytes
) -> np.ndarray:
    """Turns the values of a picture into objects, by the rule of `read_labels`."""
    if palette is None and is_soft(labels):
        count = len(np.unique(labels[labels > 0]))
        raise ValueError(
            f"{picture_name(picture)} has {count} values besides 0, most of them on edges only: it seems to "
            "be the soft mask of one object. Make it black and white, or name the object, as in --mask "
            "1:FILE.png"
        )
    white = np.iinfo(labels.dtype).max
    is_void = labels == white
    if not is_void.any() or (labels.dtype == np.uint16 and labels[~is_void].any()):
        return labels
    is_black_and_white = not labels[~is_void].any()
    return is_void.astype(np.uint8) if is_black_and_white else np.where(is_void, 0, labels)


def is_soft(values: np.ndarray) -> bool:
    """Tells a mask that has soft edges, or was a JPEG, from a picture of ids.

    Most ids cover areas; most values of a soft mask lie on its edge, side by side with others.

    Args:
        values: (H, W) uint8 or uint16.
    """
    if values.dtype != np.uint8:
        return False
    areas = np.bincount(values.ravel(), minlength=256)[1:]
    is_equal = values[:, 1:] == values[:, :-1]
    inner = np.bincount(values[:, 1:][is_equal], minlength=256)[1:]
    present = areas > 0
    num_on_edges = np.count_nonzero(inner[present] < 0.5 * areas[present])
    num_values = np.count_nonzero(present)
    reaches_white = present[127:].any()
    return (
        num_on_edges >= 4 and 2 * num_on_edges >= num_values and (reaches_white or num_values > 16)
    )


def as_mask(mask: Any) -> np.ndarray:
    """Returns the mask of one object, of any type, as booleans.

    Whole numbers are 0 and one other value, such as 1 or 255. Floats with values below 0 are
    logits, inside above 0; floats within 0..1 are probabilities, inside from 0.5 on; any others are
    also 0 and one other value.

    Args:
        mask: (H, W).

    Returns:
        (H, W) bool.

    Raises:
        ValueError: another shape, NaN, or several values.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"The mask has shape {mask.shape}; expected (height, width).")
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind not in "iuf":  # bfloat16
        mask = mask.astype(np.float32)
    if np.isnan(mask).any():
        raise ValueError(
            "The mask has values that are NaN; expected 0 and 1, logits or probabilities."
        )
    if mask.dtype.kind == "f" and mask.min() < 0:
        return mask > 0
    if mask.dtype.kind == "f" and mask.max() <= 1:
        return mask >= 0.5
    inside = mask != 0
    if mask.min() != mask.max() and mask[inside].min() != mask.max():
        raise ValueError(
            f"The mask has values from {mask.min():g} to {mask.max():g}, more than two of them; one object "
            "is expected. Select one of several ids with mask == id, or threshold a soft mask, for example "
            "with mask > 127."
        )
    return inside


def pack_masks(masks: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Packs the masks of several objects into one picture of ids.

    Args:
        masks: (N, H, W) bool.
        ids: N different ids within 1..65534; where masks overlap, the lowest wins.

    Returns:
        (H, W) uint8, 0 the background; uint16 if there is an id above 254, since 255 is void.

    Raises:
        ValueError: shapes do not fit, or an id is repeated or out of range.
    """
    masks = check_masks(masks, ids)
    check_ids(ids, 1, MAX_ID)
    packed = np.zeros(masks.shape[1:], np.uint8 if max(ids, default=0) < VOID else np.uint16)
    for i in np.argsort(ids)[::-1]:
        packed[masks[i]] = ids[i]
    return packed


def check_masks(masks: np.ndarray, ids: Sequence) -> np.ndarray:
    """Returns masks (N, H, W), bool or of 0 and 1, as bool; a ValueError if they are not, or not one per id."""
    masks = np.asarray(masks)
    if masks.dtype != bool and ((masks == 0) | (masks == 1)).all():
        masks = masks.astype(bool)
    if masks.ndim != 3 or masks.dtype != bool or len(masks) != len(ids):
        raise ValueError(
            f"masks are {masks.shape} {masks.dtype} for {len(ids)} ids; "
            f"({len(ids)}, H, W) bool is expected"
        )
    return masks


def check_ids(ids: Sequence, first: int, last: int | None = None) -> None:
    """Raises a ValueError unless ids are different integers within first..last."""
    is_valid = all(
        isinstance(i, int | np.integer) and first <= i and (last is None or i <= last) for i in ids
    )
    if not is_valid or len(set(ids)) != len(ids):
        within = f"from {first}" if last is None else f"within {first}..{last}"
        raise ValueError(f"ids are {list(ids)}; different integers {within} are expected")


def write_object_masks(
    path: str | os.PathLike,
    frame: int | str,
    ids: Sequence[int],
    masks: np.ndarray,
    palette: np.ndarray | None = None,
) -> None:
    """Writes a frame's masks as SA-V lays them out: `<path>/<id:03d>/<frame>.png`, which may overlap.

    The pictures are grey with 255 on the object, or have a palette and 1 there. Folders are made as needed.

    Args:
        path: the folder of the video.
        frame: name of the frame, or its index from 0, which is written with five digits.
        ids: N different ids from 0.
        masks: (N, H, W) bool.
        palette: (K, 3) uint8, as `write_palette_png` takes it.

    Raises:
        ValueError: shapes do not fit, or an id is repeated, negative or no integer.
        OSError: a file cannot be written, for example because the disk is full.
    """
    masks = check_masks(masks, ids)
    check_ids(ids, 0)
    for object_id, mask in zip(ids, masks, strict=True):
        folder = os.path.join(path, f"{object_id:03d}")
        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, f"{frame_name(frame)}.png")
        if palette is None:
            write_file(file, png_bytes(Image.fromarray(mask.astype(np.uint8) * 255)))
        else:
            write_palette_png(file, mask.astype(np.uint8), palette)


def frame_name(frame: int | str) -> str:
    """Returns the name of a frame's files, such as "00042" for an index."""
    return frame if isinstance(frame, str) else f"{frame:05d}"


def object_folders(path: str | os.PathLike) -> dict[int, str]:
    """Returns the folders of the objects of a video, by object id in ascending order.

    Files, and folders whose names are not numbers, are left out; a warning names the first such folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two folders of one object, such as `1` and `001`.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"no such folder: {os.fspath(path)}")
    by_id: dict[int, str] = {}
    names = list_folders(os.fspath(path))
    numbers = [name for name in names if re.fullmatch("[0-9]+", name)]
    for name in numbers:
        other = by_id.setdefault(int(name), os.path.join(path, name))
        if os.path.basename(other) != name:
            raise ValueError(
                f"{os.fspath(path)} holds two folders of object {int(name)}: "
                f"{os.path.basename(other)}, {name}"
            )
    if others := [name for name in names if name not in numbers]:
        warn_once(
            "%d of the %d folders in %s are left out, since their names are no numbers of objects; the first "
            "is %s",
            len(others),
            len(names),
            os.fspath(path),
            others[0],
        )
    return dict(sorted(by_id.items()))


def read_object_mask(path: str | os.PathLike | bytes) -> np.ndarray:
    """Reads the mask of a single object, of a file or the bytes of one, by the rule of `read_labels`.

    Returns:
        (H, W) bool.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds several objects.
    """
    values, palette = read_palette_png(path)
    if palette is None and is_soft(values):
        return values > SOFT_EDGE
    labels = read_labels(path)
    mask = labels > 0
    present = np.unique(labels[mask])
    if len(present) > 1:
        raise ValueError(
            f"{picture_name(path)} holds the values {present[:5].tolist()}; the mask of one object is "
            "expected"
        )
    return mask


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

    Strict, unlike pycocotools, which treats what is missing at the end as empty.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: not run lengths, or they do not add up to the size.
    """
    runs, (height, width) = _check_rle(rle)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _check_rle(rle: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the runs, off and on in turn, and height and width; see `decode_rle`."""
    try:
        height, width = (operator.index(side) for side in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, bytes):  # as pycocotools returns them
            counts = counts.decode("ascii")
        runs = _unpack_counts(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        is_valid = runs.ndim == 1 and runs.min(initial=0) >= 0 and runs.sum() == height * width
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError('run lengths {"size": [H, W], "counts": ...} are expected') from error
    if not is_valid or not (0 <= height <= MAX_SIDE and 0 <= width <= MAX_SIDE):
        raise ValueError(f"the run lengths do not add up to a mask of {height} rows x {width}")
    return runs, (height, width)


def segmentation_area(segmentation: Any, size: tuple[int, int]) -> int:
    """Counts the pixels of what `decode_segmentation` decodes, without decoding it.

    Raises:
        ValueError: as there, or there is no pixel.
    """
    area = int(_check_rle(_segmentation_rle(segmentation, size))[0][1::2].sum())
    if area == 0:
        raise ValueError("its mask is empty")
    return area


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decodes what COCO calls a segmentation: run lengths, or a list of polygons.

    Polygons of one or two points, which tools leave behind, are ignored.

    Args:
        segmentation: as JSON gives it.
        size: height and width.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: neither, or of another size.
    """
    return decode_rle(_segmentation_rle(segmentation, size))


def _segmentation_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    if isinstance(segmentation, dict):
        given = segmentation.get("size")
        if given is not None and list(given) != list(size):
            raise ValueError(f"its run lengths are of size {given}, but the image is {list(size)}")
        return segmentation
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has no segmentation")
    is_stray = lambda polygon: isinstance(polygon, list) and len(polygon) in (0, 2, 4)
    kept = [polygon for polygon in segmentation if not is_stray(polygon)]
    if not kept:
        raise ValueError("its polygons have less than three points")
    return _polygon_rle(kept, *size)


def decode_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Fills outlines, each x, y, x, y, ... in pixels, as COCO does.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: not polygons.
    """
    if isinstance(polygons, list) and not polygons:
        return np.zeros((height, width), bool)
    return decode_rle(_polygon_rle(polygons, height, width))


def _polygon_rle(polygons: Any, height: int, width: int) -> dict[str, Any]:
    from pycocotools import mask as coco

    # pycocotools mistakes four numbers for a box, and needs memory for each pixel of an outline.
    is_valid = isinstance(polygons, list) and all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(x, int | float) and abs(x) <= 4 * MAX_SIDE for x in polygon)
        for polygon in polygons
    )
    if not is_valid:
        raise ValueError("polygons are lists of at least three points x, y each, in pixels")
    rle = coco.merge(coco.frPyObjects(polygons, height, width))
    return {"size": rle["size"], "counts": rle["counts"]}


def _unpack_counts(text: str) -> np.ndarray:
    """Reads COCO's text: 5 bits per character, lowest first; each run is stored minus the one two before."""
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


def boxes_from_masks(masks: np.ndarray) -> np.ndarray:
    """Returns the smallest boxes around masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) int64 x, y, width, height in pixels, (x, y) the first column and row from 0; all 0
        for an empty mask.
    """
    masks = np.asarray(masks)
    boxes = np.zeros((len(masks), 4), np.int64)
    if masks.size == 0:
        return boxes
    for axis, along in ((0, np.any(masks, 1)), (1, np.any(masks, 2))):
        boxes[:, axis] = along.argmax(1)
        last = along.shape[1] - along[:, ::-1].argmax(1)
        boxes[:, 2 + axis] = np.where(along.any(1), last - boxes[:, axis], 0)
    return boxes


def write_boxes(path: str | os.PathLike, boxes: np.ndarray) -> None:
    """Writes the boxes of one object as trackers do: `x,y,w,h`, one line a frame.

    Args:
        path: the file to write.
        boxes: (T, 4) x, y, width, height in pixels; an object with no width or height, or with a
            nan, is absent and written as `0,0,0,0`.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: another shape.
        OSError: the file cannot be written, for example because the disk is full.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are {boxes.shape}; (T, 4) x, y, width, height is expected")
    number = lambda value: np.format_float_positional(value, trim="-")
    lines = [",".join(map(number, box)) + "\n" for box in _blank_absent(boxes)]
    write_file(path, "".join(lines).encode("ascii"))


def _blank_absent(boxes: np.ndarray) -> np.ndarray:
    """Sets the boxes of absent objects, (T, 4), to 0."""
    is_there = np.all(np.isfinite(boxes), 1) & np.all(boxes[:, 2:] > 0, 1)
    return np.where(is_there[:, None], boxes, 0.0)


def read_boxes(path: str | os.PathLike) -> np.ndarray:
    """Reads boxes `x,y,w,h`, one line a frame, with commas, spaces or tabs between the numbers.

    Returns:
        (T, 4) float64 x, y, width, height; all 0 where the object is absent, which files write as
        zeros, as nan or as a box of no width or height.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not four numbers.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {os.fspath(path)}")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = file.read().rstrip().splitlines()
    boxes = np.zeros((len(lines), 4))
    for index, line in enumerate(lines):
        try:
            boxes[index] = [float(text) for text in re.split(r"\s*,\s*|\s+", line.strip())]
        except ValueError as error:
            raise ValueError(
                f"line {index + 1} of {os.fspath(path)} is {line[:80]!r}; "
                "four numbers x,y,width,height are expected"
            ) from error
    return _blank_absent(boxes)
