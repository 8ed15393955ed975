"""Frame sources: a video file, a folder of pictures, arrays or an iterator, read frame by frame.

    source  ->  Frames: exists(i), [i] -> (H, W, 3) uint8 RGB, .height, .width, .fps, len()

No source holds more than a bounded number of decoded frames, however long the video.
"""

import abc
import bisect
import collections
import contextlib
import functools
import itertools
import operator
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from fractions import Fraction
from typing import Any, NamedTuple, Self

import numpy as np

from sam2_jax.data.arrays import rgb_hint
from sam2_jax.data.listing import IMAGE_SUFFIXES, list_frames, warn_once
from sam2_jax.data.media import (
    MAX_SIDE,
    picture_name,
    picture_size,
    read_image,
    rgb_picture,
    warn_of_orientation,
)

DEFAULT_FPS = 24.0
MAX_FPS = 1000  # higher rates in headers are really units of time
CACHE_BYTES = 256 * 2**20
MIN_CACHED_FRAMES, MAX_CACHED_FRAMES = 4, 64
KEPT_FRAMES = 32  # of an iterator, which cannot go back
RETRY_SECONDS = 0.005
_HDR = {16: "PQ", 18: "HLG"}  # by FFmpeg's number of the transfer function


class Frames(Sequence):
    """A sequence of equally large RGB frames, each read when asked for.

    Where a source ends may be unknown until it does: ask `exists`, not `len`, whether there is a frame.

    Attributes:
        height: H, pixels.
        width: W, pixels.
        fps: frames a second, on average where they vary; `DEFAULT_FPS` where the source does not say.
        pixel_aspect: width of a pixel over its height when the video is shown; arrays hold pixels as
            they are stored, which are not stretched.
        names: of the frames, where each has one of its own, such as that of its file without suffix.
    """

    height: int
    width: int
    fps: float = DEFAULT_FPS
    pixel_aspect: Fraction = Fraction(1)
    names: Sequence[str] | None = None

    @abc.abstractmethod
    def _read(self, index: int) -> np.ndarray:
        """Returns frame `index`, which exists."""

    def exists(self, index: int) -> bool:
        """Says whether there is a frame `index`, counted from 0, which may read frames up to it."""
        return 0 <= index < len(self)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns frame `index` as (H, W, 3) uint8 RGB, to be treated as read-only.

        Raises:
            IndexError: there is no such frame.
            ValueError: the frame cannot be decoded, or differs in size from the first.
        """
        index = operator.index(index)
        place = index + len(self) if index < 0 else index
        if not self.exists(place):
            raise IndexError(f"no frame {index}: there are {len(self)} frames")
        return self._read(place)

    def time(self, index: int) -> float:
        """Returns when a frame is shown, in seconds since the first one."""
        return index / self.fps

    def encoded(self, index: int) -> bytes | None:
        """Returns the bytes of the file that a frame is read from, None where it has none of its own."""
        del index
        return None

    def close(self) -> None:
        """Releases what the source holds open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_size(self, frame: np.ndarray, name: str) -> np.ndarray:
        check_size(frame, self.height, self.width, name)
        return frame


def check_size(frame: np.ndarray, height: int, width: int, name: str) -> None:
    """Raises a ValueError unless a frame is as large as the first of its source."""
    if frame.shape[:2] != (height, width):
        raise ValueError(
            f"{name} is {frame.shape[1]}x{frame.shape[0]}, but the first frame is "
            f"{width}x{height}; all frames must have one size"
        )


class _Timeline(NamedTuple):
    """Where the frames of a video lie.

    Attributes:
        num_frames: frames in presentation order.
        times: (num_frames,) int64 presentation times, ascending; None where the file has no
            usable ones, and frames can only be counted from the beginning.
        keys: indices of the first frames that decoding from a keyframe shows, ascending, the first 0.
        key_times: presentation times of these keyframes, which may be hidden themselves.
        span: time from the first frame to the last, 0 if that is unknown.
    """

    num_frames: int
    times: np.ndarray | None
    keys: list[int]
    key_times: list[int]
    span: int


