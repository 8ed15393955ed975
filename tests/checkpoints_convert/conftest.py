import runpy
from pathlib import Path

import pytest

PARITY = Path(__file__).parents[1] / "parity"
_REFERENCE = runpy.run_path(str(PARITY / "reference_weights.py"))


@pytest.fixture
def shapes():
    """Returns the function model name -> {official name: official shape}."""
    return lambda model: _REFERENCE["read_shapes"](PARITY / "names" / f"{model}.tsv")


@pytest.fixture(scope="session")
def tiny():
    """The reference weights of sam2.1_hiera_tiny."""
    return _REFERENCE["reference_weights"](PARITY / "names" / "sam2.1_hiera_tiny.tsv")
