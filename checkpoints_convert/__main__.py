"""`python -m checkpoints_convert`."""

import sys

from checkpoints_convert.convert import main

sys.exit(main())
