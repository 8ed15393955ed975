"""The run: from a folder and an experiment to a trained model, through any number of interruptions.

    open everything -> load -> for every step: next batch, compile if its shape is new, step on the devices,
    report the step before, validate, draw and save when it is due -> export

`sam2_jax.train.workdir` says what is in the folder. The same call goes on from the newest checkpoint. What a
step computes depends on the experiment and on its number only, so a run that was interrupted ends with the same
bits as one that was not.
"""

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sam2_jax.checkpoint import Checkpoint, folder, run_folder
from sam2_jax.checkpoint.run_folder import CHECKPOINTS
from sam2_jax.config import ModelConfig, resolve_model_name
from sam2_jax.data.contact_sheet import contact_sheet, stack_sheets
from sam2_jax.data.datasets import Dataset
from sam2_jax.data.loader import Loader, collate, make_loader, pad_clip
from sam2_jax.evaluate.clips import clip_scores, held_out_clips, predict_masks, score_names
from sam2_jax.experiment import Experiment
from sam2_jax.model.sam2 import Sam2
from sam2_jax.parallel.mesh import batch_share, make_mesh
from sam2_jax.train.checkpoints import Checkpoints
from sam2_jax.train.dry_run import write_png
from sam2_jax.train.interruptions import Interruptions
from sam2_jax.train.losses import LossFn
from sam2_jax.train.metrics import MetricWriter, Speed, count_flops, peak_flops
from sam2_jax.train.optimizer import Hyperparameters
from sam2_jax.train.preflight import preflight
from sam2_jax.train.recipe import Batch, Recipe, make_recipe
from sam2_jax.train.report import Dispatched, Reporter
from sam2_jax.train.state import (
    TrainState,
    abstract_state,
    export_params,
    init_state,
    put_batch,
    put_hyperparameters,
    starting_params,
)
from sam2_jax.train.step import compiled_step
from sam2_jax.train.workdir import (
    EXPORT,
    EXPORT_BEST,
    PICTURES,
    RESUME,
    as_json,
    check_settings,
    only_run_in,
    set_aside,
    write_settings,
    write_versions,
)

