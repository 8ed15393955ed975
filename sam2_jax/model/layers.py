"""Small layers and resizing rules that several boxes share."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU."""
    # With erf, because the erfc of `jax.nn.gelu` is twice as slow on CPU.
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


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
            x = nn.Dense(width, dtype=self.dtype, name=f"layers_{i}")(x)
            if i < len(self.widths) - 1:
                x = self.activation(x)
        return x


def _by_convolution(x, kernel, strides, padding):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=axes)


def _patches(x, size, strides, padding):
    """What a kernel of this size sees of (B, H, W, C), as the channels of each output pixel."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    _, height, width, _ = padded.shape
    rows, columns = height - size[0] + 1, width - size[1] + 1
    return jnp.concatenate(
        [
            padded[:, i : i + rows : strides[0], j : j + columns : strides[1]]
            for i, j in itertools.product(*map(range, size))
        ],
        -1,
    )


def _by_product(x, kernel, strides, padding):
    patches = _patches(x, kernel.shape[:2], strides, padding)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, strides, padding):
    apply = lambda kind: functools.partial(kind, strides=strides, padding=padding)
    # On GPU cuDNN takes ten times as long as a product, or more, for so few channels.
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=apply(_by_convolution),
        tpu=apply(_by_convolution),
        default=apply(_by_product),
    )


def _convolve_forward(x, kernel, strides, padding):
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _convolve_backward(strides, padding, saved, dy):
    x, kernel = saved

    def towards_x(kind):
        convolve = functools.partial(kind, strides=strides, padding=padding)
        return lambda dy, kernel: jax.linear_transpose(lambda x: convolve(x, kernel), x)(dy)[0]

    def kernel_by_convolution(dy, x):
        convolve = functools.partial(_by_convolution, strides=strides, padding=padding)
        return jax.linear_transpose(lambda kernel: convolve(x, kernel), kernel)(dy)[0]

    # Of all patches at once: XLA's convolution is several times slower on CPU, and for a batch of clips on
    # GPU it becomes one of as many groups.
    def kernel_by_product(dy, x):
        patches = _patches(x, kernel.shape[:2], strides, padding)
        patches = patches.reshape(-1, patches.shape[-1])
        return (patches.T @ dy.reshape(len(patches), -1)).reshape(kernel.shape)

    dx = jax.lax.platform_dependent(
        dy,
        kernel,
        cpu=towards_x(_by_convolution),
        tpu=towards_x(_by_convolution),
        default=towards_x(_by_product),
    )
    dkernel = jax.lax.platform_dependent(
        dy, x, tpu=kernel_by_convolution, default=kernel_by_product
    )
    return dx, dkernel


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _as_linen_calls_it(x, kernel, strides, padding, *_, **__):
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolve(x, kernel, tuple(strides), tuple(padding))


# A small convolution that is fast everywhere, and so is its gradient.
Conv = functools.partial(nn.Conv, conv_general_dilated=_as_linen_calls_it)


class Upsample2x2(nn.Module):
    """Transposed 2 x 2 convolution with stride 2: every cell becomes four, as one matrix product."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, 2H, 2W, width)."""
        b, h, w, c = x.shape
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(in_axis=2, out_axis=3), (2, 2, c, self.width)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        flat = kernel.transpose(2, 0, 1, 3).reshape(c, 4 * self.width).astype(self.dtype)
        y = (x.astype(self.dtype).reshape(b, h * w, c) @ flat).reshape(b, h, w, 2, 2, self.width)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.width)
        return y + bias.astype(self.dtype)


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
