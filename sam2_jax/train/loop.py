"""The run: from a folder and an experiment to a trained model, through any number of interruptions.

    next batch -> step (on the devices) -> report the step before -> validate, draw, save when it is time

The folder of a run holds

    config.json       the experiment
    metrics.jsonl     one line a logged step; events.* are the same for TensorBoard
    checkpoints/      see `sam2_jax.train.checkpoints`
    pictures/         predictions on held-out clips
    bad_batches/      what ended the run, if no loss was finite
    export/           the trained parameters, as `build_sam2(checkpoint=...)` takes them

The same call goes on from the newest checkpoint. What a step computes depends on the experiment and on its
number only, so a run that was interrupted ends with the same bits as one that was not.
"""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from sam2_jax.checkpoint import Checkpoint, folder, load_start
from sam2_jax.checkpoint.run_folder import CHECKPOINTS
from sam2_jax.config import resolve_model_name
from sam2_jax.data.contact_sheet import contact_sheet, stack_sheets
from sam2_jax.data.loader import Loader, make_loader
from sam2_jax.evaluate.clips import clip_scores, held_out_clips, predict_masks, score_names
from sam2_jax.experiment import Experiment
from sam2_jax.files import write_file
from sam2_jax.model.sam2 import Sam2, init_params
from sam2_jax.parallel.mesh import batch_share, make_mesh
from sam2_jax.train.checkpoints import Checkpoints
from sam2_jax.train.describe import check_batch_sizes, write_png
from sam2_jax.train.metrics import (
    MetricWriter,
    Speed,
    count_flops,
    memory_gb,
    one_line,
    peak_flops,
)
from sam2_jax.train.step import Learner, TrainState

CONFIG, PICTURES, EXPORT = "config.json", "pictures", "export"
BAD_BATCHES = "bad_batches"
DRAWN_CLIPS = 4
# Settings without which the checkpoints of a run mean something else.
_FIXED = ("model", "model_overrides", "trainable", "lora_rank")

logger = logging.getLogger(__name__)


def train(experiment: Experiment, workdir: str | os.PathLike) -> None:
    """Trains, from the newest checkpoint in the folder or from the start; all processes call it.

    SIGTERM and the first Ctrl-C end the run after the step at hand, with a checkpoint.

    Args:
      experiment: what is trained.
      workdir: folder of the run, which all processes see.

    Raises:
      ValueError: the folder is that of another model, a setting does not fit, or `max_skipped` steps in a row
        had no finite loss and gradient.
      OSError: a file cannot be read or written, for example because the disk is full; the last good checkpoint
        stays.
      KeyboardInterrupt: after the checkpoint is written.
    """
    workdir = Path(workdir).absolute()
    learner, mesh = Learner(experiment), make_mesh(experiment.mesh)
    check_batch_sizes(experiment, mesh)
    with contextlib.ExitStack() as stack:
        interruptions = stack.enter_context(_Interruptions())
        stack.enter_context(_only_run_in(workdir))
        checkpoints = stack.enter_context(
            Checkpoints(workdir / CHECKPOINTS, experiment.keep_last, experiment.keep_best)
        )
        if checkpoints.steps:
            _check_settings(workdir / CONFIG, experiment)
        loader = make_loader(
            experiment.datasets,
            learner.config.image_size,
            experiment.seed,
            experiment.num_workers,
            *batch_share(mesh),
        )
        stack.callback(loader.close)

        restored = checkpoints.restore(learner.abstract_state(mesh))
        if restored is None:
            step, state, record = 0, learner.init(mesh, _initial_params(learner)), {}
        else:
            step, state, record = restored
            loader.set_state(record["data"].encode())
        is_finished = step >= experiment.num_steps
        word = "finished at" if is_finished else "resumed after" if step else "started at"
        logger.info("The run in %s is %s step %d of %d.", workdir, word, step, experiment.num_steps)
        if is_finished and folder.is_folder(workdir / EXPORT):
            return

        writer = None
        if jax.process_index() == 0:
            settings = _as_json(experiment)
            write_file(workdir / CONFIG, (json.dumps(settings, indent=2) + "\n").encode())
            writer = MetricWriter(workdir, step, experiment.wandb_project, settings)
            stack.callback(writer.close)
        _Run(
            learner=learner,
            mesh=mesh,
            workdir=workdir,
            checkpoints=checkpoints,
            loader=loader,
            writer=writer,
            interruptions=interruptions,
            state=state,
            step=step,
            replaced=record.get("replaced", 0),
        ).finish()


class _Dispatched(NamedTuple):
    """A step that was given to the devices."""

    step: int
    dataset: str
    batch: Mapping[str, Any]
    metrics: Mapping[str, jax.Array]
    num_frames: int
    flops: float | None
    is_compiled_now: bool


