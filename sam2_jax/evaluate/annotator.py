"""The simulated annotator of the published protocols: where it clicks, and how often.

    prediction, target (H, W)  ->  next_click: point and label
    target (H, W)              ->  box_around: corners

Clicks go to the centre of the error: the pixel that is deepest inside what is missing or wrongly included.
"""

import numpy as np
from scipy import ndimage

from sam2_jax.data.masks import boxes_from_masks
from sam2_jax.predict.session import InferenceState
from sam2_jax.predict.video import SAM2VideoPredictor


def next_click(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Clicks where the largest error is deepest.

    Args:
      prediction: (H, W) bool; empty for the first click.
      target: (H, W) bool.

    Returns:
      (2,) int point (x, y) in pixels, and its label: 1 if it is missing from the prediction, 0 if it should
      not be there. None if there is no error.
    """
    surplus, missing = _deepest(prediction & ~target), _deepest(target & ~prediction)
    errors = [(*error, label) for label, error in enumerate((surplus, missing)) if error]
    if not errors:
        return None
    _, point, label = max(errors, key=lambda error: error[0])
    return point, label


def _deepest(region: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Depth and (x, y) of the pixel farthest from the outline of a region; beyond the picture is outside."""
    if not region.any():
        return None
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    top, left = rows[0], columns[0]
    crop = region[top : rows[-1] + 1, left : columns[-1] + 1]
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(crop, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(depth[y, x]), np.array([left + x, top + y])


def box_around(mask: np.ndarray) -> np.ndarray:
    """Returns the (4,) corners x0, y0, x1, y1 of the tight box of a mask (H, W) bool, in pixels."""
    x, y, width, height = boxes_from_masks(mask[None])[0]
    return np.array([x, y, x + width, y + height])


def click_on_frame(
    predictor: SAM2VideoPredictor,
    state: InferenceState,
    frame: int,
    object_id: int,
    prediction: np.ndarray,
    target: np.ndarray,
    count: int,
) -> None:
    """Corrects an object on a frame of a session, click by click.

    Args:
      predictor: takes the clicks.
      state: the session.
      frame: frame index.
      object_id: the object, new or known.
      prediction: (H, W) bool, what is predicted so far; empty for a new object.
      target: (H, W) bool.
      count: number of clicks; fewer are made if no error is left.
    """
    for _ in range(count):
        click = next_click(prediction, target)
        if click is None:
            return
        point, label = click
        _, ids, logits = predictor.add_new_points_or_box(
            state, frame, object_id, point[None], np.array([label]), clear_old_points=False
        )
        prediction = logits[ids.index(object_id), 0] > 0
