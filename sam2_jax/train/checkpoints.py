"""Checkpoints of a run: written in the background, found again after any kind of death.

    checkpoints/<step>/state     every array of the state, by its path
    checkpoints/<step>/record    what else belongs to the run (JSON), and a checksum of every array

A checkpoint takes its name when it is complete. A disk can still lose or change what it holds, so checksums
are computed before the arrays are written and again after they are read; they do not depend on the mesh.
"""

import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

_STATE, _RECORD = "state", "record"
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by bytes of a number

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: of the checkpoint.
      state: of the shapes, types and shardings that were asked for.
      record: what was saved with it.
    """

    step: int
    state: Any
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder; all processes make the same calls.

    Leaving the context waits until everything is written.

    Attributes:
      folder: its absolute path.
      scores: by step, of the checkpoints that have one.

    Raises:
      ValueError: when `keep_last` is not positive.
    """

    def __init__(self, folder: str | os.PathLike, keep_last: int = 3, keep_best: int = 1):
        import orbax.checkpoint as ocp

        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; at least one checkpoint must be kept.")
        self.folder = Path(folder).absolute()
        self.scores: dict[int, float] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(keep_last, keep_best, self.scores),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        for step in self.steps:
            try:
                score = _read_record(self.folder / str(step))["score"]
            except ValueError:  # matters only if it is to be restored
                continue
            if score is not None:
                self.scores[step] = score

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, record: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Begins to write a checkpoint; returns when the state has left the devices.

        Args:
          step: larger than those of the checkpoints before.
          state: pytree of arrays.
          record: JSON values that belong to it.
          score: of the state, higher is better; the best checkpoints are kept for longer.

        Raises:
          OSError: the checkpoint before, or this one, cannot be written, for example because the disk is full.
        """
        import orbax.checkpoint as ocp

        arrays = _by_path(state)
        record = {
            "record": dict(record),
            "score": score,
            "arrays": {p: [*_layout(x), c] for (p, x), c in _with_checksums(arrays)},
        }
        if score is not None:
            self.scores[step] = score
        args = ocp.args.Composite(
            **{
                _STATE: ocp.args.StandardSave(arrays),
                _RECORD: ocp.args.JsonSave(record | {"checksum": _json_checksum(record)}),
            }
        )
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax promises no types
            raise self._write_error(error) from error

    def check(self) -> None:
        """Raises an OSError if a checkpoint could not be written in the background."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Waits until everything is written; raises an OSError if it cannot be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error
        self.check()

    def _write_error(self, error: Exception) -> OSError:
        import orbax.checkpoint as ocp

        complete = ocp.utils.checkpoint_steps(self.folder)
        last = f"the last good one is of step {max(complete)}" if complete else "there is none yet"
        reason = " ".join(str(error).split())[:300]
        return OSError(f"a checkpoint could not be written to {self.folder} ({last}): {reason}")

    def restore(self, target: Any) -> Restored | None:
        """Reads the newest checkpoint that is whole; newer ones are set aside, with a warning.

        Args:
          target: pytree of `jax.ShapeDtypeStruct` with shardings, as the state shall be.

        Returns:
          None if there is no checkpoint.

        Raises:
          ValueError: a checkpoint of another state, or none of several is whole.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            reason, path = "", self.folder / str(step)
            try:
                record = _read_record(path)
                difference = _difference(record["arrays"], target)
                arrays = {} if difference else _read_arrays(path, target)
            except Exception as error:  # a damaged file can raise anything
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            # From here on processes exchange arrays, which must not begin in only some of them.
            if not _all_agree(not reason):
                damaged[step] = reason or "another process cannot read it"
                continue
            if difference:
                raise ValueError(
                    f"the checkpoint {path} is of another state: {difference}. Go back to the settings of the "
                    "run, or choose another folder."
                )
            wrong = _wrong_array(record, arrays)
            if wrong:
                damaged[step] = f"the checksum of {wrong} is wrong"
                continue
            for number, reason in damaged.items():
                logger.warning(
                    "The checkpoint of step %d is damaged and set aside: %s", number, reason
                )
                self._set_aside(number)
            state = jax.tree.unflatten(jax.tree.structure(target), arrays.values())
            return Restored(step, state, record["record"])
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise ValueError(
                f"no checkpoint in {self.folder} is whole; that of step {step}: {reason}. Repair them, or "
                "start in another folder."
            )
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self.folder / f"damaged_{step}"
            for n in range(2, 1000):
                if not aside.exists():
                    break
                aside = self.folder / f"damaged_{step}_{n}"
            (self.folder / str(step)).rename(aside)
        multihost_utils.sync_global_devices("checkpoint set aside")
        self.scores.pop(step, None)
        self._manager.reload()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.wait()
        except OSError:
            if error is None:
                raise
        else:
            self._manager.close()


def read_newest(
    folder: str | os.PathLike, target: Callable[[dict[str, Any]], Any]
) -> Restored | None:
    """Reads the newest whole checkpoint, changing nothing, so that a run may be at work in the folder.

    Args:
      folder: of the checkpoints; one process reads.
      target: makes the target, as `Checkpoints.restore` takes it, from the record of a checkpoint.

    Returns:
      None if there is no checkpoint that is whole.
    """
    import orbax.checkpoint as ocp

    for step in sorted(ocp.utils.checkpoint_steps(folder), reverse=True):
        path = Path(folder).absolute() / str(step)
        try:
            record = _read_record(path)
            wanted = target(record["record"])
            arrays = _read_arrays(path, wanted)
        except Exception as error:  # a damaged file can raise anything
            logger.warning("%s cannot be read: %s", path, " ".join(str(error).split())[:200])
            continue
        wrong = _wrong_array(record, arrays)
        if not wrong:
            state = jax.tree.unflatten(jax.tree.structure(wanted), arrays.values())
            return Restored(step, state, record["record"])
        logger.warning("%s is damaged: the checksum of %s is wrong", path, wrong)
    return None


class _LastAndBest:
    """Which checkpoints are kept: Orbax's `PreservationPolicy`."""

    def __init__(self, last: int, best: int, scores: Mapping[int, float]):
        self._last, self._best, self._scores = last, best, scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells for each checkpoint, oldest first, whether it is kept."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        scored = sorted((self._scores[step], step) for step in steps if step in self._scores)
        kept = {*steps[-self._last :], *(step for _, step in scored[::-1][: self._best])}
        return [step in kept for step in steps]


