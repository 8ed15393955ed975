"""The training step: gradient, update, apply, replace.

    state, metrics = compiled_step(recipe, mesh)(state, batch, put_hyperparameters(recipe, mesh))

One compiled program a shape of batch. Clips are cut over the devices, parameters and optimizer state are
sharded by the rules of the experiment.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sam2_jax.model import lora
from sam2_jax.model.sam2 import usual_promotion
from sam2_jax.parallel.data_parallel import over_clips
from sam2_jax.parallel.mesh import batch_sharding
from sam2_jax.train.clicks import draw_plan
from sam2_jax.train.optimizer import Hyperparameters, schedule
from sam2_jax.train.params import merge, partition
from sam2_jax.train.recipe import Batch, Recipe
from sam2_jax.train.state import TrainState, abstract_state

Metrics = dict[str, jax.Array]


def _is_gathered_by_model(path: str) -> bool:
    """The blocks of the trunk, most of all parameters, are used once a step, the others for every frame."""
    return re.search(r"^image_encoder/trunk/blocks_\d+/", path) is not None


@usual_promotion()
def train_step(
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    batch: Batch,
    values: Hyperparameters,
) -> tuple[TrainState, Metrics]:
    """Takes one step; pure. A loss or gradient that is not finite changes nothing and is counted.

    Args:
      recipe: what is trained.
      mesh: the devices.
      state: before the step.
      batch: clips.
      values: of `Recipe.hyperparameters`, () float32 each.

    Returns:
      The next state, and metrics, () float32 each: the loss and its parts, `true_iou` (of the last masks),
      `grad_norm`, `is_finite`, and the learning rates, `learning_rate/encoder` and those of groups.
    """
    experiment = recipe.experiment
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    trained, frozen = partition(state.params, recipe.is_trained)
    metrics, gradient = value_and_grad(recipe, mesh, trained, frozen, batch, key)
    norm = optax.tree.norm(gradient)
    is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

    def learn(trained, opt_state, ema):
        updates, opt_state = recipe.optimizer.update(
            gradient, opt_state, trained, step=state.step, values=values
        )
        trained = optax.apply_updates(trained, updates)
        if ema is not None:
            decay = experiment.ema_decay
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, trained)
        return trained, opt_state, ema

    before = (trained, state.opt_state, state.ema)
    trained, opt_state, ema = jax.lax.cond(is_finite, learn, lambda *before: before, *before)
    share = schedule(experiment.optimizer.schedule, values)(state.step)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=merge(state.params, trained),
        opt_state=opt_state,
        ema=ema,
        skipped=state.skipped + ~is_finite,
    )
    return state, metrics | {
        "grad_norm": norm,
        "learning_rate": values["learning_rate"] * share,
        "learning_rate/encoder": values["encoder_learning_rate"] * share,
        **{
            f"learning_rate/{name}": values["groups"][name]["learning_rate"] * share
            for name, group in experiment.optimizer.groups.items()
            if group.learning_rate >= 0
        },
        "is_finite": is_finite.astype(jnp.float32),
    }


def value_and_grad(
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    trained: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Batch,
    key: jax.Array,
) -> tuple[Metrics, dict[str, Any]]:
    """Computes the mean loss of an object, with its parts, and its gradient; clips are cut over the mesh.

    A batch that is cut into parts (`Optimizer.accumulate`) has the gradient of the whole one.

    Returns:
      Metrics, () float32 each, and the gradient, like `trained`.
    """
    interaction, parts = recipe.experiment.interaction, recipe.experiment.optimizer.accumulate
    num_clips, num_frames = batch.images.shape[:2]
    plan_key, key = jax.random.split(key)
    plan = jax.vmap(lambda key: draw_plan(key, num_frames, interaction))
    plans = plan(jax.random.split(plan_key, parts))
    num_objects = jnp.maximum(batch.is_object.sum(), 1)

    def of_clips(trained, frozen, clips, shared):
        plans, num_objects = shared

        def objective(trained, batch, keys, plan):
            sums = recipe.objective(lora.merge(merge(frozen, trained)), batch, plan, keys)
            return sums["loss"] / num_objects, sums

        clips = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), clips)
        return _accumulate(jax.grad(objective, has_aux=True), trained, (*clips, plans))

    clips = (batch, jax.random.split(key, num_clips))
    total = over_clips(mesh, recipe.experiment.sharding, of_clips, _is_gathered_by_model)
    gradient, sums = total(trained, frozen, clips, (plans, num_objects))
    means = {name: x / num_objects for name, x in sums.items() if name != "present"}
    if "present" in sums:
        means["true_iou"] = sums["true_iou"] / jnp.maximum(sums["present"], 1)
    return means, gradient


def _accumulate(differentiate: Callable, trained: Any, parts: Any) -> Any:
    """Adds up what `differentiate(trained, *part)` gives for the parts along the leading axis."""
    first = jax.tree.map(lambda x: x[0], parts)
    if len(jax.tree.leaves(parts)[0]) == 1:
        return differentiate(trained, *first)

    def add(total, part):
        return jax.tree.map(jnp.add, total, differentiate(trained, *part)), None

    shapes = jax.eval_shape(differentiate, trained, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def compiled_step(
    recipe: Recipe, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch, Hyperparameters], tuple[TrainState, Metrics]]:
    """Returns `train_step` for a mesh, jitted; it consumes the state that it is given."""
    state = jax.tree.map(lambda x: x.sharding, abstract_state(recipe, mesh))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(
        functools.partial(train_step, recipe, mesh),
        in_shardings=(state, batch_sharding(mesh), whole),
        out_shardings=(state, whole),
        donate_argnums=0,
    )
