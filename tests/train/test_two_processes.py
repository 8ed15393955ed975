"""Two processes with four simulated devices each, as two hosts of a pod, on one machine."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import jax
import numpy as np
import pytest

from sam2_jax.checkpoint import folder
from sam2_jax.experiment import Dataset, Optimizer
from sam2_jax.train.metrics import read_metrics
from tests.train import toy_run
from tests.train.test_never_lost import LIMIT, finish, newest_step, wait_for

MESH_A = ("--config.mesh.data=1", "--config.mesh.fsdp=8")
MESH_B = ("--config.mesh.data=2", "--config.mesh.fsdp=4")
MESH_C = ("--config.mesh.data=4", "--config.mesh.fsdp=1", "--config.mesh.model=2")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return toy_run.write_config(
        tmp_path_factory.mktemp("config"),
        num_steps=10_000,
        checkpoint_every=5,
        optimizer=Optimizer(learning_rate=1e-2, schedule="constant"),
        datasets={"drawn": Dataset(num_frames=2, max_objects=2, batch_size=8)},
    )


def free_port() -> int:
    """Below those that systems hand out: it is still free when the processes have started, seconds later."""
    port = 20_000 + os.getpid() % 10_000
    while True:
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
        port += 1


@contextlib.contextmanager
def two(config: Path, workdir: Path, *flags: str) -> Iterator[list[subprocess.Popen]]:
    """Two processes that train together, and end with the context whatever happens."""
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    together = ("--distributed", address, "--num_processes=2")
    processes = [
        toy_run.start(config, workdir, *flags, *together, f"--process_id={i}", num_devices=4)
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finish_two(processes: list[subprocess.Popen]) -> str:
    """The log of the first of them."""
    # Both at once: a process whose standard error nobody reads waits, and the other one for it.
    with futures.ThreadPoolExecutor() as readers:
        reading = [readers.submit(process.communicate, timeout=LIMIT) for process in processes]
    try:
        logs = [future.result()[1] for future in reading]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        pytest.fail("the run hangs:\n" + "\n".join(p.communicate()[1] for p in processes))
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return logs[0]


def losses(workdir: Path) -> list[float]:
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def preempted(tmp_path_factory, config) -> Path:
    """A run of two processes, of which one was told to end."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    with two(config, workdir, *MESH_A) as processes:
        for _ in range(6):
            wait_for(processes[0], ": loss ")
        processes[1].terminate()
        log = finish_two(processes)
    assert f"step {newest_step(workdir)} is saved" in log
    return workdir


def until(workdir: Path) -> str:
    """The flag by which a run goes a few steps farther."""
    return f"--config.num_steps={newest_step(workdir) + 6}"


def test_resumes_on_another_mesh_with_the_same_losses(tmp_path, config, preempted):
    first, second = shutil.copytree(preempted, tmp_path / "first"), tmp_path / "second"
    with two(config, first, *MESH_B, until(preempted)) as processes:
        log = finish_two(processes)
    assert f"resumed after step {newest_step(preempted)} of" in log

    status, log = finish(toy_run.start(config, second, *MESH_C, until(preempted), num_devices=8))
    assert status == 0, log
    np.testing.assert_allclose(losses(first), losses(second), rtol=1e-4)
    found, expected = folder.load(first / "export"), folder.load(second / "export")
    assert found.name == expected.name
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4)
    jax.tree.map(close, found.params, expected.params)


def test_both_processes_pass_over_a_corrupted_checkpoint(tmp_path, config, preempted):
    """Also if only one of them reads the file that is damaged."""
    workdir = shutil.copytree(preempted, tmp_path / "run")
    newest = workdir / "checkpoints" / str(newest_step(workdir))
    for path in newest.glob("state/ocdbt.process_1/d/*"):
        path.write_bytes(bytes(path.stat().st_size))
    with two(config, workdir, *MESH_A, until(workdir)) as processes:
        log = finish_two(processes)
    assert f"The checkpoint of step {newest.name} is damaged and set aside" in log
    assert len(losses(workdir)) == int(newest.name) + 6
