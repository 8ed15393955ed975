"""Position encodings: sine (maps and time), Fourier (points), and 2-D axial rotary.

None of them is learned; the tables of static shapes are numpy constants of the compiled program.
"""

import jax
import jax.numpy as jnp
import numpy as np

TEMPERATURE = 10000.0


def sine_2d(height: int, width: int, channels: int) -> np.ndarray:
    """(height, width, channels) float32 sine encoding: first half y, second half x, sin and cos interleaved.

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


def sine_1d(position: jax.Array, channels: int) -> jax.Array:
    """(...,) -> (..., channels) float32 sine encoding: all sines, then all cosines."""
    half = channels // 2
    divisor = TEMPERATURE ** (2 * (np.arange(half) // 2) / half)
    angle = position[..., None].astype(jnp.float32) / divisor.astype(np.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def fourier(position: jax.Array, gaussian: jax.Array) -> jax.Array:
    """Random Fourier features of positions in [0, 1] (Tancik et al. 2020), float32.

    Args:
      position: (..., 2) as (x, y).
      gaussian: (2, C/2) frequencies.

    Returns:
      (..., C): sines, then cosines.
    """
    angle = 2 * np.pi * ((2 * position - 1) @ gaussian)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def rotary_table(side: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (side * side, channels / 2) of the 2-D axial rotary encoding (Heo et al. 2024).

    The first half of the channels turns with x, the second with y; each adjacent pair is one rotation.
    """
    frequency = TEMPERATURE ** (-4 * np.arange(channels // 4) / channels)
    y, x = np.divmod(np.arange(side * side), side)
    angle = np.concatenate([x[:, None] * frequency, y[:, None] * frequency], -1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotary_order(channels: int) -> np.ndarray:
    """Channel order that brings the pairs (2i, 2i + 1) of the original to (i, channels / 2 + i).

    Applied to the columns of the query and key projections alike it leaves every score as it is, and the
    rotation works on two contiguous halves.
    """
    return np.concatenate([np.arange(0, channels, 2), np.arange(1, channels, 2)])


def fastest_rotary(channels: int) -> np.ndarray:
    """The channels of the six pairs of either axis that `rotary_table` turns fastest."""
    along_x = np.arange(min(12, channels // 2))
    return np.concatenate([along_x, channels // 2 + along_x])


def rotate(x: jax.Array, table: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Rotates (..., L, C) in `rotary_order` by `rotary_table`, in float32; keeps the type of x."""
    cos, sin = table
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)
