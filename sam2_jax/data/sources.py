"""Sources of training videos: random access to the videos of a dataset, whatever its layout.

    Dataset  ->  open_source: len(), [i] -> Video

Sources hold names; files are opened when a video is. Those of images are in `image_sources`, those of the
catalogue of tensorflow_datasets in `tfds_builder`.
"""

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from sam2_jax.data.clips import LazyMasks, Masks, StoredVideo, Video, VideoList
from sam2_jax.data.listing import (
    check_folder,
    list_files,
    list_folders,
    select,
    time_order,
    warn_if_fewer,
)
from sam2_jax.data.masks import decode_rle, object_folders, read_mask_png, read_palette_png
from sam2_jax.data.media import read_image
from sam2_jax.data.sav import read_sav_json
from sam2_jax.data.videos import IMAGE_SUFFIXES, VideoFile
from sam2_jax.experiment import Dataset

ENDLESS = 1_000_000  # drawn videos when their number is not given


def open_source(dataset: Dataset, image_size: int) -> Sequence[Video]:
    """Opens a dataset.

    Args:
        dataset: what to open.
        image_size: side of the model's input, at which videos are drawn; files keep their size.

    Returns:
        Its videos in the order of their names; images are videos of one frame.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: there is nothing in it that can be used.
    """
    from sam2_jax.data import image_sources, tfds_builder

    if dataset.kind in ("procedural", "tfds") and (dataset.file_list or dataset.excluded_list):
        raise ValueError(
            f"videos of kind {dataset.kind} are not chosen by lists; set first and count"
        )

    openers = {
        "procedural": functools.partial(_open_procedural, image_size=image_size),
        "palette": functools.partial(_open_folders, open_video=open_palette_video),
        "objects": functools.partial(_open_folders, open_video=ObjectVideo),
        "sav": open_sav,
        "sa1b": image_sources.open_sa1b,
        "coco": image_sources.open_coco,
        "masks": image_sources.open_masks,
        "tfds": tfds_builder.open_catalogue,
    }
    return openers[dataset.kind](dataset)


def _open_procedural(dataset: Dataset, image_size: int) -> VideoList:
    from sam2_jax.data.procedural import ProceduralVideos

    stop = dataset.first + (ENDLESS if dataset.count < 0 else dataset.count)
    num_frames = dataset.num_frames * dataset.stride
    pictures = ()
    if dataset.frames:
        folder = check_folder(dataset.frames, "pictures for textures and objects")
        pictures = tuple(list_files(folder, IMAGE_SUFFIXES).values())
        if not pictures:
            raise ValueError(f"{folder} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    videos = ProceduralVideos(
        dataset.seed, stop, num_frames, image_size, dataset.is_plain, pictures
    )
    return VideoList(range(dataset.first, stop), videos.__getitem__)


def _open_folders(dataset: Dataset, open_video: Callable[[str, str, str], Video]) -> VideoList:
    """Videos that are folders of pictures, one in `frames` and one of the same name in `annotations`."""
    frames = check_folder(dataset.frames, "a folder of pictures for every video")
    annotations = check_folder(dataset.annotations, "a folder of masks for every video")
    annotated = list_folders(annotations)
    names = set(list_folders(frames)).intersection(annotated)
    warn_if_fewer(len(names), len(annotated), f"videos in {annotations}", f"pictures in {frames}")
    used = select(names, dataset, f"videos with a folder both in {frames} and in {annotations}")
    return VideoList(
        used, functools.partial(_open_folder, open_video, frames=frames, annotations=annotations)
    )


def _open_folder(
    open_video: Callable[[str, str, str], Video], name: str, frames: str, annotations: str
) -> Video:
    return open_video(name, os.path.join(frames, name), os.path.join(annotations, name))


