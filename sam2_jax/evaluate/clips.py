"""Quick scores of a model on held-out clips during training, at the size of the model's input.

    held_out_clips -> Clip;   predict_masks(clip) -> (T, N, S, S);   clip_scores -> J, F, their mean, or the IoU

The first mask of a video is given and the rest is tracked; an image gets one click for every object.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator

import jax
import numpy as np

from sam2_jax.data.annotated import VideoList
from sam2_jax.data.clips import Clip, sample_clip
from sam2_jax.data.datasets import Dataset, Procedural
from sam2_jax.evaluate.annotator import next_click
from sam2_jax.evaluate.metrics import iou, video_scores
from sam2_jax.model.sam2 import Sam2
from sam2_jax.ops.bicubic import resize_bicubic
from sam2_jax.ops.resize import upsample_4x
from sam2_jax.predict.preprocessing import mask_to_input, pad_points
from sam2_jax.structs import Frame, Prompt
from sam2_jax.track import track

logger = logging.getLogger(__name__)


def score_names(dataset: Dataset) -> tuple[str, ...]:
    """Returns the names of the scores; models are compared by the first one."""
    return ("iou",) if dataset.num_frames == 1 else ("J&F", "J", "F")


def open_held_out(dataset: Dataset, image_size: int) -> VideoList:
    """Opens a dataset of held-out clips.

    Raises:
      FileNotFoundError: a folder or file is missing.
      ValueError: nothing in it can be used, or a procedural dataset without end.
    """
    if isinstance(dataset, Procedural) and dataset.count < 0:
        raise ValueError("validation.dataset.count is -1; procedural videos need a number.")
    return dataset.open(image_size)


def held_out_clips(
    dataset: Dataset, image_size: int, part: int = 0, parts: int = 1
) -> Iterator[Clip]:
    """Reads one clip of every video of a dataset, always the same ones, without augmentation.

    Args:
      dataset: its augmentations are ignored.
      image_size: S; frames and masks are resized to squares of this side.
      part: which of every `parts` videos are read.
      parts: how many readers share the videos.

    Raises:
      ValueError: an endless procedural dataset.
    """
    source = open_held_out(dataset, image_size)
    for index in range(part, len(source), parts):
        rng = np.random.default_rng([dataset.seed, index])
        try:
            with source[index] as video:
                clip = sample_clip(
                    video,
                    dataset.num_frames,
                    dataset.max_objects,
                    rng,
                    dataset.stride,
                    max_stride=dataset.max_stride,
                    truncate=dataset.truncate_video,
                )
        except (ValueError, OSError) as error:
            logger.warning("held-out clip left out: %s", error)
            continue
        sides = image_size, image_size
        frames = [resize_bicubic(x, *sides, implementation="pillow") for x in clip.frames]
        frames = np.stack(frames)
        resize = lambda masks: np.array([mask_to_input(mask, image_size) > 0 for mask in masks])
        masks = np.array([resize(of_frame) for of_frame in clip.masks])
        ignored = None
        if clip.ignored is not None:  # a pixel of which half shows an object is one of it
            ignored = resize(clip.ignored) & ~masks.any(1)
        yield dataclasses.replace(clip, frames=frames, masks=masks, ignored=ignored)


def predict_masks(sam2: Sam2, params: dict, clip: Clip, num_objects: int) -> np.ndarray:
    """Predicts the masks of a clip.

    Args:
      sam2: the module.
      params: its parameters.
      clip: frames (T, S, S, 3) and the masks (T, O, S, S) of the objects, of which only those
        of the first frame are used.
      num_objects: N, at least O; the same for all clips, so that one program serves them.

    Returns:
      (T, O, S, S) bool; the first frame of a video shows what was given.
    """
    first = clip.masks[0]
    given = np.pad(first, [(0, num_objects - len(first)), (0, 0), (0, 0)])
    frames = Frame(clip.frames, np.arange(len(clip.frames), dtype=np.int32))
    prompt = _clicks(given) if len(clip.frames) == 1 else _masks(given)
    return np.asarray(_track(sam2, params, frames, prompt))[:, : len(first)]


def _masks(masks: np.ndarray) -> Prompt:
    prompt = pad_points(np.zeros((len(masks), 1, 2)), np.full((len(masks), 1), -1))
    return prompt.replace(masks=masks.astype(np.float32), has_mask=masks.any((1, 2)))


def _clicks(masks: np.ndarray) -> Prompt:
    """A click where each object is thickest; none on one that is empty."""
    clicks = [next_click(np.zeros_like(mask), mask) for mask in masks]
    points = np.array([click[0] if click else (0, 0) for click in clicks])
    labels = np.where(masks.any((1, 2)), 1, -2)
    return pad_points(points[:, None], labels[:, None])


@functools.partial(jax.jit, static_argnums=0)
def _track(sam2: Sam2, params: dict, frames: Frame, prompt: Prompt) -> jax.Array:
    _, predictions = track(sam2, params, frames, prompt)
    return jax.lax.map(lambda masks: upsample_4x(masks) > 0, predictions.masks)


def clip_scores(predicted: np.ndarray, clip: Clip) -> dict[str, list[float]]:
    """Compares predicted masks (T, O, S, S) with the true ones, where these are known.

    Ignored pixels count as background in both, like void ones in the toolkit of DAVIS
    (github.com/davisvideochallenge/davis2017-evaluation).

    Returns:
      One value per object: `J&F`, `J` and `F` over the frames after the first for a video, leaving
      out objects that are on none of them; `iou` for an image.
    """
    if clip.ignored is not None:
        predicted = predicted & ~clip.ignored[:, None]
    if len(clip.frames) == 1:
        return {"iou": [iou(p, t) for p, t in zip(predicted[0], clip.masks[0], strict=True)]}
    pairs = zip(predicted[1:].swapaxes(0, 1), clip.masks[1:].swapaxes(0, 1), strict=True)
    scores = [s for s in (video_scores(p, t, skip_first_and_last=False) for p, t in pairs) if s]
    return {
        "J&F": [(j + f) / 2 for j, f in scores],
        "J": [j for j, _ in scores],
        "F": [f for _, f in scores],
    }