def _read_record(path: Path) -> dict[str, Any]:
    """Reads what lies beside the arrays of a checkpoint; a ValueError if it is damaged."""
    import orbax.checkpoint as ocp
    from etils import epath

    try:
        record = ocp.JsonCheckpointHandler().restore(epath.Path(path / _RECORD))
        checksum = record.pop("checksum")
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"the record is damaged: {type(error).__name__}") from error
    if checksum != _json_checksum(record):
        raise ValueError("the checksum of the record is wrong")
    return record


def _read_arrays(path: Path, target: Any) -> dict[str, jax.Array]:
    """Reads the arrays of a checkpoint, by their paths, in the order of the target."""
    import orbax.checkpoint as ocp
    from etils import epath

    wanted = _by_path(target)
    # The handler itself: a CheckpointManager would wait for processes that have failed.
    arrays = ocp.StandardCheckpointHandler().restore(
        epath.Path(path / _STATE), args=ocp.args.StandardRestore(wanted)
    )
    return {name: arrays[name] for name in wanted}


def _wrong_array(record: Mapping[str, Any], arrays: Mapping[str, jax.Array]) -> str | None:
    """The path of an array that is not as it was saved."""
    wrong = (p for (p, _), sum in _with_checksums(arrays) if sum != record["arrays"][p][2])
    return next(wrong, None)


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by their paths, such as `params/mask_decoder/iou_token`, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _layout(x: Any) -> list[Any]:
    return [list(x.shape), str(x.dtype)]


def _difference(saved: Mapping[str, list[Any]], target: Any) -> str:
    """Says in what the arrays of a record differ from what is wanted; empty if in nothing."""
    wanted = {path: _layout(x) for path, x in _by_path(target).items()}
    found = {path: array[:2] for path, array in saved.items()}
    differing = [path for path in found | wanted if found.get(path) != wanted.get(path)]
    if not differing:
        return ""
    describe = lambda layout: f"{layout[1]} of shape {tuple(layout[0])}" if layout else "missing"
    path = min(differing)
    return f"{path} is {describe(found.get(path))} in it, and {describe(wanted.get(path))} in what is trained"


def _with_checksums(arrays: Mapping[str, jax.Array]) -> list[tuple[tuple[str, jax.Array], int]]:
    sums = np.array([_checksum(x) for x in arrays.values()], np.uint32)
    if not all(x.is_fully_addressable for x in arrays.values()):
        sums = multihost_utils.process_allgather(sums).sum(0, dtype=np.uint32)
    return list(zip(arrays.items(), map(int, sums), strict=True))


def _checksum(x: jax.Array) -> np.uint32:
    """Sum of the words of this process's part of an array, each times a weight of its place.

    Sums of integers are exact in any order, so the sum over the processes is the same for every way to cut the
    array up. On the host, which the arrays pass on their way to the disk: a program for every shape of
    array takes longer to compile than the sums.
    """
    total = np.zeros((), np.uint32)
    for shard in x.addressable_shards:
        if shard.replica_id > 0:
            continue
        words = np.asarray(shard.data)
        words = words.view(_WORDS[words.itemsize]).astype(np.uint32)
        weights = np.ones(words.shape, np.uint32)
        for axis, (places, size) in enumerate(zip(shard.index, words.shape, strict=True)):
            place = (places.start or 0) + np.arange(size, dtype=np.uint32)
            place *= np.uint32((2 * axis + 1) * 2654435761 % 2**32)
            weights += place.reshape(-1, *[1] * (words.ndim - axis - 1))
        total += (words * weights).sum(dtype=np.uint32)
    return total


def _json_checksum(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _all_agree(mine: bool) -> bool:
    """Whether `mine` is true in all processes."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).all())
