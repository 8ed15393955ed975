"""One machine: which of its devices train, and the processes that CPUs need for that.

A process uses all GPUs or chips that it sees, but on CPU hardly more than one core; there each core gets a
process of its own.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

import jax

ALL = "all"
COMMAND = (sys.executable, "-m", "sam2_jax", "train")
_GRACE_SECONDS = 10.0  # until processes end by themselves after one of them has failed
_POLL_SECONDS = 0.1
_SHOWN_LINES = 20

logger = logging.getLogger(__name__)


def is_one_of_many() -> bool:
    """Tells whether this is one of several processes that Slurm has started."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def choose_devices(devices: str) -> int:
    """Restricts this process to the first devices, before JAX looks for any.

    Args:
      devices: how many, or "all".

    Returns:
      Number of processes that are needed: 1 where one uses all devices, on CPU one for each.

    Raises:
      ValueError: there are not so many.
    """
    if devices != ALL and not (devices.isdecimal() and int(devices)):
        raise ValueError(f"--devices is {devices!r}; all, or a number from 1, is expected")
    if devices != ALL:
        first = ",".join(map(str, range(int(devices))))
        jax.config.update("jax_cuda_visible_devices", first)
        jax.config.update("jax_rocm_visible_devices", first)
    try:
        platform, found = jax.default_backend(), jax.local_device_count()
    except RuntimeError as error:
        raise ValueError(f"--devices={devices}: {error}") from error
    if platform == "cpu":
        return len(_cores()) if devices == ALL else int(devices)
    if devices not in (ALL, str(found)):
        raise ValueError(
            f"--devices is {devices}, but a process uses {found} here ({platform}): say --devices=all"
        )
    return 1


def launch(arguments: Sequence[str], count: int) -> int:
    """Trains in several processes of this machine.

    Args:
      arguments: of `sam2-jax train`.
      count: how many processes.

    Returns:
      The exit status.
    """
    address = f"127.0.0.1:{free_port()}"
    together = ("--distributed", f"--coordinator_address={address}", f"--num_processes={count}")
    return run_together(
        [[*COMMAND, *arguments, *together, f"--process_id={i}"] for i in range(count)]
    )


def free_port() -> int:
    """Finds a port below those that systems hand out, so that it is still free when processes have started."""
    port = 20_000 + os.getpid() % 10_000
    while True:
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
        port += 1


def run_together(commands: Sequence[Sequence[str]]) -> int:
    """Runs processes until all have ended; if one fails, the others do not outlive it for long.

    They share the cores out among them. The first speaks for all; what another says is shown only if it is
    the one that fails. SIGINT, SIGTERM and SIGHUP go to all of them.

    Args:
      commands: programs with their arguments.

    Returns:
      The exit status of the process that failed first, 128 + N if signal N ended it, or 0.
    """
    processes: list[subprocess.Popen] = []
    received: list[int] = []
    receive = lambda number, _: received.append(number)
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, receive))
        logs: list[IO[str] | None] = [None]
        logs += [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands[1:]]
        for command, log in zip(commands, logs, strict=True):
            # A session of its own: a terminal would send Ctrl-C a second time.
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.kill)
            processes.append(process)
        _share_cores(processes)
        failed = _wait(processes, received)
        if failed is None:
            return 0
        log, status = logs[failed], processes[failed].returncode
        if log and processes[0].returncode != status:  # else the first has said the same
            log.seek(0)
            end = "\n".join(log.read().splitlines()[-_SHOWN_LINES:])
            logger.error("Process %d of %d failed:\n%s", failed, len(processes), end)
        return status if status > 0 else 128 - status


def _wait(processes: Sequence[subprocess.Popen], received: list[int]) -> int | None:
    """Waits for all and passes signals on; returns which failed first, if any."""
    failed, deadline = None, float("inf")
    while running := [process for process in processes if process.poll() is None]:
        while received:
            number = received.pop(0)
            for process in running:
                process.send_signal(number)
        if failed is None:
            failed = _failed(processes)
            deadline = time.monotonic() + _GRACE_SECONDS if failed is not None else deadline
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(_POLL_SECONDS)
    return _failed(processes) if failed is None else failed


def _failed(processes: Sequence[subprocess.Popen]) -> int | None:
    return next((i for i, process in enumerate(processes) if process.returncode), None)


def _cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _share_cores(processes: Sequence[subprocess.Popen]) -> None:
    cores = _cores()
    share = len(cores) // len(processes)
    if share and hasattr(os, "sched_setaffinity"):
        for i, process in enumerate(processes):
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(process.pid, cores[i * share : (i + 1) * share])
