"""What a run carries from step to step, and the batches it sees, with their places on the devices."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import multihost_utils

from sam2_jax.checkpoint import load_start
from sam2_jax.checkpoint.download import find_weights
from sam2_jax.checkpoint.run_folder import exported
from sam2_jax.parallel.mesh import batch_sharding
from sam2_jax.parallel.rules import shardings
from sam2_jax.train.optimizer import Hyperparameters
from sam2_jax.train.params import partition
from sam2_jax.train.recipe import Batch, Recipe, carried


@struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      step: () int32 steps done, skipped ones included.
      params: what `recipe.carried` returns.
      opt_state: of the trained parameters.
      ema: average of the trained parameters; None without one.
      key: (2,) uint32 random key of the run; a step folds its number into it.
      skipped: () int32 steps without a finite loss and gradient; they changed nothing.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    key: jax.Array
    skipped: jax.Array


def _start(recipe: Recipe, params: Mapping[str, Any]) -> TrainState:
    """The state before the first step."""
    trained, _ = partition(params, recipe.is_trained)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=recipe.optimizer.init(trained),
        ema=jax.tree.map(jnp.copy, trained) if recipe.experiment.ema_decay else None,
        key=jax.random.key_data(jax.random.key(recipe.experiment.seed)),
        skipped=zero,
    )


def abstract_state(recipe: Recipe, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns shapes, types and shardings of the state."""
    state = jax.eval_shape(functools.partial(_start, recipe), recipe.shapes)
    attach = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(attach, state, shardings(mesh, recipe.experiment.sharding, state))


def init_state(
    recipe: Recipe, mesh: jax.sharding.Mesh, params: Mapping[str, Any] | None = None
) -> TrainState:
    """Makes the state of step 0; no array is ever whole on a device that holds a part of it.

    Args:
      recipe: what is trained.
      mesh: from `sam2_jax.parallel.mesh.make_mesh`.
      params: of the model, on the host; None draws them.
    """
    params = carried(recipe.experiment, recipe.config, recipe.draw() if params is None else params)
    abstract = abstract_state(recipe, mesh)

    place = lambda host, x: _place(np.asarray(host, x.dtype), x.sharding)
    placed = jax.tree.map(place, params, abstract.params)
    out = jax.tree.map(lambda x: x.sharding, abstract)
    start = jax.jit(functools.partial(_start, recipe), out_shardings=out, donate_argnums=0)
    return start(placed)


def starting_params(recipe: Recipe) -> dict[str, Any] | None:
    """Loads the parameters from which an experiment starts, on the host; None if it draws them.

    Raises:
      FileNotFoundError: there are none where `init_from` says.
      ValueError: they do not fit the model.
    """
    experiment = recipe.experiment
    if not experiment.init_from:
        return None
    path = find_weights(experiment.init_from)
    name, fresh = experiment.model, experiment.init_except
    return load_start(path, name, recipe.config, recipe.draw, fresh).params


def abstract_batch(
    recipe: Recipe, mesh: jax.sharding.Mesh, batch_size: int, num_frames: int, max_objects: int
) -> Batch:
    """Returns shapes, types and shardings of a batch."""
    b, t, n, s = batch_size, num_frames, max_objects, recipe.config.image_size
    array: Any = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    return Batch(
        array((b, t, s, s, 3), np.uint8), array((b, t, n, s, s), bool), array((b, n), bool)
    )


def put_batch(mesh: jax.sharding.Mesh, batch: Mapping[str, np.ndarray]) -> Batch:
    """Puts this process's part of a batch on its devices.

    Raises:
      ValueError: when the clips do not spread evenly over the devices.
    """
    put = functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    ignored = put(batch["ignored"]) if "ignored" in batch else None
    return Batch(put(batch["images"]), put(batch["masks"]), put(batch["is_object"]), ignored)


def put_hyperparameters(recipe: Recipe, mesh: jax.sharding.Mesh) -> Hyperparameters:
    """Puts the numbers of a recipe on the devices, () float32 each."""
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    place = lambda x: _place(np.asarray(x, np.float32), whole)
    return jax.tree.map(place, recipe.hyperparameters)


def _place(host: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array on devices, of several processes too: `device_put` would let these compare it first."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def export_params(state: TrainState) -> dict[str, Any]:
    """Returns what a state has learnt, on the host; all processes call it. See `exported`."""
    gather = functools.partial(multihost_utils.process_allgather, tiled=True)
    whole = lambda x: x if x.is_fully_addressable else gather(x)
    params, ema = jax.device_get(jax.tree.map(whole, (state.params, state.ema)))
    return jax.tree.map(np.asarray, exported(params, ema))
