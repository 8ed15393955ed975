"""The training step: loss and gradient of a batch of clips, and the new state, on any mesh.

    learner = Learner(experiment);   state = learner.init(mesh)
    state, metrics = learner.step(mesh)(state, batch)

One compiled program a shape of batch. Clips are cut over the devices, parameters and optimizer state are
fully sharded, and the compiler adds the communication.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from sam2_jax.config import ModelConfig, get_config, sort_overrides
from sam2_jax.experiment import Experiment
from sam2_jax.model.sam2 import Sam2, init_params, param_shapes
from sam2_jax.parallel.mesh import batch_sharding
from sam2_jax.parallel.rules import shardings
from sam2_jax.parallel.spread import over_clips
from sam2_jax.train import lora
from sam2_jax.train.clicks import Plan, draw_plan
from sam2_jax.train.optimizer import make_optimizer, schedule
from sam2_jax.train.rollout import LOSSES, rollout, training_config

_MEMORY = r"memory_attention/|memory_encoder/|maskmem_tpos_enc|no_obj|obj_ptr_"
# Parts that `Experiment.trainable` names, as regular expressions on paths.
_TRAINED = {
    "all": r".",
    "no_encoder": r"^(?!image_encoder/)",
    "decoder": r"^mask_decoder/",
    "memory": rf"^({_MEMORY}|no_mem_embed)",
    "none": r"(?!)",
}
# A table of random frequencies that checkpoints carry, and a parameter that nothing reads.
_NEVER_TRAINED = re.compile(r"positional_encoding_gaussian_matrix$|^no_mem_pos_enc$")
# What images do not reach; weight decay would wear it down all the same.
_TRAINED_BY_VIDEOS = re.compile(rf"^({_MEMORY}|mask_downsample/)")


@struct.dataclass
class Batch:
    """Clips of one shape.

    Attributes:
      images: (B, T, S, S, 3) uint8 RGB.
      masks: (B, T, N, S, S) bool; an object is empty where it is absent.
      is_object: (B, N) bool; the others fill the shape.
    """

    images: jax.Array
    masks: jax.Array
    is_object: jax.Array


@struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      step: () int32 steps done, skipped ones included.
      params: parameters of the model, nested; with LoRA, its updates under `lora`.
      opt_state: of the trained parameters.
      ema: average of the trained parameters; None without one.
      key: (2,) uint32 random key of the run; a step folds its number into it.
      skipped: () int32 steps without a finite loss and gradient; they changed nothing.
      skipped_in_a_row: () int32 up to now.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    key: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def model_config(experiment: Experiment) -> ModelConfig:
    """Returns the configuration of the model, with the overrides of the experiment.

    Raises:
      ValueError: for an unknown model or field.
    """
    return get_config(experiment.model, **sort_overrides(experiment.model_overrides).model)


def memory_attention_dropout(experiment: Experiment) -> float:
    """Returns the rate; experiments of earlier versions have it among the overrides of the model."""
    earlier = sort_overrides(experiment.model_overrides).training
    return earlier.get("memory_attention_dropout", experiment.memory_attention_dropout)


def is_trained(experiment: Experiment, path: str) -> bool:
    """Tells whether a parameter, or a LoRA update, is trained."""
    if path.startswith("lora/"):
        return True
    return (
        bool(re.search(_TRAINED[experiment.trainable], path))
        and not _NEVER_TRAINED.search(path)
        and (experiment.has_videos or not _TRAINED_BY_VIDEOS.search(path))
    )


class Learner:
    """An experiment, ready to be trained.

    Attributes:
      experiment: what is trained, and how.
      config: of the model as its users run it.
      sam2: the module as training runs it.
      optimizer: of the trained parameters.
    """

    def __init__(self, experiment: Experiment):
        """Builds module and optimizer; touches no device."""
        self.experiment = experiment
        self.config = model_config(experiment)
        learns_encoder = is_trained(experiment, "image_encoder/")
        config = training_config(self.config)
        self.sam2 = Sam2(
            config,
            experiment.remat,
            experiment.drop_path_rate if learns_encoder else 0.0,
            memory_attention_dropout(experiment),
        )
        self._shapes = self._with_lora(param_shapes(config))
        self.optimizer = make_optimizer(
            self.trained(self._shapes),
            sum(config.hiera.stages),
            experiment.optimizer,
            experiment.num_steps,
        )

    def _with_lora(self, params):
        if not self.experiment.lora_rank:
            return params
        rng = np.random.default_rng(self.experiment.seed)
        return {
            **params,
            "lora": self._frozen_only(lora.init(params, self.experiment.lora_rank, rng)),
        }

    def _frozen_only(self, adapters):
        """Updates of kernels that are not trained themselves."""
        flat = flatten_dict(adapters, sep="/")
        kept = {
            p: x for p, x in flat.items() if not is_trained(self.experiment, p.rpartition("/")[0])
        }
        return unflatten_dict(kept, sep="/")

    def trained(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the part of nested parameters that is trained."""
        return self._part(params, wanted=True)

    def _part(self, params, wanted):
        flat = flatten_dict(params, sep="/")
        chosen = lambda path: is_trained(self.experiment, path) == wanted
        return unflatten_dict({path: x for path, x in flat.items() if chosen(path)}, sep="/")

    def _combined(self, params, trained):
        """Parameters with the trained ones replaced."""
        flat = flatten_dict(params, sep="/") | flatten_dict(trained, sep="/")
        return unflatten_dict(flat, sep="/")

    def _effective(self, params):
        """Parameters of the model alone, with LoRA added to them."""
        model = {name: x for name, x in params.items() if name != "lora"}
        return lora.merge(model, params["lora"]) if "lora" in params else model

    def _start(self, params):
        """The state before the first step."""
        trained = self.trained(params)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=params,
            opt_state=self.optimizer.init(trained),
            ema=jax.tree.map(jnp.copy, trained) if self.experiment.ema_decay else None,
            key=jax.random.key_data(jax.random.key(self.experiment.seed)),
            skipped=zero,
            skipped_in_a_row=zero,
        )

    def abstract_state(self, mesh: jax.sharding.Mesh) -> TrainState:
        """Returns shapes, types and shardings of the state."""
        state = jax.eval_shape(self._start, self._shapes)
        attach = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.tree.map(attach, state, shardings(mesh, state))

    def init(self, mesh: jax.sharding.Mesh, params: Mapping[str, Any] | None = None) -> TrainState:
        """Makes the state of step 0; no array is ever whole on a device that holds a part of it.

        Args:
          mesh: from `sam2_jax.parallel.mesh.make_mesh`.
          params: of the model, on the host; None draws them.
        """
        if params is None:
            params = init_params(self.sam2.config, jax.random.key(self.experiment.seed))
        params = self._with_lora(params)
        abstract = self.abstract_state(mesh)

        def place(host, x):
            host = np.asarray(host, x.dtype)
            return jax.make_array_from_callback(x.shape, x.sharding, lambda index: host[index])

        placed = jax.tree.map(place, params, abstract.params)
        out = jax.tree.map(lambda x: x.sharding, abstract)
        return jax.jit(self._start, out_shardings=out, donate_argnums=0)(placed)

    def abstract_batch(
        self, mesh: jax.sharding.Mesh, batch_size: int, num_frames: int, max_objects: int
    ) -> Batch:
        """Returns shapes, types and shardings of a batch."""
        b, t, n, s = batch_size, num_frames, max_objects, self.config.image_size
        array = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
        return Batch(
            array((b, t, s, s, 3), np.uint8), array((b, t, n, s, s), bool), array((b, n), bool)
        )

    def put_batch(self, mesh: jax.sharding.Mesh, batch: Mapping[str, np.ndarray]) -> Batch:
        """Puts this process's part of a batch on its devices.

        Raises:
          ValueError: when the clips do not spread evenly over the devices.
        """
        put = functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
        return Batch(put(batch["images"]), put(batch["masks"]), put(batch["is_object"]))

    def loss(
        self, params: Mapping[str, Any], batch: Batch, plan: Plan, keys: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums of the losses over the objects of some clips.

        Args:
          params: of the model.
          batch: B clips.
          plan: what happens on their frames.
          keys: (B,) random keys.

        Returns:
          () float32 each: the `LOSSES`, `true_iou`, `present`; see `rollout`.
        """
        experiment = self.experiment
        one_clip = lambda images, masks, key: rollout(
            self.sam2, params, images, masks, plan, key, experiment.interaction, experiment.loss
        )
        sums = jax.vmap(one_clip)(batch.images, batch.masks, keys)
        return jax.tree.map(lambda x: (x * batch.is_object).sum(), sums)

    def gradient(
        self, mesh: jax.sharding.Mesh, params: Mapping[str, Any], batch: Batch, key: jax.Array
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Gradient with respect to the trained parameters of the mean loss of an object, and its parts.

        A batch that is cut into parts (`Optimizer.accumulate`) has the gradient of the whole one.
        """
        interaction, parts = self.experiment.interaction, self.experiment.optimizer.accumulate
        num_clips, num_frames = batch.images.shape[:2]
        plan_key, key = jax.random.split(key)
        plans = jax.vmap(lambda key: draw_plan(key, num_frames, interaction))(
            jax.random.split(plan_key, parts)
        )
        num_objects = jnp.maximum(batch.is_object.sum(), 1)

        def of_clips(trained, frozen, clips, shared):
            plans, num_objects = shared

            def objective(trained, batch, keys, plan):
                params = self._effective(self._combined(frozen, trained))
                sums = self.loss(params, batch, plan, keys)
                return sums["loss"] / num_objects, sums

            differentiate = jax.grad(objective, has_aux=True)
            xs = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), clips)
            if parts == 1:
                return differentiate(trained, *jax.tree.map(lambda x: x[0], (*xs, plans)))

            def add(total, xs):
                return jax.tree.map(jnp.add, total, differentiate(trained, *xs)), None

            first = jax.tree.map(lambda x: x[0], (*xs, plans))
            shapes = jax.eval_shape(differentiate, trained, *first)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return jax.lax.scan(add, zeros, (*xs, plans))[0]

        trained, frozen = self.trained(params), self._part(params, wanted=False)
        clips = (batch, jax.random.split(key, num_clips))
        shared = (plans, num_objects)
        gradient, sums = over_clips(mesh, of_clips)(trained, frozen, clips, shared)
        metrics = {name: sums[name] / num_objects for name in LOSSES}
        metrics["true_iou"] = sums["true_iou"] / jnp.maximum(sums["present"], 1)
        return gradient, metrics

    def update(
        self, mesh: jax.sharding.Mesh, state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step, pure; `step` compiles it.

        Returns:
          The next state, and metrics, () float32 each: the loss and its parts, `true_iou` (of the last
          masks), `grad_norm`, `learning_rate`, `is_finite`.
        """
        experiment = self.experiment
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        gradient, metrics = self.gradient(mesh, state.params, batch, key)
        norm = optax.tree.norm(gradient)
        is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

        def learn(trained, opt_state, ema):
            updates, opt_state = self.optimizer.update(gradient, opt_state, trained)
            trained = optax.apply_updates(trained, updates)
            if ema is not None:
                decay = experiment.ema_decay
                ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, trained)
            return trained, opt_state, ema

        before = (self.trained(state.params), state.opt_state, state.ema)
        new, opt_state, ema = jax.lax.cond(is_finite, learn, lambda *before: before, *before)
        rate = experiment.optimizer.learning_rate
        metrics |= {
            "grad_norm": norm,
            "learning_rate": rate
            * schedule(experiment.optimizer, experiment.num_steps)(state.step),
            "is_finite": is_finite.astype(jnp.float32),
        }
        state = TrainState(
            step=state.step + 1,
            params=self._combined(state.params, new),
            opt_state=opt_state,
            ema=ema,
            key=state.key,
            skipped=state.skipped + ~is_finite,
            skipped_in_a_row=jnp.where(is_finite, 0, state.skipped_in_a_row + 1),
        )
        return state, metrics

    def step(self, mesh: jax.sharding.Mesh) -> Callable:
        """Returns the compiled `update` for a mesh; it consumes the state that it is given."""
        state = jax.tree.map(lambda x: x.sharding, self.abstract_state(mesh))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.jit(
            functools.partial(self.update, mesh),
            in_shardings=(state, batch_sharding(mesh)),
            out_shardings=(state, whole),
            donate_argnums=0,
        )

    def export_params(self, state: TrainState) -> dict[str, Any]:
        """Returns the parameters of the model on the host: averaged if there is an average, LoRA merged."""
        params = state.params if state.ema is None else self._combined(state.params, state.ema)
        whole = jax.experimental.multihost_utils.process_allgather
        host = jax.tree.map(
            lambda x: whole(x, tiled=True) if not x.is_fully_addressable else x, params
        )
        return jax.tree.map(np.asarray, jax.device_get(self._effective(host)))
