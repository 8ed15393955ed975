"""Uploaded media, decoded in a separate process into JPEG frames that the server trusts.

    untrusted file  ->  [child: little memory, little time, local formats only]  ->  00000.jpg, ...

Whatever a broken or hostile file does to the decoder, the server only sees an error.
"""

import contextlib
import json
import multiprocessing
import os
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from sam2_jax.serve.folders import check_free_space
from sam2_jax.serve.limits import Limits, Refused

if TYPE_CHECKING:
    import numpy as np

_PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Containers that hold the pictures themselves, unlike playlists, which name other files.
_VIDEOS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,gif,apng,h264,hevc,ivf"
_QUALITY = 95
_MEMORY = 4 << 30  # bytes of address space
_context = multiprocessing.get_context("forkserver")


def unpack(upload: str, folder: str, limits: Limits) -> dict:
    """Decodes a video or a picture into `folder/00000.jpg`, ...

    Returns:
      {"height": H, "width": W, "num_frames": T, "fps": float, "notice": str or None,
      "times": T seconds, "pixel_aspect": [numerator, denominator]}

    Raises:
      Refused: not a video or a picture, beyond the limits, or it cannot be decoded.
    """
    _context.set_forkserver_preload([__name__])
    receiver, sender = _context.Pipe(duplex=False)
    child = _context.Process(target=_child, args=(sender, upload, folder, limits), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(limits.unpack_seconds):
            raise Refused(
                422,
                f"Decoding took more than {limits.unpack_seconds:.0f} s and was stopped: "
                "shorten the video, or make it smaller.",
            )
        # Bytes, not pickled objects: a compromised child must not get any further.
        said = json.loads(receiver.recv_bytes(1 << 20))
    except (EOFError, OSError) as error:
        raise Refused(
            422,
            "The decoder crashed on this file, which seems damaged. Re-encode it, for example with ffmpeg.",
        ) from error
    finally:
        child.kill()
        child.join()
        receiver.close()
    if "error" in said:
        raise Refused(said["status"], said["error"])
    return said


def _child(sender: Connection, upload: str, folder: str, limits: Limits) -> None:
    threading.Thread(target=_end_with_server, daemon=True).start()
    try:
        said = _unpack(upload, folder, limits)
    except Refused as refused:
        said = {"status": refused.status, "error": refused.message}
    except (ValueError, OSError, MemoryError) as error:
        text = str(error).replace(upload, "the file") or "the file needs too much memory to decode"
        said = {"status": 422, "error": f"{text[:1].upper()}{text[1:]}."}
    sender.send_bytes(json.dumps(said).encode())


def _end_with_server() -> None:
    """If the server is killed, nobody waits for the frames, and nobody would remove them."""
    if server := multiprocessing.parent_process():
        server.join()
    os._exit(1)


def _unpack(upload: str, folder: str, limits: Limits) -> dict:
    from PIL import Image

    _limit_resources(limits)
    Image.MAX_IMAGE_PIXELS = limits.pixels
    if _is_picture(upload):
        return _unpack_picture(upload, folder, limits)
    return _unpack_video(upload, folder, limits)


def _limit_resources(limits: Limits) -> None:
    import resource

    seconds = int(4 * limits.unpack_seconds)
    most = limits.unpacked_mb << 20
    with contextlib.suppress(ValueError, OSError):  # the system may allow even less
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        in_use = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + _MEMORY, in_use + _MEMORY))


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


def _is_picture(path: str) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=_PICTURES) as image:
            return getattr(image, "n_frames", 1) == 1 or image.format in ("MPO", "TIFF")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"the picture is too large: {error}") from error
    except (OSError, SyntaxError, ValueError):
        return False


def _unpack_picture(path: str, folder: str, limits: Limits) -> dict:
    from PIL import ImageOps

    from sam2_jax.data.media import open_picture, rgb_picture

    with open_picture(path) as image:
        _check_pixels(image.height, image.width, limits)
        upright = rgb_picture(ImageOps.exif_transpose(image))
    return write_frames([upright], folder, 1.0, limits)


def _unpack_video(path: str, folder: str, limits: Limits) -> dict:
    import av

    from sam2_jax.data.videos import VideoFile, main_stream

    options = {"protocol_whitelist": "file", "format_whitelist": _VIDEOS}
    try:
        with av.open(path, options=options) as container:
            stream = main_stream(container, path)
            _check_pixels(stream.height or 0, stream.width or 0, limits)
    except av.error.FFmpegError as error:
        raise Refused(
            415,
            "The file is neither a video nor a picture that can be read. "
            "Videos such as mp4, mov, webm and avi, and pictures such as jpeg, png and webp are.",
        ) from error
    with VideoFile(path) as frames:
        duration = len(frames) / frames.fps
        if len(frames) > limits.frames or duration > limits.seconds:
            raise Refused(
                413,
                f"The video has {len(frames)} frames and lasts {duration:.1f} s; at most {limits.frames} "
                f"frames and {limits.seconds:g} s are allowed: cut it first.",
            )
        about = write_frames(frames, folder, frames.fps, limits)
        times = [round(frames.time(index), 6) for index in range(about["num_frames"])]
        return about | {
            "times": times,
            "pixel_aspect": list(frames.pixel_aspect.as_integer_ratio()),
        }


def _check_pixels(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.pixels:
        raise Refused(
            413,
            f"Its frames are {width}x{height}, {height * width / 1e6:.1f} million pixels; at most "
            f"{limits.pixels / 1e6:.1f} are allowed: scale it down first.",
        )


def write_frames(frames: "Sequence[np.ndarray]", folder: str, fps: float, limits: Limits) -> dict:
    """Writes frames (H, W, 3) uint8 as JPEG files, shown at a constant rate; see `unpack`.

    A frame that cannot be read ends the video, with a notice, if there are frames before it.
    """
    from PIL import Image

    num_bytes, notice, index = 0, None, 0
    for index in range(len(frames)):
        try:
            frame = frames[index]
        except ValueError:
            if index == 0:
                raise
            notice = f"The file is damaged: only the first {index} of its {len(frames)} frames can be read."
            break
        path = os.path.join(folder, f"{index:05d}.jpg")
        Image.fromarray(frame).save(path, quality=_QUALITY, subsampling=0)
        num_bytes += os.path.getsize(path)
        if num_bytes > limits.unpacked_mb << 20:
            raise Refused(
                413,
                f"The frames of the video need more than {limits.unpacked_mb} MiB of disk: "
                "cut it, or scale it down first.",
            )
        if index % 16 == 0:
            check_free_space(folder, limits.free_mb)
        height, width = frame.shape[:2]
    num_frames = len(frames) if notice is None else index
    return {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "fps": fps,
        "notice": notice,
        "times": [index / fps for index in range(num_frames)],
        "pixel_aspect": [1, 1],
    }
