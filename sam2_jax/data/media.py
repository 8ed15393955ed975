"""Pictures and videos in and out.

picture file  ->  (H, W, 3) uint8 RGB            frames (H, W, 3)  ->  H.264 mp4
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Self

import numpy as np
from PIL import ExifTags, Image, ImageOps

from sam2_jax.data.listing import warn_once
from sam2_jax.files import PartialFile

MAX_SIDE = 16384
_SUBFILE_TYPE = 254  # tag of TIFF; bit 0: a preview
_TICKS = 90000  # a second; broadcast rates are whole numbers of them
_HD_LINES = 720
_BT709, _BT601 = 1, 6  # FFmpeg's numbers of the matrices
_LIMITED_RANGE = 1


def read_image(
    picture: str | os.PathLike | bytes, drawn_on: tuple[int, int] | None = None
) -> np.ndarray:
    """Reads a picture, a file or the bytes of one, as RGB; see `rgb_picture`.

    An orientation stored in EXIF is not applied: the original does not either, and prompts are given
    in the pixels of the file. Annotation tools do apply it, so that it is applied where `drawn_on`
    is given, unless only the stored picture has that size.

    Args:
        picture: the file.
        drawn_on: height and width of the picture on which annotations were drawn.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, is cut short, holds several, or is absurdly large.
    """
    name = picture_name(picture)
    with open_picture(picture) as image:
        if _count_pages(image) > 1:
            raise ValueError(
                f"{name} holds {_count_pages(image)} pictures, and one is expected: save each as a file of "
                "its own; a folder of them is a video"
            )
        if _is_turned(image, drawn_on):
            image = ImageOps.exif_transpose(image)
        elif drawn_on is None:
            warn_of_orientation(image, name)
        return rgb_picture(image, name)


def warn_of_orientation(image: Image.Image, name: str) -> None:
    """Says once that a picture is not turned, if viewers turn it by its EXIF."""
    if _orientation(image) != 1:
        warn_once(
            "%s has an orientation in EXIF, which is not applied: viewers turn it, but its pixels count as "
            "they are stored (PIL.ImageOps.exif_transpose turns it for good)",
            name,
        )


def rgb_picture(image: Image.Image, name: str = "the picture") -> np.ndarray:
    """Returns a Pillow image of any mode as RGB.

    Grey of more than 8 bits, whole numbers or floats, is scaled so that its least value is 0 and its
    greatest 255. Alpha is dropped, as the original does: transparent parts show what is stored there.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: values that are not finite, or colours that cannot be converted.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are not finite: replace them first")
        low, high = values.min(), values.max()
        scaled = (values - low) * (255 / (high - low) if high > low else 0)
        return np.repeat(np.round(scaled).astype(np.uint8)[..., None], 3, -1)
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        warn_once("%s is transparent in parts, which are read with the colours stored there", name)
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise ValueError(f"{name} is of mode {image.mode}; save it as RGB") from error


def _count_pages(image: Image.Image) -> int:
    """Counts the pictures of a file; previews of the first one in other sizes do not count."""
    count = getattr(image, "n_frames", 1)
    if image.format == "MPO":  # a JPEG with a preview, or the other eye's picture, behind it
        return 1
    if image.format != "TIFF" or count == 1:
        return count
    pages = 0
    for page in range(count):
        image.seek(page)
        pages += not image.tag_v2.get(_SUBFILE_TYPE, 0) & 1
    image.seek(0)
    image.load()
    return pages


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _is_turned(image: Image.Image, drawn_on: tuple[int, int] | None) -> bool:
    """Says whether annotations were drawn on a picture as EXIF turns it."""
    orientation = _orientation(image)
    if drawn_on is None or orientation == 1:
        return False
    stored = image.height, image.width
    shown = stored[::-1] if orientation >= 5 else stored
    return tuple(drawn_on) == shown


