"""What is installed: with it alone, outside of a clone, a model can be trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The packages as a wheel holds them."""
    folder = tmp_path_factory.mktemp("build")
    build = ["build", f"--build-base={folder}", f"--build-lib={folder / 'lib'}"]
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", *build]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder / "lib"


def test_an_experiment_is_known_by_its_name_outside_of_a_clone(installed, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "sam2_jax", "train", "--config=smoke", "--config.dry_run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "dataset shapes: 100% of the steps, 16 clips of 1 frames" in result.stdout
    assert [path.name for path in (tmp_path / "runs" / "smoke").iterdir()] == ["first_batch.png"]


def test_all_experiments_are_in_it(installed):
    names = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {path.name for path in (installed / "sam2_jax" / "configs").iterdir()} == names
