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
from sam2_jax.experiment import Optimizer
from sam2_jax.model.sam2 import param_shapes
from sam2_jax.train.optimizer import learning_rates, make_optimizer, schedule, weight_decays

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


def test_cosine_falls_to_its_last_share_after_a_linear_start():
    shape = schedule(Optimizer(schedule="cosine", warmup_steps=10, final_fraction=0.1), 110)
    assert [float(shape(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.55, 0.1]
    )


def test_reciprocal_square_root_with_start_and_cooldown():
    config = Optimizer(schedule="rsqrt", warmup_steps=100, timescale=100, cooldown_steps=50)
    shape = schedule(config, 1000)
    assert [float(shape(step)) for step in (50, 100, 400, 950, 975, 1000)] == pytest.approx(
        [0.5, 1.0, 0.5, (100 / 950) ** 0.5, 0.5 * (100 / 975) ** 0.5, 0.0]
    )


def test_steps_are_those_of_adamw():
    """Written out by hand for a parameter that decays and one that does not."""
    config = Optimizer(learning_rate=0.1, schedule="constant", gradient_clip=1.0, weight_decay=0.5)
    params = {"mask_decoder": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([1.0])}}
    gradient = {"mask_decoder": {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])}}
    optimizer = make_optimizer(params, 1, config, 10)
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
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
    optimizer = make_optimizer(nested, 1, config, 10)
    updates, _ = optimizer.update(unflatten_dict(gradient, sep="/"), optimizer.init(nested), nested)
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
