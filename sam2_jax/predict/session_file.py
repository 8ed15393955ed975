"""Sessions on disk: a zip file of NumPy arrays and one JSON document, read without running code from it."""

import dataclasses
import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

from sam2_jax.build import Model
from sam2_jax.data.results import MaskSink
from sam2_jax.data.videos import FrameIterator, Frames, ImageFolder, VideoFile, open_frames
from sam2_jax.files import PartialFile
from sam2_jax.model import memory_policy
from sam2_jax.predict.history import Entry, ObjectHistory
from sam2_jax.predict.session import InferenceState
from sam2_jax.predict.store import Store

_VERSION = 2
_DOCUMENT = "session.json"
_DAMAGE = (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, AttributeError)

Put = Callable[[np.ndarray], int]
Get = Callable[[int, tuple[int, ...], Any], np.ndarray]


def save(state: InferenceState, path: str | os.PathLike) -> None:
    """Writes a session; see `SAM2VideoPredictor.save_state`."""
    with PartialFile(path).written() as partial, zipfile.ZipFile(partial, "w") as archive:
        count = itertools.count()

        def put(array: np.ndarray) -> int:
            index = next(count)
            bits = array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
            with archive.open(f"{index}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, bits, allow_pickle=False)
            return index

        document = _describe(state) | {
            "objects": [_pack_object(i, history, put) for i, history in state.objects.items()]
        }
        archive.writestr(_DOCUMENT, json.dumps(document))


def load(
    model: Model, path: str | os.PathLike, video: Any, store: Store, results: MaskSink | None
) -> InferenceState:
    """Reads a session; see `SAM2VideoPredictor.load_state`."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {os.fspath(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            # Stored members are no larger than the file: nothing unpacks to more than was sent.
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("compressed members")

            def get(index: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
                with archive.open(f"{int(index)}.npy") as member:
                    return _read_array(member, shape, np.dtype(dtype))

            document = json.loads(archive.read(_DOCUMENT))
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            described = document["model"]
            objects = {}
            if described == _describe_model(model):
                for packed in document["objects"]:
                    objects[packed["id"]] = _unpack_object(packed, model, store, get)
            size, source = tuple(document["video"]["size"]), document["video"]["path"]
            keep_frames = document["keep_frames"]
    except _DAMAGE as error:
        raise ValueError(
            f"{os.fspath(path)} is not a session that this version can read, or is damaged ({error})"
        ) from error
    if described != _describe_model(model):
        raise ValueError(
            f"{os.fspath(path)} is a session of {described['name']} at {described['config']['image_size']} "
            f"px; the predictor has {model.name} at {model.config.image_size} px, or other weights or "
            "settings. Build it as it was when the session was saved."
        )
    if video is None and source is None:
        raise ValueError(
            f"{os.fspath(path)} is a session on frames that were in memory: pass them as video_path."
        )
    frames = open_frames(source if video is None else video)
    if _size(frames) != size:
        raise ValueError(
            f"The session is on a video of (width, height, frames) {size}; this one has {_size(frames)}."
        )
    return InferenceState(model, frames, store, keep_frames, results, objects)


def _size(frames: Frames) -> tuple[int, int, int | None]:
    """Width, height, and the number of frames, which an iterator does not know before its end."""
    is_open_end = isinstance(frames, FrameIterator)
    return frames.width, frames.height, None if is_open_end else len(frames)


def _describe_model(model: Model) -> dict[str, Any]:
    """What the stored results depend on, as JSON gives it back."""
    config = dataclasses.asdict(model.config) | dataclasses.asdict(model.session)
    config = json.loads(json.dumps(config))
    return {"name": model.name, "config": config, "weights": model.digest}


def _describe(state: InferenceState) -> dict[str, Any]:
    frames = state.frames
    path = frames.path if isinstance(frames, VideoFile | ImageFolder) else None
    return {
        "version": _VERSION,
        "model": _describe_model(state.model),
        "video": {"path": path, "size": _size(frames)},
        "keep_frames": state.keep_frames,
    }


def _pack_entry(entry: Entry, put: Put) -> dict[str, Any]:
    return {
        "iou": entry.iou,
        "score": entry.score,
        "mask": put(entry.mask.get()),
        "pointer": put(entry.pointer.get()),
        "memory": None if entry.memory is None else put(entry.memory.get()),
        "retention": entry.retention,
        "policy": [put(kept.get()) for kept in jax.tree.leaves(entry.policy)],
    }


def _unpack_entry(packed: dict[str, Any], model: Model, store: Store, get: Get) -> Entry:
    config = model.config
    memory, grid = packed["memory"], config.grid
    shape = (grid, grid, config.memory_dim)
    policy: Any = ()
    if packed["policy"]:
        leaves, tree = jax.tree.flatten(memory_policy.init(config, 1))
        pairs = zip(packed["policy"], leaves, strict=True)
        policy = tree.unflatten(
            [store.keep(get(i, leaf.shape[1:], leaf.dtype)) for i, leaf in pairs]
        )
    return Entry(
        mask=store.keep(get(packed["mask"], (config.mask_size,) * 2, np.float32)),
        iou=float(packed["iou"]),
        score=float(packed["score"]),
        pointer=store.keep(get(packed["pointer"], (config.hidden_dim,), np.float32)),
        memory=None if memory is None else store.keep(get(memory, shape, config.memory_dtype)),
        retention=int(packed["retention"]),
        policy=policy,
    )


def _pack_object(obj_id: int | str, history: ObjectHistory, put: Put) -> dict[str, Any]:
    """Dictionaries become lists of pairs: JSON has no whole numbers as keys."""
    return {
        "id": obj_id,
        "points": [
            [t, len(labels), put(points), put(labels)]
            for t, (points, labels) in history.points.items()
        ],
        "masks": [[t, put(mask > 0)] for t, mask in history.masks.items()],
        "prompted": [[t, _pack_entry(entry, put)] for t, entry in history.prompted.items()],
        "tracked": [[t, _pack_entry(entry, put)] for t, entry in history.tracked.items()],
        "pending": [
            [t, _pack_entry(entry, put), is_conditioning]
            for t, (entry, is_conditioning) in history.pending.items()
        ],
        "directions": list(history.directions.items()),
    }


def _unpack_object(packed: dict[str, Any], model: Model, store: Store, get: Get) -> ObjectHistory:
    size = model.config.image_size
    unpack = lambda entry: _unpack_entry(entry, model, store, get)
    return ObjectHistory(
        points={
            int(t): (get(points, (int(p), 2), np.float32), get(labels, (int(p),), np.int32))
            for t, p, points, labels in packed["points"]
        },
        masks={
            int(t): get(mask, (size, size), bool).astype(np.float32) for t, mask in packed["masks"]
        },
        prompted={int(t): unpack(entry) for t, entry in packed["prompted"]},
        tracked={int(t): unpack(entry) for t, entry in packed["tracked"]},
        pending={int(t): (unpack(entry), bool(flag)) for t, entry, flag in packed["pending"]},
        directions={int(t): int(direction) for t, direction in packed["directions"]},
    )


def _read_array(member: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Reads an array whose shape and type are known before, so that no header can ask for more."""
    stored = np.dtype(np.uint16) if dtype == ml_dtypes.bfloat16 else dtype
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f"array format {version}")
    found, is_fortran, found_dtype = np.lib.format.read_array_header_1_0(member)
    if found != shape or is_fortran or found_dtype != stored:
        raise ValueError(f"an array is {found} {found_dtype}, not {shape} {stored}")
    data = member.read(stored.itemsize * int(np.prod(shape)))
    return np.frombuffer(data, stored).reshape(shape).view(dtype)
