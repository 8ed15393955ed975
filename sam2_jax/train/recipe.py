"""An experiment as functions: what is learnt, and how, before any device is touched.

make_recipe(experiment)  ->  Recipe: the model's parameters, the loss of a batch of clips, the optimizer
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from sam2_jax.config import ModelConfig, get_config, sort_overrides
from sam2_jax.experiment import Experiment
from sam2_jax.model import mae
from sam2_jax.model.layers import draw_params
from sam2_jax.model.sam2 import Sam2, init_params, normalise, param_shapes
from sam2_jax.train.clicks import Plan, draw_plan
from sam2_jax.train.losses import LossFn, prediction_losses
from sam2_jax.train.optimizer import Hyperparameters, hyperparameters, make_optimizer
from sam2_jax.train.params import is_trained, partition, with_lora
from sam2_jax.train.rollout import rollout, training_config


@struct.dataclass
class Batch:
    """Clips of one shape.

    Attributes:
      images: (B, T, S, S, 3) uint8 RGB.
      masks: (B, T, N, S, S) bool; an object is empty where it is absent.
      is_object: (B, N) bool; the others fill the shape.
      ignored: (B, T, S, S) bool, pixels of which it is not known what they show; None if all are known.
    """

    images: jax.Array
    masks: jax.Array
    is_object: jax.Array
    ignored: jax.Array | None = None


Objective = Callable[[Mapping[str, Any], Batch, Plan, jax.Array], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a training step is made of.

    Attributes:
      experiment: what is trained, and how.
      config: of the model as its users run it.
      shapes: of all parameters, nested; see `carried`.
      draw: returns random parameters of the model, on the host.
      objective: maps (parameters of the model, B clips, plan of their frames, (B,) random keys) to sums over
        objects, () float32 each. `loss` is differentiated; all are reported, divided by the number of objects,
        and `true_iou`, if there is one, by `present`.
      optimizer: of the trained parameters.
    """

    experiment: Experiment
    config: ModelConfig
    shapes: Mapping[str, Any]
    draw: Callable[[], dict[str, Any]]
    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Numbers that every step takes, so that changing them compiles nothing."""
        return hyperparameters(self.experiment.optimizer, self.experiment.num_steps)

    def loss_of_batch(
        self, params: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Returns what `objective` gives for held-out clips, with prompts that are always the same ones."""
        key = jax.random.key(0)
        plan = draw_plan(key, batch["images"].shape[1], self.experiment.interaction)
        clips = Batch(batch["images"], batch["masks"], batch["is_object"], batch.get("ignored"))
        return self._compiled_objective(
            params, clips, plan, jax.random.split(key, len(clips.images))
        )

    @functools.cached_property
    def _compiled_objective(self) -> Objective:
        return jax.jit(self.objective)

    def is_trained(self, path: str) -> bool:
        """Tells whether a parameter is trained."""
        return is_trained(self.experiment, path)


def model_config(experiment: Experiment) -> ModelConfig:
    """Returns the configuration of the model, with the overrides of the experiment.

    Raises:
      ValueError: for an unknown model or field.
    """
    return get_config(experiment.model, **sort_overrides(experiment.model_overrides).model)


def training_module(experiment: Experiment) -> Sam2:
    """Returns the module as training runs it: with dropout, drop path and rematerialisation."""
    # Experiments of earlier versions have it among the overrides of the model.
    earlier = sort_overrides(experiment.model_overrides).training
    learns_encoder = is_trained(experiment, "image_encoder/")
    return Sam2(
        training_config(model_config(experiment)),
        experiment.remat,
        experiment.drop_path_rate if learns_encoder else 0.0,
        earlier.get("memory_attention_dropout", experiment.memory_attention_dropout),
    )


