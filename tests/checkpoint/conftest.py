import pytest

from tests.parity.reference_weights import NAMES, read_shapes, reference_weights


@pytest.fixture
def shapes():
    """Returns the function model name -> {official name: official shape}."""
    return lambda model: read_shapes(NAMES / f"{model}.tsv")


@pytest.fixture(scope="session")
def tiny():
    """The reference weights of sam2.1_hiera_tiny."""
    return reference_weights(NAMES / "sam2.1_hiera_tiny.tsv")
