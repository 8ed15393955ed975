"""`sam2-jax train` and `scripts/train.py`: train a model.

Flags instead of an argument parser, so that the command line can change any field of the experiment.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sam2_jax.commands.common import cache_compiled_programs, keep_freed_memory

HELP = "Train a model."
_QUOTES = "'\""
USAGE = """usage: {program} --config=EXPERIMENT [--config.field=value ...] [--workdir=DIR]

  --config=EXPERIMENT   a file, such as configs/nano.py:small, or the name of one that is installed, such as
                        smoke or nano:small; --config.optimizer.learning_rate=1e-4 changes a field of it
  --workdir=DIR         folder of the run (default: runs/<experiment>); the same command continues from
                         its newest checkpoint
  --resume=auto         must: continue even though the data or the start have changed; never: start anew and
                        set aside what is in the folder
  --devices=all         or a number: the GPUs of this machine, all or the first ones; on CPU a process for each
                        core. Processes that srun has started join each other
  --distributed         join the other processes of a pod or a cluster, found by its environment, or given by
    --coordinator_address=HOST:PORT --num_processes=N --process_id=I
  --config.dry_run      print what would be trained and stop
"""
# In an installed package, and in a clone.
_CONFIGS = tuple(Path(__file__).parents[n] / "configs" for n in (1, 2))
_RENAMED = {"--config.interaction.truth_probability": "--config.interaction.target_probability"}


def main(argv: Sequence[str], program: str = "sam2-jax train") -> int:
    """Runs the command; returns its exit status."""
    with _logging():
        status = _status(argv, program)
    from sam2_jax.train.interruptions import is_left_behind

    if is_left_behind():  # Python would wait for a compilation that nobody needs
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status(argv: Sequence[str], program: str) -> int:
    import jax

    try:
        if set(argv) & {"-h", "--help"}:
            print(USAGE.format(program=program), end="")
            return 0
        return _run(list(argv), program)
    except (ValueError, OSError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"{program}: error: out of memory: {' '.join(str(error).split())[:200]}. The last checkpoint "
            "stays. Fewer clips at once (batch_size, or accumulate), remat=full or more mesh.fsdp need less.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows the log of a run, and keeps errors to the one line that is printed within it.

    Orbax logs what it raises with stack traces, also from threads, and what it leaves behind complains
    when it is collected.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in ("sam2_jax", "absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook

    def without_late_callbacks(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    if is_shown := not root.handlers:
        root.addHandler(handler)
    for logger, level in zip(loggers, (logging.INFO, *[logging.CRITICAL] * 2), strict=True):
        logger.setLevel(level)
    sys.unraisablehook = without_late_callbacks
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
            gc.collect()
    finally:
        if is_shown:
            root.removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = hook


def _run(argv: list[str], program: str) -> int:
    import jax

    from sam2_jax.train import launch

    name, flags = _parse(argv, program)
    if flags.devices and flags.distributed:
        raise ValueError(
            "--devices is for one machine, --distributed for several; give one of them"
        )
    is_joined = flags.distributed or (flags.devices == launch.ALL and launch.is_one_of_many())
    if flags.devices and not is_joined and (count := launch.choose_devices(flags.devices)) > 1:
        return launch.launch([*argv, "--devices="], count)
    cache_compiled_programs()
    keep_freed_memory()
    if is_joined:
        jax.distributed.initialize(flags.coordinator_address, flags.num_processes, flags.process_id)

    from sam2_jax.experiment import from_config_dict
    from sam2_jax.train.dry_run import dry_run
    from sam2_jax.train.loop import train

    experiment = from_config_dict(flags.config.to_dict())
    workdir = flags.workdir or os.path.join("runs", _run_name(name))
    if experiment.dry_run:
        print(dry_run(experiment, workdir))
    else:
        with _log_file(workdir):
            train(experiment, workdir, resume=flags.resume)
    return 0


@contextlib.contextmanager
def _log_file(workdir: str) -> Iterator[None]:
    """Also writes what the first process says into the folder of the run."""
    import jax

    from sam2_jax.train.workdir import LOG

    if jax.process_index() > 0:
        yield
        return
    Path(workdir).mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(Path(workdir) / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("sam2_jax")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _run_name(config: str) -> str:
    """nano_small for configs/nano.py:small: another argument is another run."""
    path, _, argument = config.partition(":")
    return "_".join([Path(path).stem, *re.findall(r"[\w.+-]+", argument)])


def _find_config(config: str) -> str:
    """The file of an experiment given by name, with its argument; a path stays as it is."""
    name, colon, argument = config.partition(":")
    if re.fullmatch(r"[\w-]+", name) and not Path(name).is_file():
        for folder in _CONFIGS:
            if (path := folder / f"{name}.py").is_file():
                return f"{path}{colon}{argument}"
        known = sorted({path.stem for folder in _CONFIGS for path in folder.glob("*.py")})
        raise ValueError(f"there is no experiment {name!r}; known are {', '.join(known)}")
    if not Path(name).is_file():
        what = "is a folder" if Path(name).is_dir() else "is not there"
        raise FileNotFoundError(
            f"--config={name} {what}; a Python file, or the name of one in configs/, is expected"
        )
    return config


def _load_config(config: str) -> Any:
    """Calls `get_config` of a file, with what stands behind the colon, and returns its `ConfigDict`."""
    name, colon, argument = config.partition(":")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={config} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(argument) if colon else module.get_config()
    # It is the user's program, which can raise anything.
    except Exception as error:
        raise ValueError(f"--config={config}: {type(error).__name__}: {error}") from error


def _split(argv: list[str]) -> tuple[str, list[str]]:
    """The experiment, and the rest of the command line with fields by the names that they have now."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config")
    known, rest = parser.parse_known_args(argv)
    if known.config is None:
        raise ValueError("--config is missing")
    new = []
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in _RENAMED:
            print(f"{flag} is called {_RENAMED[flag]} now", file=sys.stderr)
            flag = _RENAMED[flag]
        new.append(f"{flag}{equals}{value}")
    return _find_config(known.config), new


def _parse(argv: list[str], program: str) -> tuple[str, Any]:
    """Returns the name of the experiment and the values of the flags; a ValueError if they make no sense."""
    from absl import flags
    from ml_collections import config_flags

    from sam2_jax.experiment import ParameterGroup, new_dataset
    from sam2_jax.train.workdir import RESUME

    name, argv = _split(argv)
    config = _load_config(name)
    # Those that the command line adds.
    for groups, make in (
        ("datasets", new_dataset),
        ("validation.more", new_dataset),
        ("optimizer.groups", lambda: dataclasses.asdict(ParameterGroup())),
    ):
        here = functools.reduce(getattr, groups.split("."), config)
        for named in re.findall(rf"^--?config\.{groups}\.(\w+)\.", "\n".join(argv), re.MULTILINE):
            if named not in here:
                here[named] = make()
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("resume", "auto", RESUME, "", flag_values=values)
    flags.DEFINE_string("devices", "", "", flag_values=values)
    flags.DEFINE_bool("distributed", False, "", flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=[program, *argv]
        )
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
        raise ValueError(f"{rest[0]!r} is not a flag (see {program} --help)")
    return name, values
