"""The masks of a session as files: PNG in a zip, COCO run lengths, a video with the masks drawn in.

Each function writes a file in the session's folder, in a thread that does not use the device.
"""

import json
import os
import zipfile

import numpy as np

from sam2_jax.data.masks import decode_rle, pack_masks, write_palette_png
from sam2_jax.data.media import VideoWriter
from sam2_jax.data.overlay import draw_overlay
from sam2_jax.data.videos import Frames
from sam2_jax.files import PartialFile
from sam2_jax.serve.session import Found


def write_png_zip(path: str, found: dict[int, Found]) -> None:
    """Writes `00000.png`, ...: a PNG for every frame with masks, pixel values are object ids."""
    with PartialFile(path).written() as partial, zipfile.ZipFile(partial, "w") as archive:
        for frame, objects in found.items():
            picture = f"{partial}.png"
            write_palette_png(picture, pack_masks(_masks(objects), list(objects)))
            archive.write(picture, f"{frame:05d}.png")
            os.remove(picture)


def write_rle_json(
    path: str,
    video: str,
    frames: Frames,
    names: dict[int, str],
    found: dict[int, Found],
) -> None:
    """Writes what `sam2_jax.data.results.RleFile` does, with the names and the scores of the objects."""
    document = {
        "video": video,
        "height": frames.height,
        "width": frames.width,
        "fps": frames.fps,
        "num_frames": len(frames),
        "times": [frames.time(frame) for frame in range(len(frames))],
        "names": names,
        "frames": {
            frame: {obj: one["mask"] for obj, one in objects.items()}
            for frame, objects in found.items()
        },
        "scores": {
            frame: {obj: {"score": one["score"], "iou": one["iou"]} for obj, one in objects.items()}
            for frame, objects in found.items()
        },
        "objects": list(names),
    }
    with PartialFile(path).written() as partial, open(partial, "w", encoding="utf-8") as file:
        json.dump(document, file)


def write_overlay(path: str, frames: Frames, found: dict[int, Found]) -> None:
    """Writes all frames as an mp4, with the masks drawn where there are any."""
    with VideoWriter(path, frames.fps, frames.pixel_aspect) as video:
        for frame in range(len(frames)):
            image, objects = frames[frame], found.get(frame, {})
            if objects:
                image = draw_overlay(image, _masks(objects), list(objects))
            video.write(image, frames.time(frame))


def _masks(objects: Found) -> np.ndarray:
    return np.stack([decode_rle(one["mask"]) for one in objects.values()])
