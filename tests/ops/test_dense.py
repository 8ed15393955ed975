"""The dense product against `x @ kernel`, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.ops.dense import dense


def normal(seed, shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("is_batch_of_clips", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("leading", [(3,), (3, 1), (2, 5, 3)])
def test_values_and_gradients(leading, dtype, is_batch_of_clips):
    @functools.partial(jax.jit, static_argnums=2)
    def run(x, kernel, implementation):
        function = functools.partial(dense, implementation=implementation)
        if is_batch_of_clips:
            function = jax.vmap(function, (0, None))
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(normal(2, y.shape, y.dtype))

    leading = (4, *leading) if is_batch_of_clips else leading
    x, kernel = normal(0, (*leading, 7), dtype), normal(1, (7, 6), dtype)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    exact = run(x.astype("float32"), kernel.astype("float32"), "reference")
    for found, expected in zip(run(x, kernel, None), exact, strict=True):
        assert found.dtype == dtype
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found.astype("float32"), expected, atol=tolerance * scale)


def test_unknown_implementations_are_named():
    with pytest.raises(ValueError, match="Unknown implementation 'cudnn'"):
        dense(normal(0, (3, 2)), normal(1, (2, 2)), implementation="cudnn")
