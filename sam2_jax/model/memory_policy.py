"""Memory policies: which tracked frames are worth remembering, as pure functions chosen by name.

    init(config, N)  ->  state;   update(config, state, index, segmentation, where)  ->  (state, retention (N,))

`ModelConfig.memory_policy` names one:

  recent      every frame: the last six are read (SAM 2, arXiv 2408.00714, section 4, "Memory bank").
  quality     frames on which the object is visible and the predicted IoU is good, however long ago: the test
              of SAMURAI (arXiv 2411.11922, "Motion-aware memory selection") without motion, read as SAM 3
              does (arXiv 2511.16719, released code, `use_memory_selection`). SAM 3's own test, a product of
              both scores above 0.01, refuses little more than absence.
  motion      SAMURAI: as "quality", and the box of the mask has to overlap the one that a Kalman filter
              predicts ("Motion modeling"). Object pointers stay those of the last fifteen frames, as in its
              released code.
  distractor  DAM4SAM (arXiv 2411.17576, on the management of its two memories): every fifth frame on which
              the object is visible, and anchor frames, on which the decoder was sure of its mask and yet
              proposed something elsewhere as well, most likely a look-alike.

Policies decide on tracked frames only; prompted ones are always remembered. How retention turns into slots is
told in `sam2_jax.model.memory_bank`. Time is counted in frame indices with their sign, so a state serves passes
in both directions. Not taken over: SAMURAI's choice among the three masks by motion (every policy remembers the
mask that the published rule chooses) and its lower threshold of visibility, -1; embeddings that only SAM 3 was
trained with, and that its code leaves out the oldest chosen pointer; DAM4SAM's choice of the first frame and
the nearest among many anchors (here the newest three, and prompted frames take no room from recent ones).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import ArrayLike, Bool, Float32, Int, Int32

from sam2_jax.config import ModelConfig
from sam2_jax.model.retention import ANCHOR, NEVER, ONCE, RECENT
from sam2_jax.structs import Array, Segmentation

MIN_IOU = 0.5  # quality, motion: SAMURAI's memory_bank_iou_threshold
MIN_STABLE_IOU = 0.3  # motion: a worse mask does not correct the filter but restarts it
STABLE_FRAMES = 15  # motion: masks in a row after which the filter may refuse one
STRIDE = 5  # distractor: frames from one recent memory to the next, and at least between anchors
MIN_ANCHOR_IOU = 0.8  # distractor: an anchor's predicted IoU
MAX_AREA_CHANGE = 0.2  # distractor: of an anchor, against the median of the last areas
NUM_AREAS = 10
MAX_ANCHOR_OVERLAP = 0.7  # distractor: IoU of the boxes without and with what else was proposed

_NONE = -1  # no frame yet


@struct.dataclass
class Motion:
    """Constant-velocity Kalman filter of a box, in cells of the mask and frames.

    A box is (centre x, centre y, width / height, height). All covariances of the filter are diagonal, so each
    of the four numbers is filtered on its own.

    Attributes:
      frame: the frame that the filter stands at.
      num_stable: good masks in a row; 0 before the first.
      position: of the box.
      velocity: per frame index.
      variance: of the position.
      covariance: of position and velocity.
      velocity_variance: of the velocity.
    """

    frame: Int32[Array, " n"]
    num_stable: Int32[Array, " n"]
    position: Float32[Array, "n 4"]
    velocity: Float32[Array, "n 4"]
    variance: Float32[Array, "n 4"]
    covariance: Float32[Array, "n 4"]
    velocity_variance: Float32[Array, "n 4"]


@struct.dataclass
class Areas:
    """What an anchor is measured against.

    Attributes:
      areas: cells of the last masks that were not empty, newest last; 0 before there were any.
      anchor: the last anchor frame, -1 for none.
    """

    areas: Float32[Array, "n 10"]
    anchor: Int32[Array, " n"]


class _Policy(NamedTuple):
    init: Callable[[int], Any]
    update: Callable[[Any, jax.Array, Segmentation], tuple[Any, jax.Array]]


def init(config: ModelConfig, num_objects: int) -> Any:
    """Returns the state of objects that were never tracked: arrays on the host that lead with N, or ()."""
    return _POLICIES[config.memory_policy].init(num_objects)


def update(
    config: ModelConfig,
    state: Any,
    index: Int[ArrayLike, ""],
    segmentation: Segmentation,
    where: Bool[Array, " n"],
) -> tuple[Any, Int32[jax.Array, " n"]]:
    """Decides how long a frame is remembered.

    Args:
      config: names the policy.
      state: from `init` or the last call.
      index: of the frame.
      segmentation: of N objects on it.
      where: the objects that are tracked on it; the others keep their state.

    Returns:
      The state, and the retention: `NEVER`, `ONCE`, `RECENT` or `ANCHOR`.
    """
    # Retention is a decision, nothing to be learnt through.
    segmentation = jax.lax.stop_gradient(segmentation)
    new, retention = _POLICIES[config.memory_policy].update(state, index, segmentation)
    choose = lambda new, old: jnp.where(where.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(choose, new, state), retention.astype(jnp.int32)


def _retain_recent(state, index, segmentation):
    return state, jnp.full(segmentation.scores.shape, RECENT, jnp.int32)


def _is_good(segmentation):
    return (segmentation.scores > 0) & (segmentation.ious > MIN_IOU)


def _retain_quality(state, index, segmentation):
    return state, jnp.where(_is_good(segmentation), RECENT, ONCE)


def _corners(inside: jax.Array) -> jax.Array:
    """(..., h, w) bool -> (..., 4) float32 box x0, y0, x1, y1 around the cells, zeros if there are none."""

    def span(used):
        cells = jnp.arange(used.shape[-1], dtype=jnp.float32)
        first = jnp.where(used, cells, jnp.inf).min(-1)
        last = jnp.where(used, cells + 1, -jnp.inf).max(-1)
        return jnp.where(used.any(-1), first, 0), jnp.where(used.any(-1), last, 0)

    (x0, x1), (y0, y1) = span(inside.any(-2)), span(inside.any(-1))
    return jnp.stack([x0, y0, x1, y1], -1)


def _iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU (...) of boxes (..., 4) x0, y0, x1, y1; 0 for empty ones."""
    area = lambda box: jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0), -1)
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    common = area(jnp.concatenate([low, high], -1))
    return common / jnp.maximum(area(a) + area(b) - common, 1e-6)


