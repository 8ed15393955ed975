"""Convolutions of few channels, which most devices compute faster as matrix products.

x (B, H, W, C), kernel (h, w, C, O)  ->  (B, H', W', O)

Arrays are NHWC, kernels HWIO, and both of one type. Every function chooses its execution by platform and
shape; `implementation=` forces one: "reference" is XLA's own convolution, the others give the same numbers,
and the same gradients, to rounding.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sam2_jax.ops.dense import dense
from sam2_jax.structs import Array

_AXES = ("NHWC", "HWIO", "NHWC")
_SMALL_PATCH = 64  # numbers; up to here CPUs copy patches faster than they convolve


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    stride: int = 1,
    padding: int = 0,
    *,
    implementation: str | None = None,
) -> Float[jax.Array, "b _ _ o"]:
    """Convolution without groups.

    Args:
      x: maps.
      kernel: in height, width, input and output channels.
      stride: step of the kernel along both axes, in pixels.
      padding: zeros on each of the four sides, in pixels.
      implementation: "reference"; "columns", a convolution of blocks of columns, whose channels are those of
        `stride` pixels in a row; "product" of all patches and the kernel; None chooses.

    Returns:
      Maps of side (side + 2 padding - kernel side) // stride + 1.

    Raises:
      ValueError: on an unknown implementation.
    """
    if implementation is None:
        return _convolve(x, kernel, stride, padding)
    return _named(_CONVOLVE, implementation)(x, kernel, stride, padding)


def convolve_depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    implementation: str | None = None,
) -> Float[jax.Array, "b h w c"]:
    """Convolution of each channel by itself, padded with zeros to the size of the input.

    Args:
      x: maps.
      kernel: of odd height and width.
      implementation: "reference", or "shifts", a sum of shifted maps; None chooses.

    Raises:
      ValueError: on an unknown implementation.
    """
    if implementation is None:
        return _depthwise(x, kernel)
    return _named(_DEPTHWISE, implementation)(x, kernel)


def convolve_transposed(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    *,
    implementation: str | None = None,
) -> Float[jax.Array, "b h*kh w*kw o"]:
    """Transposed convolution whose stride is the size of the kernel: every pixel becomes kh x kw.

    Args:
      x: maps.
      kernel: in height, width, input and output channels.
      implementation: "reference" or "product"; None is "product" on every platform.

    Raises:
      ValueError: on an unknown implementation.
    """
    return _named(_TRANSPOSED, implementation or "product")(x, kernel)


def _named(executions: Mapping[str, Callable], name: str) -> Callable:
    if name not in executions:
        raise ValueError(f"Unknown implementation {name!r}. Known: {', '.join(executions)}.")
    return executions[name]


def _by_convolution(x, kernel, stride, padding):
    pads = ((padding, padding),) * 2
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_AXES)


def _by_columns(x, kernel, stride, padding):
    width, (h, w, c, out) = x.shape[2], kernel.shape
    num_out = (width + 2 * padding - w) // stride + 1
    # Zeros around the kernel make it begin and end between blocks, so that no pixel has to move.
    front = -padding % stride
    num_blocks = -(-(front + w) // stride)
    taps = ((0, 0), (front, num_blocks * stride - front - w), (0, 0), (0, 0))
    kernel = jnp.pad(kernel, taps).reshape(h, num_blocks, stride * c, out)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -width % stride), (0, 0)))
    x = x.reshape(*x.shape[:2], -1, stride * c)
    before = (front + padding) // stride
    pads = ((padding, padding), (before, num_out + num_blocks - 1 - before - x.shape[2]))
    return jax.lax.conv_general_dilated(x, kernel, (stride, 1), pads, dimension_numbers=_AXES)


def _patches(x, size, stride, padding):
    """What a kernel of this size sees of (B, H, W, C), as the channels of each output pixel.

    Cut from blocks of stride x stride pixels, which are longer runs of memory than single pixels; in the
    order of `_flat_kernel`.
    """
    b, *_, c = x.shape
    out = [(n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[1:3], size, strict=True)]
    num_blocks = [-(-k // stride) for k in size]  # that a kernel touches
    whole = [n + k - 1 for n, k in zip(out, num_blocks, strict=True)]
    ends = [n * stride - padding - m for n, m in zip(whole, x.shape[1:3], strict=True)]
    pads = [(0, 0, 0), *((padding, end, 0) for end in ends), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), pads)
    blocks = x.reshape(b, whole[0], stride, whole[1], stride, c).transpose(0, 1, 3, 2, 4, 5)
    cut = lambda i, j: blocks[
        :,
        i : i + out[0],
        j : j + out[1],
        : size[0] - i * stride,
        : size[1] - j * stride,
    ].reshape(b, *out, -1)
    return jnp.concatenate(
        [cut(i, j) for i in range(num_blocks[0]) for j in range(num_blocks[1])], -1
    )


def _flat_kernel(kernel, stride):
    """(h, w, C, O) -> (h w C, O)."""
    h, w, _, out = kernel.shape
    cut = lambda i, j: kernel[i : i + stride, j : j + stride].reshape(-1, out)
    return jnp.concatenate([cut(i, j) for i in range(0, h, stride) for j in range(0, w, stride)])


def _by_product(x, kernel, stride, padding):
    patches = _patches(x, kernel.shape[:2], stride, padding)
    # As matrices: summed over several axes, the gradient by the kernel is slow (see `ops.dense`).
    y = patches.reshape(-1, patches.shape[-1]) @ _flat_kernel(kernel, stride)
    return y.reshape(*patches.shape[:-1], -1)


def _depthwise_by_convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_AXES, feature_group_count=x.shape[-1]
    )


def _padded(x, kernel):
    rows, columns = kernel.shape[:2]
    return jnp.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))


def _depthwise_by_shifts(x, kernel):
    _, height, width, _ = x.shape
    padded = _padded(x, kernel)
    return sum(
        padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


@jax.custom_vjp
def _depthwise(x, kernel):
    # Grouped convolutions are 60 times slower on CPU.
    return jax.lax.platform_dependent(
        x, kernel, cpu=_depthwise_by_shifts, default=_depthwise_by_convolution
    )


def _depthwise_forward(x, kernel):
    return _depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved, dy):
    x, kernel = saved

    def kernel_by_shifts(dy, x):
        padded, (_, height, width, _) = _padded(x, kernel), x.shape

        def row(i):  # a loop, since 49 sums compile slowly
            cut = jax.lax.dynamic_slice_in_dim(padded, i, height, 1)
            taps = range(kernel.shape[1])
            return jnp.stack([(cut[:, :, j : j + width] * dy).sum((0, 1, 2)) for j in taps])

        return jax.lax.map(row, jnp.arange(kernel.shape[0]))[:, :, None]

    def kernel_by_convolution(dy, x):
        convolve = lambda kernel: _depthwise_by_convolution(x, kernel)
        return jax.linear_transpose(convolve, kernel)(dy)[0]

    dkernel = jax.lax.platform_dependent(dy, x, cpu=kernel_by_shifts, default=kernel_by_convolution)
    return _depthwise(dy, kernel[::-1, ::-1]), dkernel


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _transposed_by_convolution(x, kernel):
    flipped = kernel[::-1, ::-1]  # jax correlates the dilated map with the kernel
    return jax.lax.conv_transpose(x, flipped, kernel.shape[:2], "VALID", dimension_numbers=_AXES)


def _transposed_by_product(x, kernel):
    b, h, w, c = x.shape
    rows, columns, _, out = kernel.shape
    y = dense(x, kernel.transpose(2, 0, 1, 3).reshape(c, -1))
    y = y.reshape(b, h, w, rows, columns, out).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, rows * h, columns * w, out)


_CONVOLVE = {"reference": _by_convolution, "columns": _by_columns, "product": _by_product}
_DEPTHWISE = {"reference": _depthwise_by_convolution, "shifts": _depthwise_by_shifts}
_TRANSPOSED = {"reference": _transposed_by_convolution, "product": _transposed_by_product}


def _choose(kernel, stride):
    """The executions of `convolve` by platform: for its value and gradient by x, and by the kernel."""
    h, w, c, _ = kernel.shape
    if max(h, w) <= stride:  # patches are a view
        return {"default": _by_product}, {"default": _by_product}
    # On GPU cuDNN takes ten times as long as a product, or more, for so few channels. On a TPU three colours
    # fill three of 128 lanes.
    others = {"tpu": _by_columns, "default": _by_product}
    forward = _by_product if h * w * c <= _SMALL_PATCH else _by_columns
    # XLA's gradient by the kernel is slow on CPU for a batch of clips: a convolution of as many groups.
    return {"cpu": forward, **others}, {"cpu": _by_product, **others}


def _convolve(x, kernel, stride, padding):
    forward, by_kernel = (
        {
            platform: functools.partial(kind, stride=stride, padding=padding)
            for platform, kind in kinds.items()
        }
        for kinds in _choose(kernel, stride)
    )
    return _by_platform(x, kernel, forward, by_kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_platform(x, kernel, forward, by_kernel):
    """A function linear in x and in the kernel, in the execution for each platform.

    Only x and kernel are kept for the backward pass; differentiating through `platform_dependent` would keep
    what the executions of all platforms need.

    Args:
      x: any array.
      kernel: any array.
      forward: the execution of each platform, for the value and the gradient by x.
      by_kernel: for the gradient by the kernel.
    """
    del by_kernel
    return jax.lax.platform_dependent(x, kernel, **forward)


def _forward(x, kernel, forward, by_kernel):
    return _by_platform(x, kernel, forward, by_kernel), (x, kernel)


def _backward(forward, by_kernel, saved, dy):
    x, kernel = saved

    def towards_x(kind):
        return lambda dy, kernel: jax.linear_transpose(lambda x: kind(x, kernel), x)(dy)[0]

    def towards_kernel(kind):
        return lambda dy, x: jax.linear_transpose(lambda kernel: kind(x, kernel), kernel)(dy)[0]

    dx = jax.lax.platform_dependent(
        dy, kernel, **{platform: towards_x(kind) for platform, kind in forward.items()}
    )
    dkernel = jax.lax.platform_dependent(
        dy, x, **{platform: towards_kernel(kind) for platform, kind in by_kernel.items()}
    )
    return dx, dkernel


_by_platform.defvjp(_forward, _backward)