class VideoFile(Frames):
    """The frames of a video file, decoded when asked for.

    Frames asked for in order are decoded once each. Going back, or far ahead, seeks to the
    keyframe before; the frames met on the way back are kept, up to a bounded number, so that
    reading a video backwards costs a few decodes per frame instead of a whole group of pictures.
    A rotation or reflection stored in the file is applied, and frames that its edit list hides are
    left out. Of several video streams the largest counts. Where the file is damaged, the frames
    from there to the next keyframe cannot be read, but the others can. Safe to use from several
    threads.

    Opening reads the file once, without decoding it, to count the frames that are really there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, no frame in it can be decoded, or larger than 16384 pixels a side.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.path.abspath(path)
        self._lock = threading.Lock()  # FFmpeg's contexts are not safe to share
        self._cache: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._capacity = MAX_CACHED_FRAMES
        self._decoded: Iterator | None = None
        self._next = 0
        self._damaged = range(0)  # frames whose decoded pictures are wrong
        self._is_closed = False
        self._container = _open_container(self.path)
        try:
            stream = main_stream(self._container, self.path)
            self._timeline = _read_timeline(self._container, stream, self.path)
            self.fps, self._seconds = _rate_and_seconds(stream, self._timeline, self.path)
            stored, aspect = (stream.height, stream.width), stream.sample_aspect_ratio
            first = self._read(0)  # reopens the file: the stream must not be used any more
            is_turned = first.shape[:2] != stored and first.shape[1::-1] == stored
            aspect = Fraction(aspect or 1)
            self.pixel_aspect = 1 / aspect if is_turned else aspect
        except BaseException:
            self.close()
            raise
        self.height, self.width = first.shape[:2]
        self._capacity = min(max(CACHE_BYTES // first.nbytes, MIN_CACHED_FRAMES), MAX_CACHED_FRAMES)

    def __len__(self) -> int:
        return self._timeline.num_frames

    def time(self, index: int) -> float:
        """Returns when a frame is shown, in seconds since the first one."""
        return super().time(index) if self._seconds is None else float(self._seconds[index])

    def close(self) -> None:
        """Closes the file and forgets the frames decoded so far."""
        with self._lock:
            self._is_closed, self._decoded = True, None
            self._cache.clear()
            self._container.close()

    def _read(self, index: int) -> np.ndarray:
        with self._lock:
            if self._is_closed:
                raise ValueError(f"{self.path} is closed")
            if index not in self._cache:
                num_before = self._decode_up_to(index)
            if index not in self._cache:
                raise ValueError(
                    f"frame {index} of {self.path} cannot be decoded: the file is damaged, and "
                    f"decoding stops after {num_before} of its {len(self)} frames"
                )
            self._cache.move_to_end(index)
            return self._cache[index]

    def _decode_up_to(self, target: int) -> int:
        """Decodes `target` into the cache; returns how far that went well."""
        key = bisect.bisect_right(self._timeline.keys, target) - 1
        is_behind = target < self._next
        if self._decoded is None or is_behind or self._timeline.keys[key] > self._next:
            self._decoded, self._next = self._decode_from(key), self._timeline.keys[key]
            self._damaged = range(0)
        first_kept = target - self._capacity + 1 if is_behind else target
        for index, frame in self._decoded:
            is_gap = index > self._next
            if (is_gap or frame.is_corrupt) and index not in self._damaged:
                self._damaged = range(min(self._next, index), self._group_end(index, frame))
            self._next = index + 1
            if first_kept <= index <= target and index not in self._damaged:
                self._keep(index, frame)
            if index >= target:
                break
        else:
            self._decoded = None
        return self._damaged.start if target in self._damaged else self._next

    def _group_end(self, index: int, frame: Any) -> int:
        """The next keyframe: up to there, frames are predicted from the damaged or missing one.

        A keyframe right after missing frames is itself the end.
        """
        find = bisect.bisect_right if frame.is_corrupt else bisect.bisect_left
        return [*self._timeline.keys, len(self)][find(self._timeline.keys, index)]

    def _decode_from(self, key: int) -> Iterator:
        """Decodes from a keyframe on, or from the beginning if seeking misses it."""
        import av

        frames, first = self._indexed_frames(key), None
        with contextlib.suppress(av.error.FFmpegError):
            first = next(frames, None)
        if key > 0 and (first is None or first[0] > self._timeline.keys[key]):
            return self._indexed_frames(0)
        return itertools.chain([] if first is None else [first], frames)

    def _indexed_frames(self, key: int) -> Iterator:
        """Yields (index, decoded frame) from a keyframe on, leaving out what is damaged."""
        import av

        if key == 0:
            # Not every container can seek to its beginning; all can be opened again.
            self._container.close()
            self._container = _open_container(self.path)
        stream = main_stream(self._container, self.path)
        times = self._timeline.times
        if key > 0:
            self._container.seek(self._timeline.key_times[key], stream=stream)
        count = 0
        for packet in intact_packets(self._container, stream):
            try:
                frames = stream.decode(packet)
            except av.error.FFmpegError:
                if times is None:  # whatever comes next could not be numbered
                    return
                continue
            for frame in frames:
                index = count if times is None else _index_of(frame.pts, times)
                count += 1
                if index is not None:
                    yield index, frame

    def _keep(self, index: int, frame: Any) -> None:
        rgb = to_rgb(frame)
        if self._cache:
            shape = next(iter(self._cache.values())).shape
            if rgb.shape != shape:
                raise ValueError(
                    f"frame {index} of {self.path} is {rgb.shape[1]}x{rgb.shape[0]}, but the "
                    f"frames before are {shape[1]}x{shape[0]}; all frames must have one size"
                )
        rgb.flags.writeable = False  # the cache hands out the same array again
        self._cache[index] = rgb
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)


def to_rgb(frame: Any) -> np.ndarray:
    """Returns a decoded frame as (H, W, 3) uint8 RGB, turned and mirrored as its file says.

    HDR (PQ, HLG) is not tone-mapped.
    """
    if frame.color_trc in _HDR:
        warn_once(
            "a video is HDR (%s), which is read as it is: colours look flat until it is tone-mapped, for "
            "example with the filter tonemap of ffmpeg",
            _HDR[frame.color_trc],
        )
    rgb, matrix = frame.to_ndarray(format="rgb24"), _display_matrix(frame)
    if matrix is not None:
        # A pixel at (x, y) is shown at (a x + c y, b x + d y).
        (a, b), (c, d) = matrix
        if abs(b) > abs(a):
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        rgb = rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(rgb)


def _display_matrix(frame: Any) -> np.ndarray | None:
    """Returns how a frame is turned when it is shown, (2, 2), None if it is not."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    return np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)[:2, :2]


