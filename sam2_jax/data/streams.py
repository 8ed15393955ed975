"""Frames that arrive one at a time and may never end: pipes, standard input, cameras.

    open binary file, or camera  ->  Stream: iterate once over (H, W, 3) uint8 RGB

Memory does not grow with the number of frames.
"""

import glob
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, Self

import numpy as np

from sam2_jax.data.videos import (
    DEFAULT_FPS,
    check_container,
    check_size,
    frame_rate,
    intact_packets,
    to_rgb,
)

# What FFmpeg calls the cameras of a system.
_CAMERAS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
# Each with its time in seconds, where that is known.
TimedFrames = Generator[tuple[np.ndarray, float | None], None, None]
_HINT = (
    "an mp4 that is read from a pipe has to be fragmented; mpegts, matroska and y4m always can be"
)


class Stream(Iterator):
    """Equally large RGB frames, (H, W, 3) uint8, that arrive one at a time.

    It can be iterated over once; `videos.open_frames` makes it a source with a short memory. The
    first frame is waited for when the stream is opened.

    Attributes:
        height: H, pixels.
        width: W, pixels.
        fps: frames a second, `videos.DEFAULT_FPS` where the stream does not say.
        time: when the frame given last is shown, in seconds since the first one.
    """

    def __init__(self, frames: TimedFrames, fps: float, name: str, hint: str):
        self._frames, self._name, self._count = frames, name, 0
        self._first = next(frames, None)
        if self._first is None:
            raise ValueError(f"{name} ends before its first frame ({hint})")
        self.height, self.width = self._first[0].shape[:2]
        self.fps, self.time = fps, 0.0
        self._start = self._first[1]

    def __next__(self) -> np.ndarray:
        """Waits for the next frame.

        Raises:
            StopIteration: the stream has ended, was cut off, or is closed.
            ValueError: the frame differs in size from the first.
        """
        first, self._first = self._first, None
        frame, seconds = next(self._frames) if first is None else first
        check_size(frame, self.height, self.width, f"frame {self._count} of {self._name}")
        if self._count:
            expected = self.time + 1 / self.fps
            start = self._start
            now = expected if seconds is None or start is None else seconds - start
            self.time = now if now > self.time else expected  # clocks of cameras may be set back
        self._count += 1
        return frame

    def close(self) -> None:
        """Releases the camera or the decoder; a file that was passed in stays open."""
        self._first = None
        self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_stream(file: BinaryIO, raw_size: tuple[int, int] | None = None) -> Stream:
    """Reads frames from an open binary file that cannot seek: a pipe, a socket, standard input.

    Damaged frames are left out, since a stream cannot wait for others; a stream that breaks off
    ends after its last whole frame.

        ffmpeg -i rtsp://... -f mpegts - | python your_script.py      # read_stream(sys.stdin.buffer)

    Args:
        file: gives mpegts, matroska, fragmented mp4, y4m, mjpeg or whatever else FFmpeg reads
            without seeking; it is only read from, and the caller closes it.
        raw_size: (height, width) of raw frames, 3 bytes a pixel in the order R, G, B, row by row;
            None for a format that states it.

    Raises:
        ValueError: not a video, no whole frame in it, or a size that is not positive.
    """
    # `read` waits until a whole buffer is full, which a slow stream takes long to fill.
    read = getattr(file, "read1", file.read)
    name = "the stream"
    if raw_size is not None:
        height, width = raw_size
        if height < 1 or width < 1:
            raise ValueError(f"raw_size is {raw_size}; (height, width) from 1 is expected")
        return Stream(
            _raw_frames(read, height, width),
            DEFAULT_FPS,
            name,
            f"a frame is {3 * height * width} bytes",
        )

    import av

    try:
        # What a playlist names is not opened.
        container = av.open(_OnlyRead(read), options={"protocol_whitelist": "none"})
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{name} is not a video that can be read: {error.strerror} ({_HINT})"
        ) from error
    return _decode(container, name, _HINT)


class _OnlyRead:
    """Hides that a file has a method to seek, which fails on a pipe."""

    def __init__(self, read: Callable[[int], bytes]):
        self.read = read


def _raw_frames(read: Callable[[int], bytes], height: int, width: int) -> TimedFrames:
    size = height * width * 3
    while True:
        data = bytearray()
        while len(data) < size and (part := read(size - len(data))):
            data += part
        if len(data) < size:
            return
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3), None


def _decode(container: Any, name: str, hint: str) -> Stream:
    stream = check_container(container, name)
    # Threads that work on several frames at once would hold back as many.
    stream.codec_context.thread_type = "SLICE"
    return Stream(_decoded_frames(container, stream), frame_rate(stream), name, hint)


def _decoded_frames(container: Any, stream: Any) -> TimedFrames:
    import av

    with container:
        for packet in intact_packets(container, stream):
            try:
                frames = stream.decode(packet)
            except av.error.FFmpegError:
                continue
            yield from ((to_rgb(frame), frame.time) for frame in frames if not frame.is_corrupt)


def open_camera(device: str | int = "0") -> Stream:
    """Opens a camera of this machine.

    Args:
        device: number of the camera from 0, or its name: `/dev/video0` on Linux, which 0 stands
            for, and on macOS and Windows one of those that the error for a wrong name lists.

    Raises:
        FileNotFoundError: there is no such camera; the error lists those there are.
        ValueError: it cannot be opened, for example because another program uses it, or sends no
            picture.
    """
    import av

    format_name = _CAMERAS.get(sys.platform, "v4l2")
    cameras = _list_cameras(format_name)
    address = _camera_address(str(device), format_name, cameras)
    # Other rates than 30 are refused by most cameras of macOS.
    options = {"framerate": "30"} if format_name == "avfoundation" else {}
    listed = f"there are: {', '.join(cameras) or 'none'}"
    try:
        container = av.open(address, format=format_name, options=options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no camera {address}; {listed}") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"camera {address} cannot be opened ({error}); {listed}") from error
    return _decode(container, f"camera {address}", listed)


def _list_cameras(format_name: str) -> list[str]:
    import av

    if format_name == "v4l2":
        return sorted(glob.glob("/dev/video*"))
    try:
        return [device.name for device in av.enumerate_input_devices(format_name)]
    except (av.error.FFmpegError, ValueError):  # not every build can list them
        return []


def _camera_address(device: str, format_name: str, cameras: list[str]) -> str:
    """Returns FFmpeg's address of a camera that is given by number or name."""
    if format_name == "v4l2":
        return f"/dev/video{device}" if device.isdecimal() else device
    if format_name == "dshow":
        is_number = device.isdecimal() and int(device) < len(cameras)
        return f"video={cameras[int(device)] if is_number else device}"
    return device
