"""Resizing of maps by the original's rules, where `jax.image.resize` differs or is slower."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from sam2_jax.structs import Array


def upsample_4x(x: Float[Array, "b h w"]) -> Float[jax.Array, "b 4*h 4*w"]:
    """Bilinear resize, half-pixel centres, edges clamped.

    Every output phase is a fixed blend of two neighbours, so that four shifted sums per axis do; the general
    `jax.image.resize` is four times slower on CPU.
    """

    def along(x, axis):
        n = x.shape[axis]
        take = lambda lo, hi: jax.lax.slice_in_dim(x, lo, hi, axis=axis)
        before = jnp.concatenate([take(0, 1), take(0, n - 1)], axis)
        after = jnp.concatenate([take(1, n), take(n - 1, n)], axis)
        phases = [
            0.375 * before + 0.625 * x,
            0.125 * before + 0.875 * x,
            0.875 * x + 0.125 * after,
            0.625 * x + 0.375 * after,
        ]
        stacked = jnp.stack(phases, axis + 1)
        return stacked.reshape(*x.shape[:axis], 4 * n, *x.shape[axis + 1 :])

    return along(along(x, 1), 2)


def downsample_antialiased(
    x: Float[Array, "b s s"], size: int
) -> Float[jax.Array, "b {size} {size}"]:
    """Bilinear antialiased resize of square maps."""
    return jax.image.resize(x, (x.shape[0], size, size), "bilinear", antialias=True)


def cubic_weights(source: int, target: int) -> Float32[np.ndarray, "{target} {source}"]:
    """Matrix of bicubic resizing with a = -0.75, half-pixel centres, edges clamped.

    Hiera's position table is resized this way; the cubic kernel of `jax.image.resize` has a = -0.5.
    """
    a = -0.75
    position = (np.arange(target) + 0.5) * source / target - 0.5
    base = np.floor(position).astype(int)
    weights = np.zeros((target, source))
    for tap in range(-1, 3):
        d = np.abs(position - (base + tap))
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(
            weights,
            (np.arange(target), np.clip(base + tap, 0, source - 1)),
            np.where(d <= 1, near, far),
        )
    return weights.astype(np.float32)
