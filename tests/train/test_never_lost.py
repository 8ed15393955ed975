"""The command in processes of its own, ended in every way that runs end, and started again."""

import random
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sam2_jax.checkpoint import folder
from sam2_jax.train.metrics import read_metrics
from tests.train import toy_run

NUM_STEPS = 90
LIMIT = 300  # seconds after which a run hangs
WATCHED = ("frames_per_s", "step_s", "data_s", "memory_gb")  # of the machine, not of the run


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return toy_run.write_config(tmp_path_factory.mktemp("config"), num_steps=NUM_STEPS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, config) -> Path:
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    status, log = finish(toy_run.start(config, workdir))
    assert status == 0, log
    return workdir


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and log."""
    try:
        _, log = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the run hangs:\n{process.communicate()[1]}")
    return process.returncode, log


def lines_until(process: subprocess.Popen, text: str) -> Iterator[str]:
    """Lines of the log up to one with a text."""
    lines = []
    limit = threading.Timer(LIMIT, process.kill)
    limit.start()
    try:
        for line in process.stderr:
            lines.append(line)
            yield line
            if text in line:
                return
    finally:
        limit.cancel()
    pytest.fail(f"the run hangs, or ended before {text!r}:\n{''.join(lines)}")


def wait_for(process: subprocess.Popen, text: str) -> str:
    return "".join(lines_until(process, text))


def deterministic(workdir: Path) -> list[dict]:
    lines = read_metrics(workdir)
    return [{k: v for k, v in line.items() if k not in WATCHED} for line in lines]


def assert_same_run(workdir: Path, expected: Path) -> None:
    """Every step once and every bit the same: losses, gradients, scores, and the parameters at the end."""
    assert [line["step"] for line in deterministic(workdir)] == list(range(1, NUM_STEPS + 1))
    assert deterministic(workdir) == deterministic(expected)
    ours, theirs = folder.load(workdir / "export"), folder.load(expected / "export")
    np.testing.assert_equal(ours.params, theirs.params)


def test_kill_9_at_random_moments(tmp_path, config, uninterrupted):
    """Kills fall into the start, steps, saves in the background, and what lies between."""
    rng = random.Random(0)
    num_resumed, num_half_written = 0, 0
    for n in range(10):
        process = toy_run.start(config, tmp_path)
        if n % 4 == 3:
            time.sleep(rng.uniform(0, 4))  # while it starts or restores
        else:
            log = "".join(wait_for(process, ": loss ") for _ in range(rng.randint(1, 12)))
            num_resumed += "resumed after" in log
            time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
        num_half_written += bool(list((tmp_path / "checkpoints").glob("*tmp*")))
    status, log = finish(toy_run.start(config, tmp_path))
    assert status == 0, log
    assert_same_run(tmp_path, uninterrupted)
    assert num_resumed >= 5
    assert num_half_written >= 1


@pytest.fixture(scope="module")
def preempted(tmp_path_factory, config) -> Path:
    """A run that was told to end by SIGTERM, as machines that are taken away are."""
    workdir = tmp_path_factory.mktemp("preempted") / "run"
    process = toy_run.start(config, workdir)
    for _ in range(12):
        wait_for(process, ": loss ")
    process.terminate()
    status, log = finish(process)
    assert status == 0, log
    assert f"step {newest_step(workdir)} is saved" in log
    return workdir


@pytest.fixture
def workdir(tmp_path, preempted) -> Path:
    return shutil.copytree(preempted, tmp_path / "run")


def newest_step(workdir: Path) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_sigterm_saves_the_step_at_hand(preempted, uninterrupted):
    step = newest_step(preempted)
    assert step >= 12
    assert deterministic(preempted) == deterministic(uninterrupted)[:step]


def test_ctrl_c_saves(workdir, config):
    before = newest_step(workdir)
    process = toy_run.start(config, workdir)
    wait_for(process, ": loss ")
    process.send_signal(signal.SIGINT)
    status, log = finish(process)
    assert status == 130
    assert "Traceback" not in log
    assert log.endswith("sam2-jax train: interrupted\n")
    assert newest_step(workdir) > before


def test_a_full_disk_ends_the_run_with_one_line(workdir, config, uninterrupted):
    process = toy_run.start(config, workdir)
    assert f"resumed after step {newest_step(workdir)} of" in wait_for(process, ": loss ")
    limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16_000, limits[1]))
    status, log = finish(process)
    assert status == 2
    assert "Traceback" not in log
    assert re.fullmatch(
        r"sam2-jax train: error: a checkpoint could not be written to .*/checkpoints "
        r"\(the last good one is of step \d+\): .*",
        log.splitlines()[-1],
    )
    assert finish(toy_run.start(config, workdir))[0] == 0  # there is room again
    assert_same_run(workdir, uninterrupted)


def test_a_corrupted_checkpoint_is_passed_over(workdir, config, uninterrupted):
    newest = workdir / "checkpoints" / str(newest_step(workdir))
    for path in newest.glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    status, log = finish(toy_run.start(config, workdir))
    assert status == 0, log
    assert f"The checkpoint of step {newest.name} is damaged and set aside" in log
    assert "resumed after" in log
    assert_same_run(workdir, uninterrupted)
