"""Model weights on disk: a folder with `model.json` and an Orbax checkpoint of the parameters."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

_FORMAT = "sam2_jax"
_FORMAT_VERSION = 1
_DESCRIPTION = "model.json"
_PARAMS = "params"


def is_params_folder(folder: str | os.PathLike) -> bool:
    """Tells whether `folder` was written by `save_params`."""
    try:
        description = json.loads((Path(folder) / _DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and description.get("format") == _FORMAT


def saved_overrides(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns in which fields of its configuration a model differs from the one that it is named after.

    Args:
      folder: written by `save_params`; for anything else there are none.
    """
    if not is_params_folder(folder):
        return {}
    overrides = json.loads((Path(folder) / _DESCRIPTION).read_bytes()).get("overrides", {})
    return overrides if isinstance(overrides, dict) else {}


def save_params(
    folder: str | os.PathLike,
    model_name: str,
    params: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Saves the parameters of a model; the folder appears whole or not at all.

    Args:
      folder: created, or replaced when it was written by this function.
      model_name: name of the model that the parameters belong to.
      params: nested dict of arrays.
      overrides: fields of its configuration that are not those of the model of this name; JSON values.

    Raises:
      FileExistsError: when `folder` is something else that is not empty.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    if folder.exists() and not is_params_folder(folder):
        if not folder.is_dir() or any(folder.iterdir()):
            raise FileExistsError(f"{folder} exists and holds something else; choose a new folder.")
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    description = {"format": _FORMAT, "version": _FORMAT_VERSION, "model": model_name}
    if overrides:
        description["overrides"] = dict(overrides)
    # Where several processes train, one saves: the others are not waited for.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="save_params",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(temporary / _PARAMS, args=ocp.args.PyTreeSave(dict(params)))
        (temporary / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_params(folder: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """Loads what `save_params` saved.

    Returns:
      The name of the model and the parameters, a nested dict of numpy arrays.

    Raises:
      FileNotFoundError: when there is no such folder.
      ValueError: when the folder is not of this format, or is damaged.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not is_params_folder(folder):
        raise ValueError(f"{folder} holds no readable {_DESCRIPTION} of {_FORMAT}.")
    description = json.loads((folder / _DESCRIPTION).read_bytes())
    version, model_name = description.get("version"), description.get("model")
    if version != _FORMAT_VERSION or not isinstance(model_name, str):
        raise ValueError(
            f"{folder / _DESCRIPTION} names the model {model_name!r} and the format version "
            f"{version!r}; this release reads version {_FORMAT_VERSION}."
        )
    try:
        # The handler itself: a Checkpointer logs a warning where this raises.
        handler = ocp.PyTreeCheckpointHandler()
        tree = handler.metadata(epath.Path(folder / _PARAMS)).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        with ocp.Checkpointer(handler) as checkpointer:
            params = checkpointer.restore(
                folder / _PARAMS, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
    # Orbax and TensorStore promise no exception types for damaged files.
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{folder} is damaged: {type(error).__name__}: {reason}") from error
    return model_name, params
