"""Scores of masks, as the evaluators of SA-V and of DAVIS define them.

prediction, target (H, W)     ->  J, the overlap of regions; F, the agreement of contours; within 0..1
predictions, targets (T, H, W)  ->  J and F of one object, means over the frames that count
scores (T,)                  ->  mean, recall and decay over time
"""

import math
from typing import NamedTuple

import numpy as np


def iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Returns the intersection over the union of two bool masks of any one shape; 1 if both are empty.

    Raises:
        ValueError: the masks are not bool or differ in shape.
    """
    prediction, target = _check_pair(prediction, target)
    union = np.count_nonzero(prediction | target)
    return np.count_nonzero(prediction & target) / union if union else 1.0


def region_similarity(prediction: np.ndarray, target: np.ndarray) -> float:
    """Returns J: the `iou` of two masks (H, W) bool.

    Raises:
        ValueError: the masks are not (H, W) bool or differ in shape.
    """
    return iou(*_check_pair(prediction, target, ndim=2))


def boundary_accuracy(prediction: np.ndarray, target: np.ndarray) -> float:
    """Returns F: the harmonic mean of the precision and the recall of the contour.

    A contour pixel counts as found if the other mask's contour comes within 0.008 of the image diagonal,
    rounded up to whole pixels. F is 1 if neither mask has a contour and 0 if only one has.

    Args:
        prediction: (H, W) bool.
        target: (H, W) bool.

    Raises:
        ValueError: the masks are not (H, W) bool or differ in shape.
    """
    prediction, target = _check_pair(prediction, target, ndim=2)
    radius = math.ceil(0.008 * math.hypot(*target.shape))
    # Outside of a window around both masks there is no contour, so that the rest can be skipped.
    window = _window(prediction | target)
    found, wanted = _boundary(prediction)[window], _boundary(target)[window]
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = _share_within(found, wanted, radius)
    recall = _share_within(wanted, found, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def video_scores(
    predictions: np.ndarray, targets: np.ndarray, skip_first_and_last: bool = True
) -> tuple[float, float] | None:
    """Returns J and F of one object in one video, each the mean over the frames that are scored.

    The evaluator's conventions: the first and the last annotated frame are skipped, and scoring
    starts at the first of the remaining frames on which the object is in the target or in the
    prediction.

    Args:
        predictions: (T, H, W) bool, on the annotated frames only.
        targets: (T, H, W) bool.
        skip_first_and_last: of the T frames.

    Returns:
        J and F within 0..1; None if the target is empty on all frames that could be scored: such an object does
        not count in the mean over objects.

    Raises:
        ValueError: the masks are not (T, H, W) bool, differ in shape, or none is left to score.
    """
    predictions, targets = _check_pair(predictions, targets, ndim=3)
    if skip_first_and_last:
        predictions, targets = predictions[1:-1], targets[1:-1]
    if not len(targets):
        raise ValueError(
            "no frame is left to score; at least 3 annotated frames are expected, or 1 where the "
            "first and the last are not skipped"
        )
    if not targets.any():
        return None
    start = int((predictions | targets).any((1, 2)).argmax())
    pairs = list(zip(predictions[start:], targets[start:], strict=True))
    return (
        float(np.mean([region_similarity(*pair) for pair in pairs])),
        float(np.mean([boundary_accuracy(*pair) for pair in pairs])),
    )


class Statistics(NamedTuple):
    """How the scores of an object develop over time, as DAVIS sums them up.

    Attributes:
        mean: of all frames, within 0..1.
        recall: the share of frames that score more than 0.5.
        decay: by how much the first quarter of the frames scores better than the last, within -1..1.
    """

    mean: float
    recall: float
    decay: float


def statistics(scores: np.ndarray) -> Statistics:
    """Returns the `Statistics` of scores (T,) in the order of time, as the DAVIS evaluator does.

    Neighbouring quarters share a frame, so that even very short videos have four.

    Raises:
        ValueError: there is no score.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"the scores are {scores.shape}; (T,), at least one, is expected")
    edges = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(int) - 1
    first, last = scores[: edges[1] + 1], scores[edges[3] :]
    return Statistics(
        float(scores.mean()), float((scores > 0.5).mean()), float(first.mean() - last.mean())
    )


def _check_pair(
    prediction: np.ndarray, target: np.ndarray, ndim: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    pair = np.asarray(prediction), np.asarray(target)
    is_valid = all(m.dtype == bool and ndim in (None, m.ndim) for m in pair)
    if not is_valid or pair[0].shape != pair[1].shape:
        expected = {None: "", 2: "(H, W) ", 3: "(T, H, W) "}[ndim]
        raise ValueError(
            f"the prediction is {pair[0].shape} {pair[0].dtype} and the target {pair[1].shape} "
            f"{pair[1].dtype}; {expected}bool and one shape are expected"
        )
    return pair


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Marks the pixels that differ from their right, lower or lower right neighbour, (H, W) bool."""
    padded = np.pad(mask, ((0, 1), (0, 1)), "edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Returns the rows and columns in which the contour of a mask may lie: its own and the ones before."""
    return tuple(
        slice(max(int(at[0]) - 1, 0), int(at[-1]) + 1) if len(at) else slice(0)
        for at in (np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0)))
    )


def _share_within(points: np.ndarray, others: np.ndarray, radius: int) -> float:
    """Returns the share of points that lie within a radius of one of the others."""
    return np.count_nonzero(points & _dilate(others, radius)) / np.count_nonzero(points)


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Draws the disk x^2 + y^2 <= radius^2 around every pixel of a mask, (H, W) bool.

    Fast where few pixels are set: each one starts and ends a run in 2 radius + 1 rows, and the runs that
    cover a pixel are counted by a cumulative sum.
    """
    height, width = mask.shape
    padded = (height + 2 * radius, width + 2 * radius + 1)
    below = np.arange(-radius, radius + 1)
    half = np.sqrt(radius**2 - below**2).astype(int)
    y, x = (at[:, None] + radius for at in np.nonzero(mask))
    starts = (y + below) * padded[1] + x - half
    changes = np.bincount(starts.ravel(), minlength=math.prod(padded))
    changes -= np.bincount((starts + 2 * half + 1).ravel(), minlength=math.prod(padded))
    covered = np.cumsum(changes).reshape(padded) > 0
    return covered[radius : radius + height, radius : radius + width]