def make_recipe(experiment: Experiment, loss_fn: LossFn | None = None) -> Recipe:
    """Turns an experiment into functions.

    Args:
      experiment: what is trained, and how.
      loss_fn: compares the candidates of one prediction with the target; None is `prediction_losses`, with the
        weights of the experiment.

    Raises:
      ValueError: for an unknown model or field, or if the objective takes no `loss_fn`.
    """
    sam2 = training_module(experiment)
    config = model_config(experiment)
    if experiment.objective == "mae":
        if loss_fn is not None:
            raise ValueError("objective='mae' compares pixels; it takes no loss_fn.")
        objective = _mae_objective(experiment, config)
    else:
        objective = _masks_objective(experiment, sam2, loss_fn)
    shapes = carried(experiment, config, param_shapes(sam2.config))
    return Recipe(
        experiment=experiment,
        config=config,
        shapes=shapes,
        draw=lambda: init_params(sam2.config, jax.random.key(experiment.seed)),
        objective=objective,
        optimizer=make_optimizer(
            partition(shapes, functools.partial(is_trained, experiment))[0],
            sum(sam2.config.hiera.stages),
            experiment.optimizer,
        ),
    )


def carried(
    experiment: Experiment, config: ModelConfig, params: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a run carries from step to step, given parameters of its model.

    Args:
      experiment: of the run.
      config: of the model.
      params: nested, arrays or shapes.

    Returns:
      All of them, with low-rank updates under `lora` if there are any; for a masked autoencoder those of the
      trunk, and its decoder under `mae`.
    """
    if experiment.objective != "mae":
        return with_lora(experiment, params)
    trunk, decoder = _autoencoder(experiment, config)
    trunk_params = params["image_encoder"]["trunk"]
    size = config.image_size

    def init(key, trunk_params, image, kept):
        maps = trunk.apply({"params": trunk_params}, image, kept)
        return decoder.init(key, maps, kept, size)["params"]

    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    kept = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = jax.eval_shape(init, jax.random.key(0), trunk_params, image, kept)
    drawn = draw_params(np.random.default_rng(experiment.seed), shapes)
    return {"image_encoder": {"trunk": trunk_params}, "mae": drawn}


def _autoencoder(
    experiment: Experiment, config: ModelConfig
) -> tuple[mae.MaskedHiera, mae.MaskedDecoder]:
    dtype, remat, sizes = config.dtype, experiment.remat, experiment.mae
    trunk = mae.MaskedHiera(config.hiera, dtype, remat, experiment.drop_path_rate)
    decoder = mae.MaskedDecoder(
        sizes.decoder_embed_dim, sizes.decoder_depth, sizes.decoder_num_heads, dtype, remat
    )
    return trunk, decoder


def _mae_objective(experiment: Experiment, config: ModelConfig) -> Objective:
    trunk, decoder = _autoencoder(experiment, config)
    num_kept = mae.num_kept(config.image_size, experiment.mae.mask_ratio)

    def objective(params, batch, plan, keys):
        trunk_params = {"params": params["image_encoder"]["trunk"]}

        def one_clip(images, key):
            unit_key, dropout_key = jax.random.split(key)
            kept = mae.draw_kept(unit_key, len(images), config.image_size, num_kept)
            images = normalise(images)
            rngs = {"dropout": dropout_key}
            maps = trunk.apply(trunk_params, images, kept, is_training=True, rngs=rngs)
            predicted = decoder.apply({"params": params["mae"]}, maps, kept, config.image_size)
            return mae.pixel_loss(images, predicted, kept).mean()

        loss = jax.vmap(one_clip)(batch.images, keys)
        return {"loss": (loss[:, None] * batch.is_object).sum()}

    return objective


def _masks_objective(experiment: Experiment, sam2: Sam2, loss_fn: LossFn | None) -> Objective:
    loss_fn = loss_fn or functools.partial(prediction_losses, weights=experiment.loss)

    def objective(params, batch, plan, keys):
        one_clip = lambda images, masks, ignored, key: rollout(
            sam2, params, images, masks, ignored, plan, key, experiment.interaction, loss_fn
        )
        sums = jax.vmap(one_clip)(batch.images, batch.masks, batch.ignored, keys)
        return jax.tree.map(lambda x: (x * batch.is_object).sum(), sums)

    return objective
