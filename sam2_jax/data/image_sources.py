"""Sources of training images: label images, SA-1B and COCO.

Dataset  ->  open_*: len(), [i] -> Video of one frame
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam2_jax.data.clips import LazyMasks, Masks, VideoList
from sam2_jax.data.listing import check_folder, list_files, select, warn_if_fewer
from sam2_jax.data.masks import decode_rle
from sam2_jax.data.sources import LabeledFrames, PictureVideo
from sam2_jax.data.videos import IMAGE_SUFFIXES
from sam2_jax.experiment import Dataset


def open_masks(dataset: Dataset) -> VideoList:
    """Opens images, and label images of the same names whose values are instances."""
    folder = check_folder(dataset.frames, "images")
    annotations = check_folder(dataset.annotations, "label images")
    images = list_files(folder, IMAGE_SUFFIXES, recursive=True)
    labels = list_files(annotations, (".png",), recursive=True)
    found = f"images in {folder} with a PNG of the same name in {annotations}"
    used = select(images.keys() & labels.keys(), dataset, found)
    return VideoList(used, functools.partial(_open_labeled, images, labels, dataset.max_area))


def _open_labeled(
    images: dict[str, str], labels: dict[str, str], max_area: float, name: str
) -> LabeledFrames:
    return LabeledFrames(name, [images[name]], [labels[name]], max_area)


class AnnotatedImage(PictureVideo):
    """An image whose masks are outlines or run lengths.

    Args:
        name: of the image.
        path: its file.
        size: height and width, pixels.
        annotations: of one object each: `segmentation`, run lengths or polygons, and perhaps `area`.
        max_area: objects that cover more than this part of the image are left out.
    """

    def __init__(
        self,
        name: str,
        path: str,
        size: tuple[int, int],
        annotations: Sequence[Mapping[str, Any]],
        max_area: float,
    ):
        super().__init__(name, [path])
        self._size, self._largest = size, max_area * size[0] * size[1]
        self._annotations = annotations

    def masks_on(self, index: int) -> Masks:
        """Gives the masks of the objects that are neither empty nor too large."""
        del index
        count = len(self._annotations)
        return LazyMasks(
            [n for n in range(count) if 0 < self._area(n) <= self._largest], self._mask
        )

    def object_ids(self, index: int) -> list[int]:
        """Returns these objects."""
        return list(self.masks_on(index))

    def _area(self, n: int) -> float:
        area = self._annotations[n].get("area")
        return self._mask(n).sum() if area is None else area

    def _mask(self, n: int) -> np.ndarray:
        segmentation = self._annotations[n]["segmentation"]
        if isinstance(segmentation, dict):
            return decode_rle(segmentation)
        return decode_polygons(segmentation, *self._size)


def decode_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Fills outlines, each x, y, x, y, ... in pixels, as COCO does.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: not polygons.
    """
    from pycocotools import mask as coco

    # pycocotools takes four numbers for a box.
    is_valid = isinstance(polygons, list) and all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        for polygon in polygons
    )
    if not is_valid:
        raise ValueError("polygons are lists of at least three points x, y each")
    if not polygons:
        return np.zeros((height, width), bool)
    rle = coco.merge(coco.frPyObjects(polygons, height, width))
    return decode_rle({"size": rle["size"], "counts": rle["counts"].decode("ascii")})


def open_sa1b(dataset: Dataset) -> VideoList:
    """Opens images of SA-1B, each with a JSON of the same name, beside it or in `annotations`."""
    folder = check_folder(dataset.frames, "images of SA-1B")
    annotations = check_folder(dataset.annotations or folder, "annotations of SA-1B")
    images = list_files(folder, IMAGE_SUFFIXES, recursive=True)
    documents = list_files(annotations, (".json",), recursive=True)
    found = f"images in {folder} with a JSON of the same name in {annotations}"
    used = select(images.keys() & documents.keys(), dataset, found)
    return VideoList(used, functools.partial(_open_sa1b, images, documents, dataset.max_area))


def _open_sa1b(
    images: dict[str, str], documents: dict[str, str], max_area: float, name: str
) -> AnnotatedImage:
    document = _read_json(documents[name])
    try:
        size = (int(document["image"]["height"]), int(document["image"]["width"]))
        annotations = [{k: a[k] for k in ("segmentation", "area")} for a in document["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{documents[name]} is no annotation of SA-1B: image (height, width) and annotations "
            "(segmentation, area) are expected"
        ) from error
    return AnnotatedImage(name, images[name], size, annotations, max_area)


def open_coco(dataset: Dataset) -> VideoList:
    """Opens images of an instance file of COCO, `annotations`; groups (`iscrowd`) are left out.

    Names in lists are the images' `file_name`, which is their place below `frames`.
    """
    folder = check_folder(dataset.frames, "images of COCO")
    path = dataset.annotations
    if not path or not os.path.isfile(path):
        raise FileNotFoundError(f"no such file of annotations of COCO: {path!r}")
    document = _read_json(path)
    try:
        images = {image["id"]: image for image in document["images"]}
        by_name: dict[str, list[dict[str, Any]]] = {}
        for annotation in document["annotations"]:
            if not annotation.get("iscrowd"):
                name = os.path.splitext(images[annotation["image_id"]]["file_name"])[0]
                kept = {k: annotation[k] for k in ("segmentation", "area") if k in annotation}
                by_name.setdefault(name, []).append(kept)
        images = {
            os.path.splitext(image["file_name"])[0]: (
                os.path.join(folder, image["file_name"]),
                (int(image["height"]), int(image["width"])),
            )
            for image in images.values()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no instance file of COCO: images (id, file_name, height, width) and "
            f"annotations (image_id, segmentation) are expected; {error!r} is wrong"
        ) from error
    there = [name for name in by_name if os.path.exists(images[name][0])]
    warn_if_fewer(len(there), len(by_name), f"images in {path}", f"file in {folder}")
    used = select(there, dataset, f"images in {folder} with annotated objects in {path}")
    return VideoList(used, functools.partial(_open_coco, images, by_name, dataset.max_area))


def _open_coco(
    images: dict[str, tuple[str, tuple[int, int]]],
    annotations: dict[str, list[dict[str, Any]]],
    max_area: float,
    name: str,
) -> AnnotatedImage:
    return AnnotatedImage(name, *images[name], annotations[name], max_area)


def _read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:  # also the error of bytes that are no text
        raise ValueError(f"{path} is not JSON, or is cut short: {error}") from error
