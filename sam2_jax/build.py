"""Build models by name: configuration, module and parameters in one handle."""

import dataclasses
import functools
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from sam2_jax.checkpoint import Checkpoint, bundled, digest, download, load
from sam2_jax.checkpoint.run_folder import is_run
from sam2_jax.config import (
    PICTURE_OPTIONS,
    POSTPROCESSING_IMAGE,
    ModelConfig,
    PictureOptions,
    SessionOptions,
    get_config,
    resolve_model_name,
    sort_overrides,
)
from sam2_jax.hydra import field_overrides, find_config
from sam2_jax.model.sam2 import Sam2, in_compute_type, init_params
from sam2_jax.module_like import ModuleLike
from sam2_jax.outputs import check_outputs
from sam2_jax.structs import MemoryBank, Prediction
from sam2_jax.track import begin, empty_bank, propagate, step, track

_LOG = logging.getLogger(__name__)
_WHICH_MODEL = (
    f"Using {bundled.NAME}, the small model that comes with sam2_jax. Released weights are far better: "
    "sam2-jax convert --download sam2.1_hiera_tiny --output tiny, then give checkpoint tiny."
)


_users: set[int] = (
    set()
)  # processes, this one and those that it was forked from, in which a model was used


def check_process() -> None:
    """Fails in a process that was forked from one with a model: JAX's threads are not in it, it would hang.

    Raises:
      RuntimeError: see above.
    """
    _users.add(os.getpid())
    if len(_users) > 1:
        raise RuntimeError(
            "This process was forked from one in which a model was used; JAX would hang in it. Start workers "
            'by spawn, multiprocessing.get_context("spawn") or mp_context= of ProcessPoolExecutor, or build '
            "the model in the workers alone."
        )


@dataclasses.dataclass(eq=False)
class Model(ModuleLike):
    """A module and its parameters. Options of `config` can be set as attributes, as on the original's.

    Attributes:
      name: the released model it is built as.
      config: what it computes.
      params: nested dicts of arrays: kernels in compute type, the rest float32.
      session: what video sessions on it do with its answers.
      pictures: what predictors on pictures do with them, where they are not told.
      outputs: what predictors hand out: "numpy", "torch" or "jax"; see `sam2_jax.outputs`.
    """

    name: str
    config: ModelConfig
    params: dict = dataclasses.field(repr=False)
    session: SessionOptions = dataclasses.field(default_factory=SessionOptions)
    outputs: str = "numpy"
    pictures: PictureOptions = dataclasses.field(default_factory=PictureOptions)

    @property
    def module(self) -> Sam2:
        """The Linen module; hashable, so it is a static argument of compiled functions."""
        check_process()
        return self._module

    @functools.cached_property
    def _module(self) -> Sam2:
        return Sam2(self.config)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the parameters, by which files tell whose answers they hold; see `checkpoint.digest`."""
        return digest(self.params)

    def empty_bank(
        self, num_objects: int, num_prompted: int = 1, num_frames: int = 16
    ) -> MemoryBank:
        """See `sam2_jax.track.empty_bank`."""
        return empty_bank(self.module, num_objects, num_prompted, num_frames)

    @property
    def begin(self) -> Callable[..., tuple[MemoryBank, Prediction]]:
        """`begin(params, bank, frame, prompt) -> (bank, prediction)`; see `sam2_jax.track.begin`."""
        return functools.partial(begin, self.module)

    @property
    def step(self) -> Callable[..., tuple[MemoryBank, Prediction]]:
        """`step(params, bank, frame, prompt) -> (bank, prediction)`; see `sam2_jax.track.step`."""
        return functools.partial(step, self.module)

    @property
    def propagate(self) -> Callable[..., tuple[MemoryBank, Prediction]]:
        """`propagate(params, bank, frames) -> (bank, predictions)`; see `sam2_jax.track.propagate`."""
        return functools.partial(propagate, self.module)

    @property
    def track(self) -> Callable[..., tuple[MemoryBank, Prediction]]:
        """`track(params, frames, prompt) -> (bank, predictions)`; see `sam2_jax.track.track`."""
        return functools.partial(track, self.module)


def build_model(
    model: str | os.PathLike | None,
    checkpoint: str | os.PathLike | Checkpoint | None,
    postprocessing: dict[str, Any],
    *,
    image_size: int | None = None,
    dtype: str | None = None,
    config_file: str | os.PathLike | None = None,
    ckpt_path: str | os.PathLike | None = None,
    device: Any = None,
    mode: str = "eval",
    vos_optimized: bool = False,
    hydra_overrides_extra: Sequence[str] = (),
    outputs: str = "numpy",
    **model_overrides: Any,
) -> Model:
    """Shared by all builders; `device` and `vos_optimized` mean nothing here and are accepted."""
    del device, vos_optimized
    if mode == "train":
        raise ValueError(
            'mode is "train": a built model does not train; sam2-jax train does, and docs/training.md says '
            "how."
        )
    check_outputs(outputs)
    check_process()
    checkpoint = checkpoint if checkpoint is not None else ckpt_path
    name, implied = find_config(model or config_file, has_checkpoint=checkpoint is not None)
    overrides = {
        **postprocessing,
        **implied,
        **({} if image_size is None else {"image_size": image_size}),
        "dtype": dtype or _default_dtype(),
        **field_overrides(hydra_overrides_extra),
        **model_overrides,
    }
    changes = sort_overrides(overrides)
    if changes.training:
        warnings.warn(
            f"{', '.join(changes.training)}: options of training, which change nothing here. They are fields "
            "of `Experiment`, and arguments of the module `Sam2`.",
            stacklevel=3,
        )
    if checkpoint is None:
        weights = _without_checkpoint(name or bundled.NAME, changes.model)
    else:
        weights = load(checkpoint, name, **changes.model)
    params = jax.device_put(in_compute_type(weights.config, dict(weights.params)))
    session = SessionOptions(**changes.session)
    own = PICTURE_OPTIONS.get(weights.name) if postprocessing else None
    return Model(weights.name, weights.config, params, session, outputs, own or PictureOptions())


def _without_checkpoint(model: str, overrides: dict[str, Any]) -> Checkpoint:
    """The bundled model, or random weights of another."""
    name = resolve_model_name(model)
    if name == bundled.NAME:
        weights = bundled.load_bundled(**overrides)
        _LOG.warning(_WHICH_MODEL)
        return weights
    config = get_config(name, **overrides)
    warnings.warn(
        f"No checkpoint was given: {name} gets RANDOM weights and its masks mean nothing. Pass "
        "checkpoint=, a released .pt or a converted folder, or leave the model out: then it is "
        f"{bundled.NAME}, whose weights come with the package.",
        stacklevel=4,
    )
    return Checkpoint(name, config, init_params(config, jax.random.key(0)))


def _default_dtype() -> str:
    """Half precision is what accelerators are fast in; most CPUs are not."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def build_sam2(
    model: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | Checkpoint | None = None,
    device: Any = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> Model:
    """Builds a model for images, or for the functional core.

    Args:
      model: one of `sam2_jax.config.MODELS`, or the original's spelling of it, a path of a yaml file
        included. If a checkpoint is given it
        may be left out and is recognised.
      checkpoint: official .pt, .safetensors (or a folder with one), this project's converted folder, the
        folder of a training run, or what `sam2_jax.checkpoint.load` returns. None gives the weights that come
        with the package if the model is `sam2_nano`, as it is by default, and random weights, with a warning,
        if it is another.
      device: accepted for the original's sake, as `mode="eval"` is; JAX chooses.
      mode: "eval".
      hydra_overrides_extra: the original's, such as "++model.fill_hole_area=0"; what cannot be taken is
        refused.
      apply_postprocessing: choose the mask by stability when a single one is asked for; of `sam2_nano`, clean
        masks of pictures, and keep automatic ones that it is less sure of (`PICTURE_OPTIONS`).
      **kwargs: `image_size` (a multiple of 32; the model's own by default), `dtype` ("float32" or
        "bfloat16"; by default float32 on CPU and bfloat16 elsewhere), `outputs` ("numpy", "torch" or "jax":
        what predictors hand out), the original's `config_file` and `ckpt_path`, and any field of `ModelConfig`
        and `SessionOptions`.

    Raises:
      ValueError: unknown model or field, or a checkpoint that does not fit.
      FileNotFoundError: there is no such checkpoint.
    """
    del device
    postprocessing = POSTPROCESSING_IMAGE if apply_postprocessing else {}
    return build_model(
        model,
        checkpoint,
        postprocessing,
        mode=mode,
        hydra_overrides_extra=hydra_overrides_extra,
        **kwargs,
    )


