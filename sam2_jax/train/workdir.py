"""The folder of a run.

    config.json       the experiment
    metrics.jsonl     one line a logged step; events.* are the same for TensorBoard
    checkpoints/      see `sam2_jax.checkpoint.run_folder`
    pictures/         predictions on held-out clips
    bad_batches/      what ended the run, if no loss was finite
    export/           the trained parameters, as `build_sam2(checkpoint=...)` takes them

One run works in it at a time, and always on the same model.
"""

import contextlib
import dataclasses
import errno
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from sam2_jax.experiment import Experiment
from sam2_jax.files import write_file

CONFIG, PICTURES, EXPORT = "config.json", "pictures", "export"
BAD_BATCHES = "bad_batches"
# Settings without which the checkpoints of a run mean something else.
_FIXED = ("model", "model_overrides", "trainable", "lora_rank")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps a second run out of it; the system lets go of it however a run ends.

    Raises:
      ValueError: another run is at work in it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() > 0:
        yield
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"another run is at work in {folder}; choose another workdir, or wait for it to end."
                ) from error
            # Some network file systems have no locks.
            logger.warning("%s cannot be locked: %s", folder, error)
        yield


def as_json(experiment: Experiment) -> dict[str, Any]:
    """Returns the experiment as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def write_settings(folder: Path, experiment: Experiment) -> None:
    """Writes the experiment into the folder of its run."""
    text = json.dumps(as_json(experiment), indent=2) + "\n"
    write_file(folder / CONFIG, text.encode())


def check_settings(folder: Path, experiment: Experiment) -> None:
    """Compares an experiment with the one that the folder is of; tells what else has changed.

    Raises:
      ValueError: the folder is that of another model.
    """
    try:
        before = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        logger.warning("%s cannot be read; the checkpoints decide what fits.", folder / CONFIG)
        return
    now = as_json(experiment)
    changed = {
        name: f"{before[name]!r} -> {now[name]!r}"
        for name in now
        if name in before and before[name] != now[name]
    }
    fixed = [f"{name}: {changed[name]}" for name in _FIXED if name in changed]
    if fixed:
        raise ValueError(
            f"{folder} holds a run of another model ({'; '.join(fixed)}). Choose another workdir, or go "
            "back to its settings."
        )
    for name, change in changed.items():
        logger.info("Since the run was started, %s has changed: %s", name, change)
