import jax
import numpy as np
import pytest

from sam2_jax.checkpoint import hiera, load, load_start, names
from sam2_jax.checkpoint.torch_file import write_torch_file
from sam2_jax.config import get_config
from sam2_jax.model import sam2

MODEL = "sam2.1_hiera_tiny"
TRUNK = "image_encoder.trunk."


@pytest.fixture(scope="module")
def drawn():
    return sam2.init_params(get_config(MODEL), jax.random.key(0))


@pytest.fixture(scope="module")
def official(drawn):
    return names.to_state_dict(drawn, drawn)


@pytest.fixture(scope="module")
def released(official):
    """What a masked autoencoder of this size holds, with the names of the Hiera project."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    tensors = {
        name.removeprefix(TRUNK).replace("layers.0", "fc1").replace("layers.1", "fc2"): draw(
            *x.shape
        )
        for name, x in official.items()
        if name.startswith(f"{TRUNK}blocks") or name.startswith(f"{TRUNK}patch_embed")
    }
    others = ("encoder_norm.weight", "decoder_embed.bias", "mask_token", "head.projection.bias")
    others += ("norm.weight", "multi_scale_fusion_heads.0.bias", "decoder_blocks.0.norm1.bias")
    return tensors | {name: draw(8) for name in others} | {"pos_embed": draw(1, 56 * 56, 96)}


def start(path, draw, model="sam2.1_hiera_t"):
    return load_start(path, model, get_config(model), draw)


def test_a_trunk_is_begun_with_and_the_rest_is_drawn(released, drawn, official, tmp_path):
    path = tmp_path / "mae_hiera_tiny_224.pth"
    write_torch_file(path, released)
    begun = names.to_state_dict(start(path, lambda: drawn).params, drawn)
    assert begun.keys() == official.keys()
    for name, x in begun.items():
        own = name.removeprefix(TRUNK).replace("layers.0", "fc1").replace("layers.1", "fc2")
        if name.startswith(TRUNK) and "pos_embed" not in name:
            np.testing.assert_array_equal(x, released[own], name)
        elif "pos_embed" not in name:
            np.testing.assert_array_equal(x, official[name], name)


def test_positions_are_the_sum_of_both_tables(drawn):
    """Those that are such a sum come out exactly."""
    rng = np.random.default_rng(1)
    coarse, fine = rng.standard_normal((3, 7, 7)), rng.standard_normal((3, 8, 8))
    fine -= fine.mean((1, 2), keepdims=True)
    whole = np.kron(coarse, np.ones((1, 8, 8))) + np.tile(fine, (1, 7, 7))
    tables = hiera._split_positions(
        whole.transpose(1, 2, 0).reshape(1, -1, 3), (1, 3, 7, 7), (1, 3, 8, 8)
    )
    np.testing.assert_allclose(tables[f"{TRUNK}pos_embed"][0], coarse, atol=1e-6)
    np.testing.assert_allclose(tables[f"{TRUNK}pos_embed_window"][0], fine, atol=1e-6)


def test_any_checkpoint_of_the_model_will_do(official, drawn, tmp_path):
    write_torch_file(tmp_path / "whole.pt", official)
    begun = start(tmp_path / "whole.pt", lambda: drawn)
    jax.tree.map(np.testing.assert_array_equal, begun.params, drawn)


def test_errors_say_what_does_not_fit(released, drawn, tmp_path):
    path = tmp_path / "hiera.pth"
    write_torch_file(path, released)
    with pytest.raises(ValueError, match="only the trunk"):
        load(path)
    large = sam2.init_params(get_config("sam2.1_hiera_small"), jax.random.key(0))
    with pytest.raises(ValueError, match=r"hiera\.pth: .*blocks\.12\..* is missing"):
        start(path, lambda: large, "sam2.1_hiera_small")
    write_torch_file(path, released | {"pos_embed": np.zeros((1, 8 * 56 * 56, 96), np.float32)})
    with pytest.raises(ValueError, match="25088 positions"):
        start(path, lambda: drawn)
