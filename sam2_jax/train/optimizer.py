"""AdamW as the published recipe has it: rates by part and by depth, decay by name, one schedule; or Muon.

The rate of a parameter is the product of its own peak (`learning_rates`) and a shape over time (`schedule`).
Both are computed in the step, from numbers that are arguments of it (`hyperparameters`), so that another rate
or another number of steps compiles nothing.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax.traverse_util import flatten_dict, unflatten_dict

from sam2_jax.experiment import Optimizer

# torch's LayerNorm, but not the LayerNorm2d of the convolutional parts, is free of weight decay.
_NO_DECAY = re.compile(r"bias|(trunk|memory_attention|transformer|mae)/(.*/)?norm[^/]*/scale$")


Hyperparameters = dict[str, Any]

_NUMBERS = (
    "learning_rate",
    "encoder_learning_rate",
    "weight_decay",
    "layer_decay",
    "gradient_clip",
    "warmup_steps",
    "cooldown_steps",
    "timescale",
    "final_fraction",
)


def hyperparameters(config: Optimizer, num_steps: int = 0) -> Hyperparameters:
    """Returns the numbers of an optimizer that are arguments of the compiled step.

    Returns:
      Floats by the fields of `Optimizer`; `num_steps`; and under `groups`, those of each group.
    """
    groups = {
        name: {"learning_rate": group.learning_rate, "weight_decay": group.weight_decay}
        for name, group in config.groups.items()
    }
    numbers = {name: float(getattr(config, name)) for name in _NUMBERS}
    return numbers | {"num_steps": float(num_steps), "groups": groups}


def group_of(path: str, config: Optimizer) -> str | None:
    """Returns the name of the first group whose pattern is found in a path; None if there is none."""
    found = (name for name, group in config.groups.items() if re.search(group.pattern, path))
    return next(found, None)


def learning_rates(
    paths: Mapping[str, Any], depth: int, config: Optimizer, values: Hyperparameters | None = None
) -> dict[str, Any]:
    """Returns the peak learning rate of every parameter.

    Args:
      paths: parameters by path; values are not looked at.
      depth: blocks of the trunk.
      config: which rate counts. In the trunk it is decayed by layer: the last block's once, the patch
        embedding's the most, position tables' not.
      values: the numbers, which may be traced; None takes those of `config`.
    """
    values = values or hyperparameters(config)

    def rate(path):
        group = group_of(path, config)
        is_encoder = path.removeprefix("lora/").startswith("image_encoder/")
        peak = values["encoder_learning_rate" if is_encoder else "learning_rate"]
        if group and config.groups[group].learning_rate >= 0:
            peak = values["groups"][group]["learning_rate"]
        return peak * values["layer_decay"] ** _distance(path, depth) if is_encoder else peak

    return {path: rate(path) for path in paths}


def _distance(path, depth):
    """How far below the top of the trunk a parameter works, in blocks; 0 outside of the blocks."""
    if "trunk/patch_embed/" in path:
        return depth + 1
    block = re.search(r"trunk/blocks_(\d+)/", path)
    return depth - int(block[1]) if block else 0


def weight_decays(
    paths: Mapping[str, Any], config: Optimizer, values: Hyperparameters | None = None
) -> dict[str, Any]:
    """Returns the weight decay of every parameter: none for biases and layer norms; see `learning_rates`."""
    values = values or hyperparameters(config)

    def decay(path):
        group = group_of(path, config)
        if group and config.groups[group].weight_decay >= 0:
            return values["groups"][group]["weight_decay"]
        return 0.0 if _NO_DECAY.search(path) else values["weight_decay"]

    return {path: decay(path) for path in paths}


def schedule(kind: str, values: Hyperparameters) -> Callable[[Any], jax.Array]:
    """Returns the share of the peak learning rate as a function of the step.

    Args:
      kind: constant, cosine or rsqrt.
      values: as `hyperparameters` returns them; they may be traced.
    """
    warmup, cooldown = values["warmup_steps"], values["cooldown_steps"]
    num_steps = values["num_steps"]
    ramp = lambda step, steps: jnp.clip(jnp.where(steps > 0, step / jnp.maximum(steps, 1), 1), 0, 1)

    def share(step):
        after = jnp.maximum(step - warmup, 0)
        if kind == "cosine":
            progress = jnp.minimum(after / jnp.maximum(num_steps - warmup, 1), 1.0)
            low = values["final_fraction"]
            shape = low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif kind == "rsqrt":
            shape = jnp.sqrt(values["timescale"] / (values["timescale"] + after))
        else:
            shape = 1.0
        return shape * ramp(step, warmup) * ramp(num_steps - step, cooldown)

    return share


def make_optimizer(
    params: Mapping[str, Any], depth: int, config: Optimizer
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimizer of nested parameters; only their paths and shapes are looked at.

    Its `update` takes `step`, () int32, and `values`, as `hyperparameters` returns them.
    """
    paths = flatten_dict(params, sep="/")
    nested = lambda flat: unflatten_dict(flat, sep="/")
    direction = _direction(paths, config)

    def update(gradient, state, params, *, step, values):
        kept = jnp.minimum(1.0, values["gradient_clip"] / optax.tree.norm(gradient))
        gradient = jax.tree.map(lambda g: kept * g, gradient)
        updates, state = direction.update(gradient, state, params)
        share = schedule(config.schedule, values)(step)
        rates = nested(learning_rates(paths, depth, config, values))
        decays = nested(weight_decays(paths, config, values))
        move = lambda u, p, rate, decay: -share * rate * (u + decay * p)
        return jax.tree.map(move, updates, params, rates, decays), state

    return optax.GradientTransformationExtraArgs(direction.init, update)


def _direction(paths, config):
    """Where to go, before decay and rates.

    Muon (Jordan et al. 2024) makes every kernel's step a matrix without long or short directions, scaled to the
    size of AdamW's steps (Liu et al. 2025, arXiv 2502.16982).
    """
    if config.kind == "adamw":
        return optax.scale_by_adam(config.b1, config.b2)
    matrices = {path: _as_matrix(path, x.shape) for path, x in paths.items()}
    return optax.contrib.muon(
        -1.0,  # what follows turns the sign
        consistent_rms=0.2,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=unflatten_dict(matrices, sep="/"),
    )


def _as_matrix(path, shape):
    """Outputs by all that they are made of; None for what is no matrix: tables, vectors, single channels."""
    if not path.endswith("kernel") or len(shape) < 2 or min(shape[-2:]) == 1:
        return None
    axes = tuple(range(len(shape)))
    return optax.contrib.MuonDimensionNumbers(axes[:-1], axes[-1:])
