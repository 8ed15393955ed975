"""Interactive segmentation of images: IoU after clicks and with boxes, as the papers evaluate it.

    images with masks  ->  score_image: IoU (N,) of every prompt  ->  summarise: mIoU over all masks

The first click is on the centre of an object and the best of three candidates by predicted IoU is
taken; each later click is on the centre of the error, with the mask so far as another prompt.
"""

import os
from collections.abc import Sequence

import numpy as np

from sam2_jax.data.annotated import Video, VideoList
from sam2_jax.data.datasets import Coco, Labels, Sa1b
from sam2_jax.data.listing import check_folder, list_files
from sam2_jax.evaluate.annotator import box_around, next_click
from sam2_jax.evaluate.metrics import iou
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.predict.postprocessing import LOGIT_LIMIT, resize_weights
from sam2_jax.predict.preprocessing import join_padded, join_prompts, pad_points, scale_points

CLICKS = 5
BOX = "box"
_MASKS_AT_ONCE = 32


def open_images(images: str, annotations: str | None = None, count: int | None = None) -> VideoList:
    """Opens images with masks, in any of the known layouts.

    Args:
        images: a folder.
        annotations: an instance file of COCO; or a folder of label PNGs whose values are instances, or of
            JSONs of SA-1B; None is JSONs of SA-1B beside the images.
        count: only the first images; None is all.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: there are no annotations of a known layout, or none that belongs to an image.
    """
    if annotations is not None and os.path.isfile(annotations):
        kind = Coco
    else:
        folder = check_folder(annotations or check_folder(images, "images"), "annotations")
        if list_files(folder, (".json",), recursive=True):
            kind = Sa1b
        elif annotations is not None and list_files(folder, (".png",), recursive=True):
            kind = Labels
        else:
            raise ValueError(
                f"{folder} holds no annotations; expected are a JSON of SA-1B for every image, or with "
                "--annotations a folder of those, a folder of label PNGs, or an instance file of COCO"
            )
    dataset = kind(
        frames=images,
        annotations=annotations or "",
        max_area=1.0,
        count=-1 if count is None else count,
    )
    return dataset.open(image_size=0)


def score_image(
    predictor: SAM2ImagePredictor, image: np.ndarray, masks: np.ndarray
) -> dict[str, np.ndarray]:
    """Segments the objects of an image by clicks, and by boxes.

    Args:
        predictor: segments.
        image: (H, W, 3) uint8.
        masks: (N, H, W) bool, none empty.

    Returns:
        (N,) IoU with the target, by prompt: "1 click" to "5 clicks" and "box".
    """
    predictor.set_image(image)
    parts = [
        _by_clicks(predictor, masks[n : n + _MASKS_AT_ONCE])
        | _by_boxes(predictor, masks[n : n + _MASKS_AT_ONCE])
        for n in range(0, len(masks), _MASKS_AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def click_name(count: int) -> str:
    """Names the prompt of a number of clicks."""
    return f"{count} click{'s' if count > 1 else ''}"


def _by_clicks(predictor: SAM2ImagePredictor, targets: np.ndarray) -> dict[str, np.ndarray]:
    n = len(targets)
    predictions, low_res = np.zeros_like(targets), None
    points, labels = np.zeros((n, 0, 2)), np.zeros((n, 0), int)
    scores = {}
    for count in range(1, CLICKS + 1):
        clicks = [next_click(*pair) for pair in zip(predictions, targets, strict=True)]
        # An object without error repeats its last click and keeps its mask.
        is_done = np.array([click is None for click in clicks])
        new = [
            (points[i, -1], labels[i, -1]) if click is None else click
            for i, click in enumerate(clicks)
        ]
        points = np.concatenate([points, np.array([point for point, _ in new])[:, None]], 1)
        labels = np.concatenate([labels, np.array([label for _, label in new])[:, None]], 1)
        answers, low_res = answer(
            predictor, targets.shape[1:], points, labels, low_res, is_multimask=count == 1
        )
        predictions = np.where(is_done[:, None, None], predictions, answers)
        scores[click_name(count)] = _ious(predictions, targets)
    return scores


def _by_boxes(predictor: SAM2ImagePredictor, targets: np.ndarray) -> dict[str, np.ndarray]:
    corners, labels = join_prompts(None, None, np.stack([box_around(mask) for mask in targets]))
    predictions, _ = answer(predictor, targets.shape[1:], corners, labels, None, is_multimask=False)
    return {BOX: _ious(predictions, targets)}


def answer(
    predictor: SAM2ImagePredictor,
    size: tuple[int, int],
    points: np.ndarray,
    labels: np.ndarray,
    low_res: np.ndarray | None,
    is_multimask: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Segments what is pointed at, as `SAM2ImagePredictor.predict` does.

    Masks are enlarged on the host, since on the device each image size would need a program of its own.

    Args:
        predictor: with one image set.
        size: height and width of the image.
        points: (N, P, 2) points (x, y) in pixels.
        labels: (N, P) int.
        low_res: (N, S/4, S/4) logits of earlier masks, or None.
        is_multimask: takes the best of three masks by predicted IoU, if the model was trained to give three.

    Returns:
        (N, H, W) bool masks, and their (N, S/4, S/4) logits.
    """
    config, n = predictor.model.config, len(points)
    prompt = pad_points(scale_points(points, *size, config.image_size, is_pixels=True), labels)
    if low_res is not None:
        prompt = prompt.replace(mask_logits=low_res)
    is_multimask &= config.multimask_output_in_sam
    masks, ious = predictor.decode(join_padded([prompt]), np.zeros(n, np.int32), is_multimask)
    best = np.arange(n), np.asarray(ious)[:n].argmax(1)
    masks = np.asarray(masks, np.float32)[:n][best]
    height, width = (resize_weights(config.mask_size, side) for side in size)
    return height @ masks @ width.T > 0, np.clip(masks, -LOGIT_LIMIT, LOGIT_LIMIT)


def _ious(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.array([iou(*pair) for pair in zip(predictions, targets, strict=True)])


def read_image_masks(video: Video) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image of `open_images`.

    Returns:
        image (H, W, 3) uint8, and masks (N, H, W) bool, none empty.

    Raises:
        FileNotFoundError: the image is missing.
        ValueError: a file is damaged, or image and masks differ in size.
    """
    masks = [mask for mask in video.masks(0).values() if mask.any()]
    return video.frames[0], np.array(masks, bool).reshape(-1, *video.size)


def summarise(scores: Sequence[dict[str, np.ndarray]]) -> list[dict[str, float | str]]:
    """Returns the mIoU in percent over all masks of all images, a row a prompt."""
    return [
        {"prompt": name, "mIoU": 100 * float(np.concatenate([s[name] for s in scores]).mean())}
        for name in scores[0]
    ]
