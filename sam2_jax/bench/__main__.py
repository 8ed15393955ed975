"""One phase of the device benchmark, in the process that `sam2_jax.bench.runner` starts for it."""

import json
import sys

from sam2_jax.bench import phases

if __name__ == "__main__":
    _, name, settings = sys.argv
    # Rows are alone on standard output, whatever the phase's libraries print.
    rows, sys.stdout = sys.stdout, sys.stderr
    for row in getattr(phases, name)(phases.Settings(**json.loads(settings))):
        rows.write(json.dumps(row) + "\n")
        rows.flush()
