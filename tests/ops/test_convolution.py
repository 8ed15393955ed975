"""Every execution of a convolution against its reference, values and gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.ops.convolution import convolve, convolve_depthwise, convolve_transposed

# (B, H, W, C), (h, w, C, O), stride, padding
POINTWISE = ((2, 5, 3, 4), (1, 1, 4, 6), 1, 0)
HALVING = ((2, 8, 6, 3), (3, 3, 3, 5), 2, 1)
HALVING_ODD = ((1, 7, 9, 3), (3, 3, 3, 5), 2, 1)
CELLS = ((2, 8, 4, 1), (2, 2, 1, 4), 2, 0)
CELLS_ODD = ((2, 9, 7, 2), (4, 4, 2, 3), 4, 0)
PATCHES = ((1, 32, 16, 3), (7, 7, 3, 8), 4, 3)
PATCHES_ODD = ((2, 13, 22, 3), (7, 7, 3, 8), 4, 3)
PLAIN = ((1, 6, 7, 2), (3, 2, 2, 4), 1, 1)
CONVOLUTIONS = [
    POINTWISE,
    HALVING,
    HALVING_ODD,
    CELLS,
    CELLS_ODD,
    PATCHES,
    PATCHES_ODD,
    PLAIN,
]
DTYPES = ["float32", "bfloat16"]


def normal(seed, shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def value_and_gradients(function, x, kernel):
    """Of a function of (x, kernel): its value and what a fixed cotangent becomes."""

    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        return y, pull(normal(2, y.shape, y.dtype))

    return run(x, kernel)


def assert_same(function, reference, x_shape, kernel_shape, dtype):
    """Both in `dtype`, and for bfloat16 to its rounding of the reference in float32."""
    x, kernel = normal(0, x_shape, dtype), normal(1, kernel_shape, dtype)
    found = value_and_gradients(function, x, kernel)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    exact = value_and_gradients(reference, x.astype(jnp.float32), kernel.astype(jnp.float32))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(
            one.astype(jnp.float32), other, rtol=tolerance, atol=tolerance * scale
        )


@pytest.mark.parametrize("implementation", ["columns", "product", None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case, dtype, implementation):
    x_shape, kernel_shape, stride, padding = case
    run = functools.partial(convolve, stride=stride, padding=padding)
    assert_same(
        functools.partial(run, implementation=implementation),
        functools.partial(run, implementation="reference"),
        x_shape,
        kernel_shape,
        dtype,
    )


@pytest.mark.parametrize("implementation", ["shifts", None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x_shape", "size"), [((2, 8, 8, 3), (7, 7)), ((1, 5, 3, 4), (7, 7)), ((1, 4, 6, 2), (3, 5))]
)
def test_depthwise_convolution(x_shape, size, dtype, implementation):
    assert_same(
        functools.partial(convolve_depthwise, implementation=implementation),
        functools.partial(convolve_depthwise, implementation="reference"),
        x_shape,
        (*size, 1, x_shape[-1]),
        dtype,
    )


@pytest.mark.parametrize("implementation", ["product", None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 2), (3, 2)])
def test_transposed_convolution(size, dtype, implementation):
    assert_same(
        functools.partial(convolve_transposed, implementation=implementation),
        functools.partial(convolve_transposed, implementation="reference"),
        (2, 5, 3, 4),
        (*size, 4, 6),
        dtype,
    )


@pytest.mark.parametrize("case", [HALVING_ODD, PATCHES_ODD, POINTWISE])
def test_gradients_of_a_batch_of_clips(case):
    """As training takes them: clips are a `vmap`, and share the kernel."""
    x_shape, kernel_shape, stride, padding = case
    x, kernel = normal(0, (3, *x_shape)), normal(1, kernel_shape)

    def clips(implementation):
        one = lambda x, kernel: convolve(x, kernel, stride, padding, implementation=implementation)
        return value_and_gradients(jax.vmap(one, (0, None)), x, kernel)

    chex.assert_trees_all_close(clips(None), clips("reference"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_what_stays_a_convolution(platform):
    def has_convolution(case):
        x_shape, kernel_shape, stride, padding = case
        run = jax.jit(functools.partial(convolve, stride=stride, padding=padding))
        text = run.trace(normal(0, x_shape), normal(1, kernel_shape)).lower(
            lowering_platforms=(platform,)
        )
        return "convolution" in text.as_text()

    found = {case: has_convolution(case) for case in (POINTWISE, CELLS, HALVING, PATCHES)}
    assert found == {
        POINTWISE: False,
        CELLS: False,
        HALVING: platform == "tpu",
        PATCHES: platform != "cuda",
    }


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_depthwise_is_a_convolution_off_cpu(platform):
    run = jax.jit(convolve_depthwise)
    text = run.trace(normal(0, (1, 8, 8, 4)), normal(1, (7, 7, 1, 4))).lower(
        lowering_platforms=(platform,)
    )
    assert ("convolution" in text.as_text()) == (platform != "cpu")


@pytest.mark.parametrize("function", [convolve, convolve_depthwise, convolve_transposed])
def test_unknown_implementations_are_named(function):
    with pytest.raises(ValueError, match="Unknown implementation 'cudnn'"):
        function(normal(0, (1, 4, 4, 1)), normal(1, (3, 3, 1, 1)), implementation="cudnn")
