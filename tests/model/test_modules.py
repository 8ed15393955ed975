"""Parts of the model against plain restatements, and the flags that no released model sets."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sam2_jax.config import get_config
from sam2_jax.model import encodings
from sam2_jax.model.image_encoder import ImageEncoder
from sam2_jax.model.layers import Conv, Dense, DepthwiseConv, Upsample2x2
from sam2_jax.model.retention import rules
from sam2_jax.model.sam2 import init_params, param_shapes
from sam2_jax.track import track
from tests import toy


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return toy.model()


def test_padding_tokens_leave_the_decoder_alone(model):
    """And they are of no use: the "not a point" token of label -1 does count."""
    features = jax.jit(functools.partial(model.module.apply, method="encode"))(
        {"params": model.params}, toy.clip(1).image
    )
    ask = jax.jit(functools.partial(model.module.apply, method="decode"))
    decode = lambda prompt: ask(
        {"params": model.params}, features.embedding, features.high_res, prompt
    )
    prompt = toy.clicks(2)
    short = prompt.replace(points=prompt.points[:, :2], labels=prompt.labels[:, :2])
    assert prompt.labels.tolist() == [[1, -1, -2, -2]] * 2
    padded, plain = decode(prompt), decode(short)
    chex.assert_trees_all_close(padded, plain, atol=1e-5, rtol=1e-5)
    elsewhere = np.array(prompt.points)
    elsewhere[:, 2:] = 77.0
    chex.assert_trees_all_equal(decode(prompt.replace(points=elsewhere)), padded)
    labels = np.array(prompt.labels)
    labels[:, 1] = -2
    assert np.abs(decode(prompt.replace(labels=labels)).masks - padded.masks).max() > 1e-3


@pytest.mark.parametrize("size", [96, 160])
def test_the_image_encoder_takes_any_multiple_of_32(model, size):
    """Windows need not divide the maps."""
    encoder = ImageEncoder(toy.config(image_size=size))
    images = normal(0, 1, size, size, 3)
    maps = jax.jit(encoder.apply)({"params": model.params["image_encoder"]}, images)
    assert [x.shape for x in maps] == [(1, size // s, size // s, 32) for s in (4, 8, 16)]
    chex.assert_tree_all_finite(maps)


POINTERS = {"no_obj_ptr", "mask_downsample", "obj_ptr_proj", "obj_ptr_tpos_proj"}
# What no released model sets, and the parameters that go with it.
FLAGS = [
    ({"pred_obj_scores": False, "multimask_output_in_sam": False}, {"no_obj_ptr"}),
    (
        {"use_obj_ptrs_in_encoder": False, "no_obj_embed_spatial": False},
        {*POINTERS, "no_obj_embed_spatial"},
    ),
    (
        {"num_maskmem": 0, "use_mask_input_as_output_without_sam": False},
        {"memory_attention", "obj_ptr_tpos_proj", "mask_downsample"},
    ),
    ({"num_maskmem": 1, "memory_dtype": "float32"}, set()),
    ({"use_high_res_features_in_sam": False, "memory_temporal_stride_for_eval": 2}, set()),
    ({"soft_no_obj_ptr": True, "use_mlp_for_obj_ptr_proj": False}, set()),
]


@pytest.mark.parametrize(("flags", "gone"), FLAGS, ids=["-".join(flags) for flags, _ in FLAGS])
def test_every_flag_gives_a_model_that_tracks(flags, gone, model):
    """Shapes alone: the parameters that exist are the ones that are asked for."""
    other = toy.config(**flags)
    shapes = param_shapes(other)
    assert set(model.params) - set(shapes) == gone
    run = functools.partial(track, model.module.clone(config=other))
    bank, answer = jax.eval_shape(run, shapes, toy.clip(3), toy.masks(2))
    size = toy.SIZE // 4
    assert answer.masks.shape == (3, 2, size, size)
    assert answer.pointers.shape == (3, 2, 32)
    assert bank.recent_frames.shape == (2, rules(other).memories.num_slots)
    memory = jnp.dtype(flags.get("memory_dtype", "bfloat16"))
    assert bank.recent_memories.dtype == answer.memories.dtype == memory


@pytest.fixture(scope="module")
def without_memory():
    """A model that keeps no memory and never judges an object absent."""
    return toy.model(num_maskmem=0, pred_obj_scores=False)


def test_without_memory_frames_do_not_depend_on_each_other(without_memory):
    run = jax.jit(functools.partial(track, without_memory.module))
    clip, prompt = toy.clip(3), toy.clicks(2)
    _, answer = run(without_memory.params, clip, prompt)
    chex.assert_tree_all_finite(answer)
    assert (np.asarray(answer.scores) > 0).all()
    changed = clip.replace(image=clip.image.copy())
    changed.image[1] = 255 - changed.image[1]
    _, again = run(without_memory.params, changed, prompt)
    np.testing.assert_array_equal(again.masks[2], answer.masks[2])
    assert np.abs(again.masks[1] - answer.masks[1]).max() > 1e-3
    # Nor do objects, once nobody points at them.
    np.testing.assert_allclose(answer.masks[2, 0], answer.masks[2, 1], atol=1e-5)


LAYERS = [
    (Dense(6), nn.Dense(6), 4),
    (Conv(6, (3, 3), 2, 1), nn.Conv(6, (3, 3), 2, 1), 36),
    (DepthwiseConv((3, 3)), nn.Conv(4, (3, 3), feature_group_count=4), 9),
    (Upsample2x2(6), nn.ConvTranspose(6, (2, 2), (2, 2)), 24),
]


@pytest.mark.parametrize(("ours", "theirs"), [layers[:2] for layers in LAYERS[:3]])
def test_layers_compute_what_those_of_linen_do(ours, theirs):
    x = normal(0, 2, 8, 6, 4)
    params = ours.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-5)


@pytest.mark.parametrize(("ours", "theirs", "fan_in"), LAYERS)
def test_layers_begin_as_in_pytorch(ours, theirs, fan_in):
    x = normal(0, 2, 8, 6, 4)
    params = nn.meta.unbox(ours.init(jax.random.key(0), x))
    chex.assert_trees_all_equal_shapes(params, theirs.init(jax.random.key(0), x))
    for leaf in jax.tree.leaves(params):
        assert np.abs(leaf).max() <= fan_in**-0.5
    kernel = params["params"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (3 * fan_in) ** -0.5, rtol=0.3)


@pytest.mark.parametrize("name", ["sam2_nano", "sam2.1_hiera_tiny"])
def test_fresh_memory_attention_looks_at_the_same_place(name):
    side = 16
    attention = init_params(get_config(name), jax.random.key(0))["memory_attention"]
    for layer in (layer for key, layer in attention.items() if key.startswith("layers")):
        q, k = (layer["cross_attn_image"][x]["bias"] for x in ("q_proj", "k_proj"))
        table, order = encodings.rotary_table(side, len(q)), encodings.rotary_order(len(q))
        q, k = (encodings.rotate(np.tile(x[order], (side**2, 1)), table) for x in (q, k))
        weights = jax.nn.softmax(q @ k.T * q.shape[-1] ** -0.5)
        assert (weights.argmax(1) == np.arange(side**2)).all()
        assert (np.diagonal(weights) > 0.5).all()
