"""Checkpoints of a run: written in the background, found again after any kind of death.

What is in their folders, and how one is read as the weights of a model: `sam2_jax.checkpoint.run_folder`. A
checkpoint takes its name when it is complete; its checksums do not depend on the mesh.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from sam2_jax.checkpoint.run_folder import RECORD, STATE, array_checksum, json_checksum, read_record

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

    def __init__(
        self,
        folder: str | os.PathLike,
        keep_last: int = 3,
        keep_best: int = 1,
        keep_steps: Collection[int] = (),
    ):
        import orbax.checkpoint as ocp

        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; at least one checkpoint must be kept.")
        self.folder = Path(folder).absolute()
        self.scores: dict[int, float] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(keep_last, keep_best, keep_steps, self.scores),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        for step in self.steps:
            try:
                score = read_record(self.folder / str(step))["score"]
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
                STATE: ocp.args.StandardSave(arrays),
                RECORD: ocp.args.JsonSave(record | {"checksum": json_checksum(record)}),
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
                record = read_record(path)
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


class _LastAndBest:
    """Which checkpoints are kept: Orbax's `PreservationPolicy`."""

    def __init__(self, last: int, best: int, always: Collection[int], scores: Mapping[int, float]):
        self._last, self._best, self._always, self._scores = last, best, always, scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells for each checkpoint, oldest first, whether it is kept."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        scored = sorted((self._scores[step], step) for step in steps if step in self._scores)
        kept = {*steps[-self._last :], *(step for _, step in scored[::-1][: self._best])}
        return [step in kept or step in self._always for step in steps]


def _read_arrays(path: Path, target: Any) -> dict[str, jax.Array]:
    """Reads the arrays of a checkpoint, by their paths, in the order of the target."""
    import orbax.checkpoint as ocp
    from etils import epath

    wanted = _by_path(target)
    # The handler itself: a CheckpointManager would wait for processes that have failed.
    arrays = ocp.StandardCheckpointHandler().restore(
        epath.Path(path / STATE), args=ocp.args.StandardRestore(wanted)
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


def _checksum(x: jax.Array) -> int:
    """Checksum of this process's part of an array; those of all processes add up to the array's.

    On the host, which the arrays pass on their way to the disk: a program for every shape of array takes longer
    to compile than the sums.
    """
    blocks = (shard for shard in x.addressable_shards if shard.replica_id == 0)
    starts = lambda shard: [axis.start or 0 for axis in shard.index]
    return sum(array_checksum(np.asarray(s.data), starts(s)) for s in blocks) % 2**32


def _all_agree(mine: bool) -> bool:
    """Whether `mine` is true in all processes."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).all())
