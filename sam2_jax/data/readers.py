"""Readers: one for every way in which files hold masks; each returns a `Video`.

palette_masks, object_masks      masks without frames: PNGs of ids, folders of PNGs an object
with_pictures                    ... on the pictures of the same names
sav_video, sa1b_image            run lengths in a JSON document
coco_images, annotated_image     outlines or run lengths of many images in one JSON document
labeled_image                    an image and one of ids
whole_image                      an image alone, which is its own object
frames_only                      frames without masks
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam2_jax.data.annotated import FrameMasks, Video
from sam2_jax.data.listing import list_files, list_frames, natural_order, warn_once
from sam2_jax.data.masks import (
    decode_rle,
    decode_segmentation,
    frame_name,
    object_folders,
    read_known_labels,
    read_labels,
    read_object_mask,
    segmentation_area,
)
from sam2_jax.data.media import picture_size
from sam2_jax.data.sav import read_sav_json
from sam2_jax.data.videos import ImageFolder, Pictures, VideoFile, open_frames
from sam2_jax.files import read_json


def palette_masks(name: str, folder: str, ignore_label: int = -1) -> Video:
    """Opens a folder with a PNG of ids for every annotated frame (DAVIS, MOSE, YouTube-VOS).

    Args:
        name: of the video.
        folder: of the PNGs.
        ignore_label: value of pixels that are not known; -1 is none.

    Raises:
        ValueError: there is no PNG in it.
    """
    files = list_files(folder, (".png",))
    if not files:
        raise ValueError(f"{folder} holds no PNG of masks")
    paths = list(files.values())
    return Video(
        name=name,
        frame_names=list(files),
        annotated=range(len(paths)),
        read_masks=lambda index: labeled_masks(paths[index], ignore_label),
        mask_file=paths[0],
    )


def object_masks(name: str, folder: str) -> Video:
    """Opens a folder of PNGs for every object (SA-V, `write_object_masks`).

    A frame is annotated where any object has a PNG; an object without one there is not on that frame.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no folder of an object with a PNG in it.
    """
    files = {i: list_files(path, (".png",)) for i, path in object_folders(folder).items()}
    names = sorted({stem for of_object in files.values() for stem in of_object}, key=natural_order)
    if not names:
        raise ValueError(f"{folder} holds no folder of an object with PNGs of masks")

    def read(index: int) -> FrameMasks:
        here = {i: paths[names[index]] for i, paths in files.items() if names[index] in paths}
        size = picture_size(next(iter(here.values())))
        return FrameMasks(list(here), lambda object_id: read_object_mask(here[object_id]), size)

    return Video(
        name=name,
        frame_names=names,
        annotated=range(len(names)),
        read_masks=read,
        is_by_object=True,
        mask_file=next(path for paths in files.values() for path in paths.values()),
    )


def with_pictures(masks: Video, folder: str) -> Video:
    """Gives every annotated frame of a video without frames its picture in a folder.

    A missing picture is an error only when it is read.
    """
    pictures = list_frames(folder)
    paths = [pictures.get(n, os.path.join(folder, f"{n}.jpg")) for n in masks.frame_names]
    drawn_on = lambda: masks.read_masks(masks.annotated[0]).size
    return dataclasses.replace(masks, frames=Pictures(paths, drawn_on))


def frames_only(name: str, path: str) -> Video:
    """Opens a video file or a folder of pictures; frames of a file are named by their numbers."""
    frames = open_frames(path)
    if isinstance(frames, ImageFolder):
        return Video(name, frames.names, frames)
    return Video(name, [frame_name(t) for t in range(len(frames))], frames)


def labeled_image(
    name: str, image: str, labels: str, max_area: float, ignore_label: int = -1
) -> Video:
    """Opens an image together with one whose values are the ids of objects.

    Args:
        name: of the image.
        image: its file.
        labels: file of the ids.
        max_area: objects that cover more than this part of the image are left out.
        ignore_label: value of pixels that are not known; -1 is none.
    """
    read = lambda _: labeled_masks(labels, ignore_label, max_area)
    return Video(name, [name], Pictures([image], lambda: picture_size(labels)), [0], read)


def whole_image(name: str, image: str) -> Video:
    """Opens an image without masks: its one object, 1, fills it."""
    frames = Pictures([image])
    size = lambda: (frames.height, frames.width)
    read = lambda _: FrameMasks([1], lambda _: np.ones(size(), bool), size(), visible=[1])
    return Video(name, [name], frames, [0], read)


def labeled_masks(
    picture: str | bytes, ignore_label: int = -1, max_area: float = 1.0
) -> FrameMasks:
    """Reads a picture of ids.

    Args:
        picture: a file, or the bytes of one.
        ignore_label: value of pixels that are not known; -1 is none.
        max_area: objects that cover more than this part of the frame are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture of ids.
    """
    if ignore_label < 0:
        labels, ignored = read_labels(picture), None
    else:
        labels, ignored = read_known_labels(picture, ignore_label)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    ids = np.flatnonzero((areas > 0) & (areas <= max_area * labels.size)).tolist()
    return FrameMasks(
        ids, lambda object_id: labels == object_id, labels.shape, visible=ids, ignored=ignored
    )


def masks_of_rles(by_id: Mapping[int, dict[str, Any]], size: tuple[int, int]) -> FrameMasks:
    """Returns the masks of a frame, given its run lengths by object id."""
    return FrameMasks(list(by_id), lambda object_id: decode_rle(by_id[object_id]), size)


def sav_video(name: str, frames: str, annotation: str, annotated_every: int = 4) -> Video:
    """Opens a video of SA-V: an mp4, or a folder of pictures named by their index in it, and a JSON.

    Args:
        name: of the video.
        frames: the mp4 or the folder.
        annotation: the JSON, whose i-th entry is for frame `annotated_every` * i of the video.
        annotated_every: 4 in SA-V.
    """
    document = read_sav_json(annotation)
    masklet, ids = document["masklet"], document["masklet_id"]
    size = document["video_height"], document["video_width"]
    if os.path.isdir(frames):
        files = list_frames(frames)
        numbers = {int(stem): path for stem, path in files.items() if stem.isdecimal()}
        pictures = Pictures(list(numbers.values()))
    else:
        pictures = VideoFile(frames)
        numbers = range(len(pictures))
    entries = {
        place: number // annotated_every
        for place, number in enumerate(numbers)
        if number % annotated_every == 0
        and number // annotated_every < len(masklet)
        and masklet[number // annotated_every] is not None
    }
    return Video(
        name=name,
        frame_names=[frame_name(number) for number in numbers],
        frames=pictures,
        annotated=list(entries),
        read_masks=lambda index: masks_of_rles(
            dict(zip(ids, masklet[entries[index]], strict=True)), size
        ),
    )


def annotated_image(
    name: str,
    image: str,
    size: tuple[int, int],
    annotations: Sequence[Mapping[str, Any]],
    max_area: float,
    source: str,
) -> Video:
    """Opens an image whose masks are outlines or run lengths; objects are numbered from 0.

    What cannot be used is left out with a warning.

    Args:
        name: of the image.
        image: its file.
        size: height and width, pixels.
        annotations: of one object each: `segmentation`, run lengths or polygons, and perhaps `id`.
        max_area: objects that cover more than this part of the image are left out.
        source: the file of the annotations, for warnings.
    """

    def mask(n: int) -> np.ndarray:
        return decode_segmentation(annotations[n].get("segmentation"), size)

    def is_used(n: int) -> bool:
        try:
            area = segmentation_area(annotations[n].get("segmentation"), size)
        except ValueError as error:
            label = annotations[n].get("id", f"number {n}")
            warn_once(
                "annotation %s of image %s in %s is left out: %s", label, image, source, error
            )
            return False
        return 0 < area <= max_area * size[0] * size[1]

    def read(_: int) -> FrameMasks:
        ids = [n for n in range(len(annotations)) if is_used(n)]
        return FrameMasks(ids, mask, size, visible=ids)

    return Video(name, [name], Pictures([image], lambda: size), [0], read)


def sa1b_image(name: str, image: str, annotation: str, max_area: float) -> Video:
    """Opens an image of SA-1B; see `annotated_image`.

    Raises:
        ValueError: the JSON is not an annotation of SA-1B.
    """
    document = read_json(annotation)
    try:
        size = (int(document["image"]["height"]), int(document["image"]["width"]))
        annotations = [_kept(annotation) for annotation in document["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{annotation} is not an annotation of SA-1B: image (height, width) and annotations "
            "(segmentation, area) are expected"
        ) from error
    return annotated_image(name, image, size, annotations, max_area, annotation)


def _kept(annotation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: annotation[key] for key in ("segmentation", "id") if key in annotation}


def coco_images(path: str, folder: str) -> dict[str, tuple[str, tuple[int, int], list]]:
    """Reads an instance file of COCO; groups (`iscrowd`) are left out.

    Args:
        path: the JSON.
        folder: of the images.

    Returns:
        The images that have objects by `file_name` without suffix: file, size and annotations, as
        `annotated_image` takes them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an instance file.
    """
    document = read_json(path)
    try:
        images = {str(image["id"]): image for image in document["images"]}
        by_image: dict[str, list[dict[str, Any]]] = {}
        unknown = None
        for annotation in document["annotations"]:
            key = str(annotation.get("image_id"))
            if key not in images:
                warn_once(
                    "annotation %s in %s is left out: there is no image %s",
                    annotation.get("id"),
                    path,
                    key,
                )
                unknown = key
            elif not int(annotation.get("iscrowd") or 0):
                by_image.setdefault(key, []).append(_kept(annotation))
        if unknown is not None and not by_image:
            raise KeyError(unknown)
        found: dict[str, tuple[str, tuple[int, int], list]] = {}
        for key, annotations in by_image.items():
            file_name = _file_below(folder, images[key]["file_name"])
            size = int(images[key]["height"]), int(images[key]["width"])
            name = os.path.splitext(file_name)[0]
            if name in found:  # a.jpg and a.png
                name = file_name
            found[name] = os.path.join(folder, file_name), size, annotations
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an instance file of COCO: images (id, file_name, height, width) and "
            f"annotations (image_id, segmentation) are expected; {error!r} is wrong"
        ) from error


def _file_below(folder: str, name: str) -> str:
    """Returns the name of an image as this system writes it: tools of Windows write backslashes."""
    is_foreign = "\\" in name and not os.path.exists(os.path.join(folder, name))
    return name.replace("\\", "/") if is_foreign else name
