"""Annotation files of SA-V: every mask of a video in one JSON document.

`masklet[i][n]` are the run lengths of object `masklet_id[n]` on the i-th annotated frame. SA-V
annotates every 4th frame of its 24 a second: the i-th one is frame 4 i of the video.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_jax.data.masks import decode_rle
from sam2_jax.files import read_json, write_file

SMALL_AREA, MEDIUM_AREA = 32**2, 96**2
_INTEGERS = ("video_height", "video_width", "video_frame_count")


def read_sav_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads an annotation file of SA-V.

    Returns:
        The document with its own field names; height, width and frame count as int (files hold
        floats). `masklet[i]` is None where the frame is not annotated: null, or null for any object. Else
        `masklet[i][n]` is ready for `masks.decode_rle`; all of them are of the video's size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, a field that is needed is missing, or a masklet that does not fit.
    """
    document = read_json(path)
    _check(document, os.fspath(path))
    integers = {name: int(document[name]) for name in _INTEGERS if name in document}
    masklet = [None if frame is None or None in frame else frame for frame in document["masklet"]]
    return document | integers | {"masklet": masklet}


def write_sav_json(path: str | os.PathLike, document: dict[str, Any]) -> None:
    """Writes an annotation file of SA-V, checked as `read_sav_json` checks it.

    Args:
        path: the file to write.
        document: as `read_sav_json` or `sav_document` return it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a field that is needed is missing, or a masklet does not fit.
        OSError: the file cannot be written, for example because the disk is full.
    """
    _check(document, "the document")
    write_file(path, json.dumps(document).encode("ascii"))


def sav_document(
    video_id: str,
    masklet: Sequence[Sequence[dict[str, Any]]],
    object_ids: Sequence[int],
    num_frames: int,
    fps: float = 24.0,
    kind: str = "manual",
) -> dict[str, Any]:
    """Puts masks into a document of SA-V, with every field that follows from them.

    Fields that do not (environment, split, edited frames, stability) are left out.

    Args:
        video_id: name of the video.
        masklet: run lengths, `masklet[i][n]` of object n on the i-th annotated frame.
        object_ids: N ids.
        num_frames: frames of the video, annotated or not.
        fps: frames of the video a second.
        kind: "manual" or "auto", how the masks were made.

    Raises:
        ValueError: there is no mask, or the masks do not fit each other.
    """
    if not masklet or not masklet[0]:
        raise ValueError("there are no masks; at least one object on one frame is expected")
    height, width = masklet[0][0]["size"]
    document = {
        "video_id": video_id,
        "video_duration": num_frames / fps,
        "video_frame_count": num_frames,
        "video_height": height,
        "video_width": width,
        "video_resolution": height * width,
        "masklet": [list(frame) for frame in masklet],
        "masklet_id": list(object_ids),
    }
    _check(document, "the document")
    areas = np.array([[decode_rle(rle).sum() for rle in frame] for frame in masklet])  # (T, N)
    is_visible = areas > 0
    appeared = np.where(is_visible.any(0), is_visible.argmax(0), len(areas))
    size = areas.sum(0) / np.maximum(is_visible.sum(0), 1)  # mean over the frames where it is seen
    # Only changes after the first appearance count.
    num_changes = [
        int(np.count_nonzero(np.diff(is_visible[first:, n]))) for n, first in enumerate(appeared)
    ]
    names = np.array(["small", "medium", "large"])
    return document | {
        "masklet_size_rel": (size / (height * width)).tolist(),
        "masklet_size_abs": size.tolist(),
        "masklet_size_bucket": names[np.digitize(size, (SMALL_AREA, MEDIUM_AREA))].tolist(),
        "masklet_visibility_changes": num_changes,
        "masklet_first_appeared_frame": appeared.tolist(),
        "masklet_frame_count": [len(areas)] * len(appeared),
        "masklet_type": [kind] * len(appeared),
        "masklet_num": len(appeared),
    }


def _check(document: Any, name: str) -> None:
    """Checks what is needed to use the masks; `name` is what errors call the document."""
    if not isinstance(document, dict):
        raise ValueError(f"{name} is not an annotation of SA-V: a JSON object is expected")
    missing = [
        field
        for field in ("video_height", "video_width", "masklet", "masklet_id")
        if field not in document
    ]
    if missing:
        raise ValueError(f"{name} is not an annotation of SA-V: it lacks {', '.join(missing)}")
    for field in _INTEGERS:
        value = document.get(field, 1)
        if not isinstance(value, int | float) or value != value // 1 or value < 1:
            raise ValueError(f"{name}: {field} is {value!r}; a whole number from 1 is expected")
    size = [document["video_height"], document["video_width"]]
    masklet, ids = document["masklet"], document["masklet_id"]
    if not isinstance(masklet, list) or not isinstance(ids, list):
        raise ValueError(f"{name}: masklet and masklet_id are lists in an annotation of SA-V")
    for i, frame in enumerate(masklet):
        if frame is None:
            continue
        if not isinstance(frame, list) or len(frame) != len(ids):
            count = len(frame) if isinstance(frame, list) else type(frame).__name__
            raise ValueError(f"{name}: masklet[{i}] holds {count} masks for {len(ids)} objects")
        for n, rle in enumerate(frame):
            if rle is None:
                continue
            if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
                raise ValueError(
                    f'{name}: masklet[{i}][{n}] is not {{"size": [H, W], "counts": ...}}'
                )
            if rle["size"] != size:
                raise ValueError(
                    f"{name}: masklet[{i}][{n}] is of size {rle['size']}, but the video is "
                    f"{int(size[0])} rows x {int(size[1])}"
                )
