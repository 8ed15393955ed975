import contextlib
import io
import os
import subprocess
import sys
import threading
import tracemalloc

import av
import numpy as np
import pytest

from sam2_jax.data import streams, videos
from sam2_jax.data.media import write_video

NUM_FRAMES, HEIGHT, WIDTH = 20, 48, 64


def level_of(number):
    return 10 + 12 * number


def frame_of(number, height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), level_of(number), np.uint8)


def read_number(frame):
    return round((frame.mean() - 10) / 12)


def encode(name, codec, pixels="yuv420p", sizes=((HEIGHT, WIDTH),), **options):
    file = io.BytesIO()
    with av.open(file, "w", format=name, options=options) as container:
        for height, width in sizes:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            for number in range(NUM_FRAMES):
                frame = frame_of(number, height, width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return file.getvalue()


@contextlib.contextmanager
def pipe(*parts):
    """A real pipe into which a thread writes."""
    reading, writing = os.pipe()

    def write():
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            for part in parts:
                file.write(part)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with os.fdopen(reading, "rb") as file:
            yield file
    finally:
        thread.join(10)


FORMATS = {
    "mpegts": lambda: encode("mpegts", "libx264"),
    "matroska": lambda: encode("matroska", "libx264"),
    "fragments": lambda: encode("mp4", "libx264", movflags="frag_keyframe+empty_moov"),
    "y4m": lambda: encode("yuv4mpegpipe", "wrapped_avframe"),
    "mjpeg": lambda: encode("mjpeg", "mjpeg", "yuvj420p"),
    "raw": lambda: b"".join(frame_of(number).tobytes() for number in range(NUM_FRAMES)),
}


REORDERED = ("mpegts", "matroska", "fragments")


def options_of(name):
    return {"raw_size": (HEIGHT, WIDTH)} if name == "raw" else {}


@pytest.mark.parametrize("name", FORMATS)
def test_frames_come_through_a_pipe(name):
    with pipe(FORMATS[name]()) as file, streams.read_stream(file, **options_of(name)) as stream:
        assert (stream.height, stream.width) == (HEIGHT, WIDTH)
        assert stream.fps == {"raw": 24, "mjpeg": 25}.get(name, 12)
        frames = list(stream)
        assert not file.closed
    assert all(frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 for frame in frames)
    assert [read_number(frame) for frame in frames] == list(range(NUM_FRAMES))


@pytest.mark.parametrize("name", FORMATS)
def test_stream_that_breaks_off_ends_after_its_last_whole_frame(name):
    data = FORMATS[name]()
    with pipe(data[: int(0.9 * len(data))]) as file:
        stream = streams.read_stream(file, **options_of(name))
        numbers = [read_number(frame) for frame in stream]
        assert next(stream, None) is None
    assert 3 <= len(numbers) < NUM_FRAMES
    # What is there may lack a frame which would have been shown before the last ones.
    assert numbers == sorted(set(numbers))
    num_whole = len(numbers) - (3 if name in REORDERED else 0)
    assert numbers[:num_whole] == list(range(num_whole))


@pytest.mark.parametrize("name", FORMATS)
def test_stream_that_breaks_off_before_its_first_frame(name):
    with pipe(FORMATS[name]()[:40]) as file, pytest.raises(ValueError, match="the stream"):
        streams.read_stream(file, **options_of(name))


def test_damaged_stream_goes_on():
    data = bytearray(encode("mpegts", "libx264"))
    middle = len(data) // 2 // 188 * 188
    data[middle : middle + 188] = np.random.default_rng(0).bytes(188)
    with pipe(bytes(data)) as file:
        numbers = [read_number(frame) for frame in streams.read_stream(file)]
    assert numbers[0] == 0
    assert NUM_FRAMES // 2 < len(numbers) <= NUM_FRAMES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello\n" * 5000,
        np.random.default_rng(0).bytes(100_000),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    ],
    ids=["nothing", "text", "noise", "playlist", "list"],
)
def test_what_is_no_video(data):
    with pipe(data) as file, pytest.raises(ValueError, match=r"the stream is not a video|no video"):
        streams.read_stream(file)


def test_playlist_opens_no_file(tmp_path):
    write_video(tmp_path / "secret.mp4", [frame_of(0)] * 3, 24)
    playlist = f"ffconcat version 1.0\nfile '{tmp_path / 'secret.mp4'}'\n"
    with pipe(playlist.encode()) as file, pytest.raises(ValueError, match="not a video"):
        streams.read_stream(file)


