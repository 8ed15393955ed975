"""The small model that comes with the package, so that everything runs without a download (docs/nano.md)."""

from pathlib import Path
from typing import Any

from sam2_jax.checkpoint.checkpoint import Checkpoint
from sam2_jax.checkpoint.io import load
from sam2_jax.files import sha256

NAME = "sam2_nano"
WEIGHTS = Path(__file__).parents[1] / "weights" / f"{NAME}.safetensors"  # float16, official names
CHECKSUM = WEIGHTS.with_suffix(".sha256")  # as `sha256sum` writes it


def load_bundled(**overrides: Any) -> Checkpoint:
    """Loads it, once its checksum is verified.

    Args:
      **overrides: as for `sam2_jax.checkpoint.load`.

    Raises:
      ValueError: the file is not the one that the package was made with.
      FileNotFoundError: it is not there.
    """
    expected = CHECKSUM.read_text(encoding="utf-8").split()[0]
    found = sha256(WEIGHTS)
    if found != expected:
        raise ValueError(
            f"{WEIGHTS} has the SHA-256 {found}, but {expected} is expected: the installation is damaged; "
            "install sam2-jax again"
        )
    return load(WEIGHTS, NAME, **overrides)
