"""The folder of a run.

    config.json       the experiment
    versions.json     of the packages that it was started with, and the commit of a clone
    train.log         what the command said
    metrics.jsonl     one line a logged step; events.* are the same for TensorBoard
    checkpoints/      see `sam2_jax.checkpoint.run_folder`
    pictures/         predictions on held-out clips
    bad_batches/      what ended the run, if no loss was finite
    export/           the trained parameters, as `build_sam2(checkpoint=...)` takes them
    export_best/      those of the best validation score, if there is one
    previous_N/       an earlier run, if this one was begun anew

One run works in it at a time, and always on the same model and data.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from sam2_jax.data.datasets import Dataset
from sam2_jax.experiment import Experiment
from sam2_jax.files import write_file

CONFIG, PICTURES, BAD_BATCHES = "config.json", "pictures", "bad_batches"
EXPORT, EXPORT_BEST = "export", "export_best"
VERSIONS, LOG = "versions.json", "train.log"
RESUME = ("auto", "must", "never")
# Settings without which the checkpoints of a run mean something else.
_FIXED = ("objective", "model", "model_overrides", "trainable", "lora_rank", "mae")
# What may change of the data within a run.
_TUNED = ("weight", "multiplier", "batch_size", "augment")

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


def write_versions(folder: Path) -> None:
    """Writes what the run is started with, for whoever wants to repeat it."""
    packages = ("sam2-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(git, capture_output=True, text=True, timeout=10)
            versions["commit"] = found.stdout.strip() or None
    write_file(folder / VERSIONS, (json.dumps(versions, indent=2) + "\n").encode())


def set_aside(folder: Path) -> None:
    """Moves what a run left in its folder into `previous_N`."""
    if jax.process_index() == 0 and (folder / CONFIG).exists():
        number = next(n for n in itertools.count(1) if not (folder / f"previous_{n}").exists())
        inside = [path for path in folder.iterdir() if not path.name.startswith(("previous_", "."))]
        aside = folder / f"previous_{number}"
        aside.mkdir()
        for path in inside:
            path.rename(aside / path.name)
        logger.info("What was in %s is in %s now.", folder, aside)
    multihost_utils.sync_global_devices("run set aside")


def check_settings(folder: Path, experiment: Experiment, resume: str) -> None:
    """Compares an experiment with the one that the folder is of; tells what else has changed.

    Args:
      folder: of a run with a checkpoint.
      experiment: what is asked for.
      resume: "auto" refuses other data and another start; "must" takes them.

    Raises:
      ValueError: the folder is that of another run.
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
            f"{folder} holds a run of another model ({'; '.join(fixed)}). Choose another workdir, go back to "
            "its settings, or start anew by --resume=never, which sets the old run aside."
        )
    others = [f"init_from: {changed['init_from']}"] if "init_from" in changed else []
    old, new = _sources(before.get("datasets", {})), _sources(now["datasets"])
    others += [f"datasets.{name}" for name in old.keys() ^ new.keys()]
    others += [
        f"datasets.{name}"
        for name in old.keys() & new.keys()
        if any(value != old[name].get(field) for field, value in new[name].items())
    ]
    if others and resume == "auto":
        raise ValueError(
            f"{folder} holds a run that differs in {'; '.join(others)}. Go on all the same by --resume=must, "
            "start anew by --resume=never, which sets the old run aside, or choose another workdir."
        )
    for name, change in changed.items():
        logger.info("Since the run was started, %s has changed: %s", name, change)


def _sources(datasets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    # Runs of earlier versions lack the fields that have been added since.
    defaults = lambda dataset: dataclasses.asdict(Dataset(kind=dataset["kind"]))
    return {
        name: {
            field: value
            for field, value in (defaults(dataset) | dataset).items()
            if field not in _TUNED
        }
        for name, dataset in datasets.items()
    }
