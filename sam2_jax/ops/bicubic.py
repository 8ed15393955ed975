"""Pillow's bicubic resize of pictures, as the original's video loader does it, bit for bit on every device.

    (H, W, C) uint8  ->  (height, width, C) uint8

Pillow weighs neighbours with whole numbers of 22 bits, sums them exactly, and rounds to bytes, one side after
the other. Here a weight is cut into three pieces of 8 bits, which bfloat16 holds exactly; their products with
bytes and the sums of those are exact in float32, so plain matrix products give Pillow's bits.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from sam2_jax.structs import Array

_BITS = 22  # of Pillow's weights
_SHIFTS = (16, 8, 0)  # of the pieces of a weight
_MAX_TAPS = 258  # neighbours whose products with 8 bits float32 sums exactly, whatever they are
_SUMMED_AT_ONCE = 256


def resize_bicubic(
    image: UInt8[np.ndarray, "h w c"],
    height: int,
    width: int,
    *,
    device: jax.Device | None = None,
    implementation: str | None = None,
) -> UInt8[Array, "{height} {width} c"]:
    """Resizes a picture.

    Args:
      image: c is 3 for "pillow".
      height: of the result.
      width: of the result.
      device: where it is needed; None is JAX's default device.
      implementation: "pillow" on the host, "products" on the device; None is "pillow" where the device is a
        CPU, on which products take longer, and "products" elsewhere.

    Returns:
      The resized picture; on the host from "pillow", else on the device.
    """
    if implementation is None:
        platform = device.platform if device else jax.default_backend()
        implementation = "pillow" if platform == "cpu" else "products"
    if implementation == "pillow":
        if image.shape[:2] == (height, width):
            return image
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized)
    if implementation != "products":
        raise ValueError(f"The implementation is {implementation!r}; expected pillow or products.")
    sides = list(zip(image.shape[:2], (height, width), strict=True))
    weights = [_pieces(*sizes, device) for sizes in sides]
    is_height_first = None not in weights and _is_height_first(*sides)
    return _multiply(jax.device_put(image, device), *weights, is_height_first)


@functools.lru_cache(maxsize=64)
def _is_height_first(heights: tuple[int, int], widths: tuple[int, int]) -> bool:
    """Asks Pillow with which side it begins: from version 13 on that depends on the sizes."""
    noise = np.random.default_rng(0).integers(0, 256, (heights[0], widths[0], 3), np.uint8)
    noise, resample = Image.fromarray(noise), Image.Resampling.BICUBIC
    at_once = noise.resize((widths[1], heights[1]), resample)
    width_first = noise.resize((widths[1], heights[0]), resample).resize(at_once.size, resample)
    return at_once.tobytes() != width_first.tobytes()


@functools.partial(jax.jit, static_argnums=3)
def _multiply(
    image: jax.Array, rows: jax.Array | None, columns: jax.Array | None, is_height_first: bool
) -> jax.Array:
    """(H, W, C) uint8 with (3, height, H) and (3, width, W) pieces of weights; None leaves a side alone."""
    passes = [(columns, "ow,hwc->hoc"), (rows, "oh,hwc->owc")]
    for pieces, formula in reversed(passes) if is_height_first else passes:
        if pieces is not None:
            image = _along(image, pieces, formula)
    return image


def _along(image, pieces, formula):
    axis = 0 if formula.startswith("oh") else 1
    size = image.shape[axis]
    # How many neighbours count is a matter of the two sizes: a picture is shrunk by their quotient.
    is_exact = 4 * max(size / pieces.shape[1], 1) + 1 <= _MAX_TAPS
    step = size if is_exact else _SUMMED_AT_ONCE
    total = jnp.int32(1 << (_BITS - 1))
    for start in range(0, size, step):
        part = jax.lax.slice_in_dim(image, start, min(start + step, size), axis=axis)
        for piece, shift in zip(pieces, _SHIFTS, strict=True):
            products = jnp.einsum(
                formula,
                piece[:, start : start + step],
                part.astype(jnp.bfloat16),
                preferred_element_type=jnp.float32,
            )
            total = total + (products.astype(jnp.int32) << shift)
    return jnp.clip(total >> _BITS, 0, 255).astype(jnp.uint8)


@functools.lru_cache(maxsize=8)
def _pieces(size: int, new_size: int, device: jax.Device | None) -> jax.Array | None:
    """(3, new_size, size) bfloat16 on the device, None if there is nothing to do."""
    if size == new_size:
        return None
    weights = pillow_weights(size, new_size)
    pieces = [np.sign(weights) * (np.abs(weights) >> shift & 255) for shift in _SHIFTS]
    return jax.device_put(np.stack(pieces).astype(ml_dtypes.bfloat16), device)


def pillow_weights(size: int, new_size: int) -> Int32[np.ndarray, "{new_size} {size}"]:
    """Weights of 22 bits, computed step by step as Pillow does in C."""
    scale = size / new_size
    filter_scale = max(scale, 1.0)
    support = 2.0 * filter_scale
    centre = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), size)
    taps = np.arange((last - first).max())
    x = np.abs((taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / filter_scale))
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    weights = np.where(taps < (last - first)[:, None], weights, 0.0)
    total = np.zeros(new_size)
    for column in weights.T:  # one after the other: sums of floats depend on the order
        total = total + column
    weights = weights / total[:, None]
    whole = np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    dense = np.zeros((new_size, size + len(taps)), np.int32)
    np.put_along_axis(dense, first[:, None] + taps, whole, 1)
    return dense[:, :size]
