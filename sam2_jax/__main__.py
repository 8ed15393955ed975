"""`python -m sam2_jax` is the command `sam2-jax`."""

import sys

from sam2_jax.cli import main

sys.exit(main())