def _open_container(path: str) -> Any:
    """Opens a local file as a container with a video stream of a reasonable size."""
    import av

    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {path}")
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; a video file is expected")
    try:
        # A playlist that calls itself a video may name addresses; only files are read.
        container = av.open(path, options={"protocol_whitelist": "file"})
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{path} is not a video that can be read, or its beginning or end is missing "
            f"({error.strerror})"
        ) from error
    check_container(container, path).codec_context.thread_type = "AUTO"
    return container


def check_container(container: Any, name: str) -> Any:
    """Returns the main video stream; closes the container, with a ValueError, if there is none to read."""
    try:
        stream = main_stream(container, name)
        context = stream.codec_context
        if context is None:
            raise ValueError(f"{name} is encoded in a way that this build of FFmpeg cannot decode")
        if max(context.width, context.height) > MAX_SIDE:
            raise ValueError(
                f"{name} is {context.width}x{context.height}; at most {MAX_SIDE} pixels a side are read"
            )
    except ValueError:
        container.close()
        raise
    return stream


def main_stream(container: Any, name: str) -> Any:
    """Chooses among the video streams of a container.

    Cover art does not count. Cameras put still pictures and small previews beside or before the
    video, so the largest stream of more than one frame is chosen; among equals the default one,
    then the first.

    Raises:
        ValueError: there is no video stream.
    """
    from av.stream import Disposition

    # FFmpeg renders plain text as a film of a terminal.
    is_text = container.format.name == "tty"
    streams = [] if is_text else container.streams.video
    videos = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not videos:
        has = ", only cover art" if streams else ""
        raise ValueError(f"{name} has no video stream{has}; a video file is expected")

    def rank(stream: Any) -> tuple[bool, bool, int, bool]:
        context = stream.codec_context
        area = context.width * context.height if context else 0
        is_default = bool(stream.disposition & Disposition.default)
        return context is not None, stream.frames != 1, area, is_default

    chosen = max(videos, key=rank)
    if len(videos) > 1:
        sizes = [f"{s.width}x{s.height}" if s.codec_context else "unknown" for s in videos]
        place = videos.index(chosen)
        warn_once(
            "%s has %d video streams (%s): number %d is used",
            name,
            len(videos),
            ", ".join(sizes),
            place + 1,
        )
    return chosen


