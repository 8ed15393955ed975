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
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np

from sam2_jax.data.arrays import rgb_hint
from sam2_jax.data.listing import natural_order
from sam2_jax.data.media import MAX_SIDE, picture_name, picture_size, read_image

DEFAULT_FPS = 24.0
CACHE_BYTES = 256 * 2**20
MIN_CACHED_FRAMES, MAX_CACHED_FRAMES = 4, 64
KEPT_FRAMES = 32  # of an iterator, which cannot go back
RETRY_SECONDS = 0.005
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Frames(Sequence):
    """A sequence of equally large RGB frames, each read when asked for.

    Where a source ends may be unknown until then: ask `exists`, not `len`, whether there is a frame.

    Attributes:
        height: H, pixels.
        width: W, pixels.
        fps: frames a second, `DEFAULT_FPS` where the source does not say.
    """

    height: int
    width: int
    fps: float = DEFAULT_FPS

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

    def encoded(self, index: int) -> bytes | None:
        """Returns the bytes of the file that a frame is read from, None where it has none of its own."""
        del index
        return None

    def close(self) -> None:
        """Releases what the source holds open."""

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
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
        keys: indices of the frames at which decoding may start, ascending, the first 0.
    """

    num_frames: int
    times: np.ndarray | None
    keys: list[int]


class VideoFile(Frames):
    """The frames of a video file, decoded when asked for.

    Frames asked for in order are decoded once each. Going back, or far ahead, seeks to the
    keyframe before; the frames met on the way back are kept, up to a bounded number, so that
    reading a video backwards costs a few decodes a frame and not a group of pictures each.
    A rotation stored in the file is applied. Where the file is damaged, the frames from there to
    the next keyframe cannot be read, the others can. Safe to use from several threads.

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
        self._damaged = range(0)  # what was decoded lately of it is no picture of the video
        self._is_closed = False
        self._container = _open_container(self.path)
        try:
            stream = self._container.streams.video[0]
            self.fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            self._timeline = _read_timeline(self._container, stream, self.path)
            first = self._read(0)
        except BaseException:
            self.close()
            raise
        self.height, self.width = first.shape[:2]
        self._capacity = min(max(CACHE_BYTES // first.nbytes, MIN_CACHED_FRAMES), MAX_CACHED_FRAMES)

    def __len__(self) -> int:
        return self._timeline.num_frames

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
        """Decodes `target` into the cache; returns up to which frame that went well."""
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
        """The next keyframe: up to there, pictures are drawn from the damaged one or the missing one.

        A keyframe after missing frames is such an end itself.
        """
        find = bisect.bisect_right if frame.is_corrupt else bisect.bisect_left
        return [*self._timeline.keys, len(self)][find(self._timeline.keys, index)]

    def _decode_from(self, key: int) -> Iterator:
        """Starts at a keyframe; at the beginning where the container's seeking misses it."""
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
        stream = self._container.streams.video[0]
        times = self._timeline.times
        if key > 0:
            self._container.seek(int(times[self._timeline.keys[key]]), stream=stream)
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
    """Returns a decoded frame as (H, W, 3) uint8 RGB, turned as its file says."""
    rgb = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(rgb)


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
    check_container(container, path)
    container.streams.video[0].codec_context.thread_type = "AUTO"
    return container


def check_container(container: Any, name: str) -> None:
    """Closes a container, with a ValueError, unless it has a video stream of a reasonable size."""
    # FFmpeg renders plain text as a film of a terminal.
    if container.format.name == "tty" or not container.streams.video:
        container.close()
        raise ValueError(f"{name} has no video stream; a video file is expected")
    context = container.streams.video[0].codec_context
    if context is None:
        container.close()
        raise ValueError(f"{name} is encoded in a way that this build of FFmpeg cannot decode")
    if max(context.width, context.height) > MAX_SIDE:
        container.close()
        raise ValueError(
            f"{name} is {context.width}x{context.height}; at most {MAX_SIDE} pixels a side are read"
        )


def _index_of(time: int | None, times: np.ndarray) -> int | None:
    """Returns the place of a time among ascending ones, None if it is not there."""
    index = len(times) if time is None else int(np.searchsorted(times, time))
    return index if index < len(times) and times[index] == time else None


def intact_packets(container: Any, stream: Any) -> Iterator:
    """Yields the packets that are whole, up to where the file breaks off, and None at the end."""
    import av

    # Where the demuxer gives up, the packets before still count.
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
        if packet is None or packet.is_discard:
            continue
        if packet.is_keyframe:
            keys.append(packet.pts)
        if keys:  # before the first keyframe nothing can be decoded
            times.append(packet.pts)
    if not times:
        raise ValueError(f"{path} holds no frame that can be decoded; is it cut short?")
    # AVI stores the order of decoding only, which reordered frames do not follow.
    is_ordered = container.format.name != "avi" or not stream.codec_context.has_b_frames
    if not is_ordered or None in times or len(set(times)) < len(times):
        return _Timeline(len(times), None, [0])
    # Frames shown before the first keyframe depend on ones that are not in the file.
    shown = np.sort(np.array([time for time in times if time >= keys[0]], np.int64))
    return _Timeline(len(shown), shown, np.searchsorted(shown, sorted(keys)).tolist())


class Pictures(Frames):
    """Pictures, each a file or an encoded one in memory, read when asked for.

    Args:
        pictures: paths, or the bytes of files; nothing is read before it is asked for.
    """

    def __init__(self, pictures: Sequence[str | bytes]):
        self._pictures = pictures

    @functools.cached_property
    def height(self) -> int:
        """H, pixels."""
        return picture_size(self._pictures[0])[0]

    @functools.cached_property
    def width(self) -> int:
        """W, pixels."""
        return picture_size(self._pictures[0])[1]

    def __len__(self) -> int:
        return len(self._pictures)

    def _read(self, index: int) -> np.ndarray:
        picture = self._pictures[index]
        return self._check_size(read_image(picture), picture_name(picture))

    def encoded(self, index: int) -> bytes | None:
        """Returns the bytes of a frame's file."""
        picture = self._pictures[index]
        if isinstance(picture, bytes):
            return picture
        with open(picture, "rb") as file:
            return file.read()


class ImageFolder(Pictures):
    """The JPEG and PNG files of a folder, in the order of their numbers, read when asked for.

    Names that are numbers ("00000.jpg") are ordered as numbers, and gaps between them do not count:
    frame i is the i-th picture. Numbers within other names ("shot 2.jpg") count as numbers as well.
    Other files, hidden ones and folders are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no picture in it, two with one number, names of both kinds, or the first picture
            cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.path.abspath(path)
        if not os.path.isdir(self.path):
            raise FileNotFoundError(f"no such folder: {self.path}")
        self.names = _sorted_names(self.path)
        if not self.names:
            raise ValueError(f"{self.path} holds no picture (.jpg, .jpeg or .png)")
        super().__init__([os.path.join(self.path, name) for name in self.names])
        self._read(0)


def _sorted_names(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        # macOS leaves "._00000.jpg" files, which are no pictures, on foreign disks.
        stems = {
            entry.name: os.path.splitext(entry.name)[0]
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES)
            and not entry.name.startswith(".")
            and not entry.is_dir()
        }
    is_number = {name: bool(re.fullmatch("[0-9]+", stem)) for name, stem in stems.items()}
    if len(set(is_number.values())) == 2:
        other = min(name for name in stems if not is_number[name])
        raise ValueError(
            f"{folder} holds pictures named by numbers and others, such as {other}, whose place "
            "among them is unknown; move those away"
        )
    names = sorted(sorted(stems), key=lambda name: natural_order(stems[name]))
    for name, following in itertools.pairwise(names):
        if is_number[name] and int(stems[name]) == int(stems[following]):
            number = int(stems[name])
            raise ValueError(f"{folder} holds two pictures of frame {number}: {name}, {following}")
    return names


class FrameList(Frames):
    """Frames that are in memory already: a (T, H, W, 3) array, or a sequence of (H, W, 3) uint8.

    Pillow images are accepted as well. The sequence is asked by one thread at a time.

    Raises:
        ValueError: no frame, or one that is not (H, W, 3) uint8.
    """

    def __init__(self, frames: Sequence | np.ndarray):
        self._lock = threading.Lock()  # it may decode when it is asked
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
        frame = frame.convert("RGB")
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
        frames: gives (H, W, 3) uint8 RGB or Pillow images; where it has an `fps`, that is taken over.

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
                something else than a frame of the size of the first.
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
                "how many frames an iterator has is not known before its end: ask exists(index), or "
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

    def exists(self, index: int) -> bool:
        """Says whether there is a frame `index`."""
        return index < self._count and self._frames.exists(index)

    def __len__(self) -> int:
        return min(self._count, len(self._frames))

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
