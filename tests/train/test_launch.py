"""Processes of one machine; small programs stand for training, which tests/train/test_two_processes.py runs."""

import os
import re
import signal
import sys
import threading
import time

import pytest

from sam2_jax.train import launch
from tests.train import test_loop, toy_run


def program(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import os, signal, sys, time\n{code}"]


def test_all_end_well(capfd):
    assert launch.run_together([program("print('first')"), program("print('second')")]) == 0
    assert capfd.readouterr().out == "first\n"


def test_one_that_fails_ends_the_others_and_is_heard(caplog, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.2)
    sleeps, fails = program("time.sleep(60)"), program("sys.exit('no such folder')")
    start = time.monotonic()
    assert launch.run_together([sleeps, fails]) == 1
    assert time.monotonic() - start < 30
    assert caplog.messages == ["Process 1 of 2 failed:\nno such folder"]


def test_the_cause_is_told_though_the_first_falls_over_it(caplog):
    falls, fails = program("time.sleep(0.3); os.abort()"), program("sys.exit('the disk is full')")
    assert launch.run_together([falls, fails]) == 1
    assert caplog.messages == ["Process 1 of 2 failed:\nthe disk is full"]


def test_what_all_complain_about_is_said_once(capfd, caplog):
    fails = program("time.sleep(0.2); sys.exit('no such folder')")
    assert launch.run_together([fails, fails]) == 1
    assert capfd.readouterr().err == "no such folder\n"
    assert not caplog.messages


def test_one_that_is_killed_is_told(caplog):
    killed = program("os.kill(os.getpid(), signal.SIGKILL)")
    assert launch.run_together([program(""), killed]) == 128 + signal.SIGKILL
    assert "Process 1 of 2 failed" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_all_and_the_handlers_are_put_back(number, tmp_path):
    code = f"""
def end(*_):
    open({str(tmp_path)!r} + '/ended_%d' % os.getpid(), 'w'); sys.exit()
signal.signal({int(number)}, end)
open({str(tmp_path)!r} + '/ready_%d' % os.getpid(), 'w')
time.sleep(60)"""
    before = signal.getsignal(number)

    def interrupt():
        while len(list(tmp_path.glob("ready_*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert launch.run_together([program(code)] * 2) == 0
    thread.join()
    assert len(list(tmp_path.glob("ended_*"))) == 2
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen")
def test_cores_are_shared_out(capfd):
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("there is one core only")
    code = f"""
for _ in range(1000):
    if len(os.sched_getaffinity(0)) <= {len(mine) // 2}: break
    time.sleep(0.01)
print(os.sched_getaffinity(0))"""
    assert launch.run_together([program(code), program(code)]) == 0
    found = {int(core) for core in re.findall(r"\d+", capfd.readouterr().out)}
    assert len(found) == len(mine) // 2
    assert found < mine


def test_on_cpu_every_core_has_a_process(monkeypatch):
    monkeypatch.setattr(launch, "_cores", lambda: [0, 1, 4, 5])
    assert launch.choose_devices("all") == 4
    assert launch.choose_devices("2") == 2


@pytest.mark.parametrize(("devices", "first"), [("all", "all"), ("2", "0,1")])
def test_on_gpus_one_process_has_them_all(monkeypatch, devices, first):
    chosen = {"jax_cuda_visible_devices": "all"}
    monkeypatch.setattr(launch.jax.config, "update", chosen.__setitem__)
    monkeypatch.setattr(launch.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(launch.jax, "local_device_count", lambda: 2)
    assert launch.choose_devices(devices) == 1
    assert chosen["jax_cuda_visible_devices"] == first


@pytest.mark.parametrize("devices", ["none", "0", "-1", "1.5", ""])
def test_devices_are_a_number_or_all(devices):
    with pytest.raises(ValueError, match="all, or a number from 1, is expected"):
        launch.choose_devices(devices)


def test_more_devices_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(launch.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(launch.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(launch.jax, "local_device_count", lambda: 4)
    with pytest.raises(ValueError, match="--devices is 8, but a process uses 4 here"):
        launch.choose_devices("8")


def test_where_srun_has_started_several_they_train_together(tmp_path, monkeypatch):
    """Instead of every one of them starting others."""
    config = toy_run.write_config(tmp_path)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    joined = []

    def join(*arguments):
        joined.append(arguments)
        raise ValueError("that is enough")

    monkeypatch.setattr(launch.jax.distributed, "initialize", join)
    assert test_loop.run_command(f"--config={config}", "--devices=all") == 2
    assert joined == [(None, None, None)]
