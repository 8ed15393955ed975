"""Scores masks, or a model: `sam2-jax evaluate` as a script.

python scripts/evaluate.py score --truth DAVIS --predictions davis_out
python scripts/evaluate.py --help
"""

import sys

from sam2_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