def load_pretrained(
    model_id: str | os.PathLike, postprocessing: dict[str, Any], **kwargs: Any
) -> Model:
    """Loads a released model by name, from a local path or from the cache, else downloads it.

    Args:
      model_id: a path to a checkpoint file or folder, or a name such as `facebook/sam2.1-hiera-tiny`.
      postprocessing: config fields to switch on, unless `apply_postprocessing=False` is among `kwargs`.
      **kwargs: as for `build_sam2`; others are let pass with a warning, as the original lets them pass.

    Raises:
      ValueError: unknown model.
      FileNotFoundError: not cached and no network; the message says what to fetch and where to put it.
    """
    known = _builder_options()
    if unknown := kwargs.keys() - known:
        warnings.warn(
            f"from_pretrained does not know {', '.join(sorted(unknown))}: without effect.",
            stacklevel=3,
        )
    options = {name: value for name, value in kwargs.items() if name in known}
    if not options.pop("apply_postprocessing", True):
        postprocessing = {}
    if Path(model_id).exists() or is_run(os.fspath(model_id)):
        return build_model(None, model_id, postprocessing, **options)
    name = resolve_model_name(os.fspath(model_id))
    return build_model(name, download.cached_checkpoint(name), postprocessing, **options)


def _builder_options() -> set[str]:
    own = inspect.signature(build_model).parameters.values()
    named = {p.name for p in own if p.kind is p.KEYWORD_ONLY}
    return (
        named
        | {"apply_postprocessing"}
        | {
            field.name
            for part in (ModelConfig, SessionOptions)
            for field in dataclasses.fields(part)
        }
    )


def model_of(built: Any) -> Model:
    """The model of what a builder returned: itself, or that of a predictor.

    Raises:
      TypeError: it is neither.
    """
    model = getattr(built, "model", built)
    if not isinstance(model, Model):
        raise TypeError(
            f"The model is {type(built).__name__}; expected what build_sam2 or build_sam2_video_predictor "
            "returns."
        )
    return model
