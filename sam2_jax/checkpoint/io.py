"""Reads and writes checkpoints of every kind, strictly: every tensor has its place, or none is used."""

import contextlib
import dataclasses
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sam2_jax.checkpoint import folder, hiera, names, run_folder, torch_file
from sam2_jax.checkpoint.checkpoint import Checkpoint
from sam2_jax.config import ModelConfig, get_config, resolve_model_name
from sam2_jax.files import write_file
from sam2_jax.model.sam2 import param_shapes

_SAFETENSORS = "model.safetensors"
_INDEX = f"{_SAFETENSORS}.index.json"
# What DistributedDataParallel, FSDP, checkpointing and torch.compile put into names.
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# A prefix that the whole model has, as in Lightning's "model.image_encoder...".
_PREFIX = re.compile(r"(.+\.)(?:image_encoder|vision_encoder)\.")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside the model


def load(
    source: str | os.PathLike | Checkpoint, model: str | None = None, **overrides: Any
) -> Checkpoint:
    """Loads a checkpoint of any kind.

    Args:
      source: a `.pt` file; a `.safetensors` file with official or Hugging Face names, a folder with a
        `model.safetensors` or its shards, their `model.safetensors.index.json`; a folder that `save` wrote;
        a training run: `RUN` for its newest checkpoint, `RUN@best`, `RUN/checkpoints/N`; or one that is loaded.
      model: its name, in any spelling; recognised when None.
      **overrides: fields of the configuration that shall not be as the checkpoint or the model has them.

    Returns:
      The checkpoint, on the host; parameters are float32.

    Raises:
      FileNotFoundError: when there is no such file or folder.
      ValueError: when it is damaged, of no known kind, or does not fit the model; the message names every
        missing, unexpected and wrong-shaped tensor.
    """
    name = None if model is None else resolve_model_name(model)
    if isinstance(source, Checkpoint):
        return _fitted(source, name, overrides, "the checkpoint")
    path = os.fspath(source)
    if own := _own_format(path):
        if set(own.params) == {"image_encoder"}:
            raise ValueError(
                f"{path} holds a masked autoencoder, of which training can begin with the trunk "
                "(--config.init_from)."
            )
        return _fitted(own, name, overrides, path)
    tensors = _read_tensors(Path(path))
    if hiera.is_hiera(tensors):
        raise ValueError(
            f"{path} holds a Hiera, which is only the trunk of a SAM 2: training can begin with it "
            "(--config.init_from)."
        )
    with _naming(path):
        name = name or names.recognise(_shapes(tensors))
        config = get_config(name, **overrides)
        return _checkpoint(name, config, tensors)


def load_start(
    path: str | os.PathLike,
    model: str,
    config: ModelConfig,
    draw: Callable[[], dict[str, Any]],
    drawn_anew: str = "",
) -> Checkpoint:
    """Loads what training begins with: a checkpoint, or a trunk: released Hiera weights, or pre-trained here.

    Args:
      path: as for `load`, a file with Hiera weights, or a run that pre-trained the trunk.
      model: its name, in any spelling.
      config: what the weights shall fit.
      draw: returns random parameters of the model; called for what a trunk does not have, and what is drawn
        anew.
      drawn_anew: regular expression; parameters in whose path it is found are not taken from the checkpoint,
        which may lack them or have them in other shapes. "" is none.

    Raises:
      FileNotFoundError: when there is no such file or folder.
      ValueError: when it is damaged, of no known kind, or does not fit the model.
    """
    name = resolve_model_name(model)
    if own := _own_format(os.fspath(path)):
        _check_name(own, name, path)
        tensors = names.to_state_dict(own.params, own.params)
    else:
        tensors = _read_tensors(Path(path))
    with _naming(path):
        if hiera.is_hiera(tensors):
            tensors = hiera.trunk_tensors(tensors, names.official_shapes(param_shapes(config)))
        if tensors and all(map(hiera.in_trunk, tensors)):
            drawn = draw()
            rest = names.to_state_dict(drawn, drawn)
            tensors |= {key: x for key, x in rest.items() if not hiera.in_trunk(key)}
        if drawn_anew:
            drawn = draw()
            is_drawn = lambda key, x: bool(re.search(drawn_anew, names.flax_path(key, x.ndim)))
            parts = ((tensors, False), (names.to_state_dict(drawn, drawn), True))
            tensors = {
                key: x
                for part, wanted in parts
                for key, x in part.items()
                if is_drawn(key, x) == wanted
            }
        return _checkpoint(name, config, tensors)


