r"""Makes a training run's weights the ones that come with the package: float16, with a checksum.

python scripts/bundle.py runs/nano_full/export
"""

import dataclasses
import sys

import jax
import numpy as np

from sam2_jax import checkpoint
from sam2_jax.checkpoint import bundled
from sam2_jax.files import sha256


def main(argv: list[str]) -> int:
    """Writes the files; returns the exit status."""
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    trained = checkpoint.load(argv[0], bundled.NAME)
    if trained.overrides:
        print(f"{argv[0]} differs from {bundled.NAME}: {trained.overrides}", file=sys.stderr)
        return 2
    half = jax.tree.map(lambda x: x.astype(np.float16), trained.params)
    checkpoint.save(bundled.WEIGHTS, dataclasses.replace(trained, params=half))
    checksum = sha256(bundled.WEIGHTS)
    bundled.CHECKSUM.write_text(f"{checksum}  {bundled.WEIGHTS.name}\n", encoding="utf-8")
    print(f"{bundled.WEIGHTS}: {bundled.WEIGHTS.stat().st_size / 1e6:.1f} MB, {checksum}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
