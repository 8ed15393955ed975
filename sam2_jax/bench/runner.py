"""Runs the phases of the device benchmark, each in a process of its own and for a limited time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MACHINE = "machine"  # the phase that says what all others depend on
# Seconds that a phase of `sam2_jax.bench.phases` may take; ten minutes in all.
LIMITS = {
    MACHINE: 30,
    "ceilings": 40,
    "attention": 80,
    "encode": 80,
    "propagate": 130,
    "video": 80,
    "pytorch": 160,
}
_ROOT = Path(__file__).parents[2]
_COLUMNS = ("case", "ms", "rate", "unit")  # of a row; what else it has is a remark

Record = dict[str, Any]


def run(
    names: Iterable[str], settings: Mapping[str, Any], limits: Mapping[str, float] = LIMITS
) -> Iterator[Record]:
    """Runs phases one after the other.

    Args:
      names: of phases, from `LIMITS`.
      settings: fields of `phases.Settings`; those that are left out have their defaults.
      limits: seconds of each phase; no more than all of `limits` together are spent.

    Yields:
      For each phase, as it ends, a dict that JSON can hold: `phase`, `ok`, `seconds`, `rows`, complete if it is
      ok, and `error` if it is not.
    """
    deadline = time.monotonic() + sum(limits.values())
    # What an earlier phase compiled, a later one finds here; nothing comes from before the benchmark.
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        }
        for name in names:
            limit = min(limits[name], deadline - time.monotonic())
            yield _run_phase(name, settings, limit, environment)


def _run_phase(
    name: str, settings: Mapping[str, Any], limit: float, environment: Mapping[str, str]
) -> Record:
    command = [sys.executable, "-m", "sam2_jax.bench", name, json.dumps(dict(settings))]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        error = None
        try:
            output, _ = process.communicate(timeout=limit)
            if process.returncode:
                log.seek(0)
                lines = log.read().split("\n")
                error = next(filter(None, map(str.strip, reversed(lines))), "it said nothing")
                error = f"exit status {process.returncode}: {error}"
        except subprocess.TimeoutExpired:
            error = f"it took longer than {limit:.3g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # compilers of its own may outlive it
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            output, _ = process.communicate()
    rows = [json.loads(line) for line in output.splitlines()]
    record = {"phase": name, "ok": error is None, "seconds": round(time.monotonic() - start, 1)}
    return record | {"rows": rows} | ({"error": error} if error else {})


def table(records: Sequence[Record]) -> str:
    """Returns the records as a Markdown table, after what they depend on as a list."""
    lines = []
    for record in records:
        if record["phase"] == MACHINE:
            facts = ((key, value) for row in record["rows"] for key, value in row.items() if value)
            lines += [f"- {'device' if key == 'case' else key}: {value}" for key, value in facts]
    lines += ["", "| phase | case | ms | rate | |", "|---|---|---|---|---|"]
    for record in records:
        is_list = record["phase"] == MACHINE
        lines += [_line(record["phase"], row) for row in record["rows"] if not is_list]
        if not record["ok"]:
            lines.append(f"| {record['phase']} | **failed** | | | {record['error']} |")
    return "\n".join(lines).strip()


def _line(phase: str, row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"| {phase} | {row['case']} | | **failed** | {row['failed']} |"
    notes = {key: _show(value) for key, value in row.items() if key not in _COLUMNS}
    remarks = "; ".join(f"{key}: {value}" for key, value in notes.items())
    rate = f"{_show(row['rate'])} {row['unit']}"
    return f"| {phase} | {row['case']} | {_show(row['ms'])} | {rate} | {remarks} |"


def _show(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"