def frame_rate(stream: Any) -> float:
    """Returns the rate that the header of a stream states, `DEFAULT_FPS` if that is none."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate < MAX_FPS else DEFAULT_FPS


def _rate_and_seconds(
    stream: Any, timeline: _Timeline, name: str
) -> tuple[float, np.ndarray | None]:
    """Returns the frames a second, and when each is shown, if that is known.

    Headers are trusted only where the times agree: browsers write units of time as rates.
    """
    stated = frame_rate(stream)
    if timeline.span <= 0:
        return stated, None
    times, unit = timeline.times, float(stream.time_base)
    duration = timeline.span * unit
    measured = (timeline.num_frames - 1) / duration
    if not measured < MAX_FPS:
        warn_once("%s claims %g frames per second; %g is used instead", name, measured, stated)
        return stated, None
    # Times are rounded to whole units.
    tolerance = 0.01 + unit / duration
    seconds = None if times is None else (times - times[0]) * unit
    return (stated if abs(stated / measured - 1) <= tolerance else measured), seconds


def _index_of(time: int | None, times: np.ndarray) -> int | None:
    """Returns the place of a time among ascending ones, None if it is not there."""
    index = len(times) if time is None else int(np.searchsorted(times, time))
    return index if index < len(times) and times[index] == time else None


def intact_packets(container: Any, stream: Any) -> Iterator:
    """Yields the intact packets, up to where the file breaks off, and None at the end."""
    import av

    # If the demuxer gives up, the packets before that still count.
    with contextlib.suppress(av.error.FFmpegError):
        while True:
            try:
                for packet in container.demux(stream):
                    if packet.size > 0 and not packet.is_corrupt:
                        yield packet
                break
            except BlockingIOError:  # a camera whose next picture is not there yet
                time.sleep(RETRY_SECONDS)
    yield None


def _read_timeline(container: Any, stream: Any, path: str) -> _Timeline:
    """Counts the frames by their packets: a header may promise more than the file holds."""
    times, keys = [], []
    for packet in intact_packets(container, stream):
        if packet is None:
            continue
        if packet.is_keyframe:
            keys.append(packet.pts)
        # Before the first keyframe nothing can be decoded, and what an edit list hides is not shown.
        if keys and not packet.is_discard:
            times.append(packet.pts)
    if not times:
        raise ValueError(f"{path} holds no frame that can be decoded; is it cut short?")
    has_times = None not in times + keys and len(set(times)) == len(times)
    if not has_times or not _stores_times(container, stream):
        known = (
            [] if _is_program_stream(container) else [time for time in times if time is not None]
        )
        return _Timeline(len(times), None, [0], [0], max(known, default=0) - min(known, default=0))
    # Frames shown before the first keyframe depend on ones that are not in the file.
    shown = np.sort(np.array([time for time in times if time >= min(keys)], np.int64))
    starts = dict(zip(np.searchsorted(shown, sorted(keys)).tolist(), sorted(keys), strict=True))
    starts.pop(len(shown), None)
    span = int(shown[-1] - shown[0])
    return _Timeline(len(shown), shown, list(starts), list(starts.values()), span)


def _stores_times(container: Any, stream: Any) -> bool:
    """Says whether times in a file are those at which frames are shown.

    AVI, ASF and MXF store the order of decoding only, which reordered frames do not follow. In an MPEG
    program stream few packets have a time, and FFmpeg guesses the others anew after each seek.
    """
    if stream.codec_context.has_b_frames and container.format.name in ("avi", "asf", "mxf"):
        return False
    return not _is_program_stream(container)


def _is_program_stream(container: Any) -> bool:
    return container.format.name == "mpeg"


class Pictures(Frames):
    """Pictures, each a file or an encoded one in memory, read when asked for.

    Args:
        pictures: paths, or the bytes of files; nothing is read before it is asked for.
        drawn_on: gives height and width of the pictures on which annotations were drawn; see
            `media.read_image`.
    """

    def __init__(
        self,
        pictures: Sequence[str | bytes],
        drawn_on: Callable[[], tuple[int, int]] = lambda: None,
    ):
        self._pictures, self._get_drawn_on = pictures, drawn_on

    @functools.cached_property
    def _drawn_on(self) -> tuple[int, int] | None:
        return self._get_drawn_on()

    @functools.cached_property
    def height(self) -> int:
        """H, pixels."""
        return picture_size(self._pictures[0], self._drawn_on)[0]

    @functools.cached_property
    def width(self) -> int:
        """W, pixels."""
        return picture_size(self._pictures[0], self._drawn_on)[1]

    def __len__(self) -> int:
        return len(self._pictures)

    def _read(self, index: int) -> np.ndarray:
        picture = self._pictures[index]
        return self._check_size(read_image(picture, self._drawn_on), picture_name(picture))

    def encoded(self, index: int) -> bytes | None:
        """Returns the bytes of a frame's file."""
        picture = self._pictures[index]
        if isinstance(picture, bytes):
            return picture
        with open(picture, "rb") as file:
            return file.read()


