"""Checkpoints of a training run, as `sam2_jax.train.checkpoints` writes them, read as a model's weights.

    RUN/checkpoints/<step>/state     every array of the state, by its path, such as params/no_mem_embed
    RUN/checkpoints/<step>/record    what else belongs to the run (JSON), and a checksum of every array

Reading changes nothing, so the run may still be at work. A disk can lose or change what it holds: checksums are
computed before the arrays are written and again after they are read.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam2_jax.checkpoint.checkpoint import Checkpoint
from sam2_jax.config import get_config, resolve_model_name, sort_overrides
from sam2_jax.model import lora

CHECKPOINTS, STATE, RECORD = "checkpoints", "state", "record"
_BEST = "@best"
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by bytes of a number

logger = logging.getLogger(__name__)


def is_run(path: str | os.PathLike) -> bool:
    """Tells whether `path` stands for the checkpoints of a run, as `load` takes it."""
    return _is_step(Path(path)) or (_run(path) / CHECKPOINTS).is_dir()


def load(path: str | os.PathLike) -> Checkpoint:
    """Returns what a run has learned: the average of the parameters if it keeps one, with LoRA merged.

    Args:
      path: `RUN` is the newest checkpoint of a run, `RUN@best` that of the highest validation score, and
        `RUN/checkpoints/N` that of step N. The first two pass over what cannot be read, with a warning.

    Returns:
      The model with the overrides of its experiment; parameters as numpy arrays.

    Raises:
      ValueError: there is no checkpoint that is whole, or none with a score.
    """
    reasons = []
    for step in _steps(path):
        try:
            return _read(step)
        except Exception as error:  # a damaged file can raise anything
            reasons.append(f"{step}: {' '.join(str(error).split())[:200]}")
            logger.warning("%s cannot be read: %s", step, reasons[-1].partition(": ")[2])
    raise ValueError(
        f"{os.fspath(path)} holds no checkpoint that is whole"
        + "".join(f"; {r}" for r in reasons[:1])
    )


def exported(params: Mapping[str, Any], ema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what a run has learned, as parameters of its model, with low-rank updates merged.

    Of a masked autoencoder that is the trunk alone.

    Args:
      params: of a train state, nested dicts.
      ema: average of those that are trained, which takes their place; None without one.
    """
    averaged = flatten_dict(params, sep="/") | flatten_dict(ema or {}, sep="/")
    merged = lora.merge(unflatten_dict(averaged, sep="/"))
    return {name: part for name, part in merged.items() if name != "mae"}


def read_record(step: Path) -> dict[str, Any]:
    """Reads what lies beside the arrays of a checkpoint.

    Args:
      step: folder of the checkpoint.

    Returns:
      `record`, `score`, and `arrays`: the path of each with its shape, type and checksum.

    Raises:
      ValueError: it is damaged.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    try:
        record = dict(ocp.JsonCheckpointHandler().restore(epath.Path(step / RECORD)))
        checksum = record.pop("checksum")
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"the record is damaged: {type(error).__name__}") from error
    if checksum != json_checksum(record):
        raise ValueError("the checksum of the record is wrong")
    return record


def json_checksum(value: Any) -> int:
    """CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def array_checksum(block: np.ndarray, start: Sequence[int] | None = None) -> int:
    """Sum, modulo 2^32, of the words of an array, each times a weight of its place.

    Sums of integers are exact in any order, so those of blocks add up to that of the array, however it is cut.

    Args:
      block: a part of an array, or all of it.
      start: where in the array the block begins.
    """
    words = block.view(_WORDS[block.itemsize]).astype(np.uint32)
    weights = np.ones(words.shape, np.uint32)
    for axis, size in enumerate(words.shape):
        place = np.arange(size, dtype=np.uint32) + np.uint32(start[axis] if start else 0)
        place *= np.uint32((2 * axis + 1) * 2654435761 % 2**32)
        weights += place.reshape(-1, *[1] * (words.ndim - axis - 1))
    return int((words * weights).sum(dtype=np.uint32))


def _is_step(path: Path) -> bool:
    return path.parent.name == CHECKPOINTS and path.name.isdigit() and path.is_dir()


def _run(path: str | os.PathLike) -> Path:
    """The folder of a run: `path`, or what stands before its `@best`."""
    return Path(path) if Path(path).exists() else Path(os.fspath(path).removesuffix(_BEST))


def _steps(path: str | os.PathLike) -> list[Path]:
    """Folders of the checkpoints that `path` stands for, the one that is wanted most first."""
    import orbax.checkpoint as ocp

    if _is_step(Path(path)):
        return [Path(path).absolute()]
    folder = _run(path).absolute() / CHECKPOINTS
    steps = [folder / str(n) for n in sorted(ocp.utils.checkpoint_steps(folder), reverse=True)]
    if Path(path).exists():
        return steps
    scores = {step: score for step in steps if (score := _score(step)) is not None}
    if not scores:
        raise ValueError(
            f"no checkpoint in {folder} has a score, so none is the best; leave {_BEST} out for the newest "
            "one, or train with validation.every."
        )
    return sorted(scores, key=lambda step: scores[step], reverse=True)


def _score(step: Path) -> float | None:
    try:
        return read_record(step)["score"]
    except ValueError as error:
        logger.warning("%s cannot be read: %s", step, error)
        return None


def _read(step: Path) -> Checkpoint:
    record = read_record(step)
    wanted = [path for path in record["arrays"] if path.startswith(("params/", "ema/"))]
    arrays = _read_arrays(step, wanted)
    for path, array in arrays.items():
        if array_checksum(array) != record["arrays"][path][2]:
            raise ValueError(f"the checksum of {path} is wrong")
    experiment = record["record"]["experiment"]
    overrides = sort_overrides(experiment["model_overrides"]).model
    overrides.pop("dtype", None)
    state = unflatten_dict(arrays, sep="/")
    params = exported(state["params"], state.get("ema"))
    name = resolve_model_name(experiment["model"])
    config = get_config(name, **overrides)
    return Checkpoint(name, config, jax.tree.map(np.asarray, params))


def _read_arrays(step: Path, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads some of the arrays of a checkpoint; the state of the optimizer is larger than the parameters."""
    import orbax.checkpoint as ocp
    from etils import epath

    wanted = dict.fromkeys(paths, ocp.RestoreArgs(restore_type=np.ndarray))
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=wanted, partial_restore=True)
    # The handler itself: a Checkpointer would log a warning where this raises.
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(step / STATE), args=args)