def save(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Saves a checkpoint; what is written appears whole or not at all.

    A warning tells what of the configuration a `.pt` or a `.safetensors` cannot hold.

    Args:
      path: ends with `.pt` or `.safetensors` for a file with official names, else a folder in this project's
        format is written.
      checkpoint: of a model of `sam2_jax.config.MODELS`.

    Raises:
      FileExistsError: when the folder exists and holds something else.
      ValueError: when the parameters do not fit the configuration.
    """
    path = Path(path)
    state_dict = names.to_state_dict(checkpoint.params, param_shapes(checkpoint.config))
    if path.suffix not in (".pt", ".safetensors"):
        folder.save(path, checkpoint)
        return
    if overrides := checkpoint.overrides:
        warnings.warn(
            f"{path} holds weights only. Whoever loads it must say that it is {checkpoint.name} with "
            + ", ".join(f"{name}={value!r}" for name, value in overrides.items())
            + "; a folder remembers that.",
            stacklevel=2,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write = torch_file.write_torch_file if path.suffix == ".pt" else _write_safetensors
    write(path, state_dict)


def _own_format(path: str) -> Checkpoint | None:
    """What a run or a folder of this project holds; None if `path` is neither."""
    if run_folder.is_run(path):
        return run_folder.load(path)
    return folder.load(path) if folder.is_folder(path) else None


def _check_name(checkpoint: Checkpoint, name: str | None, where: str | os.PathLike) -> None:
    if name not in (None, checkpoint.name):
        raise ValueError(f"{os.fspath(where)} holds {checkpoint.name}, not {name}.")


def _checkpoint(name: str, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Checkpoint:
    """The checkpoint of official tensors; a ValueError if they are not those of the model, or not all."""
    shapes = _shapes(tensors)
    found = names.find_model(shapes)
    has_memory = any(key.startswith("memory_encoder.") for key in shapes)
    if has_memory and found not in (None, name) and not names.may_fit(shapes, config):
        raise ValueError(
            f"these are weights of {found}, not of {name}: name that model, or none at all."
        )
    try:
        return Checkpoint(name, config, names.to_params(tensors, param_shapes(config)))
    except ValueError as error:
        if has_memory:
            raise
        raise ValueError(
            "the part for videos is not in it, as in what transformers' Sam2Model saves; take one of "
            f"Sam2VideoModel or the original's file: {error}"
        ) from error


def _shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _fitted(
    checkpoint: Checkpoint, name: str | None, overrides: Mapping[str, Any], where: str | os.PathLike
) -> Checkpoint:
    """The checkpoint with fields of its configuration replaced; a ValueError if it does not fit."""
    _check_name(checkpoint, name, where)
    config = checkpoint.config.replace(**overrides)
    with _naming(where):
        names.to_state_dict(checkpoint.params, param_shapes(config))
    return dataclasses.replace(checkpoint, config=config)


@contextlib.contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Makes errors begin with the path of what does not fit."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a file, or those of a folder, as {official name: array}."""
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    if path.is_dir():
        found = [path / name for name in (_SAFETENSORS, _INDEX) if (path / name).exists()]
        if not found:
            raise FileNotFoundError(
                f"The folder {path} holds neither a {_SAFETENSORS} nor a model.json of this project, and no "
                "checkpoints of a run."
            )
        path = found[0]
    if path.name.endswith(".index.json"):
        tensors = _read_shards(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = torch_file.read_torch_file(path)
    with _naming(path):
        plain = _unwrapped(tensors)
    return names.from_hugging_face(plain) if names.is_hugging_face(plain) else plain


def _unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by the names that they have in the model itself."""
    plain = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise ValueError("there are tensors both with and without 'module.' or '_orig_mod.'.")
    plain.pop(_COUNTER, None)
    found = next(filter(None, map(_PREFIX.match, plain)), None)
    if found is None:
        return plain
    prefix = found[1]
    others = [name for name in plain if not name.startswith(prefix)]
    if others:
        raise ValueError(
            f"{len(plain) - len(others)} names begin with {prefix!r} and {len(others)} do not, such as "
            f"{others[0]}: save the state dict of the SAM 2 alone."
        )
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items()}


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        files = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of safetensors files.") from error
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index} names {file!r}; only files beside it are read.")
        if not (index.parent / file).exists():
            raise FileNotFoundError(f"{index} names {file}, which is not there.")
        shard = _read_safetensors(index.parent / file)
        if shard.keys() != {name for name, place in places.items() if place == file}:
            raise ValueError(f"{index.parent / file} does not hold what {index.name} says.")
        tensors |= shard
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    # Transformers refuses files that do not name a format; `save_file` makes files that only their owner reads.
    write_file(path, save(contiguous, metadata={"format": "pt"}))
