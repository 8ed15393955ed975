"""Resizing rules against plain restatements."""

import jax
import numpy as np
import pytest

from sam2_jax.ops.resize import cubic_weights, upsample_4x


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 1), (1, 2, 3)])
def test_the_fast_upsampling_is_a_bilinear_resize(shape):
    x = normal(0, *shape)
    expected = jax.image.resize(x, (shape[0], 4 * shape[1], 4 * shape[2]), "bilinear")
    np.testing.assert_allclose(upsample_4x(x), expected, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(7, 7), (7, 16), (14, 64), (7, 3), (1, 4)])
def test_cubic_weights_are_averages_and_symmetric(source, target):
    weights = cubic_weights(source, target)
    assert weights.shape == (target, source)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    if source == target:
        np.testing.assert_allclose(weights, np.eye(source), atol=1e-6)


def test_the_cubic_kernel_is_the_one_of_the_original():
    """Half way between two pixels: -a/8 outside of them, with a = -0.75."""
    weights = cubic_weights(8, 16)
    tap = lambda d: 1.25 * d**3 - 2.25 * d**2 + 1 if d < 1 else -0.75 * (d - 1) * (d - 2) ** 2
    np.testing.assert_allclose(
        weights[7, 2:6], [tap(1.25), tap(0.25), tap(0.75), tap(1.75)], atol=1e-6
    )
