"""Finishing: mask logits of the model to masks in pixels of the picture."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam2_jax.ops import components
from sam2_jax.outputs import hand_out

LOGIT_LIMIT = 32.0  # of low-resolution masks that are handed out or fed back
_HOLE_LOGIT = 0.1  # of holes that are filled in masks of videos

clean_masks = jax.jit(components.clean_masks, static_argnums=(1, 2))


def resize_weights(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) float32 W, so that `resize_masks` is W_height @ mask @ W_width.T."""
    distance = np.abs(_positions(size, new_size)[:, None] - np.arange(size))
    return (1 - distance).clip(min=0).astype(np.float32)


def _positions(size: int, new_size: int) -> np.ndarray:
    """(new_size,) where the new pixels' centres are among the old ones, edges clamped."""
    return ((np.arange(new_size) + 0.5) * size / new_size - 0.5).clip(0, size - 1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def resize_masks(masks: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resize of mask logits (..., h, w) -> (..., height, width), without antialiasing."""
    size, old_width = masks.shape[-2:]
    product = functools.partial(jnp.einsum, precision="highest")
    weights = resize_weights(old_width, width)
    wide = product("...hw,Ww->...hW", masks.astype(jnp.float32), weights)

    def by_products(wide):
        return product("...hw,Hh->...Hw", wide, resize_weights(size, height))

    def by_rows(wide):  # 4 to 20 times as fast on a CPU, where it is fused with what follows
        position = _positions(size, height)
        low = np.minimum(position.astype(np.int32), size - 1)
        part = (position - low).astype(np.float32)[:, None]
        return wide[..., low, :] * (1 - part) + wide[..., np.minimum(low + 1, size - 1), :] * part

    return jax.lax.platform_dependent(wide, cpu=by_rows, default=by_products)


def keep_strongest(masks: jax.Array, count: jax.Array) -> jax.Array:
    """Non-overlap: at a pixel only the strongest of the first `count` of (N, H, W) logits stays above -10."""
    rows = jnp.arange(masks.shape[0])[:, None, None]
    strongest = jnp.where(rows < count, masks, -jnp.inf).argmax(0)
    return jnp.where(rows == strongest, masks, jnp.minimum(masks, -10.0))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _show(masks, index, count, size, is_exclusive, return_logits, is_packed):
    masks = resize_masks(masks.reshape(-1, *masks.shape[-3:])[index], *size)
    if is_exclusive:
        masks = keep_strongest(masks, count)
    if return_logits:
        return masks
    return jnp.packbits((masks > 0).reshape(len(masks), -1), -1) if is_packed else masks > 0


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
        self._array = _show(masks, index, count, size, is_exclusive, return_logits, is_packed)
        if outputs == "numpy":
            self._array.copy_to_host_async()

    def get(self) -> Any:
        """(count, 1, H, W) float32 logits or bool, as they are handed out."""
        height, width = self._size
        found = np.asarray(self._array) if self._outputs == "numpy" else self._array
        found = found[: self._count]
        if found.dtype == np.uint8:
            found = np.unpackbits(np.asarray(found), axis=-1, count=height * width).view(bool)
        return hand_out(found.reshape(self._count, 1, height, width), self._outputs)
