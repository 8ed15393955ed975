"""Two processes with four simulated devices each, as two hosts of a pod, on one machine."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from sam2_jax.checkpoint import folder
from sam2_jax.experiment import Dataset, Optimizer
from sam2_jax.train import launch
from sam2_jax.train.metrics import read_metrics
from tests.train import toy_run
from tests.train.test_never_lost import finish, newest_step, wait_for

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


def start_two(command: Sequence[str], tmp_path: Path, *arguments: Path | str) -> subprocess.Popen:
    """Runs a command where `srun`, and `gcloud` in a shell of all hosts, start two processes on this machine.

    JAX finds them by the variables of Slurm; those of a TPU are not to be had without one.
    """
    run_twice = """for i in 0 1; do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" 2> >(if ((i)); then cat > "$LOGS"; else cat >&2; fi) &
done
wait -n && wait -n"""
    programs = {
        "srun": run_twice,
        "gcloud": f"""[[ "$*" == *--worker=all* ]] || exit 1
echo "$4" >> "$CALLS"
[[ "${{@: -1}}" == --command=* ]] || exit 0
last="${{@: -1}}"
set -- bash -c "${{last#--command=}}"
{run_twice}""",
        "sam2-jax": f'shift; exec {" ".join(toy_run.COMMAND)} "$@"',
        "python3": f'[[ $2 == pip ]] || {{ shift 3; exec {" ".join(toy_run.COMMAND)} "$@"; }}',
    }
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return toy_run.start(
        *arguments,
        num_devices=4,
        command=command,
        PATH=f"{folder}:{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls"),
        LOGS=str(tmp_path / "second.log"),
        JAX_COORDINATOR_PORT=str(launch.free_port()),
        SLURM_JOB_ID="1",
        SLURM_STEP_NODELIST="localhost",
        SLURM_NTASKS="2",
    )


def losses(workdir: Path) -> list[float]:
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def preempted(tmp_path_factory, config) -> Path:
    """A run of two processes, which the command starts; one of them was told to end."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    process = toy_run.start(config, workdir, *MESH_A, "--devices=2", num_devices=4)
    for _ in range(6):
        wait_for(process, ": loss ")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGTERM)
    status, log = finish(process)
    assert status == 0, log
    assert f"step {newest_step(workdir)} is saved" in log
    return workdir


def until(workdir: Path) -> str:
    """The flag by which a run goes a few steps farther."""
    return f"--config.num_steps={newest_step(workdir) + 6}"


def test_slurm_goes_on_on_another_mesh_with_the_same_losses(tmp_path, config, preempted):
    one, two = tmp_path / "one", shutil.copytree(preempted, tmp_path / "two")
    script = ("bash", str(toy_run.ROOT / "scripts" / "train.sbatch"))
    status, log = finish(start_two(script, tmp_path, config, two, *MESH_B, until(preempted)))
    assert status == 0, log
    assert f"resumed after step {newest_step(preempted)} of" in log

    status, log = finish(toy_run.start(config, one, *MESH_C, until(preempted), num_devices=8))
    assert status == 0, log
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    found, expected = folder.load(two / "export"), folder.load(one / "export")
    assert found.name == expected.name
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4)
    jax.tree.map(close, found.params, expected.params)


def test_hosts_of_a_tpu_pass_over_a_corrupted_checkpoint(tmp_path, config, preempted):
    """Also if only one of them reads the file that is damaged; the commands are those of the documentation."""
    workdir = shutil.copytree(preempted, tmp_path / "run")
    newest = workdir / "checkpoints" / str(newest_step(workdir))
    for path in newest.glob("state/ocdbt.process_1/d/*"):
        path.write_bytes(bytes(path.stat().st_size))
    text = (toy_run.ROOT / "docs" / "pods.md").read_text()
    scp, install, train = re.findall(r"^    (gcloud (?:[^\n\\]|\\\n)*)", text, re.MULTILINE)
    train = train.replace("--config=train_joint:large --workdir=DIR", "$*")
    script = ("bash", "-euc", f"{scp}\n{install}\n{train}", "bash")
    status, log = finish(start_two(script, tmp_path, config, workdir, *MESH_A, until(workdir)))
    assert status == 0, log
    assert (tmp_path / "calls").read_text().split() == ["scp", "ssh", "ssh"]
    assert f"The checkpoint of step {newest.name} is damaged and set aside" in log
    assert len(losses(workdir)) == int(newest.name) + 6
