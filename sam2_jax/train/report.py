"""Reports the steps of a run: what they gave, how fast they were, and those that changed nothing."""

import io
import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sam2_jax.experiment import Experiment
from sam2_jax.files import write_file
from sam2_jax.train.metrics import MetricWriter, Speed, memory_gb, one_line
from sam2_jax.train.workdir import BAD_BATCHES

logger = logging.getLogger(__name__)


class Dispatched(NamedTuple):
    """A step that was given to the devices.

    Attributes:
      step: its number.
      dataset: from which its clips are.
      batch: this process's part of them, on the host.
      metrics: () float32 each, on the devices.
      num_frames: of the whole batch.
      flops: of the step; None if they are not counted.
      is_compiled_now: whether the step had to be compiled first.
      waited: seconds for the batch.
    """

    step: int
    dataset: str
    batch: Mapping[str, Any]
    metrics: Mapping[str, jax.Array]
    num_frames: int
    flops: float | None
    is_compiled_now: bool
    waited: float


class Reporter:
    """Looks at every step when the next one is at work, so that no device waits for it.

    Attributes:
      speed: of the run.
      replaced: samples that this process could not read.
      interval: by dataset, the sums of what its steps gave since the last line, and their number under `steps`.
      skipped_in_a_row: steps up to the last one that changed nothing.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        writer: MetricWriter | None,
        speed: Speed,
        step: int,
        skipped: int,
        replaced: int,
        interval: Mapping[str, Mapping[str, float]],
    ):
        """Goes on from a step.

        Args:
          experiment: of the run.
          workdir: its folder, for a batch that ends it.
          writer: of the first process; None in the others.
          speed: of the run.
          step: after which the run goes on.
          skipped: steps that were skipped so far.
          replaced: samples that were replaced so far.
          interval: see the class; empty at the start.
        """
        from tqdm import tqdm

        self.speed, self.replaced = speed, replaced
        self._experiment, self._workdir, self._writer = experiment, workdir, writer
        # Whoever goes on after skipped steps has changed something, so that they are counted anew.
        self._skipped, self.skipped_in_a_row = skipped, 0
        self.interval = {name: dict(sums) for name, sums in interval.items()}
        self._last: Dispatched | None = None
        # Without a terminal there are lines in the log instead.
        hidden = None if writer else True
        self._bar = tqdm(total=experiment.num_steps, initial=step, unit="step", disable=hidden)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def add(self, dispatched: Dispatched) -> None:
        """Takes a step, and reports the one before."""
        self.flush()
        self._last = dispatched

    def flush(self, scores: Mapping[str, float] | None = None) -> None:
        """Reports the last step; writes it down if it is to be logged or there are scores.

        Raises:
          ValueError: `max_skipped` steps in a row had no finite loss and gradient.
        """
        if self._last is None:
            return
        done, self._last = self._last, None
        scores = dict(scores or {})
        metrics = {name: float(x) for name, x in jax.device_get(done.metrics).items()}
        self.replaced += done.batch["replaced"]
        sums = self.interval.setdefault(done.dataset, {"steps": 0.0})
        if metrics.pop("is_finite"):
            self.skipped_in_a_row = 0
            for name, value in (metrics | {"steps": 1.0}).items():
                sums[name] = sums.get(name, 0.0) + value
        else:
            self._skip(done)
        if done.is_compiled_now:
            self.speed.restart()
        else:
            self.speed.count(done.num_frames, done.flops, done.waited)
        self._bar.update()
        is_logged = done.step % self._experiment.log_every == 0
        is_end = done.step in (1, self._experiment.num_steps)
        if self._writer is None or not (is_logged or is_end or scores):
            return
        watched = self.speed.rates() | {"memory_gb": memory_gb(jax.local_devices()[0])}
        counts = {"skipped": self._skipped, "replaced": self.replaced}
        rates = {name: x for name, x in metrics.items() if name.startswith("learning_rate")}
        means, self.interval = _means(self.interval, metrics), {}
        loss = {"loss": means["loss"]}
        self._writer.write(
            done.step, means | rates | scores | watched | counts | {"dataset": done.dataset}
        )
        self._bar.set_postfix_str(one_line(loss | watched), refresh=False)
        if self._bar.disable:
            left = self._experiment.num_steps - done.step
            if "step_s" in watched:
                watched["eta"] = str(timedelta(seconds=round(left * watched["step_s"])))
            steps = f"{done.step}/{self._experiment.num_steps}"
            logger.info("step %s: %s", steps, one_line(loss | scores | watched))

    def sync(self) -> None:
        """Returns when every step is reported and its line is on the disk."""
        self.flush()
        if self._writer is not None:
            self._writer.sync()

    def _skip(self, done: Dispatched) -> None:
        """Counts a step that changed nothing; ends the run where they become too many."""
        self._skipped += 1
        self.skipped_in_a_row += 1
        names = ", ".join(done.batch["names"])
        logger.warning("Step %d is skipped, its loss is not finite: %s", done.step, names)
        if self.skipped_in_a_row < self._experiment.max_skipped:
            return
        name = f"step_{done.step:07d}_process_{jax.process_index()}.npz"
        path = self._workdir / BAD_BATCHES / name
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **done.batch)
        write_file(path, buffer.getvalue())
        raise ValueError(
            f"{self.skipped_in_a_row} steps in a row had no finite loss and gradient (max_skipped). The last "
            f"batch is saved as {path} and holds {names}. Look at it, or lower optimizer.learning_rate: "
            "the same command goes on from the last checkpoint before them."
        )


def _means(
    interval: Mapping[str, Mapping[str, float]], names: Iterable[str]
) -> dict[str, float | None]:
    """Means over the steps of an interval, and the loss of each dataset; None where no step counts."""
    num_steps = sum(sums["steps"] for sums in interval.values())
    total = lambda name: sum(sums.get(name, 0.0) for sums in interval.values())
    means = {name: total(name) / num_steps if num_steps else None for name in names}
    for dataset, sums in interval.items():
        if len(interval) > 1 and sums["steps"]:
            means[f"loss/{dataset}"] = sums["loss"] / sums["steps"]
    return means