def picture_size(
    picture: str | os.PathLike | bytes, drawn_on: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Reads height and width of what `read_image` returns from the header of a picture."""
    with _open_header(picture) as image:
        is_across = _is_turned(image, drawn_on) and _orientation(image) >= 5
        return image.size if is_across else (image.height, image.width)


def has_transparency(path: str | os.PathLike) -> bool:
    """Tells from its header whether a picture has a transparent colour or channel."""
    with _open_header(path) as image:
        return image.has_transparency_data


@contextlib.contextmanager
def open_picture(picture: str | os.PathLike | bytes) -> Iterator[Image.Image]:
    """Opens and decodes a picture, with one-sentence errors."""
    with _open_header(picture) as image:
        try:
            image.load()
        # Pillow reports damaged pixels by several unrelated types.
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise ValueError(
                f"{picture_name(picture)} is damaged or cut short: its pixels cannot be decoded"
            ) from error
        yield image


def picture_name(picture: str | os.PathLike | bytes) -> str:
    """Returns what messages call a picture."""
    return "a stored picture" if isinstance(picture, bytes) else os.fspath(picture)


def _open_header(picture: str | os.PathLike | bytes) -> Image.Image:
    name = picture_name(picture)
    if not isinstance(picture, bytes) and not os.path.exists(picture):
        raise FileNotFoundError(f"no such file: {name}")
    try:
        image = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to be read: {error}") from error
    except OSError as error:
        raise ValueError(f"{name} is not a picture that can be read") from error
    if max(image.size) > MAX_SIDE:
        image.close()
        raise ValueError(
            f"{name} is {image.width}x{image.height}; at most {MAX_SIDE} pixels a side are read"
        )
    return image


class VideoWriter:
    """Writes an H.264 mp4 that browsers play, one frame at a time.

    The file appears under its name when it is closed; an older file of that name stays until
    then. Leaving a `with` statement closes it, also when an error ends the work early: the frames
    written before make a whole, playable file. Without any frame there is no file. Odd sizes are
    made even by repeating the last row or column. Colours are those of BT.709 from 720 lines on, of
    BT.601 below, and the file says so.

        with VideoWriter("overlay.mp4", fps=24) as video:
            video.write(frame)

    Attributes:
        num_frames: frames written so far.

    Args:
        path: the file to write; its folder must exist.
        fps: frames a second.
        pixel_aspect: width of a pixel over its height when the video is shown.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: `fps` is not above 0 and below 1000.
    """

    def __init__(self, path: str | os.PathLike, fps: float, pixel_aspect: Fraction = Fraction(1)):
        self._file = PartialFile(path)
        if not 0 < fps < 1000:
            raise ValueError(f"fps is {fps}; a number above 0 and below 1000 is expected")
        self._fps, self._pixel_aspect = fps, pixel_aspect
        self._last_tick = -1
        self._container = None
        self._is_closed = False
        self.num_frames = 0

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Adds a frame.

        Args:
            frame: (H, W, 3) uint8 RGB, as large as the first.
            time: when it is shown, seconds, for videos of varying rate; by `fps` if absent.

        Raises:
            ValueError: a frame of another shape or type, or one that is not shown after the one before:
                it is left out. Or a closed video.
            OSError: the file cannot be written, for example because the disk is full.
        """
        import av

        frame = np.asarray(frame)
        if self._is_closed:
            raise ValueError(f"{self._file.path} is closed: no frame can be added")
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(
                f"frame {self.num_frames} is {frame.shape} {frame.dtype}; "
                "(H, W, 3) uint8 is expected"
            )
        container = self._container or self._open(frame.shape)
        if frame.shape != self._shape:
            raise ValueError(
                f"frame {self.num_frames} is {frame.shape}, but the first is {self._shape}"
            )
        tick = round((self.num_frames / self._fps if time is None else time) * _TICKS)
        if tick <= self._last_tick:
            raise ValueError(
                f"frame {self.num_frames} is shown at {tick / _TICKS:g} s, but the one before at "
                f"{self._last_tick / _TICKS:g} s; times have to ascend"
            )
        height, width, _ = frame.shape
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=self._matrix, dst_color_range=_LIMITED_RANGE
        )
        picture.pts, picture.time_base = tick, Fraction(1, _TICKS)
        picture.duration = max(1, round(_TICKS / self._fps))
        with self._file.named_errors():
            container.mux(self._stream.encode(picture))
        self._last_tick = tick
        self.num_frames += 1

    def _open(self, shape: tuple[int, int, int]) -> Any:
        import av

        with self._file.named_errors():
            self._container = av.open(
                self._file.partial, "w", format="mp4", options={"movflags": "+faststart"}
            )
        self._shape = shape
        # 1001 is the denominator of the broadcast rates.
        rate = max(Fraction(self._fps).limit_denominator(1001), Fraction(1, 1001))
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = (side + side % 2 for side in shape[:2])
        self._stream.pix_fmt = "yuv420p"
        # Frames that are stored out of order make the muxer end a video of varying rate too early.
        self._stream.options = {"crf": "18", "preset": "medium", "bf": "0"}
        self._matrix = _BT709 if shape[0] >= _HD_LINES else _BT601
        context = self._stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.sample_aspect_ratio = self._pixel_aspect
        context.colorspace, context.color_range = self._matrix, _LIMITED_RANGE
        context.color_primaries = context.color_trc = _BT709
        return self._container

    def close(self) -> None:
        """Finishes the file and gives it its name; does nothing the second time.

        Raises:
            OSError: the file cannot be finished; nothing is left of it, and an older file stays.
        """
        self._is_closed = True
        container, self._container = self._container, None
        if container is None:
            return
        try:
            with self._file.named_errors():
                try:
                    if self.num_frames:
                        container.mux(self._stream.encode())
                finally:
                    container.close()
            if self.num_frames:
                self._file.commit()
        finally:
            self._file.discard()

    def discard(self) -> None:
        """Drops what was written; an older file of that name stays."""
        self._is_closed = True
        container, self._container = self._container, None
        try:
            if container is not None:
                with contextlib.suppress(OSError):  # what cannot be finished is not wanted either
                    container.close()
        finally:
            self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes frames as an H.264 mp4 that browsers play, all of them or none.

    The file appears when it is complete: an interrupted run leaves none, and an older file of
    that name stays until then. `VideoWriter` keeps what an interrupted run had written.

    Args:
        path: the file to write; its folder must exist.
        frames: (H, W, 3) uint8 RGB each, all of one size; consumed one at a time.
        fps: frames a second.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: no frames, a frame of another shape or type, or `fps` not above 0.
        OSError: the file cannot be written, for example because the disk is full.
    """
    writer = VideoWriter(path, fps)
    try:
        for frame in frames:
            writer.write(frame)
        if writer.num_frames == 0:
            raise ValueError("there are no frames to write")
        writer.close()
    finally:
        writer.discard()
