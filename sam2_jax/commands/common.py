"""What several commands share: the model's options, checks of output paths, prompts in pictures."""

import argparse
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from sam2_jax.commands.prompts import Groups
from sam2_jax.data.masks import MAX_ID
from sam2_jax.files import cache_folder


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose a model."""
    from sam2_jax.config import MODELS

    names = ", ".join(MODELS)
    parser.add_argument(
        "--model", help=f"what --checkpoint is, if it does not tell itself: {names}"
    )
    parser.add_argument(
        "--checkpoint",
        help="official .pt, .safetensors, a converted folder, or a training run: RUN, RUN@best (default: the "
        "small model that comes with the package)",
    )
    parser.add_argument(
        "--image-size", type=int, help="side of the model's input (default: the model's own)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="compute type; by default float32 on CPU, bfloat16 elsewhere",
    )


def build(args: argparse.Namespace, builder: Callable, **overrides: Any) -> Any:
    """Calls `build_sam2` or another builder with the options of `add_model`.

    Raises:
      ValueError: the model has no weights here; random ones would give results that mean nothing.
    """
    from sam2_jax.checkpoint.bundled import NAME
    from sam2_jax.config import resolve_model_name

    if args.model and not args.checkpoint and (name := resolve_model_name(args.model)) != NAME:
        raise ValueError(
            f"--model {args.model} names no weights: fetch them with sam2-jax convert --download {name}, then "
            f"give --checkpoint {name}.pt"
        )
    return builder(
        args.model, args.checkpoint, image_size=args.image_size, dtype=args.dtype, **overrides
    )


def object_ids(groups: Groups, palette: str | None) -> list[int]:
    """Ids of the prompted objects; fails if they are to be written as a palette PNG that cannot hold them."""
    ids = sorted({obj for obj, _ in groups})
    if palette and not all(1 <= obj <= MAX_ID for obj in ids):
        raise ValueError(
            f"object ids are {ids}, but the pixels of --masks hold 1 to {MAX_ID} only; sam2-jax track writes "
            "any id with --object-masks"
        )
    return ids


def drawn_prompts(groups: Groups, frame: int) -> dict[str, np.ndarray]:
    """Prompts of a frame as `draw_overlay` takes them."""
    here = [group for (_, t), group in groups.items() if t == frame]
    points = np.array([p for group in here for p in group["point"]]).reshape(-1, 3)
    boxes = [box for group in here for box in group["box"]]
    return {"points": points[:, :2], "labels": points[:, 2], "boxes": np.array(boxes)}


def cache_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that only the first run of a size waits for the compiler."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def use_huge_pages() -> None:
    """Restarts the program, once, with the C library asking for pages of 2 MiB.

    The temporaries of a training step on CPU are gigabytes, and touching them 4 KiB at a time took a third of
    a step (docs/reports/performance_log.md). Only for a process that runs one command: what it did so far is
    lost.
    """
    setting = "glibc.malloc.hugetlb=1"  # read before main() only, hence the new start
    if sys.platform.startswith("linux") and "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": setting}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def keep_freed_memory() -> None:
    """Lets the C library keep what a step frees for the next one.

    The temporaries of a step on CPU are large; by default they go back to the system and are mapped and zeroed
    again, which took a quarter of the time of a training step (docs/reports/performance_log.md).
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library without these settings
        return
    most = 2**31 - 1
    trim_threshold, mmap_threshold, max_arenas = -1, -3, -8
    for setting, value in ((max_arenas, 1), (mmap_threshold, most), (trim_threshold, most)):
        mallopt(setting, value)
