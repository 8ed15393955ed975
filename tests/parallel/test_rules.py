"""Sharding rules: the published parameters, optimizer states, and sizes that do not divide."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sam2_jax import experiment
from sam2_jax.config import RELEASED
from sam2_jax.experiment import SHARDING, Experiment, from_config_dict, to_config_dict
from sam2_jax.model.sam2 import param_shapes
from sam2_jax.parallel.mesh import make_mesh
from sam2_jax.parallel.rules import SMALLEST, shardings, spec


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(experiment.Mesh(2, 2, 2))


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("image_encoder/trunk/blocks_3/attn/qkv/kernel", (96, 288), ("fsdp", "model")),
        ("image_encoder/trunk/blocks_3/attn/qkv/bias", (288,), ("model",)),
        ("image_encoder/trunk/blocks_3/attn/proj/kernel", (96, 96), ("model", "fsdp")),
        ("image_encoder/trunk/blocks_3/attn/proj/bias", (96,), (None,)),
        ("image_encoder/trunk/blocks_3/mlp/layers_0/kernel", (96, 384), ("fsdp", "model")),
        ("image_encoder/trunk/blocks_3/mlp/layers_1/kernel", (384, 96), ("model", "fsdp")),
        ("image_encoder/trunk/blocks_1/proj/kernel", (96, 192), (None, "fsdp")),
        ("image_encoder/trunk/patch_embed/kernel", (7, 7, 3, 96), (None, None, None, "fsdp")),
        ("mask_decoder/transformer/layers_0/self_attn/q_proj/kernel", (256, 256), ("fsdp", "model")),
        ("mask_decoder/transformer/final_attn_token_to_image/out_proj/kernel", (128, 256), ("model", "fsdp")),
        ("memory_attention/layers_0/self_attn/k_proj/kernel", (256, 256), ("fsdp", None)),
        ("memory_attention/layers_0/cross_attn_image/v_proj/kernel", (64, 256), ("fsdp", "model")),
        ("memory_attention/layers_0/linear2/kernel", (2048, 256), ("model", "fsdp")),
        ("memory_encoder/fuser_0/pwconv1/kernel", (256, 1024), ("fsdp", "model")),
        ("mask_decoder/iou_token", (1, 256), (None, None)),
        ("opt_state/0/mu/image_encoder/trunk/blocks_3/attn/qkv/kernel", (96, 288), ("fsdp", "model")),
        ("step", (), ()),
    ],
)  # fmt: skip
def test_axes_of_known_parameters(mesh, path, shape, axes):
    assert spec(mesh, SHARDING, path, shape) == PartitionSpec(*axes)


@functools.cache
def shapes_of(size):
    """The parameters of a released model."""
    return param_shapes(RELEASED[f"sam2.1_hiera_{size}"])


@pytest.mark.parametrize("size", ["tiny", "base_plus"])
def test_every_parameter_has_a_rule_and_large_ones_are_cut(mesh, size):
    params = paths(shapes_of(size))
    cut = paths(shardings(mesh, SHARDING, shapes_of(size)))
    for path, leaf in params.items():
        parts = leaf.size // np.prod(cut[path].shard_shape(leaf.shape))
        assert parts > 1 or leaf.size < SMALLEST, f"{path} {leaf.shape} is whole"
        assert parts <= 4, "the axis data copies"
    total = sum(leaf.size for leaf in params.values())
    held = sum(np.prod(cut[path].shard_shape(leaf.shape)) for path, leaf in params.items())
    assert held < 0.3 * total  # by fsdp=2 and model=2, apart from what model leaves whole


def test_every_rule_is_of_use():
    """Each is the first that matches some part of a train state."""
    first = lambda path: next(i for i, (rule, _) in enumerate(SHARDING) if re.search(rule, path))
    others = ["lora/trunk/blocks_0/attn/qkv/kernel/a", "key", "muon/inner_state/0/ns_coeffs"]
    state = [*paths(shapes_of("tiny")), *others]
    used = {first(path) for path in state}
    assert used == set(range(len(SHARDING)))


def test_an_axis_that_does_not_divide_is_left_alone():
    mesh = make_mesh(experiment.Mesh(1, 2, 4))
    assert spec(mesh, SHARDING, "mlp/layers_0/kernel", (64, 90)) == PartitionSpec(None, "fsdp")
    assert spec(mesh, SHARDING, "mlp/layers_0/kernel", (64, 81)) == PartitionSpec("fsdp", None)
    assert spec(mesh, SHARDING, "mlp/layers_1/kernel", (45, 81)) == PartitionSpec(None, None)


def test_a_path_without_a_rule_is_an_error(mesh):
    with pytest.raises(ValueError, match=r"no sharding rule matches 'trunk/blocks_0/mystery'"):
        shardings(mesh, SHARDING, {"trunk": {"blocks_0": {"mystery": np.zeros(8)}}})


def test_an_experiment_may_have_rules_of_its_own(mesh):
    own = ((r"mystery$", "rows"), *SHARDING)
    assert spec(mesh, own, "trunk/blocks_0/mystery", (8, 3)) == PartitionSpec("model", None)
    assert from_config_dict(to_config_dict(Experiment(sharding=own))).sharding == own
    with pytest.raises(
        ValueError, match=r"sharding 'mystery\$' is 'diagonal'.*columns, rows, whole"
    ):
        Experiment(sharding=((r"mystery$", "diagonal"),))


def test_moments_go_with_their_parameters(mesh):
    params = {
        "trunk": {"attn": {"qkv": {"kernel": jnp.ones((32, 96)), "bias": jnp.ones(96)}}},
        "norm": {"scale": jnp.ones(32)},
    }
    labels = {"trunk": "slow", "norm": "fast"}
    transform = optax.multi_transform({n: optax.adamw(1e-3) for n in ("slow", "fast")}, labels)
    state = {"params": params, "opt_state": jax.eval_shape(transform.init, params)}
    cut = paths(shardings(mesh, SHARDING, state))
    expected = {
        path.removeprefix("params/"): s.spec for path, s in cut.items() if path.startswith("params")
    }
    moments = [path for path in cut if re.search("/(mu|nu)/", path)]
    assert len(moments) == 6
    for path in moments:
        assert cut[path].spec == expected[re.split("/(?:mu|nu)/", path)[1]]
    counts = [path for path in cut if path.endswith("count")]
    assert counts
    assert all(cut[path].spec == PartitionSpec() for path in counts)


def test_states_are_made_and_multiplied_in_their_parts(mesh):
    """A pair of products, cut by the rules, is the product of the whole."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    params = {
        "mlp": {"layers_0": {"kernel": normal(16, 64)}, "layers_1": {"kernel": normal(64, 16)}}
    }
    cut = shardings(mesh, SHARDING, params)
    placed = jax.device_put(params, cut)
    kernel = placed["mlp"]["layers_0"]["kernel"]
    assert isinstance(kernel.sharding, NamedSharding)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 32)}
    x = normal(8, 16)
    product = lambda p, x: (
        jnp.tanh(x @ p["mlp"]["layers_0"]["kernel"]) @ p["mlp"]["layers_1"]["kernel"]
    )
    answer = jax.jit(product, in_shardings=(cut, None))(placed, x)
    np.testing.assert_allclose(answer, product(params, x), rtol=1e-5, atol=1e-5)
