"""Kinds of data to train on and validate with: a frozen dataclass each, which knows how to open its videos.

    Dataset(kind="palette", frames=..., annotations=...)  ->  Palette;   .open(image_size) -> VideoList

A new kind is a subclass of `Dataset` in `KINDS`. Configurations and the command line name it by `kind`.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from sam2_jax.config import did_you_mean, within
from sam2_jax.data import readers
from sam2_jax.data.annotated import Video, VideoList
from sam2_jax.data.listing import (
    IMAGE_SUFFIXES,
    check_folder,
    list_files,
    list_folders,
    list_frames,
    select,
    warn_if_fewer,
)
from sam2_jax.data.masks import object_folders
from sam2_jax.data.procedural import drawn_videos
from sam2_jax.data.tfds_builder import open_catalogue

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentations of clips; those named `frame_...` are drawn anew for every frame of a clip."""

    flip: float = within("[0, 1]", 0.5)  # chance of a horizontal flip
    vertical_flip: float = within("[0, 1]", 0.0)
    quarter_turn: float = within("[0, 1]", 0.0)  # chance of a turn by 90, 180 or 270 degrees
    # Part of the area that a random window of the same proportions has, uniform between these.
    crop: tuple[float, float] = within("(0, 1]", (1.0, 1.0))
    degrees: float = within("[0, 180]", 0.0)  # rotation, uniform in +- this
    shear: float = within("[0, 90)", 0.0)  # along x, degrees, uniform in +- this
    scale: tuple[float, float] = within("(0, inf)", (1.0, 1.0))  # zoom, uniform between these
    # Along x and y, parts of the width and the height, uniform in +- these.
    translate: tuple[float, float] = within("[0, 1]", (0.0, 0.0))
    frame_degrees: float = within("[0, 180]", 0.0)
    frame_shear: float = within("[0, 90)", 0.0)
    frame_scale: tuple[float, float] = within("(0, inf)", (1.0, 1.0))
    frame_translate: tuple[float, float] = within("[0, 1]", (0.0, 0.0))
    brightness: float = within("[0, 1]", 0.0)  # factor, uniform in 1 +- this
    contrast: float = within("[0, 1]", 0.0)
    saturation: float = within("[0, 1]", 0.0)
    hue: float = within("[0, 0.5]", 0.0)  # shift in turns of the colour circle, uniform in +- this
    gray: float = within("[0, 1]", 0.0)  # chance of a gray clip
    frame_brightness: float = within("[0, 1]", 0.0)
    frame_contrast: float = within("[0, 1]", 0.0)
    frame_saturation: float = within("[0, 1]", 0.0)
    frame_hue: float = within("[0, 0.5]", 0.0)
    mosaic: float = within("[0, 1]", 0.0)  # chance that copies fill a grid; one keeps its masks
    mosaic_grid: tuple[int, int] = within("[1, 16]", (2, 2))  # rows and columns
    mosaic_flip: float = within("[0, 1]", 0.0)  # chance of each copy to be flipped horizontally
    reverse: float = within("[0, 1]", 0.0)  # chance that time runs backwards

    def __post_init__(self):
        for name in ("crop", "scale", "frame_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is {(low, high)}; the smaller number comes first.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A source of clips; every batch comes from one dataset.

    `Dataset(kind="coco", ...)` gives the class of that kind, as `pathlib.Path` gives that of the system;
    the default is `Procedural`.
    """

    kind: str = "procedural"
    weight: float = within("[0, inf)", 1.0)  # share of the steps; 0 leaves it out
    # If not 0, for all datasets: the share is weight x the batches in which every video comes so often.
    multiplier: float = within("[0, inf)", 0.0)
    batch_size: int = within("[1, inf)", 1)  # clips per step, over all devices
    num_frames: int = within("[1, inf)", 8)  # T; 1 for images
    max_objects: int = within("[1, inf)", 3)  # O, objects of a clip
    stride: int = within("[1, inf)", 1)  # takes every stride-th annotated frame
    max_stride: int = within("[0, inf)", 0)  # if not 0, strides up to this are drawn, one a clip
    truncate_video: int = within("[-1, inf)", -1)  # annotated frames used of a video; < 1 is all
    # Uses videos or images first ... first + count - 1 of the sorted list; -1 is all.
    first: int = within("[0, inf)", 0)
    count: int = within("[-1, inf)", -1)
    seed: int = within("[0, inf)", 0)  # which videos are drawn, else which clips are held out
    augment: Augment = Augment()

    RENAMED: ClassVar[Mapping[str, str]] = {}  # fields by the names that they once had

    def __new__(cls, **fields: Any) -> "Dataset":
        """Makes a dataset of a kind; see the class."""
        is_of_no_kind = cls is Dataset
        return object.__new__(
            _class_of(fields.get("kind", cls.kind), "kind") if is_of_no_kind else cls
        )

    def __post_init__(self):
        if KINDS.get(self.kind) is not type(self):
            raise ValueError(f"kind is {self.kind!r}, which is not that of {type(self).__name__}.")
        if 0 < self.max_stride < self.stride:
            raise ValueError(
                f"max_stride is {self.max_stride}; at least stride, {self.stride}, or 0 is expected."
            )

    def open(self, image_size: int) -> VideoList:
        """Opens the dataset; the files of a video are opened with it.

        Args:
            image_size: side of the model's input, at which videos are drawn; files keep their size.

        Returns:
            Its videos in the order of their names; images are videos of one frame.

        Raises:
            FileNotFoundError: a folder or file is missing.
            ValueError: nothing in it can be used.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Procedural(Dataset):
    """Drawn videos with exact masks; no files are needed."""

    kind: str = "procedural"
    # Folder, "" is none: textures are cut from its pictures; those with transparent parts become objects.
    pictures: str = ""
    is_plain: bool = False  # a few large shapes of one colour each, nothing else

    RENAMED: ClassVar[Mapping[str, str]] = {"frames": "pictures"}

    def open(self, image_size: int) -> VideoList:
        """Opens the drawn videos."""
        pictures = ()
        if self.pictures:
            folder = check_folder(self.pictures, "pictures for textures and objects")
            pictures = tuple(list_files(folder, IMAGE_SUFFIXES).values())
            if not pictures:
                raise ValueError(f"{folder} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
        num_frames = self.num_frames * max(self.stride, self.max_stride)
        return drawn_videos(
            self.seed, num_frames, image_size, self.first, self.count, self.is_plain, pictures
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Files(Dataset):
    """Datasets in folders."""

    frames: str = ""  # folder of videos or images
    annotations: str = ""  # folder or file of the masks
    file_list: str = ""  # text file that names the videos or images to use, one a line
    excluded_list: str = ""  # text file that names those to leave out

    def _list(self, names: Any, found: str, open_video: Callable[[str], Video]) -> VideoList:
        used = select(names, found, self.first, self.count, self.file_list, self.excluded_list)
        return VideoList(used, open_video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Folders(_Files):
    """Videos that are folders of pictures, one in `frames` and one of the same name in `annotations`."""

    frames_sampling_mult: bool = False  # a video comes as often as it has pictures

    def _mask_reader(self) -> Callable[[str, str], Video]:
        """Opens the masks of a video, given its name and their folder."""
        raise NotImplementedError

    def open(self, image_size: int) -> VideoList:
        """Opens the videos that have both folders."""
        frames = check_folder(self.frames, "a folder of pictures for every video")
        masks = check_folder(self.annotations, "a folder of masks for every video")
        annotated, filmed = list_folders(masks), list_folders(frames)
        names = set(filmed).intersection(annotated)
        warn_if_fewer(names, annotated, f"videos in {masks}", f"pictures in {frames}")
        warn_if_fewer(names, filmed, f"videos in {frames}", f"masks in {masks}")
        videos = self._list(
            names,
            f"videos with a folder both in {frames} and in {masks}",
            functools.partial(_open_folders, self._mask_reader(), frames, masks),
        )
        if not self.frames_sampling_mult:
            return videos
        pictures = lambda name: list_frames(os.path.join(frames, name))
        return VideoList([name for name in videos.keys for _ in pictures(name)], videos.open)


def _open_folders(
    read_masks: Callable[[str, str], Video], frames: str, masks: str, name: str
) -> Video:
    return readers.with_pictures(
        read_masks(name, os.path.join(masks, name)), os.path.join(frames, name)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Palette(_Folders):
    """DAVIS, MOSE, YouTube-VOS: for each video a folder of JPEGs and one of PNGs of ids."""

    kind: str = "palette"
    ignore_label: int = within("[-1, 65535]", -1)  # of pixels that are not known; -1 is none

    def _mask_reader(self) -> Callable[[str, str], Video]:
        return functools.partial(readers.palette_masks, ignore_label=self.ignore_label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects(_Folders):
    """The same with a folder of PNGs for every object, as val and test of SA-V have them."""

    kind: str = "objects"
    single_object_mode: bool = False  # every object counts as a video of its own

    def _mask_reader(self) -> Callable[[str, str], Video]:
        return readers.object_masks

    def open(self, image_size: int) -> VideoList:
        """Opens the videos that have both folders, once or once an object."""
        videos = super().open(image_size)
        if not self.single_object_mode:
            return videos
        # Names may be there many times: `frames_sampling_mult`.
        objects = functools.cache(lambda name: object_folders(os.path.join(self.annotations, name)))
        keys = [(name, object_id) for name in videos.keys for object_id in objects(name)]
        return VideoList(keys, functools.partial(_open_object, videos.open))


def _open_object(open_video: Callable[[str], Video], key: tuple[str, int]) -> Video:
    name, object_id = key
    return open_video(name).only(object_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sav(_Files):
    """Videos of SA-V: `*_manual.json`, or `*_auto.json` where there are no manual ones at all.

    Each has a video `<name>.mp4` or a folder `<name>` of JPEGs that are named by their index in the
    video, in the same folder below `frames` as the JSON is below `annotations`, or directly in `frames`.
    """

    kind: str = "sav"
    annotated_every: int = within("[1, inf)", 4)  # frames of the video between annotations

    def open(self, image_size: int) -> VideoList:
        """Opens the videos that have annotations."""
        frames = check_folder(self.frames, "videos of SA-V")
        folder = check_folder(self.annotations or frames, "annotations of SA-V")
        files = list_files(folder, (".json",), recursive=True)
        annotations: dict[str, str] = {}
        for end in ("_manual", "_auto"):
            annotations = {n.removesuffix(end): p for n, p in files.items() if n.endswith(end)}
            if annotations:
                break
        videos = {name: _find_sav_video(frames, name) for name in annotations}
        parts = {
            os.path.basename(name): (video, annotations[name])
            for name, video in videos.items()
            if video
        }
        with_video = [name for name, video in videos.items() if video]
        warn_if_fewer(with_video, annotations, f"annotations in {folder}", f"video in {frames}")
        films = list_files(frames, (".mp4",), recursive=True)
        annotated = [name for name in films if os.path.basename(name) in parts]
        warn_if_fewer(annotated, films, f"videos in {frames}", f"annotation in {folder}")
        found = (
            f"videos in {frames} (.mp4 or folders) with a *_manual.json or *_auto.json in {folder}"
        )
        return self._list(
            parts,
            found,
            lambda name: readers.sav_video(name, *parts[name], self.annotated_every),
        )


def _find_sav_video(frames: str, name: str) -> str | None:
    for place in (os.path.join(frames, name), os.path.join(frames, os.path.basename(name))):
        for path in (f"{place}.mp4", place):
            if os.path.exists(path):
                return path
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Images(_Files):
    """Images, which are videos of one frame."""

    num_frames: int = 1
    max_area: float = within("(0, 1]", 0.9)  # masks that cover more of the image are left out

    def __post_init__(self):
        super().__post_init__()
        if self.num_frames != 1:
            raise ValueError(
                f"num_frames is {self.num_frames}, but kind {self.kind!r} has images; set it to 1."
            )

    def _pairs(
        self, folder: str, annotations: str, suffix: str, read: Callable[..., Video]
    ) -> VideoList:
        """Opens the images in `folder` that have a file of the same name in `annotations`."""
        images = list_files(folder, IMAGE_SUFFIXES, recursive=True)
        files = list_files(annotations, (suffix,), recursive=True)
        kind = suffix[1:].upper()
        names = images.keys() & files.keys()
        if folder == annotations:  # images are such files themselves
            files = {name: path for name, path in files.items() if path != images.get(name)}
        warn_if_fewer(names, images, f"images in {folder}", f"{kind} in {annotations}")
        warn_if_fewer(names, files, f"{kind} files in {annotations}", f"image in {folder}")
        return self._list(
            names,
            f"images in {folder} with a {kind} of the same name in {annotations}",
            lambda name: read(name, images[name], files[name], self.max_area),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sa1b(_Images):
    """SA-1B: images, each with a JSON of the same name, beside it or in `annotations`."""

    kind: str = "sa1b"

    def open(self, image_size: int) -> VideoList:
        """Opens the images that have a JSON."""
        folder = check_folder(self.frames, "images of SA-1B")
        annotations = check_folder(self.annotations or folder, "annotations of SA-1B")
        return self._pairs(folder, annotations, ".json", readers.sa1b_image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coco(_Images):
    """An instance file of COCO, `annotations`, and its images.

    Names in lists are the images' `file_name`, which is their place below `frames`.
    """

    kind: str = "coco"

    def open(self, image_size: int) -> VideoList:
        """Opens the images that have objects."""
        folder = check_folder(self.frames, "images of COCO")
        path = self.annotations
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no such file of annotations of COCO: {path!r}")
        images = readers.coco_images(path, folder)
        there = [name for name, (file, *_) in images.items() if os.path.exists(file)]
        warn_if_fewer(there, images, f"images in {path}", f"file in {folder}")
        files = {os.path.splitext(name)[0]: name for name in there}
        others = list_files(folder, IMAGE_SUFFIXES, recursive=True)
        warn_if_fewer(files, others, f"images in {folder}", f"objects in {path}")
        return self._list(
            there,
            f"images in {folder} with annotated objects in {path}",
            lambda name: readers.annotated_image(name, *images[name], self.max_area, path),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels(_Images):
    """Images, and PNGs of the same names in `annotations` whose values are instances."""

    kind: str = "masks"
    ignore_label: int = within("[-1, 65535]", -1)  # of pixels that are not known; -1 is none

    def open(self, image_size: int) -> VideoList:
        """Opens the images that have a PNG."""
        folder = check_folder(self.frames, "images")
        annotations = check_folder(self.annotations, "label images")
        read = functools.partial(readers.labeled_image, ignore_label=self.ignore_label)
        return self._pairs(folder, annotations, ".png", read)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlabelled(_Images):
    """Images without masks, for training that needs none; each counts as one object that fills it."""

    kind: str = "pictures"

    def __post_init__(self):
        super().__post_init__()
        if self.annotations:
            raise ValueError(
                f"annotations is {self.annotations!r}, but images of kind 'pictures' have none; leave it "
                "out, or choose the kind of the annotations."
            )

    def open(self, image_size: int) -> VideoList:
        """Opens the images in the folder and those below it."""
        folder = check_folder(self.frames, "images")
        images = list_files(folder, IMAGE_SUFFIXES, recursive=True)
        return self._list(
            images,
            f"images ({', '.join(IMAGE_SUFFIXES)}) in {folder}",
            lambda name: readers.whole_image(name, images[name]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(Dataset):
    """A dataset of the catalogue of tensorflow_datasets, in ArrayRecord files."""

    kind: str = "tfds"
    name: str = ""  # such as "davis/480p"
    data_dir: str = ""  # folder of datasets
    split: str = "train"

    RENAMED: ClassVar[Mapping[str, str]] = {"frames": "name", "annotations": "data_dir"}

    def open(self, image_size: int) -> VideoList:
        """Opens the videos of the split."""
        return open_catalogue(self.name, self.data_dir, self.split, self.first, self.count)


KINDS: dict[str, type[Dataset]] = {
    kind.kind: kind
    for kind in (Procedural, Palette, Objects, Sav, Sa1b, Coco, Labels, Unlabelled, Tfds)
}

# Fields that records of earlier versions lack.
_ADDED = {
    "multiplier",
    "max_stride",
    "truncate_video",
    "frames_sampling_mult",
    "single_object_mode",
    "ignore_label",
}


def _class_of(kind: Any, name: str) -> type[Dataset]:
    if kind not in KINDS:
        raise ValueError(f"{name} is {kind!r}; it must be one of {', '.join(KINDS)}.")
    return KINDS[kind]


def _fields(kind: type[Dataset]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def all_fields() -> dict[str, type]:
    """Returns the type of every field that any kind has, or once had under another name."""
    every = {name: value for kind in KINDS.values() for name, value in _fields(kind).items()}
    renamed = {old: every[new] for kind in KINDS.values() for old, new in kind.RENAMED.items()}
    return {name: type(value) for name, value in (renamed | every).items()}


def resolve(fields: Mapping[str, Any], name: str) -> tuple[type[Dataset], dict[str, Any]]:
    """Finds the class of a dataset that is given by its fields.

    Fields that are None count as not given. Where `kind` replaced another one, the fields of the
    other, known by being all there, are dropped.

    Args:
        fields: with `kind`, which is "procedural" by default.
        name: of the dataset in the configuration, for messages.

    Returns:
        The class, and the fields for it, whose types are not checked.

    Raises:
        ValueError: no such kind, or a field that it does not have; the message lists similar names.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    chosen = _class_of(given.get("kind", Dataset.kind), f"{name}.kind")
    is_complete = lambda kind: all(
        field in given or any(old in given for old, new in kind.RENAMED.items() if new == field)
        for field in _fields(kind).keys() - _ADDED
    )
    left_over = {
        field
        for kind in KINDS.values()
        if kind is not chosen and is_complete(kind)
        for field in (*_fields(kind), *kind.RENAMED)
    }
    own = _fields(chosen)
    for old, new in chosen.RENAMED.items():
        value = given.pop(old, "")
        if value and not given.get(new):
            logger.warning("%s.%s is called %s.%s now", name, old, name, new)
            given[new] = value
    for key in given.keys() - own.keys() - left_over:
        raise ValueError(
            f"there is no field {name}.{key} of kind {chosen.kind!r}.{did_you_mean(key, own)}"
        )
    return chosen, {key: value for key, value in given.items() if key in own}
