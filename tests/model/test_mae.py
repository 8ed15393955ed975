"""The masked autoencoder: the released Hiera code computes the same, and what is hidden is not seen."""

import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from sam2_jax.config import HieraConfig
from sam2_jax.model.hiera import Hiera
from sam2_jax.model.mae import MaskedDecoder, MaskedHiera, draw_kept, num_kept, pixel_loss

GOLDEN = Path(__file__).parents[1] / "parity" / "golden" / "mae.json"
SIZE = 96
KEPT = jnp.array([[7, 0, 4], [2, 3, 8]])
HIERA = HieraConfig(
    embed_dim=8, stages=(1, 1, 2, 1), global_attention_blocks=(2,), window_sizes=(8, 4, 2, 2)
)
TRUNK = MaskedHiera(HIERA)
DECODER = MaskedDecoder(16, 1, 2)


def images() -> np.ndarray:
    """Normalised ones."""
    return np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3), np.float32)


def reference_params(shapes) -> dict:
    """Random numbers that depend on the paths only."""

    def draw(path, shape):
        noise = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(shape, np.float32)
        return 0.2 * noise + path.endswith("scale")

    flat = flatten_dict(nn.meta.unbox(shapes), sep="/")
    return unflatten_dict({path: draw(path, x.shape) for path, x in flat.items()}, sep="/")


@functools.cache
def params() -> tuple[dict, dict]:
    """Of the trunk, and of the decoder."""
    key = jax.random.key(0)
    trunk = jax.eval_shape(Hiera(HIERA).init, key, images())
    maps = jax.eval_shape(TRUNK.apply, trunk, images(), KEPT)
    decoder = jax.eval_shape(functools.partial(DECODER.init, image_size=SIZE), key, maps, KEPT)
    return reference_params(trunk), reference_params(decoder)


@functools.cache
def compiled():
    @jax.jit
    def run(trunk, decoder, images):
        maps = TRUNK.apply(trunk, images, KEPT)
        predicted = DECODER.apply(decoder, maps, KEPT, SIZE)
        return predicted, pixel_loss(images, predicted, KEPT)

    return run


def test_predictions_and_loss_are_those_of_the_released_code():
    golden = json.loads(GOLDEN.read_text())
    predicted, losses = compiled()(*params(), images())
    np.testing.assert_allclose(losses.mean(), golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(predicted[:, ::7, ::97], golden["predicted"], rtol=1e-4, atol=1e-4)


def test_hidden_pixels_are_not_seen():
    before, loss = compiled()(*params(), images())
    hidden = np.array(images())
    hidden[0, :32, 32:64] += 1 + np.arange(32)[:, None, None]  # unit 1
    after, other = compiled()(*params(), hidden)
    np.testing.assert_array_equal(after, before)
    assert abs(other[0] - loss[0]) > 1e-4
    assert other[1] == loss[1]


def test_units_are_drawn_for_every_picture():
    kept = np.asarray(draw_kept(jax.random.key(0), 8, 224, num_kept(224, 0.6)))
    assert kept.shape == (8, 19)
    assert all(len(set(row)) == 19 for row in kept.tolist())
    assert kept.min() >= 0
    assert kept.max() <= 48
    assert len({tuple(sorted(row)) for row in kept.tolist()}) == 8


@pytest.mark.parametrize(("size", "ratio"), [(32, 0.6), (64, 0.9)])
def test_pictures_too_small_to_hide_parts_are_refused(size, ratio):
    with pytest.raises(ValueError, match=r"mae\.mask_ratio .* keeps 0 of the"):
        num_kept(size, ratio)