DRAWN_CLIPS = 4

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    workdir: str | os.PathLike,
    loss_fn: LossFn | None = None,
    resume: str = "auto",
) -> None:
    """Trains, from the newest checkpoint in the folder or from the start; all processes call it.

    SIGTERM, SIGHUP and the first Ctrl-C end the run after the step at hand, with a checkpoint.

    Args:
      experiment: what is trained.
      workdir: folder of the run, which all processes see.
      loss_fn: takes the place of `sam2_jax.train.losses.prediction_losses`.
      resume: "auto" goes on where there is a checkpoint, unless the data or the start have changed; "must" goes
        on all the same, and only where there is one; "never" sets aside what is in the folder and starts anew.

    Raises:
      ValueError: the folder is that of another run, a setting does not fit, or `max_skipped` steps in a row
        had no finite loss and gradient.
      OSError: a file cannot be read or written, for example because the disk is full; the last good checkpoint
        stays.
      KeyboardInterrupt: after the checkpoint is written.
    """
    workdir = Path(workdir).absolute()
    if resume not in RESUME:
        raise ValueError(f"resume is {resume!r}; it must be one of {', '.join(RESUME)}.")
    recipe, mesh = make_recipe(experiment, loss_fn), make_mesh(experiment.mesh)
    preflight(experiment, mesh, recipe.config.image_size)
    with contextlib.ExitStack() as stack:
        interruptions = stack.enter_context(Interruptions())
        stack.enter_context(only_run_in(workdir))
        if resume == "never":
            set_aside(workdir)
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir / CHECKPOINTS,
                experiment.keep_last,
                experiment.keep_best,
                experiment.keep_steps,
            )
        )
        if checkpoints.steps:
            check_settings(workdir, experiment, resume)
        elif resume == "must":
            raise ValueError(
                f"{workdir} holds no checkpoint to go on from, which resume='must' asks for."
            )
        loader = make_loader(
            experiment.datasets,
            recipe.config.image_size,
            experiment.seed,
            experiment.num_workers,
            *batch_share(mesh),
        )
        stack.callback(loader.close)

        saved, state, record = _load(recipe, mesh, checkpoints, loader)
        is_finished = saved >= experiment.num_steps
        word = "finished at" if is_finished else "resumed after" if saved else "started at"
        logger.info(
            "The run in %s is %s step %d of %d.", workdir, word, saved, experiment.num_steps
        )
        if is_finished and folder.is_folder(workdir / EXPORT):
            return

        writer = None
        if jax.process_index() == 0:
            write_settings(workdir, experiment)
            if not saved:
                write_versions(workdir)
            writer = MetricWriter(workdir, saved, experiment.wandb_project, as_json(experiment))
            stack.callback(writer.close)
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        speed = Speed(peak and peak * mesh.size)
        skipped = int(jax.device_get(state.skipped))
        before = record.get("replaced", 0), record.get("interval", {})
        reporter = stack.enter_context(
            Reporter(experiment, workdir, writer, speed, saved, skipped, *before)
        )

        def save(step: int, state: TrainState, position: bytes, score: float | None = None) -> None:
            # No checkpoint without the lines of its steps: they would not come again.
            reporter.sync()
            record = {
                "experiment": as_json(experiment),
                "data": position.decode(),
                "replaced": reporter.replaced,
                "interval": {name: dict(sums) for name, sums in reporter.interval.items()},
            }
            checkpoints.save(step, state, record, score)

        def end_after(step: int, position: bytes) -> None:
            if saved < step:
                save(step, state, position)
            reporter.flush()
            checkpoints.wait()
            interruptions.end(step)

        programs: dict[Any, tuple[Callable, float | None]] = {}
        values = put_hyperparameters(recipe, mesh)
        for step in range(saved + 1, experiment.num_steps + 1):
            position = loader.get_state()
            if interruptions.end_before(step):
                end_after(step - 1, position)
                return
            asked = time.monotonic()
            dataset, batch = next(loader)
            waited = time.monotonic() - asked
            placed = put_batch(mesh, batch)
            shapes = tuple(x.shape for x in jax.tree.leaves(placed))
            is_new = shapes not in programs
            if is_new:
                found = interruptions.unless_received(
                    lambda placed=placed, state=state: compile_step(
                        recipe, mesh, state, placed, values, bool(peak)
                    )
                )
                if found is None:
                    end_after(step - 1, position)
                    return
                programs[shapes] = found
            program, flops = programs[shapes]
            with jax.transfer_guard("disallow"):
                state, metrics = program(state, placed, values)
                # The devices are busy with this step now, and have the results of the one before.
                frames = int(np.prod(placed.images.shape[:2]))
                reporter.add(
                    Dispatched(step, dataset, batch, metrics, frames, flops, is_new, waited)
                )
            checkpoints.check()

            is_last = step == experiment.num_steps
            validates, draws, saves = (
                every > 0 and (step % every == 0 or is_last)
                for every in (
                    experiment.validation.every,
                    experiment.draw_every,
                    experiment.checkpoint_every,
                )
            )
            saves = saves or step in experiment.keep_steps
            position = loader.get_state()
            scores, score = {}, None
            if validates or draws:
                params = jax.device_put(export_params(state), jax.local_devices()[0])
                try:
                    with reporter.speed.paused():
                        if validates:
                            scores = validate(recipe, params)
                        if draws and writer is not None:
                            path = workdir / PICTURES / f"step_{step:07d}.png"
                            write_png(path, draw_predictions(experiment, recipe.config, params))
                except Exception:  # whatever it is, the steps before it are not lost
                    reporter.flush()
                    save(step, state, position)
                    raise
            if validates:
                score = next(iter(scores.values()))
                best = max(checkpoints.scores.values(), default=-np.inf)
                saves = saves or (score > best and experiment.keep_best > 0)
            if validates or draws or saves:
                reporter.flush({f"validation/{name}": value for name, value in scores.items()})
            # While steps are skipped, the checkpoints from before them are not pushed out.
            if saves and (is_last or not reporter.skipped_in_a_row):
                save(step, state, position, score)
                saved = step
            if validates or draws or saves:
                reporter.speed.restart()

        checkpoints.wait()
        _export(recipe, state, workdir, bool(checkpoints.scores))
        logger.info("The run in %s is finished.", workdir)


