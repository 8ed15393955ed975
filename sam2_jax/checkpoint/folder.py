"""This project's own format: a folder with `model.json` and an Orbax checkpoint of the parameters."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sam2_jax.checkpoint.checkpoint import Checkpoint
from sam2_jax.config import get_config, resolve_model_name, sort_overrides
from sam2_jax.files import new_folder

_FORMAT = "sam2_jax"
_FORMAT_VERSION = 1
_DESCRIPTION = "model.json"
_PARAMS = "params"


def is_folder(path: str | os.PathLike) -> bool:
    """Tells whether `path` is a folder that `save` wrote."""
    return _describe(Path(path)) is not None


def save(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Saves a checkpoint; the folder appears whole or not at all.

    Args:
      path: created, or replaced when it holds what this function wrote and nothing else.
      checkpoint: what to save; the name is one of `sam2_jax.config.MODELS`.

    Raises:
      FileExistsError: when `path` is something else that is not empty.
      ValueError: when there is no model of this name.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    if path.exists():
        own = {_DESCRIPTION, _PARAMS} if is_folder(path) else set()
        if not path.is_dir() or {entry.name for entry in path.iterdir()} - own:
            raise FileExistsError(f"{path} exists and holds something else; choose a new folder.")
    description = {
        "format": _FORMAT,
        "version": _FORMAT_VERSION,
        "model": resolve_model_name(checkpoint.name),
    }
    if overrides := checkpoint.overrides:
        description["overrides"] = overrides
    # Where several processes train, one saves: the others are not waited for.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="save_params",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with (
        new_folder(path) as partial,
        ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
    ):
        args = ocp.args.PyTreeSave(dict(checkpoint.params))
        checkpointer.save(partial / _PARAMS, args=args)
        (partial / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load(path: str | os.PathLike) -> Checkpoint:
    """Loads what `save` saved, parameters as numpy arrays.

    Raises:
      ValueError: when the folder is not of this format, or is damaged.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    path = Path(path).absolute()
    description = _describe(path)
    if description is None:
        raise ValueError(f"{path} holds no readable {_DESCRIPTION} of {_FORMAT}.")
    version, name = description.get("version"), description.get("model")
    overrides = description.get("overrides", {})
    if version != _FORMAT_VERSION or not isinstance(name, str) or not isinstance(overrides, dict):
        raise ValueError(
            f"{path / _DESCRIPTION} names the model {name!r} and the format version "
            f"{version!r}; this release reads version {_FORMAT_VERSION}."
        )
    try:
        config = get_config(name, **sort_overrides(overrides).model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / _DESCRIPTION}: {error}") from error
    try:
        # The handler itself: a Checkpointer logs a warning where this raises.
        handler = ocp.PyTreeCheckpointHandler()
        tree = handler.metadata(epath.Path(path / _PARAMS)).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        with ocp.Checkpointer(handler) as checkpointer:
            params = checkpointer.restore(
                path / _PARAMS, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
    # Orbax and TensorStore promise no exception types for damaged files.
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {reason}") from error
    return Checkpoint(resolve_model_name(name), config, params)


def _describe(path: Path) -> dict[str, Any] | None:
    """The contents of `model.json`, if it is one of this project."""
    try:
        description = json.loads((path / _DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(description, dict) and description.get("format") == _FORMAT
    return description if is_ours else None
