"""`sam2-jax bench` and `scripts/benchmark_device.py`: how fast a device is, from copying bytes to videos."""

import argparse
import importlib.util
import json
import sys
from typing import Any

from sam2_jax.bench import runner

HELP = "Measure how fast this machine's GPU, TPU or CPU is."
_MINUTES = sum(runner.LIMITS.values()) // 60
EXAMPLES = f"""examples:
  sam2-jax bench
  sam2-jax bench --phases propagate,video --objects 1,4,16
  sam2-jax bench --models sam2_nano --image-size 64 --phases encode

phases:
  ceilings   copying and multiplying: the limits of this very chip
  attention  attention to the memory, by every implementation that runs here, and its error
  encode     images to features, 1 and 8 at a time
  propagate  8 frames in one program, all memories full: frames/s, kernels, time to compile
  video      720p frames in the host's memory to masks in the host's memory
  pytorch    the same in PyTorch, in turns with ours: the original (sam2) if it is installed, else transformers,
             on GPUs compiled, too

Each runs in a process of its own for a limited time, {_MINUTES} minutes in all, and prints a line of
JSON when it ends, which says so if it failed. A Markdown table of all of it follows. The exit
status is 1 if a phase failed."""


def _whole_numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError
    return numbers


_whole_numbers.__name__ = "list of whole numbers from 1"  # as argparse's message calls it


def _phases(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in runner.LIMITS]:
        known = ", ".join(name for name in runner.LIMITS if name != runner.MACHINE)
        raise argparse.ArgumentTypeError(f"there is no phase {unknown[0]!r}; there are {known}")
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--phases", type=_phases, metavar="NAME,...", help="only these (default: all)"
    )
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        metavar="NAME,...",
        help="default: sam2.1_hiera_tiny,sam2.1_hiera_large; on a CPU sam2_nano",
    )
    parser.add_argument(
        "--objects",
        type=_whole_numbers,
        metavar="N,...",
        help="tracked at a time (default: 1,8); all but the first model track the first number only",
    )
    parser.add_argument(
        "--image-size", type=int, help="side of the model's input (default: the model's own)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: bfloat16; on a CPU float32"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    from sam2_jax.config import get_config

    sizes = {} if args.image_size is None else {"image_size": args.image_size}
    for model in args.models or ["sam2_nano"]:
        get_config(model, **sizes)  # fails here, in one line, not in every phase
    given = {name: getattr(args, name) for name in ("models", "objects", "image_size", "dtype")}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    names = dict.fromkeys([runner.MACHINE, *(args.phases or runner.LIMITS)])
    if args.phases is None and importlib.util.find_spec("torch") is None:
        del names["pytorch"]
        print("PyTorch is left out: pip install torch transformers adds it.", file=sys.stderr)
    records = []
    for record in runner.run(names, settings):
        records.append(record)
        print(json.dumps(record), flush=True)
    print(f"\n{runner.table(records)}", flush=True)
    failed = [record["phase"] for record in records if not record["ok"]]
    if failed:
        print(f"sam2-jax bench: failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)
