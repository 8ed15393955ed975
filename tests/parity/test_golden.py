"""Every key of every golden file, within the tolerances of docs/parity.md."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests import flags
from tests.parity.golden import FILES, check

ROOT = Path(__file__).parents[2]
# The size that users run, and the weights that rounding moves most: without optimisation they pass a limit.
AS_USERS = ("sam2.1_hiera_tiny.1024", "sam2.1_hiera_small")
OTHERS = [stem for stem in FILES if stem not in AS_USERS]


@pytest.fixture(autouse=True)
def _free_programs_and_weights() -> Iterator[None]:
    """Eleven models and their programs would take 9 GB."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.mark.parametrize("stem", AS_USERS)
def test_equals_the_original_as_users_compile_it(stem):
    """In a process of its own, since XLA reads its flags once."""
    code = f"from tests.parity.golden import check; check({stem!r}, as_users=True)"
    environment = os.environ | {"XLA_FLAGS": flags.DEVICES, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("model", sorted({stem.removesuffix(".absent") for stem in OTHERS}))
def test_equals_the_original(model):
    """With all its files one after the other, which share programs."""
    for stem in OTHERS:
        if stem in (model, f"{model}.absent"):
            check(stem)