class PictureVideo(StoredVideo):
    """A video whose frames are picture files."""

    def __init__(self, name: str, frames: Sequence[str]):
        self.name, self.num_frames = name, len(frames)
        self._frames = frames

    def frames_at(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Reads frames."""
        return [read_image(self._frames[index]) for index in indices]

    def frame_path(self, index: int) -> str:
        """Returns the path of a frame's picture."""
        return self._frames[index]


class LabeledFrames(PictureVideo):
    """Pictures, each with one whose values are the ids of objects; 0 is the background.

    In a grey picture of 0 and 255 only, as DAVIS 2016 has them, the object is number 1.

    Args:
        name: of the video.
        frames: paths of the pictures.
        labels: paths of the ids, one a picture.
        max_area: objects that cover more than this part of a frame are left out.
    """

    def __init__(
        self, name: str, frames: Sequence[str], labels: Sequence[str], max_area: float = 1.0
    ):
        super().__init__(name, frames)
        self._labels, self._max_area = labels, max_area

    def masks_on(self, index: int) -> Masks:
        """Reads the masks of the objects that are seen on a frame and not too large."""
        return masks_of_labels(read_labels(self._labels[index]), self._max_area)

    def object_ids(self, index: int) -> list[int]:
        """Returns these objects."""
        return list(self.masks_on(index))


def read_labels(path: str) -> np.ndarray:
    """Reads ids (H, W); 255 counts as 1 in a grey picture that holds nothing else but 0."""
    labels, palette = read_palette_png(path)
    is_black_and_white = palette is None and not ((labels > 0) & (labels != 255)).any()
    return labels // 255 if is_black_and_white and (labels == 255).any() else labels


def masks_of_labels(labels: np.ndarray, max_area: float = 1.0) -> Masks:
    """Takes ids (H, W) apart into masks, without those that cover more than a part of the frame."""
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    ids = np.flatnonzero((areas > 0) & (areas <= max_area * labels.size)).tolist()
    return LazyMasks(ids, lambda object_id: labels == object_id)


def open_palette_video(name: str, frames: str, annotations: str) -> LabeledFrames:
    """Opens a folder of pictures and one of PNGs of ids; frames without a PNG are not listed."""
    labels = list_files(annotations, (".png",))
    if not labels:
        raise ValueError(f"{annotations} holds no PNG of masks")
    return LabeledFrames(name, picture_paths(frames, labels), list(labels.values()))


def picture_paths(folder: str, names: Sequence[str]) -> list[str]:
    """Returns where the pictures of given names are; a missing one is met when it is read."""
    pictures = list_files(folder, IMAGE_SUFFIXES)
    return [pictures.get(name, os.path.join(folder, f"{name}.jpg")) for name in names]


class ObjectVideo(PictureVideo):
    """A folder of pictures, and a folder of PNGs for every object (`write_object_masks`).

    Frames without any PNG are not listed; an object without one on a listed frame is not there.
    """

    def __init__(self, name: str, frames: str, annotations: str):
        self._masks = {
            object_id: list_files(folder, (".png",))
            for object_id, folder in object_folders(annotations).items()
        }
        stems = {stem for files in self._masks.values() for stem in files}
        if not stems:
            raise ValueError(f"{annotations} holds no folder of an object with PNGs of masks")
        self._stems = sorted(stems, key=time_order)
        super().__init__(name, picture_paths(frames, self._stems))

    def masks_on(self, index: int) -> Masks:
        """Reads the masks of the objects that have a PNG of a frame."""
        stem = self._stems[index]
        ids = [object_id for object_id, files in self._masks.items() if stem in files]
        return LazyMasks(ids, lambda object_id: read_mask_png(self._masks[object_id][stem]) > 0)


def open_sav(dataset: Dataset) -> VideoList:
    """Opens videos of SA-V: `*_manual.json`, or `*_auto.json` where there are no manual ones at all.

    Each has a video `<name>.mp4` or a folder `<name>` of JPEGs that are named by their index in the
    video, in the same folder below `frames` as the JSON is below `annotations`, or directly in `frames`.
    """
    frames = check_folder(dataset.frames, "videos of SA-V")
    folder = check_folder(dataset.annotations or frames, "annotations of SA-V")
    files = list_files(folder, (".json",), recursive=True)
    for suffix in ("_manual", "_auto"):
        annotations = {n.removesuffix(suffix): p for n, p in files.items() if n.endswith(suffix)}
        if annotations:
            break
    videos = {name: path for name in annotations if (path := _find_sav_video(frames, name))}
    warn_if_fewer(len(videos), len(annotations), f"annotations in {folder}", f"video in {frames}")
    found = f"videos in {frames} (.mp4 or folders) with a *_manual.json or *_auto.json in {folder}"
    by_id = {os.path.basename(name): name for name in videos}
    used = select(by_id, dataset, found)
    parts = {video_id: (videos[by_id[video_id]], annotations[by_id[video_id]]) for video_id in used}
    return VideoList(used, functools.partial(_open_sav_video, parts, dataset.annotated_every))


def _find_sav_video(frames: str, name: str) -> str | None:
    for place in (os.path.join(frames, name), os.path.join(frames, os.path.basename(name))):
        for path in (f"{place}.mp4", place):
            if os.path.exists(path):
                return path
    return None


def _open_sav_video(parts: dict[str, tuple[str, str]], every: int, name: str) -> "SavVideo":
    return SavVideo(name, *parts[name], every)


class SavVideo(StoredVideo):
    """A video of SA-V: an mp4, or a folder of JPEGs named by their index in the video, and a JSON.

    Args:
        name: of the video.
        frames: the mp4 or the folder.
        annotation: the JSON, whose i-th entry is for frame `annotated_every` * i of the video.
        annotated_every: 4 in SA-V.
    """

    def __init__(self, name: str, frames: str, annotation: str, annotated_every: int):
        self.name, self._frames = name, frames
        document = read_sav_json(annotation)
        self._masklet, self._ids = document["masklet"], document["masklet_id"]
        numbers = np.arange(len(self._masklet)) * annotated_every
        self._pictures: dict[int, str] = {}
        if os.path.isdir(frames):
            files = list_files(frames, IMAGE_SUFFIXES)
            self._pictures = {int(stem): path for stem, path in files.items() if stem.isdecimal()}
            is_there = np.isin(numbers, list(self._pictures))
        else:
            is_there = numbers < document.get("video_frame_count", np.inf)
        self._annotated = np.flatnonzero(is_there).tolist()  # entries of masklet
        self._numbers = numbers[is_there].tolist()  # frames of the video
        self.num_frames = len(self._numbers)

    def frames_at(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Reads frames."""
        numbers = [self._numbers[index] for index in indices]
        if self._pictures:
            return [read_image(self._pictures[number]) for number in numbers]
        with VideoFile(self._frames) as video:
            # Decoding runs forward only.
            by_number = {number: video[number] for number in sorted(numbers)}
        return [by_number[number] for number in numbers]

    def masks_on(self, index: int) -> Masks:
        """Decodes the masks on a frame."""
        by_id = dict(zip(self._ids, self._masklet[self._annotated[index]], strict=True))
        return LazyMasks(self._ids, lambda object_id: decode_rle(by_id[object_id]))

    def frame_path(self, index: int) -> str | None:
        """Returns the path of a frame's JPEG, None if there is an mp4."""
        return self._pictures.get(self._numbers[index])