class ImageFolder(Pictures):
    """The pictures of a folder, in the order of their names (`listing.list_frames`), read when asked for.

    Gaps between numbers do not count: frame i is the i-th picture. Other files, hidden ones and folders
    are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no picture in it, pictures whose order or part is unknown, or the first cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.path.abspath(path)
        if not os.path.isdir(self.path):
            raise FileNotFoundError(f"no such folder: {self.path}")
        files = list_frames(self.path)
        if not files:
            there = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
            found = f"; it holds {', '.join(there[:3])} ..." if there else "; it is empty"
            raise ValueError(f"{self.path} holds no picture ({', '.join(IMAGE_SUFFIXES)}){found}")
        super().__init__(list(files.values()))
        self.names = list(files)
        self._read(0)


class FrameList(Frames):
    """Frames that are in memory already: a (T, H, W, 3) array, or a sequence of (H, W, 3) uint8.

    Pillow images are accepted as well. The sequence is used by one thread at a time.

    Raises:
        ValueError: no frame, or one that is not (H, W, 3) uint8.
    """

    def __init__(self, frames: Sequence | np.ndarray):
        self._lock = threading.Lock()  # indexing it may decode
        self._frames = frames
        if len(frames) == 0:
            raise ValueError("the list of frames is empty")
        self.height, self.width = as_rgb(frames[0], 0).shape[:2]

    def __len__(self) -> int:
        return len(self._frames)

    def _read(self, index: int) -> np.ndarray:
        with self._lock:
            frame = self._frames[index]
        return self._check_size(as_rgb(frame, index), f"frame {index}")


def as_rgb(frame: Any, index: int) -> np.ndarray:
    """Returns a frame, an array or a Pillow image, as (H, W, 3) uint8.

    Raises:
        ValueError: it is something else; the message names `index`.
    """
    if hasattr(frame, "convert"):
        warn_of_orientation(frame, f"frame {index}")
        frame = rgb_picture(frame, f"frame {index}")
    frame = np.asarray(frame)
    is_rgb = frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8
    if not is_rgb or not frame.size:
        raise ValueError(
            f"frame {index} is {frame.shape} {frame.dtype}; (H, W, 3) uint8 RGB is expected."
            f"{rgb_hint(frame) or _type_hint(frame)}"
        )
    return frame


def _type_hint(frame: np.ndarray) -> str:
    if frame.dtype.kind == "f" and frame.size and frame.min() >= 0 and frame.max() <= 1:
        return " Scale it: (frame * 255).round().astype(np.uint8)."
    return ""


_END = object()


class FrameIterator(Frames):
    """Frames that come out of an iterator or a generator, pulled when they are asked for.

    Only the last 32 frames are kept, so that there may be endlessly many; older ones cannot be read
    again. `len` is known once the iterator has ended. Safe to use from several threads.

    Args:
        frames: gives (H, W, 3) uint8 RGB or Pillow images; its `fps` is used, if it has one.

    Raises:
        ValueError: no frame, or one that is not (H, W, 3) uint8.
    """

    def __init__(self, frames: Iterable):
        self._lock = threading.Lock()  # a generator does not run in two threads at once
        self._source = frames
        self._frames = iter(frames)
        self._kept: collections.deque[np.ndarray] = collections.deque(maxlen=KEPT_FRAMES)
        self._num_pulled = 0
        self._is_finished = self._is_closed = False
        self._failure: Exception | None = None
        self.fps = float(getattr(frames, "fps", None) or DEFAULT_FPS)
        if not self.exists(0):
            raise ValueError("the iterator has no frames")

    def exists(self, index: int) -> bool:
        """Says whether there is, or was, a frame `index`, pulling frames up to it.

        Raises:
            ValueError: the iterator raised an error, which is the cause of this one, or gave
                something other than a frame of the size of the first.
        """
        with self._lock:
            while self._num_pulled <= index and not self._is_finished:
                self._pull()
            return 0 <= index < self._num_pulled

    def _pull(self) -> None:
        if self._is_closed:
            raise ValueError("the iterator of frames is closed")
        if self._failure is not None:
            raise self._failure
        index = self._num_pulled
        try:
            frame = next(self._frames, _END)
        except Exception as error:
            self._failure = ValueError(f"frame {index} could not be read: {error or repr(error)}")
            raise self._failure from error
        if frame is _END:
            self._is_finished = True
            return
        try:
            # A copy, since an iterator may fill one array again and again.
            rgb = np.array(as_rgb(frame, index))
            if index == 0:
                self.height, self.width = rgb.shape[:2]
            self._check_size(rgb, f"frame {index}")
        except ValueError as error:
            self._failure = error
            raise
        rgb.flags.writeable = False
        self._kept.append(rgb)
        self._num_pulled += 1

    def __len__(self) -> int:
        if not self._is_finished:
            raise TypeError(
                "how many frames an iterator has is unknown before its end: use exists(index), or "
                "pass a list"
            )
        return self._num_pulled

    def _read(self, index: int) -> np.ndarray:
        with self._lock:
            if self._is_closed:
                raise ValueError("the iterator of frames is closed")
            if index < self._num_pulled - len(self._kept):
                raise ValueError(
                    f"frame {index} is gone: of an iterator only the last {KEPT_FRAMES} frames are "
                    f"kept, and {self._num_pulled} have been read; pass a file or a list to go back"
                )
            return self._kept[index - self._num_pulled]

    def close(self) -> None:
        """Forgets the frames, and closes the iterator where it can be closed."""
        with self._lock:
            self._is_closed = True
            self._kept.clear()
            if hasattr(self._source, "close"):
                self._source.close()


class FirstFrames(Frames):
    """The first frames of another source, which stays open when this is closed."""

    def __init__(self, frames: Frames, count: int):
        self._frames, self._count = frames, count
        self.height, self.width, self.fps = frames.height, frames.width, frames.fps
        self.pixel_aspect = frames.pixel_aspect
        self.names = None if frames.names is None else frames.names[:count]

    def exists(self, index: int) -> bool:
        """Says whether there is a frame `index`."""
        return index < self._count and self._frames.exists(index)

    def __len__(self) -> int:
        return min(self._count, len(self._frames))

    def time(self, index: int) -> float:
        """Returns when a frame is shown, in seconds since the first one."""
        return self._frames.time(index)

    def _read(self, index: int) -> np.ndarray:
        return self._frames[index]


def open_frames(source: str | os.PathLike | Iterable | np.ndarray) -> Frames:
    """Opens a video file, a folder of pictures, an array, a list of arrays or an iterator.

    Args:
        source: a path, (T, H, W, 3) uint8 of any library, a sequence or a reader with length and index, or an
            iterator, of (H, W, 3) uint8 or of Pillow images, a stream (`streams.read_stream`), or frames
            already open, which are returned as they are.

    Returns:
        The frames; close them, or use them in a `with` statement.

    Raises:
        FileNotFoundError: there is nothing at that path.
        ValueError: what is there is neither a video nor pictures.
    """
    if isinstance(source, Frames):
        return source
    if isinstance(source, str | os.PathLike):
        return ImageFolder(source) if os.path.isdir(source) else VideoFile(source)
    # Arrays of any library, and readers that decode the frame they are asked for.
    is_list = isinstance(source, Sized) and hasattr(source, "__getitem__")
    if is_list and not isinstance(source, Mapping):
        return FrameList(source)
    if isinstance(source, Iterable) and not isinstance(source, Sized):
        return FrameIterator(source)
    raise ValueError(
        f"cannot read frames from {type(source).__name__}; a video file, a folder of pictures, "
        "an array (T, H, W, 3), a list of arrays or an iterator is expected"
    )
