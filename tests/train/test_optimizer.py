import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sam2_jax.checkpoint.names import official_name
from sam2_jax.config import get_config
from sam2_jax.experiment import Optimizer, ParameterGroup
from sam2_jax.model.sam2 import param_shapes
from sam2_jax.train.optimizer import (
    hyperparameters,
    learning_rates,
    make_optimizer,
    schedule,
    weight_decays,
)

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


@pytest.mark.parametrize("model", ["sam2.1_hiera_tiny", "sam2.1_hiera_base_plus"])
def test_rates_and_decays_are_those_of_the_original(model):
    golden = json.loads((GOLDEN / f"optimizer_groups_{model}.json").read_bytes())
    config = get_config(model)
    paths = flatten_dict(param_shapes(config), sep="/")
    rates = learning_rates(paths, sum(config.hiera.stages), Optimizer())
    decays = weight_decays(paths, Optimizer())
    ours = {official_name(path): (rates[path], decays[path]) for path in paths}
    for name, (rate, decay) in golden.items():
        assert ours[name] == (pytest.approx(rate, rel=1e-9), decay), name
    # What the original does not train is a buffer there.
    assert {name.rpartition(".")[2] for name in ours.keys() - golden.keys()} <= {
        "positional_encoding_gaussian_matrix"
    }


def test_a_group_has_its_own_rate_and_decay():
    groups = {
        "tokens": ParameterGroup(r"mask_decoder/.*token", learning_rate=1.0),
        "decoder": ParameterGroup(r"^mask_decoder/", learning_rate=2.0, weight_decay=0.25),
        "trunk": ParameterGroup(r"trunk/", weight_decay=0.5),
    }
    config = Optimizer(groups=groups, encoder_learning_rate=8.0, layer_decay=0.5)
    paths = dict.fromkeys(
        (
            "mask_decoder/iou_token",
            "mask_decoder/out/bias",
            "image_encoder/trunk/blocks_1/mlp/kernel",
            "no_mem_embed",
        )
    )
    assert list(learning_rates(paths, 2, config).values()) == [1.0, 2.0, 4.0, 5e-6]
    assert list(weight_decays(paths, config).values()) == [0.1, 0.25, 0.5, 0.1]


def test_other_rates_and_other_numbers_of_steps_are_the_same_program():
    params = {"mask_decoder": {"kernel": jnp.ones(2)}}
    texts = set()
    for config, num_steps in (
        (Optimizer(groups={"all": ParameterGroup(".", learning_rate=0.5)}), 10),
        (
            Optimizer(
                learning_rate=1.0,
                warmup_steps=3,
                cooldown_steps=2,
                weight_decay=0.0,
                groups={"all": ParameterGroup(".", learning_rate=0.25)},
            ),
            20,
        ),
    ):
        optimizer = make_optimizer(params, 1, config)
        update = jax.jit(
            lambda *a, step, values, u=optimizer.update: u(*a, step=step, values=values)
        )
        state, values = optimizer.init(params), hyperparameters(config, num_steps)
        texts.add(update.lower(params, state, params, step=0, values=values).as_text())
    assert len(texts) == 1


def test_cosine_falls_to_its_last_share_after_a_linear_start():
    shape = schedule("cosine", hyperparameters(Optimizer(warmup_steps=10, final_fraction=0.1), 110))
    assert [float(shape(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.55, 0.1]
    )


def test_reciprocal_square_root_with_start_and_cooldown():
    config = Optimizer(warmup_steps=100, timescale=100, cooldown_steps=50)
    shape = schedule("rsqrt", hyperparameters(config, 1000))
    assert [float(shape(step)) for step in (50, 100, 400, 950, 975, 1000)] == pytest.approx(
        [0.5, 1.0, 0.5, (100 / 950) ** 0.5, 0.5 * (100 / 975) ** 0.5, 0.0]
    )


def test_steps_are_those_of_adamw():
    """Written out by hand for a parameter that decays and one that does not."""
    config = Optimizer(learning_rate=0.1, schedule="constant", gradient_clip=1.0, weight_decay=0.5)
    params = {"mask_decoder": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([1.0])}}
    gradient = {"mask_decoder": {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])}}
    optimizer, now = (
        make_optimizer(params, 1, config),
        {"step": 0, "values": hyperparameters(config)},
    )
    updates, state = optimizer.update(gradient, optimizer.init(params), params, **now)
    expected = {"kernel": [-0.1 * (1 + 0.5 * 2), -0.1 * 0.5 * -1], "bias": [-0.1]}
    for name, value in expected.items():
        np.testing.assert_allclose(updates["mask_decoder"][name], value, rtol=1e-5)
    # The gradient has norm 5 and is clipped to 1, which the second moment remembers.
    moments = [x for x in jax.tree.leaves(state) if x.shape == (2,)]
    assert any(np.allclose(x, [0.001 * 0.36, 0.0]) for x in moments)


def test_muon_steps_are_as_long_in_every_direction_for_kernels_and_those_of_adam_for_others():
    rng = np.random.default_rng(0)
    shapes = {"dense/kernel": (24, 48), "conv/kernel": (3, 3, 4, 16), "dwconv/kernel": (7, 7, 1, 8)}
    shapes |= {"bias": (48,), "token": (4, 16)}
    draw = lambda scale: {
        path: scale * rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()
    }
    params, gradient = draw(1.0), draw(1e-3)
    config = Optimizer(
        kind="muon", learning_rate=0.5, schedule="constant", gradient_clip=1e9, weight_decay=0.0
    )
    nested = unflatten_dict(params, sep="/")
    optimizer, now = (
        make_optimizer(nested, 1, config),
        {"step": 0, "values": hyperparameters(config)},
    )
    gradients = unflatten_dict(gradient, sep="/")
    updates, _ = optimizer.update(gradients, optimizer.init(nested), nested, **now)
    adam = optax.scale_by_adam(nesterov=True)
    others, _ = adam.update(gradient, adam.init(params))
    for name, step in flatten_dict(updates, sep="/").items():
        if name not in ("dense/kernel", "conv/kernel"):
            np.testing.assert_allclose(step, -0.5 * others[name], rtol=1e-5)
            continue
        matrix = np.asarray(step).reshape(-1, step.shape[-1])
        lengths = np.linalg.svd(matrix, compute_uv=False) / (0.5 * 0.2 * max(matrix.shape) ** 0.5)
        assert 0.6 < lengths.min() < lengths.max() < 1.3, name  # five steps of the iteration
        assert (matrix * gradient[name].reshape(matrix.shape)).sum() < 0
