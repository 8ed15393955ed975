"""What every test sees: the CPU as eight devices, and programs that compile fast and are kept between runs.

JAX reads these variables when it is imported, so they are set before any test module is.
"""

import contextlib
import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import annotations, flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{flags.DEVICES} {flags.QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
# The default keeps only what took a second to compile, which few tests do.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Tracing makes many objects that live long; the default walks through all of them, again and again.
gc.set_threshold(50_000, 20, 50)

# The same examples every time: what fails fails again, and what passes here passes there.
hypothesis.settings.register_profile("sam2_jax", derandomize=True)
hypothesis.settings.load_profile("sam2_jax")


annotations.check(
    "sam2_jax.ops",
    "sam2_jax.model",
    "sam2_jax.track",
    "sam2_jax.train.losses",
    # These call checked functions so often that checking them too would make tracing a fifth slower.
    but=("sam2_jax.model.layers", "sam2_jax.model.hiera", "sam2_jax.model.two_way"),
)


@pytest.fixture(autouse=True, scope="module")
def _free_programs() -> Iterator[None]:
    """Drops compiled programs after each file: hundreds of them exhaust a process's memory mappings."""
    import jax

    yield
    jax.clear_caches()


@pytest.fixture
def disk_of() -> Callable:
    """Within `with disk_of(size)` the system refuses to let any file grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


# Files that take longest, so that none of them is left for the end, when the other worker has nothing to do.
LONGEST = (
    "parity/test_golden.py",
    "train/test_step.py",
    "test_track.py",
    "predict/test_video.py",
    "test_notebooks.py",
    "predict/test_stream.py",
    "train/test_never_lost.py",
    "parity_torch/test_transformers.py",
    "parity_torch/test_bench.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, and leaves all others in their order."""
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


# A plain `pytest` works without torch; `make parity` brings it.
collect_ignore = [] if importlib.util.find_spec("torch") else ["parity_torch"]
