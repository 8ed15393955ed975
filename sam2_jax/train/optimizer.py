"""AdamW as the published recipe has it: rates by part and by depth, decay by name, one schedule; or Muon.

The rate of a parameter is the product of its own peak (`learning_rates`) and a shape over time (`schedule`).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax.traverse_util import flatten_dict, unflatten_dict

from sam2_jax.experiment import Optimizer

# torch's LayerNorm, but not the LayerNorm2d of the convolutional parts, is free of weight decay.
_NO_DECAY = re.compile(r"bias|(trunk|memory_attention|transformer)/(.*/)?norm[^/]*/scale$")


def learning_rates(paths: Mapping[str, Any], depth: int, config: Optimizer) -> dict[str, float]:
    """Returns the peak learning rate of every parameter.

    Args:
      paths: parameters by path; values are not looked at.
      depth: blocks of the trunk.
      config: rates and layer decay. The last block's rate is decayed once, the patch embedding's the most;
        position tables are not decayed.
    """

    def rate(path):
        if path.removeprefix("lora/").startswith("image_encoder/"):
            return config.encoder_learning_rate * config.layer_decay ** _distance(path, depth)
        return config.learning_rate

    return {path: rate(path) for path in paths}


def _distance(path, depth):
    """How far below the top of the trunk a parameter works, in blocks; 0 outside of the blocks."""
    if "trunk/patch_embed/" in path:
        return depth + 1
    block = re.search(r"trunk/blocks_(\d+)/", path)
    return depth - int(block[1]) if block else 0


def weight_decays(paths: Mapping[str, Any], config: Optimizer) -> dict[str, float]:
    """Returns the weight decay of every parameter: none for biases and layer norms."""
    return {path: 0.0 if _NO_DECAY.search(path) else config.weight_decay for path in paths}


def schedule(config: Optimizer, num_steps: int) -> optax.Schedule:
    """Returns the share of the peak learning rate as a function of the step."""

    def shape(step):
        after = jnp.maximum(step - config.warmup_steps, 0)
        if config.schedule == "cosine":
            progress = jnp.minimum(after / max(num_steps - config.warmup_steps, 1), 1.0)
            low = config.final_fraction
            share = low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "rsqrt":
            share = jnp.sqrt(config.timescale / (config.timescale + after))
        else:
            share = jnp.float32(1)
        if config.warmup_steps:
            share = share * jnp.minimum(step / config.warmup_steps, 1.0)
        if config.cooldown_steps:
            share = share * jnp.clip((num_steps - step) / config.cooldown_steps, 0.0, 1.0)
        return share

    return shape


def make_optimizer(
    params: Mapping[str, Any], depth: int, config: Optimizer, num_steps: int
) -> optax.GradientTransformation:
    """Builds the optimizer of nested parameters; only their paths and shapes are looked at."""
    paths = flatten_dict(params, sep="/")
    nested = lambda flat: unflatten_dict(flat, sep="/")
    rates = nested(learning_rates(paths, depth, config))
    decays = nested(weight_decays(paths, config))
    shape = schedule(config, num_steps)

    def decay(updates, params):
        return jax.tree.map(lambda u, p, d: u + d * p, updates, params, decays)

    def scale(updates, _):
        return jax.tree.map(lambda u, rate: -rate * u, updates, rates)

    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        _direction(paths, config),
        optax.stateless(decay),
        optax.stateless(scale),
        optax.scale_by_schedule(shape),
    )


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
