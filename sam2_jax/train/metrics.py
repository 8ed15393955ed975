"""What a run tells while it runs: `metrics.jsonl`, TensorBoard events, wandb, a progress bar, its speed.

Written by one process; a run that is resumed goes on as if it had never stopped.
"""

import contextlib
import importlib
import json
import math
import os
import re
import resource
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from sam2_jax.files import write_file

METRICS_FILE = "metrics.jsonl"
_WANDB_ID = "wandb_id"  # the same folder is the same run
_EVENTS_FLUSHED_EVERY = 10.0  # seconds

# Dense bfloat16 FLOP/s of a device, by what its kind begins with.
_PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


class MetricWriter:
    """Writes numbers to every place where they are looked at.

    Raises:
      ValueError: `wandb_project` is given and the package wandb is missing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        last_step: int = 0,
        wandb_project: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        """Opens the files; what they hold of steps after `last_step` is dropped.

        Args:
          folder: of the run.
          last_step: from which the run goes on; 0 at its start.
          wandb_project: also sends everything there, unless empty.
          settings: of the run, for wandb.
        """
        folder = Path(folder).absolute()
        self._wandb = _start_wandb(wandb_project, folder, settings) if wandb_project else None
        self._path = folder / METRICS_FILE
        drop_lines_after(self._path, last_step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._events = _Events(folder, last_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a line and what it holds: numbers, and words, which TensorBoard does not get.

        Raises:
          OSError: the disk is full.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step} | plain) + "\n")
            self._file.flush()
            self._events.write(step, {n: v for n, v in plain.items() if isinstance(v, int | float)})
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if self._wandb is not None:
            self._wandb.log(plain, step=step)

    def sync(self) -> None:
        """Returns when everything is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Events:
    """A TensorBoard event file.

    tensorboardX's own `SummaryWriter` writes in a thread; where the disk is full, that dies unseen and the
    run hangs when its queue is full.
    """

    def __init__(self, folder: Path, last_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        self._writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
        # TensorBoard forgets what earlier files hold from this step on.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(
            Event(wall_time=time.time(), step=last_step + 1, session_log=start)
        )
        self._writer.flush()
        self._flushed = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            event = self._event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._writer.write_event(event)
        if time.monotonic() - self._flushed > _EVENTS_FLUSHED_EVERY:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def _plain(value: Any) -> Any:
    """A value as JSON has it; numbers that are not finite are null."""
    if isinstance(value, str | int | None):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the lines of a run; one that a killed run left unfinished is left out."""
    path = Path(folder) / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def drop_lines_after(path: str | os.PathLike, step: int) -> None:
    """Removes the lines of later steps, and one that was not finished, from a file of metrics."""
    path = Path(path)
    if not path.exists():
        return
    lines = read_metrics(path.parent)
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
    write_file(path, "".join(kept).encode())


def check_wandb(project: str) -> None:
    """Raises a ValueError if a project is named and the package wandb is missing."""
    if not project:
        return
    try:
        importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"wandb_project is {project!r}, but the package wandb is not installed: pip install wandb, or "
            "leave wandb_project empty."
        ) from error


def _start_wandb(project: str, folder: Path, settings: Mapping[str, Any] | None) -> Any:
    check_wandb(project)
    wandb = importlib.import_module("wandb")
    identity = folder / _WANDB_ID
    if not identity.exists():
        write_file(identity, secrets.token_hex(8).encode())
    return wandb.init(
        project=project,
        name=folder.name,
        id=identity.read_text(),
        dir=str(folder),
        config=dict(settings or {}),
        resume="allow",
    )


class Speed:
    """Measures what a run gets done.

    Args:
      peak_flops: FLOP/s of all devices together, None where they are not known.
    """

    def __init__(self, peak_flops: float | None):
        self.peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        """Begins anew, for example after a pause."""
        self._start, self._steps, self._frames = time.monotonic(), 0, 0
        self._flops, self._waited = 0.0, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, no time passes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - start

    def count(self, frames: int, flops: float | None, waited: float = 0.0) -> None:
        """Adds a step; `flops` is None where they are not known, `waited` are seconds for its batch."""
        self._steps += 1
        self._frames += frames
        self._flops += flops or 0.0
        self._waited += waited

    def rates(self) -> dict[str, float]:
        """Returns the means since the last restart, and restarts.

        Returns:
          `frames_per_s`; `step_s` and, as a part of it, `data_s`, seconds a step; `mfu`, the share of the
          devices' FLOP/s, where these are known. Nothing if there was no step.
        """
        seconds = max(time.monotonic() - self._start, 1e-9)
        rates = {}
        if self._steps:
            rates["frames_per_s"] = self._frames / seconds
            rates |= {"step_s": seconds / self._steps, "data_s": self._waited / self._steps}
        if self.peak_flops and self._flops:
            rates["mfu"] = self._flops / seconds / self.peak_flops
        self.restart()
        return rates


def peak_flops(kind: str) -> float | None:
    """Returns the dense bfloat16 FLOP/s of a kind of device, as `jax.Device.device_kind` has it."""
    known = [name for name in _PEAK_FLOPS if kind.startswith(name)]
    return _PEAK_FLOPS[max(known, key=len)] if known else None


def count_flops(jaxpr: Any) -> float:
    """Counts the FLOPs of matrix products and convolutions, on all devices together.

    `cost_analysis()` of a compiled program counts the body of a scan once, whatever its length.

    Args:
      jaxpr: for example `jax.jit(f).trace(...).jaxpr`. Of branches the most expensive one counts, bodies of
        `while` loops count once, and what the backward pass recomputes counts again.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = params["dimension_numbers"].rhs_spec[0]
            per_output = kernel.size // kernel.shape[features]
            total += 2 * equation.outvars[0].aval.size * per_output
        elif name == "cond":
            total += max(map(count_flops, params["branches"]))
        else:
            repeats = 1
            if name == "scan":
                repeats = params["length"]
            elif name == "shard_map":
                # JAX has two names for the axes over which the inner shapes are those of one device.
                axes = params.get("newly_manual_axes", params.get("manual_axes", ()))
                repeats = math.prod(params["mesh"].shape[axis] for axis in axes)
            total += repeats * sum(map(count_flops, _inner(params)))
    return total


def _inner(params: Mapping[str, Any]) -> list[Any]:
    """The programs among the parameters of a primitive."""
    return [value for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def memory_gb(device: jax.Device) -> float:
    """Returns the most that a device has held, in 10^9 bytes; a CPU's is what this process has held."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def one_line(values: Mapping[str, Any]) -> str:
    """Formats values for a line of the log."""
    text = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
    return re.sub(r"\s+", " ", text)
