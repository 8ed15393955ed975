"""Finishing: mask logits of the model to masks in pixels of the picture."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam2_jax.model.sam2 import usual_promotion
from sam2_jax.ops import components
from sam2_jax.outputs import hand_out

LOGIT_LIMIT = 32.0  # of low-resolution masks that are handed out or fed back
_SIZE_STEP = 256
_HOLE_LOGIT = 0.1  # of holes that are filled in masks of videos

clean_masks = jax.jit(components.clean_masks, static_argnums=(1, 2))


def resize_weights(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) float32 W, so that `resize_masks` is W_height @ mask @ W_width.T."""
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    distance = np.abs(centres.clip(0, size - 1)[:, None] - np.arange(size))
    return (1 - distance).clip(min=0).astype(np.float32)


@functools.lru_cache(maxsize=16)  # megabytes each for large pictures
def padded_weights(size: int, new_size: int) -> jax.Array:
    """`resize_weights` with rows of zeros up to the next multiple of 256: one program serves many sizes."""
    weights = resize_weights(size, new_size)
    return jnp.asarray(np.pad(weights, [(0, -new_size % _SIZE_STEP), (0, 0)]))


@usual_promotion()
def blend_rows(maps: jax.Array, rows: jax.Array) -> jax.Array:
    """(..., h, W) times weights (H, h) of `resize_weights` -> (..., H, W): two products a row instead of h."""
    first = jnp.clip(jnp.argmax(rows > 0, 1), 0, max(rows.shape[1] - 2, 0))
    second = jnp.minimum(first + 1, rows.shape[1] - 1)
    weight = lambda i: jnp.take_along_axis(rows, i[:, None], 1)
    # Of a map of one row the only weight is 1.
    last = jnp.where(second[:, None] > first[:, None], weight(second), 0)
    return maps[..., first, :] * weight(first) + maps[..., second, :] * last


@usual_promotion()
def resize_masks(masks: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Bilinear resize of mask logits without antialiasing.

    Args:
      masks: (..., h, w).
      rows: (H, h) weights of `resize_weights`; what is padded gives 0.
      columns: (W, w) likewise.

    Returns:
      (..., H, W) float32.
    """
    product = functools.partial(jnp.einsum, precision="highest")
    wide = product("...hw,Ww->...hW", masks.astype(jnp.float32), columns)

    def by_products(wide, rows):
        return product("...hW,Hh->...HW", wide, rows)

    # By rows is 4 to 20 times as fast on a CPU, where it is fused with what follows.
    return jax.lax.platform_dependent(wide, rows, cpu=blend_rows, default=by_products)


@functools.partial(jax.jit, static_argnums=4)
def finish_masks(
    masks: jax.Array, rows: jax.Array, columns: jax.Array, threshold: float, return_logits: bool
) -> jax.Array:
    """`resize_masks`, then bools of what is above the threshold unless logits are asked for."""
    resized = resize_masks(masks, rows, columns)
    return resized if return_logits else resized > threshold


@usual_promotion()
def keep_strongest(masks: jax.Array, count: jax.Array) -> jax.Array:
    """Non-overlap: at a pixel only the strongest of the first `count` of (N, H, W) logits stays above -10."""
    rows = jnp.arange(masks.shape[0])[:, None, None]
    strongest = jnp.where(rows < count, masks, -jnp.inf).argmax(0)
    return jnp.where(rows == strongest, masks, jnp.minimum(masks, -10.0))


@jax.jit
@usual_promotion()
def keep_clicked(
    masks: jax.Array, cells: jax.Array, labels: jax.Array, threshold: float
) -> jax.Array:
    """Removes what does not hang together with a positive click.

    Args:
      masks: (N, C, h, w) logits.
      cells: (N, P, 2) places (x, y) of the points on the map.
      labels: (N, P) as in `Prompt`. Masks of prompts with a box, and those that no click hits, stay.
      threshold: logits above it are the object.

    Returns:
      Masks of the same shape and type.
    """
    n, _, h, w = masks.shape
    x, y = (jnp.clip(cells[..., i].astype(jnp.int32), 0, side - 1) for i, side in ((0, w), (1, h)))
    is_click = (labels == 1) & ~(labels >= 2).any(1, keepdims=True)
    seeds = jnp.zeros((n, h, w), bool).at[jnp.arange(n)[:, None], y, x].max(is_click)
    inside = masks > threshold
    kept = components.connected_to(inside, seeds[:, None])
    is_hit = kept.any((-2, -1), keepdims=True)
    return jnp.where(is_hit & inside & ~kept, threshold - 10.0, masks)


@jax.jit
@usual_promotion()
def unless_empty(cleaned: jax.Array, masks: jax.Array, threshold: float) -> jax.Array:
    """Cleaned masks, but those as they were of which cleaning left nothing: they are of small things.

    Args:
      cleaned: (N, C, h, w) logits.
      masks: the same before they were cleaned.
      threshold: logits above it are the object.
    """
    is_left = (cleaned > threshold).any((-2, -1), keepdims=True)
    return jnp.where(is_left, cleaned, masks)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _show(masks, index, count, rows, columns, is_exclusive, return_logits, is_packed):
    masks = resize_masks(masks.reshape(-1, *masks.shape[-3:])[index], rows, columns)
    if is_exclusive:
        masks = keep_strongest(masks, count)
    if return_logits:
        return masks
    return jnp.packbits(masks > 0, -1) if is_packed else masks > 0


@functools.partial(jax.jit, static_argnums=1)
def fill_holes(masks: jax.Array, area: int) -> jax.Array:
    """(..., h, w) mask logits -> float32, holes of up to `area` cells filled."""
    return components.clean_masks(masks.astype(jnp.float32), area, 0, filled=_HOLE_LOGIT)


class VideoMasks:
    """The masks of a frame in the size of the video, on their way to the host.

    They are computed when this is made, on the device of the logits, and fetched by `get`.
    """

    def __init__(
        self,
        masks: jax.Array | np.ndarray,
        index: int,
        count: int,
        size: tuple[int, int],
        is_exclusive: bool,
        return_logits: bool,
        is_packed: bool | None = None,
        outputs: str = "numpy",
    ):
        """Starts the computation.

        Args:
          masks: (..., N, h, w) mask logits.
          index: which of the N masks, counted over all leading axes.
          count: how many of the N are objects; the others are padding.
          size: height and width.
          is_exclusive: whether only the strongest object may be left at a pixel.
          return_logits: logits instead of bools.
          is_packed: whether bools come down as bits; None packs them where they have to come down.
          outputs: see `sam2_jax.outputs`.
        """
        if is_packed is None:
            is_packed = outputs == "numpy" and jax.default_backend() != "cpu"
        self._size, self._count, self._outputs = size, count, outputs
        weights = (padded_weights(*sides) for sides in zip(masks.shape[-2:], size, strict=True))
        self._array = _show(masks, index, count, *weights, is_exclusive, return_logits, is_packed)
        if outputs == "numpy":
            self._array.copy_to_host_async()

    def get(self) -> Any:
        """(count, 1, H, W) float32 logits or bool, as they are handed out."""
        height, width = self._size
        found = np.asarray(self._array) if self._outputs == "numpy" else self._array
        found = found[: self._count, :height]
        if found.dtype == np.uint8:
            found = np.unpackbits(np.asarray(found), axis=-1, count=width).view(bool)
        return hand_out(found[:, None, :, :width], self._outputs)