def _load(
    recipe: Recipe, mesh: jax.sharding.Mesh, checkpoints: Checkpoints, loader: Loader
) -> tuple[int, TrainState, dict[str, Any]]:
    """The newest checkpoint, or the state before the first step: steps done, state, what was saved with it."""
    restored = checkpoints.restore(abstract_state(recipe, mesh))
    if restored is not None:
        loader.set_state(restored.record["data"].encode())
        return restored.step, restored.state, restored.record
    return 0, init_state(recipe, mesh, starting_params(recipe)), {}


def compile_step(
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    batch: Batch,
    values: Hyperparameters,
    counts_flops: bool,
) -> tuple[Callable, float | None]:
    """Compiles the step for batches of one shape; returns it, and its FLOPs if they are to be counted."""
    start = time.monotonic()
    traced = compiled_step(recipe, mesh).trace(state, batch, values)
    flops = count_flops(traced.jaxpr) if counts_flops else None
    program = traced.lower().compile()
    clips, frames, objects = batch.masks.shape[:3]
    logger.info(
        "Compiled the step for %d clips of %d frames and %d objects in %.0f s.",
        clips,
        frames,
        objects,
        time.monotonic() - start,
    )
    return program, flops


def validate(recipe: Recipe, params: dict[str, Any]) -> dict[str, float]:
    """Scores parameters on the held-out clips, which the processes share.

    Args:
      recipe: whose clips.
      params: of the model, on a device of this process.

    Returns:
      Means over the objects of all clips, and the loss if it is asked for; models are compared by the first.
      Those of further datasets begin with their names, as in "street/J&F".

    Raises:
      ValueError: there is nothing to score.
    """
    validation = recipe.experiment.validation
    scores = _validate_on(recipe, params, validation.dataset, "validation.dataset")
    for name, dataset in validation.more.items():
        others = _validate_on(recipe, params, dataset, f"validation.more.{name}")
        scores |= {f"{name}/{score}": value for score, value in others.items()}
    return scores


def _validate_on(
    recipe: Recipe, params: dict[str, Any], dataset: Dataset, label: str
) -> dict[str, float]:
    names = score_names(dataset)
    has_loss = recipe.experiment.validation.has_loss
    totals = np.zeros((len(names) + has_loss, 2))
    shared = (jax.process_index(), jax.process_count())
    for clip in held_out_clips(dataset, recipe.config.image_size, *shared):
        predicted = predict_masks(Sam2(recipe.config), params, clip, dataset.max_objects)
        scores = clip_scores(predicted, clip)
        rows = [(sum(scores[name]), len(scores[name])) for name in names]
        if has_loss:
            batch = collate([pad_clip(clip, dataset.max_objects) | {"name": "", "replaced": 0}])
            sums = recipe.loss_of_batch(params, batch)
            rows.append((float(sums["loss"]), int(batch["is_object"].sum())))
        totals += rows
    if jax.process_count() > 1:
        totals = multihost_utils.process_allgather(totals).sum(0)
    if not totals[0, 1]:
        raise ValueError(f"{label} has no clip with an object to score.")
    means = (totals[:, 0] / totals[:, 1]).tolist()
    return dict(zip((*names, *["loss"] * has_loss), means, strict=True))


def draw_predictions(
    experiment: Experiment, config: ModelConfig, params: dict[str, Any]
) -> np.ndarray:
    """Draws predictions on the first held-out clips, each above its target: (H, W, 3) uint8."""
    dataset, sheets = experiment.validation.dataset, []
    for clip in itertools.islice(held_out_clips(dataset, config.image_size), DRAWN_CLIPS):
        predicted = predict_masks(Sam2(config), params, clip, dataset.max_objects)
        for title, masks in (("predicted", predicted), ("target", clip.masks)):
            sheets.append(contact_sheet(clip.frames, masks, title=f"{clip.name}, {title}"))
    return stack_sheets(sheets)


def _export(recipe: Recipe, state: TrainState, workdir: Path, has_scores: bool) -> None:
    params = export_params(state)
    if jax.process_index() == 0:
        name = resolve_model_name(recipe.experiment.model)
        folder.save(workdir / EXPORT, Checkpoint(name, recipe.config, params))
        if has_scores:
            folder.save(workdir / EXPORT_BEST, run_folder.load(f"{workdir}@best"))
