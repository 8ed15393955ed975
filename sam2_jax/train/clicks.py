"""The simulated annotator: which frames are prompted, and where the clicks and boxes go.

    draw_plan  ->  Plan;   first_click, next_click  ->  point and label;   jittered_box  ->  corners

Everything is drawn inside of compiled functions (SAM 2 paper, appendix D.2.2). Choices that decide what is
computed at all are the same for all clips of a step, as in the original, so that a program can skip what is not
needed.
"""

import jax
import jax.numpy as jnp
from flax import struct

from sam2_jax.experiment import Interaction

_MAX_JITTER = 20.0  # pixels


@struct.dataclass
class Plan:
    """What happens on the frames of a clip, in the order in which they are processed.

    Attributes:
      frames: (T,) int32; the prompted ones come first, then the others in time.
      is_initial: (T,) bool, prompted before anything is tracked.
      is_corrected: (T,) bool, gets correction clicks.
      is_box: (T,) bool, prompted by a box instead of a click.
      starts_from_masks: () bool, the prompted frames get masks instead of clicks or boxes.
    """

    frames: jax.Array
    is_initial: jax.Array
    is_corrected: jax.Array
    is_box: jax.Array
    starts_from_masks: jax.Array


def draw_plan(key: jax.Array, num_frames: int, interaction: Interaction) -> Plan:
    """Draws the choices of one step. Images never start from masks."""
    keys = jax.random.split(key, 5)
    t = num_frames
    has_points = jax.random.bernoulli(keys[0], interaction.point_probability) | (t == 1)
    initial = jax.random.randint(keys[1], (), 1, min(interaction.max_initial_frames, t) + 1)
    most = jnp.maximum(min(interaction.max_corrected_frames, t), initial)
    corrected = jax.random.randint(keys[2], (), initial, most + 1)
    corrected = jnp.where(has_points & (interaction.max_corrected_frames > 0), corrected, 0)

    # The first frame, then the others by lot: those of a low number are prompted or corrected.
    lots = jnp.concatenate([jnp.zeros(1, jnp.int32), 1 + jax.random.permutation(keys[3], t - 1)])
    frames = jnp.argsort(jnp.where(lots < initial, lots - t, jnp.arange(t)))
    lots = lots[frames]
    return Plan(
        frames=frames.astype(jnp.int32),
        is_initial=lots < initial,
        is_corrected=lots < corrected,
        is_box=jax.random.bernoulli(keys[4], interaction.box_probability, (t,)),
        starts_from_masks=~has_points,
    )


def _pixel_of(key, region):
    """A pixel (x, y) of a region (H, W), uniformly; (0, 0) if it is empty."""
    rows = region.sum(1)
    total = rows.sum()
    rank = jax.random.randint(key, (), 0, jnp.maximum(total, 1))
    y = (jnp.cumsum(rows) <= rank).sum() % region.shape[0]
    rank = rank - jnp.where(jnp.arange(region.shape[0]) < y, rows, 0).sum()
    x = (jnp.cumsum(region[y]) <= rank).sum() % region.shape[1]
    return jnp.where(total > 0, jnp.stack([x, y]), 0)


def next_click(
    key: jax.Array, prediction: jax.Array, target: jax.Array, ignored: jax.Array | None = None
) -> tuple:
    """Clicks somewhere into the error of a prediction; into the background if there is none.

    Args:
      key: random key.
      prediction: (H, W) bool.
      target: (H, W) bool.
      ignored: (H, W) bool, where no click goes, outside of the target; None is nowhere.

    Returns:
      (2,) float32 point (x, y) in pixels, and its () int32 label: 1 if it is missing from the prediction.
    """
    target = jnp.asarray(target)
    error, background = prediction ^ target, ~target
    if ignored is not None:
        error, background = error & ~ignored, background & ~ignored
    x, y = _pixel_of(key, jnp.where(error.any(), error, background))
    return jnp.stack([x, y]).astype(jnp.float32), target[y, x].astype(jnp.int32)


def first_click(key: jax.Array, target: jax.Array, ignored: jax.Array | None = None) -> tuple:
    """Clicks somewhere on an object; on the background, with label 0, if the object is absent."""
    return next_click(key, jnp.zeros_like(target), target, ignored)


def jittered_box(key: jax.Array, target: jax.Array) -> jax.Array:
    """The tight box of an object with every side moved by up to a tenth of it, at most 20 pixels.

    Args:
      key: random key.
      target: (H, W) bool.

    Returns:
      (2, 2) float32 top-left and bottom-right corner (x, y), inclusive pixels; the whole image turned inside
      out if the object is absent, as in the original.
    """
    h, w = target.shape

    def span(inside, size):
        at = jnp.arange(size)
        low, high = jnp.where(inside, at, size).min(), jnp.where(inside, at, -1).max()
        return low.astype(jnp.float32), high.astype(jnp.float32)

    (left, right), (top, bottom) = span(target.any(0), w), span(target.any(1), h)
    box = jnp.array([[left, top], [right, bottom]])
    room = jnp.minimum(0.1 * (box[1] - box[0]), _MAX_JITTER)
    box = box + room * jax.random.uniform(key, (2, 2), jnp.float32, minval=-1.0, maxval=1.0)
    return jnp.clip(box, 0.0, jnp.array([w - 1, h - 1], jnp.float32))
