"""The trunk while it trains: blocks in loops, rematerialisation and drop path change nothing else."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.config import HieraConfig
from sam2_jax.experiment import REMAT
from sam2_jax.model.hiera import Block, Hiera, drop_path
from tests import toy

# Two stages compile fast: one that no block opens, one of opener, whole map and windows that do not divide it.
NARROW = HieraConfig(embed_dim=4, stages=(1, 3), global_attention_blocks=(2,), window_sizes=(8, 5))


@functools.cache
def images_and_variables(config):
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    shapes = jax.eval_shape(Hiera(config).init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    draw = lambda s: 0.2 * rng.standard_normal(s.shape).astype(np.float32)
    return images, jax.tree.map(draw, shapes)


@functools.cache
def loss_and_gradient(config, remat, is_training):
    images, variables = images_and_variables(config)

    @jax.jit
    @jax.value_and_grad
    def run(variables):
        maps = Hiera(config, remat=remat).apply(variables, images, is_training)
        return sum(jnp.sin(x).sum() for x in maps)

    return run(variables)


@pytest.mark.parametrize("config", [toy.HIERA, NARROW], ids=["toy", "narrow"])
def test_without_drop_path_training_is_inference(config):
    images, variables = images_and_variables(config)
    module = Hiera(config)
    maps = jax.jit(module.apply)(variables, images)
    trained = jax.jit(functools.partial(module.apply, is_training=True))(variables, images)
    chex.assert_trees_all_close(trained, maps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", REMAT)
def test_gradients_do_not_depend_on_what_is_remembered(remat):
    expected = loss_and_gradient(NARROW, "none", is_training=False)
    answer = loss_and_gradient(NARROW, remat, is_training=True)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    chex.assert_trees_all_close(answer, expected, rtol=1e-4, atol=1e-6 * scale)


def test_full_rematerialisation_remembers_less():
    def bytes_held(remat):
        images, variables = images_and_variables(NARROW)
        apply = functools.partial(Hiera(NARROW, remat=remat).apply, is_training=True)
        _, backward = jax.eval_shape(functools.partial(jax.vjp, apply), variables, images)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    assert bytes_held("full") < bytes_held("dots") < bytes_held("none")


def test_the_mean_of_drop_path_is_to_keep_all():
    rates = jnp.array([0.0, 0.1, 0.5])
    scales = np.asarray(drop_path(jax.random.key(0), rates, 4000))
    assert scales.shape == (3, 2, 4000)
    assert (scales[0] == 1).all()
    np.testing.assert_allclose(scales.mean(-1), 1, atol=0.07)
    for rate, block in zip((0.1, 0.5), scales[1:], strict=True):
        np.testing.assert_allclose((block == 0).mean(-1), rate, atol=0.03)
        np.testing.assert_allclose(block[block > 0], 1 / (1 - rate), rtol=1e-6)
    assert np.abs(np.corrcoef(scales[2])[0, 1]) < 0.1, "branches are dropped apart"


def test_samples_and_keys_differ_in_what_they_drop():
    _, variables = images_and_variables(NARROW)
    image = np.random.default_rng(2).standard_normal((1, 64, 64, 3)).astype(np.float32)

    @jax.jit
    def run(key):
        images = jnp.repeat(image, 4, 0)
        apply = functools.partial(Hiera(NARROW, drop_path_rate=0.5).apply, is_training=True)
        return apply(variables, images, rngs={"dropout": key})[-1]

    first, again, other = (np.asarray(run(jax.random.key(i))) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert all(np.abs(first[0] - x).max() > 1e-3 for x in first[1:])


def test_a_sample_that_skips_both_branches_stays_as_it_is():
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)
    block = Block(width=4, heads=1, window=4, dtype="float32")
    variables = jax.jit(block.init)(jax.random.key(0), x)
    scales = np.array([[1, 0, 0], [1, 0, 1]], np.float32)
    y = np.asarray(jax.jit(block.apply)(variables, x, scales))
    np.testing.assert_array_equal(y[1], x[1])
    np.testing.assert_allclose(y[0], jax.jit(block.apply)(variables, x)[0], atol=1e-6)
    assert np.abs(y[2] - x[2]).max() > 1e-3
