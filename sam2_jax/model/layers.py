"""Small layers and resizing rules that several boxes share."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sam2_jax.ops.convolution import convolve, convolve_depthwise, convolve_transposed


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU."""
    # With erf, because the erfc of `jax.nn.gelu` is twice as slow on CPU.
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1 / sqrt(fan_in): PyTorch's default, for kernels and for their biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class Dense(nn.Module):
    """Dense layer.

    Attributes:
      features: channels of the output.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to (..., features)."""
        shape = (x.shape[-1], self.features)
        init = uniform(x.shape[-1])
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, shape[1:]).astype(self.dtype)
        return x.astype(self.dtype) @ kernel + bias


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, in float32.

    Hiera and the convolutional parts use epsilon 1e-6, the two transformers 1e-5.
    """

    epsilon: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to (..., C)."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)


class MLP(nn.Module):
    """Dense layers with an activation between them.

    Attributes:
      widths: channels after each layer.
      activation: between layers, not after the last.
    """

    widths: Sequence[int]
    activation: callable = nn.relu
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to (..., widths[-1])."""
        for i, width in enumerate(self.widths):
            x = Dense(width, self.dtype, name=f"layers_{i}")(x)
            if i < len(self.widths) - 1:
                x = self.activation(x)
        return x


class Conv(nn.Module):
    """Convolution.

    Attributes:
      features: channels of the output.
      kernel_size: of the kernel, in pixels.
      stride: step of the kernel, in pixels.
      padding: zeros on each side, in pixels.
    """

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        init = uniform(math.prod(shape[:-1]))
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        return convolve(x.astype(self.dtype), kernel, self.stride, self.padding) + bias


class DepthwiseConv(nn.Module):
    """Convolution of each channel by itself, which keeps the size."""

    kernel_size: tuple[int, int]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        c, init = x.shape[-1], uniform(math.prod(self.kernel_size))
        kernel = self.param("kernel", init, (*self.kernel_size, 1, c)).astype(self.dtype)
        bias = self.param("bias", init, (c,)).astype(self.dtype)
        return convolve_depthwise(x.astype(self.dtype), kernel) + bias


class Upsample2x2(nn.Module):
    """Transposed 2 x 2 convolution with stride 2: every cell becomes four."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, 2H, 2W, features)."""
        init = uniform(4 * self.features)  # PyTorch counts the outputs of a transposed convolution
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        return convolve_transposed(x.astype(self.dtype), kernel) + bias


def upsample_4x(x: jax.Array) -> jax.Array:
    """Bilinear resize (B, h, w) -> (B, 4h, 4w), half-pixel centres, edges clamped.

    Every output phase is a fixed blend of two neighbours, so it is four shifted sums an axis; the general
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


def downsample_antialiased(x: jax.Array, size: int) -> jax.Array:
    """Bilinear antialiased resize (B, S, S) -> (B, size, size)."""
    return jax.image.resize(x, (x.shape[0], size, size), "bilinear", antialias=True)


def cubic_weights(source: int, target: int) -> np.ndarray:
    """(target, source) float32 matrix of bicubic resizing with a = -0.75, half-pixel centres, edges clamped.

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