def test_plain_mp4_too_long_for_a_pipe_says_what_to_do(tmp_path):
    noise = np.random.default_rng(0)
    frames = (noise.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(6))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 256
        stream.pix_fmt, stream.options = "yuv420p", {"qmin": "1", "qmax": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") > 200_000
    with pipe(data) as file, pytest.raises(ValueError, match="has to be fragmented"):
        streams.read_stream(file)


def test_error_of_the_file_passes_on():
    class Failing(io.RawIOBase):
        data = io.BytesIO(FORMATS["y4m"]())

        def read(self, size):
            if self.data.tell() > 40_000:
                raise ConnectionResetError("the other side is gone")
            return self.data.read(min(size, 1000))

    stream, numbers = streams.read_stream(Failing()), []
    with pytest.raises(ConnectionResetError, match="the other side is gone"):
        numbers.extend(read_number(frame) for frame in stream)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 1


def test_first_frame_of_a_slow_stream_is_not_held_back():
    """The second frame is sent when the first has been taken."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file, os.fdopen(writing, "wb", buffering=0) as sender:
        sender.write(frame_of(0).tobytes())
        stream = streams.read_stream(file, raw_size=(HEIGHT, WIDTH))
        for number in range(5):
            assert read_number(next(stream)) == number
            sender.write(frame_of(number + 1).tobytes())
        stream.close()
        assert next(stream, None) is None


def test_memory_of_a_raw_stream_is_constant():
    frame = frame_of(3).tobytes()
    with pipe(*[frame] * 600) as file:
        frames = videos.open_frames(streams.read_stream(file, raw_size=(HEIGHT, WIDTH)))
        assert frames.exists(50)
        tracemalloc.start()
        try:
            assert frames.exists(599)
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert grown < (videos.KEPT_FRAMES + 8) * len(frame)
        assert not frames.exists(600)


def test_raw_size_is_checked():
    for size in ((0, 4), (4, -1)):
        with pytest.raises(ValueError, match="raw_size is"):
            streams.read_stream(io.BytesIO(b"data"), raw_size=size)


def test_stream_as_a_source():
    with (
        pipe(FORMATS["mpegts"]()) as file,
        videos.open_frames(streams.read_stream(file)) as frames,
    ):
        assert (frames.height, frames.width, frames.fps) == (HEIGHT, WIDTH, 12)
        assert frames.exists(NUM_FRAMES - 1)
        assert read_number(frames[4]) == 4
        assert not frames.exists(NUM_FRAMES)
        assert len(frames) == NUM_FRAMES


def test_size_that_changes_names_the_frame():
    part = [encode("h264", "libx264", sizes=[size]) for size in ((HEIGHT, WIDTH), (32, 32))]
    with pipe(*part) as file:
        stream = streams.read_stream(file)
        for _ in range(NUM_FRAMES):
            next(stream)
        with pytest.raises(ValueError, match=r"frame 20 of the stream is 32x32, but .* 64x48"):
            next(stream)


def test_standard_input_of_another_process():
    code = (
        "import sys\nfrom sam2_jax.data.streams import read_stream\n"
        "print(sum(1 for _ in read_stream(sys.stdin.buffer)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], input=FORMATS["matroska"](), capture_output=True, timeout=300
    )
    assert result.stdout.decode().strip() == str(NUM_FRAMES), result.stderr.decode()


def test_camera_that_is_not_there(monkeypatch):
    monkeypatch.setattr(streams, "_list_cameras", lambda _: ["/dev/video0", "/dev/video2"])
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(FileNotFoundError, match="no camera /dev/video97; there are: /dev/video0, "):
        streams.open_camera(97)


def test_device_that_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "text").write_text("no camera")
    with pytest.raises(ValueError, match=r"camera .*text cannot be opened .* there are: "):
        streams.open_camera(str(tmp_path / "text"))


def test_camera(monkeypatch):
    """FFmpeg's drawing device stands in for a camera: it takes the same way through the code."""
    monkeypatch.setitem(streams._CAMERAS, sys.platform, "lavfi")
    monkeypatch.setattr(streams, "_list_cameras", lambda _: [])
    with streams.open_camera("testsrc=size=64x48:rate=10") as camera:
        assert (camera.height, camera.width, camera.fps) == (48, 64, 10)
        first, second = next(camera), next(camera)
    assert first.shape == second.shape == (48, 64, 3)
    assert first.std() > 10
    assert next(camera, None) is None


@pytest.mark.parametrize(
    ("device", "format_name", "address"),
    [
        ("0", "v4l2", "/dev/video0"),
        ("/dev/video3", "v4l2", "/dev/video3"),
        ("1", "avfoundation", "1"),
        ("1", "dshow", "video=USB Camera"),
        ("Other", "dshow", "video=Other"),
        ("7", "dshow", "video=7"),
    ],
)
def test_addresses_of_cameras(device, format_name, address):
    cameras = ["Front Camera", "USB Camera"]
    assert streams._camera_address(device, format_name, cameras) == address


def test_picture_of_a_camera_that_is_not_there_yet(monkeypatch):
    monkeypatch.setattr(videos, "RETRY_SECONDS", 0)

    class Packet:
        size, is_corrupt = 1, False

    class Container:
        calls = 0

        def demux(self, stream):
            self.calls += 1
            yield Packet
            if self.calls < 4:
                raise av.error.BlockingIOError(11, "Resource temporarily unavailable")

    assert list(videos.intact_packets(Container(), None)) == [Packet] * 4 + [None]
