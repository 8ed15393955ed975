"""`sam2-jax train` and `scripts/train.py`: train a model.

Flags instead of an argument parser, so that the command line can change any field of the experiment.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from sam2_jax.commands.common import cache_compiled_programs, keep_freed_memory

HELP = "Train a model."
_QUOTES = "'\""
USAGE = """usage: {program} --config=configs/<experiment>.py [--config.field=value ...] [--workdir=DIR]

  --config=FILE         experiment; --config.optimizer.learning_rate=1e-4 changes a field of it
  --workdir=DIR         folder of the run (default: runs/<experiment>); the same command goes on from its
                        newest checkpoint
  --distributed         join the other processes of a pod or a cluster, found by its environment, or by
    --coordinator_address=HOST:PORT --num_processes=N --process_id=I
  --config.dry_run      print what would be trained and stop
"""


def main(argv: Sequence[str], program: str = "sam2-jax train") -> int:
    """Runs the command; returns its exit status."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("sam2_jax").setLevel(logging.INFO)
    _quieten_orbax()
    try:
        if set(argv) & {"-h", "--help"}:
            print(USAGE.format(program=program), end="")
            return 0
        _run(list(argv), program)
    except (ValueError, OSError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    return 0


def _quieten_orbax() -> None:
    """Keeps errors to the one line that `main` prints: Orbax raises what it logs with stacks on the way."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook

    def without_late_callbacks(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = without_late_callbacks


def _run(argv: list[str], program: str) -> None:
    flags = _parse(argv, program)
    cache_compiled_programs()
    keep_freed_memory()
    if flags.distributed:
        import jax

        jax.distributed.initialize(flags.coordinator_address, flags.num_processes, flags.process_id)

    from sam2_jax.experiment import from_config_dict
    from sam2_jax.train.describe import describe
    from sam2_jax.train.loop import train

    experiment = from_config_dict(flags.config.to_dict())
    workdir = flags.workdir or os.path.join("runs", Path(flags["config"].config_filename).stem)
    if experiment.dry_run:
        print(describe(experiment, workdir))
    else:
        train(experiment, workdir)


def _parse(argv: list[str], program: str):
    """Returns the values of the flags; a ValueError if they make no sense."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, sys_argv=[program, *argv])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("distributed", False, "", flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    try:
        rest = values([program, *argv])[1:]
    # Overrides of fields that do not exist, or that cannot be converted, raise various types.
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        reason = str(error.args[0]).replace("\\n", " ").replace("\\'", "'")
        if re.fullmatch(
            r"\W*\w+\W*", reason
        ):  # all that ml_collections says of some unknown fields
            reason = f"the experiment has no field {reason.strip(_QUOTES)!r}"
        raise ValueError(f"{reason} (see {program} --help)") from error
    if rest:
        raise ValueError(f"{rest[0]!r} is no flag (see {program} --help)")
    if values.config is None:
        raise ValueError(f"--config is missing (see {program} --help)")
    return values