@dataclasses.dataclass
class _Run:
    """A run in one process, between its first and its last step."""

    learner: Learner
    mesh: jax.sharding.Mesh
    workdir: Path
    checkpoints: Checkpoints
    loader: Loader
    writer: MetricWriter | None  # of the first process
    interruptions: "_Interruptions"
    state: TrainState
    step: int  # steps that were dispatched
    replaced: int  # samples that this process could not read

    def __post_init__(self):
        self.experiment = self.learner.experiment
        self.saved_step = self.step
        skipped = jax.device_get((self.state.skipped, self.state.skipped_in_a_row))
        self.skipped, self.skipped_in_a_row = map(int, skipped)
        self.unreported: _Dispatched | None = None
        self.programs: dict[Any, tuple[Any, float | None]] = {}
        peak = peak_flops(self.mesh.devices.flat[0].device_kind)
        self.speed = Speed(peak and peak * self.mesh.size)

    def finish(self) -> None:
        """Takes the steps that are left, and exports the result."""
        from tqdm import tqdm

        num_steps = self.experiment.num_steps
        # Without a terminal there are lines in the log instead.
        hidden = None if self.writer else True
        with tqdm(total=num_steps, initial=self.step, unit="step", disable=hidden) as self.bar:
            for step in range(self.step + 1, num_steps + 1):
                if self.interruptions.end_before(step):
                    self._save()
                    self.checkpoints.wait()
                    self.interruptions.end(self.step)
                    return
                self._take(step)
                self._do_what_is_due()
        self.checkpoints.wait()
        self._export()
        logger.info("The run in %s is finished.", self.workdir)

    def _take(self, step: int) -> None:
        dataset, batch = next(self.loader)
        placed = self.learner.put_batch(self.mesh, batch)
        shape = placed.masks.shape
        is_new = shape not in self.programs
        if is_new:
            self.programs[shape] = self._compile(placed)
        program, flops = self.programs[shape]
        self.state, metrics = program(self.state, placed)
        # The devices are busy with this step now, and have the results of the one before.
        self._report()
        num_frames = int(np.prod(shape[:2]))
        self.unreported = _Dispatched(step, dataset, batch, metrics, num_frames, flops, is_new)
        self.step = step
        self.checkpoints.check()

    def _compile(self, batch: Any) -> tuple[Any, float | None]:
        """The step for batches of one shape, and its FLOPs where they are asked for."""
        start = time.monotonic()
        traced = self.learner.step(self.mesh).trace(self.state, batch)
        flops = count_flops(traced.jaxpr) if self.speed.peak_flops else None
        program = traced.lower().compile()
        seconds = time.monotonic() - start
        clips, frames, objects = batch.masks.shape[:3]
        logger.info(
            "Compiled the step for %d clips of %d frames and %d objects in %.0f s.",
            clips,
            frames,
            objects,
            seconds,
        )
        return program, flops

    def _report(self, scores: Mapping[str, float] | None = None) -> None:
        """Looks at what the last step gave, and writes it down if it is to be logged or there are scores."""
        if self.unreported is None:
            return
        done, self.unreported = self.unreported, None
        metrics = {name: float(x) for name, x in jax.device_get(done.metrics).items()}
        self.replaced += done.batch["replaced"]
        if metrics.pop("is_finite"):
            self.skipped_in_a_row = 0
        else:
            self._skip(done)
        if done.is_compiled_now:
            self.speed.restart()
        else:
            self.speed.count(done.num_frames, done.flops)
        self.bar.update()
        is_logged = done.step % self.experiment.log_every == 0
        is_end = done.step in (1, self.experiment.num_steps)
        if self.writer is None or not (is_logged or is_end or scores):
            return
        watched = self.speed.rates() | {"memory_gb": memory_gb(jax.local_devices()[0])}
        counts = {"skipped": self.skipped, "replaced": self.replaced}
        loss = {"loss": metrics["loss"]}
        self.writer.write(
            done.step,
            loss | metrics | (scores or {}) | watched | counts | {"dataset": done.dataset},
        )
        self.bar.set_postfix_str(one_line(loss | watched), refresh=False)
        if self.bar.disable:
            steps = f"{done.step}/{self.experiment.num_steps}"
            logger.info("step %s: %s", steps, one_line(loss | (scores or {}) | watched))

    def _skip(self, done: _Dispatched) -> None:
        """Counts a step that changed nothing; ends the run where they become too many."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        names = ", ".join(done.batch["names"])
        logger.warning("Step %d is skipped, its loss is not finite: %s", done.step, names)
        if self.skipped_in_a_row < self.experiment.max_skipped:
            return
        name = f"step_{done.step:07d}_process_{jax.process_index()}.npz"
        path = self.workdir / BAD_BATCHES / name
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **done.batch)
        write_file(path, buffer.getvalue())
        raise ValueError(
            f"{self.skipped_in_a_row} steps in a row had no finite loss and gradient (max_skipped). The last "
            f"batch is saved as {path} and holds {names}. Look at it, or lower optimizer.learning_rate."
        )

    def _do_what_is_due(self) -> None:
        experiment = self.experiment
        is_last = self.step == experiment.num_steps
        is_due = lambda every: every > 0 and (self.step % every == 0 or is_last)
        validates, draws = is_due(experiment.validation.every), is_due(experiment.draw_every)
        saves = is_due(experiment.checkpoint_every)
        if not (validates or draws or saves):
            return
        scores, score = {}, None
        if validates or draws:
            host = self.learner.export_params(self.state)
            params = jax.device_put(host, jax.local_devices()[0])
        if validates:
            scores = self._validate(params)
            score = next(iter(scores.values()))
            best = max(self.checkpoints.scores.values(), default=-np.inf)
            saves = saves or (score > best and experiment.keep_best > 0)
        self._report({f"validation/{name}": value for name, value in scores.items()})
        if draws and self.writer is not None:
            self._draw(params)
        if saves:
            self._save(score)
        self.speed.restart()

    def _validate(self, params: Mapping[str, Any]) -> dict[str, float]:
        """Means of the scores over the objects of all held-out clips, which the processes share."""
        dataset, size = self.experiment.validation.dataset, self.learner.config.image_size
        names, sam2 = score_names(dataset), Sam2(self.learner.config)
        totals = np.zeros((len(names), 2))
        shared = (jax.process_index(), jax.process_count())
        for clip in held_out_clips(dataset, size, *shared):
            predicted = predict_masks(sam2, params, clip, dataset.max_objects)
            scores = clip_scores(predicted, clip)
            totals += [(sum(scores[name]), len(scores[name])) for name in names]
        if jax.process_count() > 1:
            totals = multihost_utils.process_allgather(totals).sum(0)
        if not totals[0, 1]:
            raise ValueError("validation.dataset has no clip with an object to score.")
        return dict(zip(names, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))

    def _draw(self, params: Mapping[str, Any]) -> None:
        """Draws predictions on the first held-out clips, each above the truth."""
        dataset, config = self.experiment.validation.dataset, self.learner.config
        sheets = []
        clips = held_out_clips(dataset, config.image_size)
        for clip in itertools.islice(clips, DRAWN_CLIPS):
            predicted = predict_masks(Sam2(config), params, clip, dataset.max_objects)
            for title, masks in (("predicted", predicted), ("true", clip.masks)):
                sheets.append(contact_sheet(clip.frames, masks, title=f"{clip.name}, {title}"))
        name = f"step_{self.step:07d}.png"
        write_png(self.workdir / PICTURES / name, stack_sheets(sheets))

    def _save(self, score: float | None = None) -> None:
        self._report()
        if self.saved_step == self.step:
            return
        if self.writer is not None:
            # No checkpoint without the lines of its steps: they would not come again.
            self.writer.sync()
        record = {
            "experiment": _as_json(self.experiment),
            "data": self.loader.get_state().decode(),
            "replaced": self.replaced,
        }
        self.checkpoints.save(self.step, self.state, record, score)
        self.saved_step = self.step

    def _export(self) -> None:
        params = self.learner.export_params(self.state)
        if jax.process_index() == 0:
            name = resolve_model_name(self.experiment.model)
            folder.save(self.workdir / EXPORT, Checkpoint(name, self.learner.config, params))


class _Interruptions:
    """SIGTERM and Ctrl-C as wishes that are met between two steps; a second Ctrl-C is met at once.

    Where there are several processes, JAX listens to SIGTERM and finds the step at which all of them end.
    """

    def __init__(self):
        self._is_shared = jax.process_count() > 1
        self._received: set[int] = set()

    def __enter__(self) -> "_Interruptions":
        listened = (signal.SIGINT,) if self._is_shared else (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._receive) for number in listened}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: Any) -> None:
        self._received.add(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._is_shared:
                os.kill(os.getpid(), signal.SIGTERM)

    def end_before(self, step: int) -> bool:
        """Whether the run ends before a step; all processes ask before every step."""
        if self._is_shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self._received)

    def end(self, step: int) -> None:
        """Says so, and raises a KeyboardInterrupt if it was Ctrl-C."""
        logger.info("The run is interrupted; step %d is saved.", step)
        if signal.SIGINT in self._received:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _only_run_in(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps a second run out of it; the system lets go of it however a run ends."""
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


def _as_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def _check_settings(path: Path, experiment: Experiment) -> None:
    """Raises a ValueError if the folder is that of another model; tells what else has changed."""
    try:
        before = json.loads(path.read_bytes())
    except (OSError, ValueError):
        logger.warning("%s cannot be read; the checkpoints decide what fits.", path)
        return
    now = _as_json(experiment)
    changed = {
        name: f"{before.get(name)!r} -> {now[name]!r}"
        for name in now
        if before.get(name) != now[name]
    }
    fixed = [f"{name}: {changed[name]}" for name in _FIXED if name in changed]
    if fixed:
        raise ValueError(
            f"{path.parent} holds a run of another model ({'; '.join(fixed)}). Choose another workdir, or go "
            "back to its settings."
        )
    for name, change in changed.items():
        logger.info("Since the run was started, %s has changed: %s", name, change)


def _initial_params(learner: Learner) -> dict[str, Any] | None:
    """The parameters to start from; None for random ones."""
    experiment = learner.experiment
    if not experiment.init_from:
        return None
    draw = lambda: init_params(learner.config, jax.random.key(experiment.seed))
    return load_start(experiment.init_from, experiment.model, learner.config, draw).params
