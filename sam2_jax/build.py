"""Build models by name: configuration, module and parameters in one handle."""

import dataclasses
import functools
import logging
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sam2_jax.bundled import NAME as DEFAULT_MODEL
from sam2_jax.bundled import bundled_checkpoint
from sam2_jax.checkpoint import saved_overrides
from sam2_jax.config import (
    POSTPROCESSING_IMAGE,
    ModelConfig,
    SessionOptions,
    get_config,
    resolve_model_name,
    sort_overrides,
)
from sam2_jax.model.sam2 import Sam2, in_compute_type, init_params
from sam2_jax.track import begin, empty_bank, propagate, step, track

_LOG = logging.getLogger(__name__)
_WHICH_MODEL = (
    f"Using {DEFAULT_MODEL}, the small model that comes with sam2_jax. Released weights are far better: "
    "sam2-jax convert --download sam2.1_hiera_tiny --output tiny, then give checkpoint tiny."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A module and its parameters.

    Attributes:
      name: the released model it is built as.
      config: what it computes.
      params: nested dicts of arrays: kernels in compute type, the rest float32.
      session: what video sessions on it do with its answers.
    """

    name: str
    config: ModelConfig
    params: dict
    session: SessionOptions = dataclasses.field(default_factory=SessionOptions)

    @functools.cached_property
    def module(self) -> Sam2:
        """The Linen module; hashable, so it is a static argument of compiled functions."""
        return Sam2(self.config)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of biases and norms, which are few and which no training leaves as they were."""
        vectors = [x for x in jax.tree.leaves(self.params) if x.ndim == 1]
        return f"{functools.reduce(lambda sum, x: zlib.crc32(np.asarray(x), sum), vectors, 0):08x}"

    def empty_bank(self, num_objects: int, num_prompted: int = 1, num_frames: int = 16):
        """See `sam2_jax.track.empty_bank`."""
        return empty_bank(self.module, num_objects, num_prompted, num_frames)

    @property
    def begin(self):
        """`begin(params, bank, frame, prompt) -> (bank, prediction)`; see `sam2_jax.track.begin`."""
        return functools.partial(begin, self.module)

    @property
    def step(self):
        """`step(params, bank, frame, prompt) -> (bank, prediction)`; see `sam2_jax.track.step`."""
        return functools.partial(step, self.module)

    @property
    def propagate(self):
        """`propagate(params, bank, frames) -> (bank, predictions)`; see `sam2_jax.track.propagate`."""
        return functools.partial(propagate, self.module)

    @property
    def track(self):
        """`track(params, frames, prompt) -> (bank, predictions)`; see `sam2_jax.track.track`."""
        return functools.partial(track, self.module)


def _hydra_overrides(entries: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """`++model.field=value` -> {field: value}."""
    overrides = {}
    for entry in entries:
        key, separator, value = entry.lstrip("+").partition("=")
        if not separator:
            raise ValueError(f"The override {entry!r} is not of the form '++model.field=value'.")
        text = value.strip()
        if text.lower() in ("true", "false"):
            parsed: Any = text.lower() == "true"
        else:
            try:
                parsed = float(text) if any(c in text for c in ".eE") else int(text)
            except ValueError:
                parsed = text
        overrides[key.rsplit(".", 1)[-1]] = parsed
    return overrides


def load_weights(checkpoint: str | os.PathLike, model: str | None = None) -> tuple[str, dict]:
    """Loads the parameters of a model, on the host.

    Args:
      checkpoint: as for `build_sam2`.
      model: what it must be, in any spelling; None recognises it.

    Returns:
      The name of the model, and nested dicts of float32 arrays.

    Raises:
      ValueError: an unknown model, or a checkpoint that does not fit.
      FileNotFoundError: there is no such checkpoint.
    """
    from checkpoints_convert.convert import load_checkpoint

    return load_checkpoint(checkpoint, resolve_model_name(model) if model else None)


def load_start(checkpoint: str | os.PathLike, model: str, draw: Callable[[], dict]) -> dict:
    """Loads parameters to begin training with, on the host.

    Args:
      checkpoint: as for `build_sam2`, or a file with released Hiera weights, which become the trunk.
      model: what it must be, in any spelling.
      draw: returns random parameters of the model; called for what a Hiera does not have.

    Raises:
      ValueError: a checkpoint that does not fit.
      FileNotFoundError: there is no such checkpoint.
    """
    from checkpoints_convert import convert

    return convert.load_start(checkpoint, model, draw)


def build_model(
    model: str | None,
    checkpoint: str | os.PathLike | None,
    postprocessing: dict[str, Any],
    *,
    image_size: int | None = None,
    dtype: str | None = None,
    config_file: str | None = None,
    ckpt_path: str | os.PathLike | None = None,
    device: Any = None,
    mode: str = "eval",
    vos_optimized: bool = False,
    hydra_overrides_extra: list[str] | tuple[str, ...] = (),
    **model_overrides: Any,
) -> Model:
    """Shared by all builders; `device`, `mode` and `vos_optimized` mean nothing here and are accepted."""
    del device, mode, vos_optimized
    model, checkpoint = model or config_file, checkpoint if checkpoint is not None else ckpt_path
    overrides = {
        **postprocessing,
        **({} if image_size is None else {"image_size": image_size}),
        "dtype": dtype or _default_dtype(),
        **_hydra_overrides(hydra_overrides_extra),
        **model_overrides,
    }
    changes = sort_overrides(overrides)
    if changes.training:
        warnings.warn(
            f"{', '.join(changes.training)}: options of training, which change nothing here. They are fields "
            "of `Experiment`, and arguments of the module `Sam2`.",
            stacklevel=3,
        )
    name = resolve_model_name(model or DEFAULT_MODEL) if checkpoint is None else None
    is_bundled = name == DEFAULT_MODEL
    if is_bundled:
        checkpoint = bundled_checkpoint()
    if checkpoint is not None:
        name, params = load_weights(checkpoint, model)
        saved = sort_overrides(saved_overrides(checkpoint))
        config = get_config(name, **{**saved.model, **changes.model})
        if is_bundled:
            _LOG.warning(_WHICH_MODEL)
        session = SessionOptions(**{**saved.session, **changes.session})
        return Model(name, config, jax.device_put(in_compute_type(config, params)), session)

    config = get_config(name, **changes.model)
    warnings.warn(
        f"No checkpoint was given: {name} gets RANDOM weights and its masks mean nothing. Pass "
        "checkpoint=, a released .pt or a converted folder, or leave the model out: then it is "
        f"{DEFAULT_MODEL}, whose weights come with the package.",
        stacklevel=3,
    )
    params = jax.device_put(in_compute_type(config, init_params(config, jax.random.key(0))))
    return Model(name, config, params, SessionOptions(**changes.session))


def _default_dtype() -> str:
    """Half precision is what accelerators are fast in; most CPUs are not."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def build_sam2(
    model: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    *,
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> Model:
    """Builds a model for images, or for the functional core.

    Args:
      model: one of `sam2_jax.config.MODELS`, or the original's spelling of it. If a checkpoint is given it
        may be left out and is recognised.
      checkpoint: official .pt, .safetensors (or a folder with one), or this project's converted folder. None
        gives the weights that come with the package if the model is `sam2_nano`, as it is by default, and
        random weights, with a warning, if it is another.
      apply_postprocessing: choose the mask by stability when a single one is asked for.
      **kwargs: `image_size` (a multiple of 32; the model's own by default), `dtype` ("float32" or
        "bfloat16"; by default float32 on CPU and bfloat16 elsewhere), the original's `config_file`,
        `ckpt_path`, `device`, `mode`, `hydra_overrides_extra`, and any field of `ModelConfig` and
        `SessionOptions`.

    Raises:
      ValueError: unknown model or field, or a checkpoint that does not fit.
      FileNotFoundError: there is no such checkpoint.
    """
    return build_model(
        model, checkpoint, POSTPROCESSING_IMAGE if apply_postprocessing else {}, **kwargs
    )


def load_pretrained(model_id: str, postprocessing: dict[str, Any], **kwargs: Any) -> Model:
    """Loads a released model by name, from a local path or from the cache, else downloads it.

    Args:
      model_id: a path to a checkpoint file or folder, or a name such as `facebook/sam2.1-hiera-tiny`.
      postprocessing: config fields to switch on.
      **kwargs: as for `build_sam2`.

    Raises:
      ValueError: unknown model.
      FileNotFoundError: not cached and no network; the message says what to fetch and where to put it.
    """
    if Path(model_id).exists():
        return build_model(None, model_id, postprocessing, **kwargs)
    from checkpoints_convert.download import cached_checkpoint

    name = resolve_model_name(model_id)
    return build_model(name, cached_checkpoint(name), postprocessing, **kwargs)
