"""Videos and their masks, in the folder layouts of benchmarks.

    folder  ->  find_benchmark: which benchmark it is, where its frames and masks are
    folder  ->  open_videos, open_masks: .keys, open(name) -> Video, which has frames, or masks

A folder is a benchmark's own (DAVIS, MOSE, SA-V, YouTube-VOS, LVOS), or one with a folder for every video.
`tfds:NAME` is a dataset of the TensorFlow Datasets catalogue.
"""

import dataclasses
import os
from collections.abc import Callable, Collection

from sam2_jax.data.annotated import Video, VideoList
from sam2_jax.data.listing import check_folder, list_files, list_folders, read_list
from sam2_jax.data.readers import frames_only, object_masks, palette_masks
from sam2_jax.data.tfds_builder import open_catalogue

CATALOGUE = "tfds:"
_FRAMES = ("JPEGImages/480p", "JPEGImages/Full-Resolution", "JPEGImages_24fps", "JPEGImages")
_MASKS = ("Annotations/480p", "Annotations/Full-Resolution", "Annotations_6fps", "Annotations")
_RESOLUTIONS = ("480p", "Full-Resolution")
_VIDEO_SUFFIXES = (".mp4",)
_MOST_NAMES = 5  # of a long list, in messages


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


def open_masks(path: str, split: str = "validation") -> VideoList:
    """Opens the masks of videos.

    Args:
        path: a folder with a folder of masks for every video, or the folder of a benchmark, or `tfds:NAME`.
        split: of the dataset of the catalogue.

    Returns:
        The videos by name, with masks; those of the catalogue also have frames.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no masks of videos; the message says what it holds.
    """
    if path.startswith(CATALOGUE):
        return _open_catalogue(path, split)
    benchmark, folder = _find(check_folder(path, "masks of videos"), "masks")
    found = {name: _mask_reader(os.path.join(folder, name)) for name in list_folders(folder)}
    readers = {name: reader for name, reader in found.items() if reader is not None}
    if not readers:
        raise ValueError(
            f"{path} holds no masks of videos but {_contents(folder)}; expected are <video>/<frame>.png, "
            "<video>/<object>/<frame>.png, or the folder of a benchmark with "
            f"{', '.join(_MASKS[:-1])} or {_MASKS[-1]}{_hint(path)}"
        )

    is_palette = next(iter(readers.values())) is palette_masks
    kind = "a PNG of ids a frame" if is_palette else "a folder of PNGs an object"
    return VideoList(
        list(readers),
        lambda name: readers[name](name, os.path.join(folder, name)),
        _where(benchmark, folder, f"masks of {len(readers)} videos, {kind}"),
    )


def _mask_reader(path: str) -> Callable[[str, str], Video] | None:
    """The reader for the masks in the folder of a video; None if there are none."""
    if list_files(path, (".png",)):
        return palette_masks
    folders = list_folders(path)
    is_numbered = folders and all(name.isdecimal() for name in folders)
    return object_masks if is_numbered and list_files(path, (".png",), recursive=True) else None


def open_videos(path: str, split: str = "validation") -> VideoList:
    """Opens videos: a folder of JPEGs or PNGs for each or an mp4, or the folder of a benchmark, or `tfds:NAME`.

    Returns:
        The videos by name, with frames; those of the catalogue also have masks.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no videos; the message says what it holds.
    """
    if path.startswith(CATALOGUE):
        return _open_catalogue(path, split)
    benchmark, folder = _find(check_folder(path, "videos"), "frames")
    places = {name: os.path.join(folder, name) for name in list_folders(folder)}
    places |= list_files(folder, _VIDEO_SUFFIXES)
    if not places:
        raise ValueError(
            f"{path} holds no videos but {_contents(folder)}; expected are <video>/<frame>.jpg, <video>.mp4, "
            f"or the folder of a benchmark with {', '.join(_FRAMES[:-1])} or {_FRAMES[-1]}{_hint(path)}"
        )
    where = _where(benchmark, folder, f"{len(places)} videos")
    return VideoList(sorted(places), lambda name: frames_only(name, places[name]), where)


def choose(found: VideoList, others: VideoList, video_list: str | None) -> list[str]:
    """Returns the names of the videos that two sets share, or those of a list.

    Args:
        found: for example the videos.
        others: for example their masks.
        video_list: text file with a name a line, all of which must be there; None is what is shared.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: a video of the list is missing, or nothing is left.
    """
    shared = set(found.keys) & set(others.keys)
    if video_list:
        wanted = sorted(read_list(video_list))
        for side in (found, others):
            missing = [name for name in wanted if name not in side.keys]
            if missing:
                raise ValueError(
                    f"{len(missing)} of the {len(wanted)} videos in {video_list} are not in {side.where}: "
                    f"{shorten(missing)}"
                )
        shared = set(wanted)
    if not shared:
        raise ValueError(
            f"no video is in both {found.where} ({shorten(found.keys)}) and {others.where} "
            f"({shorten(others.keys)})"
        )
    return sorted(shared)


def shorten(names: Collection[str]) -> str:
    """Joins the first few names of a list."""
    names = list(names)
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _find(path: str, what: str) -> tuple[Benchmark | None, str]:
    """The benchmark that a folder belongs to, if any, and where its frames or masks are."""
    benchmark = find_benchmark(path)
    if benchmark is not None:
        folder = getattr(benchmark, what)
        if folder is None:
            there = benchmark.frames or benchmark.masks or path
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
    """Suggests subfolders that are benchmarks, such as `valid` of YouTube-VOS."""
    inner = [os.path.join(path, name) for name in list_folders(path)]
    found = [place for place in inner if find_benchmark(place)]
    return f"; did you mean {shorten(found)}?" if found else ""


def _open_catalogue(path: str, split: str) -> VideoList:
    data_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    name = path.removeprefix(CATALOGUE)
    videos = open_catalogue(name, data_dir, split)
    places = {video.name: index for index, video in enumerate(videos)}
    where = f"{os.path.join(data_dir, name)} ({len(places)} {split} videos)"
    return VideoList(sorted(places), lambda name: videos[places[name]], where)
