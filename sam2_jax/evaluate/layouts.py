"""Videos and their masks as benchmarks lay them out in folders.

    folder  ->  find_benchmark: which benchmark it is, where its frames and masks are
    folder  ->  open_masks: .names, [name] -> MaskVideo: .stems, read(stem) -> size and masks by object id
    folder  ->  open_videos: .names, [name] -> Frames

A folder is a benchmark's own (DAVIS, MOSE, SA-V, YouTube-VOS, LVOS), or one with a folder for every video.
`tfds:NAME` is a dataset of the catalogue of tensorflow_datasets.
"""

import abc
import dataclasses
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from sam2_jax.data.clips import LazyMasks, Masks
from sam2_jax.data.listing import (
    check_folder,
    list_files,
    list_folders,
    read_list,
    time_order,
)
from sam2_jax.data.masks import (
    object_folders,
    read_mask_png,
    read_object_mask,
    read_palette_png,
)
from sam2_jax.data.sources import masks_of_labels
from sam2_jax.data.videos import FirstFrames, FrameList, Frames, ImageFolder, open_frames
from sam2_jax.experiment import Dataset

CATALOGUE = "tfds:"
_FRAMES = ("JPEGImages/480p", "JPEGImages/Full-Resolution", "JPEGImages_24fps", "JPEGImages")
_MASKS = ("Annotations/480p", "Annotations/Full-Resolution", "Annotations_6fps", "Annotations")
_RESOLUTIONS = ("480p", "Full-Resolution")
_VIDEO_SUFFIXES = (".mp4",)
_MOST_NAMES = 5  # of a long list that a message tells


class MaskVideo(abc.ABC):
    """The masks of a video.

    Attributes:
        name: of the video.
        stems: names of the frames that have masks, in the order of time.
    """

    name: str
    stems: list[str]

    @abc.abstractmethod
    def read(self, stem: str) -> tuple[tuple[int, int], Masks]:
        """Returns height and width of the masks of a frame, and the masks (H, W) bool by object id.

        Raises:
            ValueError: a file is damaged or no mask.
        """

    def stems_of(self) -> dict[int, list[str]] | None:
        """Returns the frames that each object has masks on; None where the objects share all frames."""
        return None

    def has(self, stem: str, object_id: int | None = None) -> bool:
        """Says whether there are masks of a frame, or the mask of an object on it."""
        del object_id
        return stem in self.stems

    def palette(self) -> np.ndarray | None:
        """Returns the (K, 3) uint8 colours of the masks' files, if those have any."""
        return None


class PaletteMasks(MaskVideo):
    """A PNG of ids for every frame. In one that holds 0 and 255 only, the object is number 1."""

    def __init__(self, name: str, path: str):
        self.name = name
        self._files = list_files(path, (".png",))
        self.stems = list(self._files)

    def read(self, stem: str) -> tuple[tuple[int, int], Masks]:
        """Reads the ids of a frame."""
        labels = read_mask_png(self._files[stem])
        masks = masks_of_labels(labels)
        if list(masks) == [255]:
            masks = LazyMasks([1], lambda _: labels == 255)
        return labels.shape, masks

    def palette(self) -> np.ndarray | None:
        """Reads the colours of the first frame."""
        return read_palette_png(self._files[self.stems[0]])[1]


class ObjectMasks(MaskVideo):
    """A folder for every object with a PNG for every frame, as SA-V has them."""

    def __init__(self, name: str, path: str):
        self.name = name
        self._files = {i: list_files(p, (".png",)) for i, p in object_folders(path).items()}
        self.stems = sorted(
            {stem for files in self._files.values() for stem in files}, key=time_order
        )

    def read(self, stem: str) -> tuple[tuple[int, int], Masks]:
        """Reads the masks of the objects that have a PNG of a frame, empty ones as well."""
        masks = {
            i: read_object_mask(files[stem]) for i, files in self._files.items() if stem in files
        }
        sizes = {mask.shape for mask in masks.values()}
        if len(sizes) > 1:
            raise ValueError(
                f"the masks of frame {stem} of {self.name} have the sizes {sorted(sizes)} (height, width); "
                "one size is expected"
            )
        return sizes.pop(), masks

    def stems_of(self) -> dict[int, list[str]] | None:
        """Returns the frames of each object."""
        return {i: list(files) for i, files in self._files.items()}

    def has(self, stem: str, object_id: int | None = None) -> bool:
        """Says whether there is a PNG."""
        if object_id is None:
            return stem in self.stems
        return stem in self._files.get(object_id, ())

    def palette(self) -> np.ndarray | None:
        """Reads the colours of any mask."""
        path = next(path for files in self._files.values() for path in files.values())
        return read_palette_png(path)[1]


