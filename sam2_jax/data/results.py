"""Where masks go while a video is tracked: kept in memory, or written to files.

    with PaletteFolder("masks") as results:
        for frame_idx, obj_ids, logits in predictor.propagate_in_video(state):
            results.write(frame_idx, obj_ids, logits[:, 0] > 0)

Frames may come in any order; if one is written twice, the later masks count. Leaving a `with`
statement closes the files and so keeps what was written, even if an error ends the work early.
"""

import abc
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from sam2_jax.data.masks import (
    boxes_from_masks,
    check_ids,
    check_masks,
    decode_rle,
    encode_rle,
    frame_name,
    pack_masks,
    write_boxes,
    write_object_masks,
    write_palette_png,
)
from sam2_jax.files import PartialFile


class MaskSink(abc.ABC):
    """Something that takes the masks of a video, frame by frame."""

    @abc.abstractmethod
    def write(self, frame_idx: int, obj_ids: Sequence, masks: np.ndarray) -> None:
        """Takes the masks of a frame.

        Args:
            frame_idx: index of the frame, from 0.
            obj_ids: N ids of objects.
            masks: (N, H, W) bool.

        Raises:
            ValueError: shapes do not fit, or ids that this kind of file cannot hold.
            OSError: a file cannot be written, for example because the disk is full; the files
                written before are whole, and of the one that failed nothing is left.
        """

    def close(self) -> None:  # noqa: B027 - not every kind has something to finish
        """Finishes the files; does nothing the second time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RleResults(MaskSink, Mapping):
    """Keeps masks in memory as run lengths: `results[frame_idx][obj_id]` -> COCO RLE."""

    def __init__(self):
        self._frames: dict[int, dict[Any, dict]] = {}
        self._size = (0, 0)

    def write(self, frame_idx: int, obj_ids: Sequence, masks: np.ndarray) -> None:
        """Keeps the masks of a frame; see `MaskSink.write`."""
        masks = check_masks(masks, obj_ids)
        self._size = masks.shape[1:]
        self._frames[int(frame_idx)] = dict(zip(obj_ids, map(encode_rle, masks), strict=True))

    def masks(self, frame_idx: int) -> tuple[list, np.ndarray]:
        """Decodes a frame.

        Returns:
            obj_ids: N ids, in the order in which they were written.
            masks: (N, H, W) bool.

        Raises:
            KeyError: this frame was not written.
        """
        frame = self._frames[frame_idx]
        masks = [decode_rle(rle) for rle in frame.values()]
        return list(frame), np.array(masks, bool).reshape(-1, *self._size)

    def __getitem__(self, frame_idx: int) -> dict[Any, dict]:
        return self._frames[frame_idx]

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


class _PictureFolder(MaskSink):
    """Writes pictures into a folder.

    Args:
        path: the folder; made where it is missing.
        palette: (K, 3) uint8 colours, such as `masks.read_palette_png` returns.
        frame_names: names of all frames, for the files; their indices with five digits if absent.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        palette: np.ndarray | None = None,
        frame_names: Sequence[str] | None = None,
    ):
        self._path, self._palette, self._names = path, palette, frame_names
        os.makedirs(path, exist_ok=True)

    def _name(self, frame_idx: int) -> str:
        return frame_name(frame_idx if self._names is None else self._names[frame_idx])


class PaletteFolder(_PictureFolder):
    """Writes one palette PNG a frame, `<path>/<frame:05d>.png`, as DAVIS does.

    Ids are within 1..65534, and if one is above 254, the pictures are grey and have 16 bits. Where
    masks overlap, the lowest id wins.

    Args:
        path: the folder; made where it is missing.
        palette: (K, 3) uint8 colours, such as `masks.read_palette_png` returns; DAVIS's if absent.
        frame_names: names of all frames, for the files; their indices with five digits if absent.
    """

    def write(self, frame_idx: int, obj_ids: Sequence[int], masks: np.ndarray) -> None:
        """Writes the picture of a frame; see `MaskSink.write`."""
        path = os.path.join(self._path, f"{self._name(frame_idx)}.png")
        write_palette_png(path, pack_masks(masks, obj_ids), self._palette)


class ObjectFolders(_PictureFolder):
    """Writes one PNG an object and frame, `<path>/<object:03d>/<frame:05d>.png`, as SA-V does.

    Ids are integers from 0; masks may overlap.

    Args:
        path: the folder; made where it is missing.
        palette: (K, 3) uint8; pictures are grey, 0 and 255, if absent.
        frame_names: names of all frames, for the files; their indices with five digits if absent.
    """

    def write(self, frame_idx: int, obj_ids: Sequence[int], masks: np.ndarray) -> None:
        """Writes the pictures of a frame; see `MaskSink.write`."""
        write_object_masks(self._path, self._name(frame_idx), obj_ids, masks, self._palette)


