r"""Makes a training run's weights the ones that come with the package: float16, with a checksum.

python scripts/bundle.py runs/nano_full/export
"""

import hashlib
import sys

import numpy as np
from safetensors.numpy import save_file

from checkpoints_convert import names
from sam2_jax import bundled
from sam2_jax.build import load_weights
from sam2_jax.config import get_config
from sam2_jax.model.sam2 import param_shapes


def main(argv: list[str]) -> int:
    """Writes the files; returns the exit status."""
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    _, params = load_weights(argv[0], bundled.NAME)
    tensors = names.to_state_dict(params, param_shapes(get_config(bundled.NAME)))
    half = {name: np.ascontiguousarray(x, np.float16) for name, x in tensors.items()}
    bundled.WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(half, bundled.WEIGHTS, metadata={"format": "pt"})
    bundled.WEIGHTS.chmod(0o644)
    checksum = hashlib.sha256(bundled.WEIGHTS.read_bytes()).hexdigest()
    bundled.CHECKSUM.write_text(f"{checksum}  {bundled.WEIGHTS.name}\n", encoding="utf-8")
    print(f"{bundled.WEIGHTS}: {bundled.WEIGHTS.stat().st_size / 1e6:.1f} MB, {checksum}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
