"""Trains a model: `sam2-jax train` as a script.

    python scripts/train.py --config=configs/smoke.py --workdir=runs/smoke
    python scripts/train.py --config=configs/finetune_mose_base_plus.py --config.optimizer.learning_rate=1e-5
    python scripts/train.py --help

The same command again goes on from the newest checkpoint. On a pod or a cluster every process runs it with
`--distributed`.
"""

import sys

from sam2_jax.commands.common import use_huge_pages
from sam2_jax.commands.train import main

if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main(sys.argv[1:], "scripts/train.py"))