class BoxFiles(MaskSink):
    """Writes the boxes of every object as trackers do, `<path>/<object:03d>.txt`.

    A file has one line `x,y,w,h` a frame, from frame 0 to the last one written; an object that is
    absent, or a frame that was not written, is `0,0,0,0`. Boxes are kept in memory until `close`,
    since frames may come in any order.

    Args:
        path: the folder; made where it is missing.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = path
        self._boxes: dict[int, dict[int, np.ndarray]] = {}
        self._num_frames = 0
        os.makedirs(path, exist_ok=True)

    def write(self, frame_idx: int, obj_ids: Sequence[int], masks: np.ndarray) -> None:
        """Keeps the boxes of a frame; see `MaskSink.write`."""
        check_ids(obj_ids, 0)
        boxes = boxes_from_masks(check_masks(masks, obj_ids))
        for object_id, box in zip(obj_ids, boxes, strict=True):
            self._boxes.setdefault(object_id, {})[frame_idx] = box
        self._num_frames = max(self._num_frames, frame_idx + 1)

    def close(self) -> None:
        """Writes the files."""
        for object_id, boxes in self._boxes.items():
            table = np.zeros((self._num_frames, 4))
            table[list(boxes)] = list(boxes.values())
            write_boxes(os.path.join(self._path, f"{object_id:03d}.txt"), table)
        self._boxes.clear()


class RleFile(MaskSink):
    """Writes the masks of a video as one JSON document of COCO run lengths, as frames come.

        {video, height, width, fps, names: [name, ...], times: [seconds, ...],
         frames: {frame: {object: RLE}}, objects: [id, ...]}

    Names and times are in it where they are given, one of each for every frame of the video. Memory
    does not grow with the masks. The document appears under its name when it is closed, and is whole
    then however the work ended; an older file stays until then. A frame that is written twice is in
    it twice, and readers of JSON take the later one.

    Args:
        path: the file to write; its folder must exist.
        video: name of the video.
        height: H, pixels.
        width: W, pixels.
        fps: frames a second, on average where they vary.
        names: of all frames, such as those of their files.
        times: when each frame is shown, seconds since the first.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        video: str,
        height: int,
        width: int,
        fps: float,
        names: Sequence[str] | None = None,
        times: Sequence[float] | None = None,
    ):
        self._size = (height, width)
        self._objects: dict[Any, None] = {}  # a set that keeps the order
        self._separator = ""
        self._file = PartialFile(path)
        header: dict[str, Any] = {"video": video, "height": height, "width": width, "fps": fps}
        given = {"names": names, "times": times}
        header |= {key: list(of) for key, of in given.items() if of is not None}
        with self._file.named_errors():
            # No buffer: a full disk shows at the frame that does not fit.
            self._opened = open(self._file.partial, "wb", buffering=0)  # noqa: SIM115
        try:
            self._append(json.dumps(header)[:-1] + ', "frames": {')
        except OSError:
            self._discard()
            raise

    def write(self, frame_idx: int, obj_ids: Sequence, masks: np.ndarray) -> None:
        """Adds the masks of a frame; see `MaskSink.write`."""
        if self._opened.closed:
            raise ValueError(f"{self._file.path} is closed: no frame can be added")
        masks = check_masks(masks, obj_ids)
        if masks.shape[1:] != self._size:
            raise ValueError(f"masks of frame {frame_idx} are {masks.shape[1:]}, not {self._size}")
        frame = dict(zip(map(_key, obj_ids), map(encode_rle, masks), strict=True))
        self._append(f'{self._separator}"{frame_idx}": {json.dumps(frame)}')
        self._separator = ", "
        self._objects.update(dict.fromkeys(map(_plain, obj_ids)))

    def close(self) -> None:
        """Finishes the document and gives it its name; does nothing the second time.

        Raises:
            OSError: the document cannot be finished; an older file of its name stays.
        """
        if self._opened.closed:
            return
        try:
            self._append("}, " + json.dumps({"objects": _sorted(self._objects)})[1:])
            with self._file.named_errors():
                self._opened.close()
            self._file.commit()
        finally:
            self._discard()

    def _append(self, text: str) -> None:
        """Writes all of a text or, where that fails, nothing of it."""
        start, rest = self._opened.tell(), memoryview(text.encode("ascii"))
        try:
            with self._file.named_errors():
                while rest:
                    rest = rest[self._opened.write(rest) :]
        except BaseException:
            self._opened.seek(start)
            self._opened.truncate()
            raise

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._opened.close()
        self._file.discard()


def _plain(object_id: Any) -> Any:
    """Returns an id as JSON can hold it: numpy's integers as Python's."""
    return object_id.item() if isinstance(object_id, np.generic) else object_id


def _key(object_id: Any) -> str:
    return str(_plain(object_id))


def _sorted(ids: Mapping) -> list:
    """Sorts ids; as text where they are of several types."""
    try:
        return sorted(ids)
    except TypeError:
        return sorted(ids, key=str)


def read_rle_file(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the document that `RleFile` writes.

    Returns:
        {"video": str, "height": H, "width": W, "fps": float, "objects": [id, ...],
        "frames": {frame index: {id: RLE}}}, frames in ascending order and by int; ids are those of
        "objects".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a document.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {os.fspath(path)}")
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        ids = {str(object_id): object_id for object_id in document["objects"]}
        frames = {
            int(t): {ids[key]: rle for key, rle in frame.items()}
            for t, frame in document["frames"].items()
        }
        size = [document["height"], document["width"]]
        wrong = [t for t, frame in frames.items() for rle in frame.values() if rle["size"] != size]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a document of masks: "
            '{"height", "width", "objects", "frames": {frame: {object: RLE}}} is expected'
        ) from error
    if wrong:
        raise ValueError(
            f"{os.fspath(path)}: masks of frame {wrong[0]} are not of size {size[0]} rows x {size[1]}"
        )
    return document | {"frames": dict(sorted(frames.items()))}