class CatalogueMasks(MaskVideo):
    """The masks of a video of the catalogue; its frames are numbered."""

    def __init__(self, video: Any):
        self.name, self._video = video.name, video
        self.stems = [f"{index:05d}" for index in range(video.num_frames)]

    def read(self, stem: str) -> tuple[tuple[int, int], Masks]:
        """Decodes the masks of a frame."""
        masks = self._video.masks_on(int(stem))
        if masks:
            return next(iter(masks.values())).shape, masks
        return self._video.frames_at([int(stem)])[0].shape[:2], masks


@dataclasses.dataclass(frozen=True)
class Videos:
    """Videos, or their masks, by name.

    Attributes:
        where: what they are and where, for messages.
        names: in ascending order.
        open: opens one.
    """

    where: str
    names: list[str]
    open: Callable[[str], Any]

    def __getitem__(self, name: str) -> Any:
        return self.open(name)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark that was recognised.

    Attributes:
        name: such as "DAVIS 2017".
        frames: folder of the videos' frames, None if it is missing.
        masks: folder of the masks, likewise.
        lists: files that name the videos of a part, such as `val.txt`.
    """

    name: str
    frames: str | None
    masks: str | None
    lists: list[str]


def find_benchmark(root: str) -> Benchmark | None:
    """Recognises a benchmark by what its folder holds; None if it holds neither frames nor masks of one."""
    find = lambda places: next(
        (path for place in places if os.path.isdir(path := os.path.join(root, place))), None
    )
    frames, masks = find(_FRAMES), find(_MASKS)
    if not (frames or masks):
        return None
    texts = list_files(root, (".txt",)) | list_files(
        os.path.join(root, "ImageSets"), (".txt",), True
    )
    lists = [path for path in texts.values() if "readme" not in path.lower()]
    return Benchmark(_benchmark_name(root, frames, masks), frames, masks, lists)


def _benchmark_name(root: str, frames: str | None, masks: str | None) -> str:
    exists = lambda *parts: os.path.exists(os.path.join(root, *parts))
    places = {os.path.basename(path) for path in (frames, masks) if path}
    if places & {"JPEGImages_24fps", "Annotations_6fps"}:
        return "SA-V"
    if places & set(_RESOLUTIONS):
        return "DAVIS 2017" if exists("ImageSets", "2017") else "DAVIS 2016"
    if exists("meta.json"):
        return "YouTube-VOS"
    if any(name.endswith("_meta") for name in list_files(root, (".json",))):
        return "LVOS"
    return "MOSE, or another dataset of its layout"


def open_masks(path: str, split: str = "validation") -> Videos:
    """Opens the masks of videos.

    Args:
        path: a folder with a folder of masks for every video, or the folder of a benchmark, or `tfds:NAME`.
        split: of the dataset of the catalogue.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no masks of videos; the message tells what it holds.
    """
    if path.startswith(CATALOGUE):
        return _open_catalogue(path, split, CatalogueMasks)
    benchmark, folder = _find(check_folder(path, "masks of videos"), "masks")
    names = [name for name in list_folders(folder) if _mask_class(os.path.join(folder, name))]
    if not names:
        raise ValueError(
            f"{path} holds no masks of videos but {_contents(folder)}; expected are <video>/<frame>.png, "
            "<video>/<object>/<frame>.png, or the folder of a benchmark with "
            f"{', '.join(_MASKS[:-1])} or {_MASKS[-1]}{_hint(path)}"
        )

    def open_video(name: str) -> MaskVideo:
        place = os.path.join(folder, name)
        return _mask_class(place)(name, place)

    kind = {PaletteMasks: "a PNG of ids a frame", ObjectMasks: "a folder of PNGs an object"}
    found = kind[_mask_class(os.path.join(folder, names[0]))]
    return Videos(
        _where(benchmark, folder, f"masks of {len(names)} videos, {found}"), names, open_video
    )


def _mask_class(path: str) -> type[MaskVideo] | None:
    """How the masks of a video lie; None if there are none."""
    if list_files(path, (".png",)):
        return PaletteMasks
    folders = list_folders(path)
    is_numbered = folders and all(name.isdecimal() for name in folders)
    return ObjectMasks if is_numbered and list_files(path, (".png",), recursive=True) else None


def open_videos(path: str, split: str = "validation") -> Videos:
    """Opens videos: a folder of JPEGs or PNGs for each or an mp4, or the folder of a benchmark, or `tfds:NAME`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no videos; the message tells what it holds.
    """
    if path.startswith(CATALOGUE):
        return _open_catalogue(
            path, split, lambda video: FrameList(video.frames_at(range(video.num_frames)))
        )
    benchmark, folder = _find(check_folder(path, "videos"), "frames")
    places = {name: os.path.join(folder, name) for name in list_folders(folder)}
    places |= list_files(folder, _VIDEO_SUFFIXES)
    if not places:
        raise ValueError(
            f"{path} holds no videos but {_contents(folder)}; expected are <video>/<frame>.jpg, <video>.mp4, "
            f"or the folder of a benchmark with {', '.join(_FRAMES[:-1])} or {_FRAMES[-1]}{_hint(path)}"
        )
    where = _where(benchmark, folder, f"{len(places)} videos")
    return Videos(where, sorted(places), lambda name: open_frames(places[name]))


def frame_stems(frames: Frames) -> list[str]:
    """Returns the names of the frames of a video, which its masks have as well."""
    if isinstance(frames, ImageFolder):
        return [os.path.splitext(name)[0] for name in frames.names]
    return [f"{index:05d}" for index in range(len(frames))]


def first_frames(source: Frames, count: int | None) -> tuple[Frames, list[str]]:
    """Returns the first frames of a video, all if `count` is None, and their names."""
    stems = frame_stems(source)
    return (source, stems) if count is None else (FirstFrames(source, count), stems[:count])


def choose(found: Videos, others: Videos, video_list: str | None) -> list[str]:
    """Returns the names of the videos that two sets share, or those of a list.

    Args:
        found: for example the videos.
        others: for example their masks.
        video_list: text file with a name a line, all of which must be there; None is what is shared.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: a video of the list is missing, or nothing is left.
    """
    shared = set(found.names) & set(others.names)
    if video_list:
        wanted = sorted(read_list(video_list))
        for side in (found, others):
            missing = [name for name in wanted if name not in side.names]
            if missing:
                raise ValueError(
                    f"{len(missing)} of the {len(wanted)} videos in {video_list} are not in {side.where}: "
                    f"{shorten(missing)}"
                )
        shared = set(wanted)
    if not shared:
        raise ValueError(
            f"no video is in both of {found.where} ({shorten(found.names)}) and {others.where} "
            f"({shorten(others.names)})"
        )
    return sorted(shared)


def shorten(names: Collection[str]) -> str:
    """Joins the first few names of a list."""
    names = list(names)
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _find(path: str, what: str) -> tuple[Benchmark | None, str]:
    """The benchmark that a folder is of, if it is, and where its frames or masks are."""
    benchmark = find_benchmark(path)
    if benchmark is not None:
        folder = getattr(benchmark, what)
        if folder is None:
            there = benchmark.frames or benchmark.masks
            raise ValueError(
                f"{path} is {benchmark.name}, and has {os.path.relpath(there, path)}, but its {what} are "
                f"missing: none of {', '.join(_MASKS if what == 'masks' else _FRAMES)} is there"
            )
        return benchmark, folder
    inner = [os.path.join(path, name) for name in _RESOLUTIONS]
    return None, next((place for place in inner if os.path.isdir(place)), path)


def _where(benchmark: Benchmark | None, folder: str, what: str) -> str:
    if benchmark is None:
        return f"{folder} ({what})"
    return f"{folder} ({benchmark.name}: {what})"


def _contents(folder: str) -> str:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return shorten(names) or "nothing"


def _hint(path: str) -> str:
    """Tells which folders within are benchmarks, such as `valid` of YouTube-VOS."""
    inner = [os.path.join(path, name) for name in list_folders(path)]
    found = [place for place in inner if find_benchmark(place)]
    return f"; did you mean {shorten(found)}?" if found else ""


def _open_catalogue(path: str, split: str, adapt: Callable[[Any], Any]) -> Videos:
    from sam2_jax.data.tfds_builder import open_catalogue

    data_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    name = path.removeprefix(CATALOGUE)
    videos: Sequence[Any] = open_catalogue(
        Dataset(kind="tfds", frames=name, annotations=data_dir, split=split)
    )
    places = {videos[index].name: index for index in range(len(videos))}
    where = f"{os.path.join(data_dir, name)} ({len(places)} {split} videos)"
    return Videos(where, sorted(places), lambda name: adapt(videos[places[name]]))