def _init_motion(num_objects):
    zeros, ones = (np.full((num_objects, 4), x, np.float32) for x in (0, 1))
    frame, num_stable = (np.full(num_objects, x, np.int32) for x in (_NONE, 0))
    return Motion(frame, num_stable, zeros, zeros, ones, zeros, ones)


# Deviations of the filter that SAMURAI took from DeepSORT (arXiv 1703.07402), in heights of the box; those of
# its shape are fixed.
_IS_SHAPE = np.array([False, False, True, False])


def _variance(position, in_heights, of_shape):
    return jnp.square(jnp.where(_IS_SHAPE, of_shape, in_heights * position[:, 3:]))


def _measure(inside):
    """(N, h, w) bool -> (N, 4) position."""
    x0, y0, x1, y1 = jnp.moveaxis(_corners(inside), -1, 0)
    height = jnp.maximum(y1 - y0, 1)
    return jnp.stack([(x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / height, height], -1)


def _box(position):
    """(N, 4) position -> (N, 4) x0, y0, x1, y1."""
    x, y, shape, height = jnp.moveaxis(position, -1, 0)
    half = jnp.stack([shape * height, height], -1) / 2
    centre = jnp.stack([x, y], -1)
    return jnp.concatenate([centre - half, centre + half], -1)


def _start(index, position):
    """The filter at a first box."""
    return Motion(
        frame=jnp.broadcast_to(index, position.shape[:1]),
        num_stable=jnp.ones(position.shape[0], jnp.int32),
        position=position,
        velocity=jnp.zeros_like(position),
        variance=_variance(position, 2 / 20, 1e-2),
        covariance=jnp.zeros_like(position),
        velocity_variance=_variance(position, 10 / 160, 1e-5),
    )


def _predict(state, index):
    """The filter moved to another frame, before or after."""
    time = (index - state.frame).astype(jnp.float32)[:, None]
    noise = jnp.abs(time) * _variance(state.position, 1 / 20, 1e-2)
    velocity_noise = jnp.abs(time) * _variance(state.position, 1 / 160, 1e-5)
    return state.replace(
        frame=jnp.broadcast_to(index, state.frame.shape),
        position=state.position + time * state.velocity,
        variance=state.variance
        + time * (2 * state.covariance + time * state.velocity_variance)
        + noise,
        covariance=state.covariance + time * state.velocity_variance,
        velocity_variance=state.velocity_variance + velocity_noise,
    )


def _correct(state, position):
    """The filter after a measurement on the frame that it stands at."""
    total = state.variance + _variance(state.position, 1 / 20, 1e-1)
    gain, velocity_gain = state.variance / total, state.covariance / total
    error = position - state.position
    return state.replace(
        num_stable=state.num_stable + 1,
        position=state.position + gain * error,
        velocity=state.velocity + velocity_gain * error,
        variance=state.variance * (1 - gain),
        covariance=state.covariance * (1 - gain),
        velocity_variance=state.velocity_variance - velocity_gain * state.covariance,
    )


def _retain_motion(state, index, segmentation):
    inside = segmentation.masks > 0
    measured = _measure(inside)
    predicted = _predict(state, index)
    is_expected = _iou(_box(predicted.position), _box(measured)) > 0
    may_refuse = state.num_stable >= STABLE_FRAMES
    is_kept = _is_good(segmentation) & (is_expected | ~may_refuse)

    is_stable = inside.any((1, 2)) & (segmentation.ious > MIN_STABLE_IOU)
    lost = predicted.replace(num_stable=jnp.zeros_like(state.num_stable))
    starts, goes_on = is_stable & (state.num_stable == 0), is_stable & (state.num_stable > 0)

    def choose(start, corrected, lost):
        spread = lambda flags: flags.reshape(-1, *[1] * (lost.ndim - 1))
        return jnp.where(spread(starts), start, jnp.where(spread(goes_on), corrected, lost))

    state = jax.tree.map(choose, _start(index, measured), _correct(predicted, measured), lost)
    return state, jnp.where(is_kept, RECENT, ONCE)


def _init_distractor(num_objects):
    return Areas(
        np.zeros((num_objects, NUM_AREAS), np.float32), np.full(num_objects, _NONE, np.int32)
    )


def _largest_component(inside: jax.Array) -> jax.Array:
    """(h, w) bool -> the largest of its 8-connected components, (h, w) bool."""
    cells = jnp.arange(inside.size, dtype=jnp.int32).reshape(inside.shape)

    def spread(labels):
        window = jax.lax.reduce_window(labels, -1, jax.lax.max, (3, 3), (1, 1), "SAME")
        # A label is a cell of the component: its own label is at least as far.
        return jnp.where(inside, window.ravel()[window], -1)

    def step(carry):
        labels, _ = carry
        new = spread(labels)
        return new, (new != labels).any()

    labels, _ = jax.lax.while_loop(
        lambda carry: carry[1], step, (jnp.where(inside, cells, -1), inside.any())
    )
    sizes = jnp.zeros(inside.size, jnp.int32).at[labels.ravel()].add(inside.ravel())
    return inside & (labels == sizes.argmax())


def _retain_distractor(state, index, segmentation):
    inside = segmentation.masks > 0
    area = inside.sum((1, 2)).astype(jnp.float32)
    is_visible = area > 0
    shifted = jnp.concatenate([state.areas[:, 1:], area[:, None]], 1)
    areas = jnp.where(is_visible[:, None], shifted, state.areas)

    change = area / jnp.nanmedian(jnp.where(areas > 0, areas, jnp.nan), 1)
    is_sure = (
        is_visible
        & (segmentation.ious > MIN_ANCHOR_IOU)
        & (areas[:, -2] > 0)
        & (change >= 1 - MAX_AREA_CHANGE)
        & (change <= 1 + MAX_AREA_CHANGE)
    )
    is_time = (state.anchor < 0) | (jnp.abs(index - state.anchor) > STRIDE)

    # The chosen mask is among the three as well, where it leaves nothing and so does no harm.
    elsewhere = (segmentation.candidates[:, 1:] > 0) & ~inside[:, None]
    elsewhere = jax.vmap(jax.vmap(_largest_component))(elsewhere)
    wider = _corners(elsewhere | inside[:, None])
    overlaps = _iou(_corners(inside)[:, None], wider)
    is_anchor = is_sure & is_time & (overlaps <= MAX_ANCHOR_OVERLAP).any(1)

    retention = jnp.where(index % STRIDE == 0, RECENT, ONCE)
    retention = jnp.where(is_anchor, ANCHOR, jnp.where(is_visible, retention, NEVER))
    return Areas(areas, jnp.where(is_anchor, index, state.anchor)), retention


_NOTHING = lambda num_objects: ()
_POLICIES = {
    "recent": _Policy(_NOTHING, _retain_recent),
    "quality": _Policy(_NOTHING, _retain_quality),
    "motion": _Policy(_init_motion, _retain_motion),
    "distractor": _Policy(_init_distractor, _retain_distractor),
}
