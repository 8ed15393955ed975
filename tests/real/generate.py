"""Files as people have them, generated: videos of every codec and container, pictures, annotations."""

import contextlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 25
NUM_FRAMES = 24


def frames(count: int = NUM_FRAMES, height: int = 64, width: int = 64) -> Iterator[np.ndarray]:
    """A texture that rolls on, with a band on top whose grey tells the number of the frame."""
    cells = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3))
    texture = np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8)
    for number in range(count):
        frame = np.roll(texture, 3 * number, 1)
        frame[:8] = 5 * number
        yield frame


def encode(
    path: Path,
    pictures: Iterable[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = RATE,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    **settings,
) -> Path:
    """Writes a video; `settings` are attributes of the codec, or else options of the encoder."""
    with av.open(str(path), "w") as container:
        stream = None
        for number, array in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(codec, rate=rate)
                stream.height, stream.width, stream.pix_fmt = *array.shape[:2], pixels
                context = stream.codec_context
                attributes = {key for key in settings if hasattr(context, key)}
                for key in attributes:
                    setattr(context, key, settings[key])
                stream.options = {k: str(v) for k, v in settings.items() if k not in attributes}
                if time_base:
                    context.time_base = time_base
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            if pts:
                frame.pts, frame.time_base = pts[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def trim(source: Path, target: Path, skip: int, rate: int = RATE) -> Path:
    """What `ffmpeg -ss ... -c copy` leaves: frames from a keyframe on, the first hidden by an edit list."""
    with av.open(str(source)) as full, av.open(str(target), "w") as cut:
        stream = full.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        shift = int(skip / rate / stream.time_base)
        for packet in full.demux(stream):
            if packet.dts is not None:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = copy
                cut.mux(packet)
    return target


def decode(path: Path) -> list[np.ndarray]:
    """The frames that FFmpeg shows, as RGB."""
    with contextlib.closing(av.open(str(path))) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
