"""Small layers that several boxes share."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Float

from sam2_jax.ops.convolution import convolve, convolve_depthwise, convolve_transposed
from sam2_jax.ops.dense import dense
from sam2_jax.structs import Array


def gelu(x: Float[Array, "*b"]) -> Float[jax.Array, "*b"]:
    """Exact GELU."""
    # With erf, because the erfc of `jax.nn.gelu` is twice as slow on CPU.
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


@struct.dataclass
class Drawn(nn.meta.AxisMetadata):
    """A parameter as a module makes it, with the way to draw it on the host.

    Drawing on a device would compile one random generator for every parameter, which takes minutes.

    Attributes:
      value: the parameter.
      draw: `draw(rng, shape)` gives a float32 numpy array.
    """

    value: Any
    draw: Callable = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """The parameter."""
        return self.value

    def replace_boxed(self, value: Any) -> Self:
        """Another value that is drawn alike."""
        return self.replace(value=value)

    def add_axis(self, index: int, params: dict) -> Self:
        """Axes mean nothing here."""
        return self

    remove_axis = add_axis


def draw_params(rng: np.random.Generator, shapes: Any) -> Any:
    """Draws float32 parameters on the host.

    Args:
      rng: source of randomness.
      shapes: what `jax.eval_shape` says of a module's initialisation: a tree of `Drawn`.
    """
    draw = lambda drawn: np.asarray(drawn.draw(rng, drawn.value.shape), np.float32)
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, Drawn))


def _initializer(
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
) -> nn.initializers.Initializer:
    """Returns an initializer in Flax's sense for float32 numpy arrays drawn on the host."""

    def init(key, shape, dtype=jnp.float32):
        on_host = lambda seed: draw(np.random.default_rng(np.asarray(seed).ravel()), shape)
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        value = jax.pure_callback(on_host, result, jax.random.key_data(key))
        return Drawn(value.astype(dtype), draw)

    return init


def uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1 / sqrt(fan_in): PyTorch's default, for kernels and for their biases."""
    return _initializer(
        lambda rng, shape: (2 * rng.random(shape, np.float32) - 1) * np.float32(fan_in**-0.5)
    )


def uniform_but(fan_in: int, places: np.ndarray, value: float) -> nn.initializers.Initializer:
    """`uniform` for a vector, but with a value of its own at some places."""

    def draw(rng, shape):
        vector = (2 * rng.random(shape, np.float32) - 1) * np.float32(fan_in**-0.5)
        vector[places] = value
        return vector

    return _initializer(draw)


def normal(deviation: float) -> nn.initializers.Initializer:
    """Normal around 0."""
    return _initializer(lambda rng, shape: deviation * rng.standard_normal(shape, np.float32))


def constant(value: float) -> nn.initializers.Initializer:
    """The same everywhere."""
    return _initializer(lambda _, shape: np.full(shape, value, np.float32))


class Dense(nn.Module):
    """Dense layer.

    Attributes:
      features: channels of the output.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[jax.Array, "*b {self.features}"]:
        """Applies the layer."""
        shape = (x.shape[-1], self.features)
        init = uniform(x.shape[-1])
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, shape[1:]).astype(self.dtype)
        return dense(x.astype(self.dtype), kernel) + bias


class SplitDense(nn.Module):
    """Dense layers of one input, stored as one; each has its own product, so that no result has to be split.

    Attributes:
      features: channels of each output.
      num: of outputs.
    """

    features: int
    num: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> list[Float[jax.Array, "*b {self.features}"]]:
        """Applies each of the layers."""
        shape = (x.shape[-1], self.num * self.features)
        init = uniform(x.shape[-1])
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, shape[1:]).astype(self.dtype)
        x = x.astype(self.dtype)
        kernels, biases = (jnp.split(w, self.num, -1) for w in (kernel, bias))
        return [dense(x, kernel) + bias for kernel, bias in zip(kernels, biases, strict=True)]


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, in float32.

    Hiera and the convolutional parts use epsilon 1e-6, the two transformers 1e-5.
    """

    epsilon: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[jax.Array, "*b c"]:
        """Applies the layer."""
        scale = self.param("scale", constant(1.0), (x.shape[-1],))
        bias = self.param("bias", constant(0.0), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - _mean(x)
        x = x * jax.lax.rsqrt(_mean(jnp.square(x)) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)


def _mean(x: jax.Array) -> jax.Array:
    """Over the last axis, which stays; few channels are added one by one, for CPUs reduce them slowly."""
    c = x.shape[-1]
    if c > 8:
        return x.mean(-1, keepdims=True)
    return sum(x[..., i : i + 1] for i in range(c)) / c


class MLP(nn.Module):
    """Dense layers with an activation between them.

    Attributes:
      widths: channels after each layer.
      activation: between layers, not after the last.
    """

    widths: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[jax.Array, "*b {self.widths[-1]}"]:
        """Applies the layer."""
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
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[jax.Array, "b _ _ {self.features}"]:
        """Applies the layer."""
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
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[jax.Array, "b h w c"]:
        """Applies the layer."""
        c, init = x.shape[-1], uniform(math.prod(self.kernel_size))
        kernel = self.param("kernel", init, (*self.kernel_size, 1, c)).astype(self.dtype)
        bias = self.param("bias", init, (c,)).astype(self.dtype)
        return convolve_depthwise(x.astype(self.dtype), kernel) + bias


class Upsample2x2(nn.Module):
    """Transposed 2 x 2 convolution with stride 2: every cell becomes four."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[jax.Array, "b 2*h 2*w {self.features}"]:
        """Applies the layer."""
        init = uniform(4 * self.features)  # PyTorch counts the outputs of a transposed convolution
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        return convolve_transposed(x.astype(self.dtype), kernel) + bias
