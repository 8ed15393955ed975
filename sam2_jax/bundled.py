"""The small model that comes with the package, so that everything runs without a download (docs/nano.md)."""

import hashlib
from pathlib import Path

NAME = "sam2_nano"
WEIGHTS = Path(__file__).parent / "weights" / f"{NAME}.safetensors"  # float16, official names
CHECKSUM = WEIGHTS.with_suffix(".sha256")  # as `sha256sum` writes it


def bundled_checkpoint() -> Path:
    """Returns the file of the weights, after its checksum was verified.

    Raises:
      ValueError: the file is not the one that the package was made with.
      FileNotFoundError: it is not there.
    """
    expected = CHECKSUM.read_text(encoding="utf-8").split()[0]
    found = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{WEIGHTS} has the SHA-256 {found}, but {expected} is expected: the installation is damaged; "
            "install sam2-jax again"
        )
    return WEIGHTS
