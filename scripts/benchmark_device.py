"""Measures this machine's GPU, TPU or CPU: `sam2-jax bench` as a script, for a checkout that is not installed.

    python scripts/benchmark_device.py
    python scripts/benchmark_device.py --phases propagate,pytorch

It needs jax, flax, chex, scipy, numpy and Pillow, and torch and transformers for the last phase only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sam2_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
