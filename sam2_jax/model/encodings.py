"""Position encodings: sine (maps and time), Fourier (points), and 2-D axial rotary.

None of them is learned; the tables of static shapes are numpy constants of the compiled program.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from sam2_jax.structs import Array

TEMPERATURE = 10000.0

# Cosines and sines for the l cells of a map, of which each turns one pair of channels.
Table: TypeAlias = tuple[Float32[np.ndarray, "l pairs"], Float32[np.ndarray, "l pairs"]]


def sine_2d(
    height: int, width: int, channels: int
) -> Float32[np.ndarray, "{height} {width} {channels}"]:
    """Sine encoding of a map: first half y, second half x, sine and cosine interleaved.

    Positions start at 1 and are scaled to 2 pi (the original's PositionEmbeddingSine, normalised).
    """
    half = channels // 2
    k = np.arange(half)
    divisor = TEMPERATURE ** (2 * (k // 2) / half)

    def encode(n):
        position = 2 * np.pi * (np.arange(n) + 1) / (n + 1e-6)
        angle = position[:, None] / divisor
        return np.where(k % 2 == 0, np.sin(angle), np.cos(angle))

    y = np.broadcast_to(encode(height)[:, None], (height, width, half))
    x = np.broadcast_to(encode(width)[None], (height, width, half))
    return np.concatenate([y, x], -1).astype(np.float32)


def sine_1d(position: Float[Array, "*b"], channels: int) -> Float32[jax.Array, "*b {channels}"]:
    """Sine encoding of a position in time: all sines, then all cosines."""
    half = channels // 2
    divisor = TEMPERATURE ** (2 * (np.arange(half) // 2) / half)
    angle = position[..., None].astype(jnp.float32) / divisor.astype(np.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def fourier(
    position: Float[Array, "*b 2"], gaussian: Float[Array, "2 pairs"]
) -> Float32[jax.Array, "*b 2*pairs"]:
    """Random Fourier features (Tancik et al. 2020) of positions (x, y) in [0, 1]: sines, then cosines.

    Args:
      position: see above.
      gaussian: frequencies.
    """
    angle = 2 * np.pi * ((2 * position - 1) @ gaussian)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def rotary_table(side: int, channels: int) -> Table:
    """Cosines and sines of the 2-D axial rotary encoding (Heo et al. 2024) of a square map.

    The first half of the channels turns with x, the second with y; each adjacent pair is one rotation.
    """
    frequency = TEMPERATURE ** (-4 * np.arange(channels // 4) / channels)
    y, x = np.divmod(np.arange(side * side), side)
    angle = np.concatenate([x[:, None] * frequency, y[:, None] * frequency], -1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotary_order(channels: int) -> Int[np.ndarray, " {channels}"]:
    """Channel order that brings the pairs (2i, 2i + 1) of the original to (i, channels / 2 + i).

    Applied to the columns of the query and key projections alike it leaves every score as it is, and the
    rotation works on two contiguous halves.
    """
    return np.concatenate([np.arange(0, channels, 2), np.arange(1, channels, 2)])


def fastest_rotary(channels: int) -> Int[np.ndarray, " _"]:
    """The channels of the six pairs of either axis that `rotary_table` turns fastest."""
    along_x = np.arange(min(12, channels // 2))
    return np.concatenate([along_x, channels // 2 + along_x])


def rotate(x: Float[Array, "*b l c"], table: Table) -> Float[jax.Array, "*b l c"]:
    """Rotates channels in `rotary_order` by a `rotary_table`, in float32; keeps the type of x."""
    cos, sin = table
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)
