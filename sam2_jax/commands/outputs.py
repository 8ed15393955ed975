"""What a command will write: checked once, before any work, so that no input is lost and no work wasted.

Every command lists its outputs as `File` and `Folder`, and what it reads; `check_outputs` refuses what could
not be written, or would destroy an input.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LEAST_FREE_BYTES = 2**20  # below this a disk counts as full


class File(NamedTuple):
    """A file that a command will write.

    Attributes:
      option: what users call it, such as "--out".
      path: where.
      suffixes: endings that the file may have, lower case.
    """

    option: str
    path: str | os.PathLike
    suffixes: tuple[str, ...]


class Folder(NamedTuple):
    """A folder that a command will fill.

    Attributes:
      option: what users call it, such as "--masks".
      path: where; created if missing.
      names: patterns of the files it writes there, such as "*.png"; "*" if it is replaced as a whole.
    """

    option: str
    path: str | os.PathLike
    names: tuple[str, ...]


def check_outputs(outputs: Sequence[File | Folder], inputs: Sequence[str | os.PathLike]) -> None:
    """Fails before the work, not after it; leaves nothing behind, and points out folders that are not empty.

    Args:
      outputs: all that will be written.
      inputs: files and folders that are read; whoever reads them reports missing ones.

    Raises:
      ValueError: an output is an input, would overwrite one, has the wrong suffix, or is named twice.
      FileNotFoundError: the folder of a file does not exist.
      FileExistsError: a file is where a folder is meant, or the other way round.
      OSError: the place is read-only, or the disk full.
    """
    for read in inputs:
        if "://" in os.fspath(read):
            raise ValueError(
                f"{read} is an address; download it, or pipe a video: ffmpeg -i ADDRESS -f mpegts - | "
                "sam2-jax track -"
            )
    for output in outputs:
        path = Path(output.path)
        if isinstance(output, File):
            _check_file(output, path)
        else:
            _check_folder(output, path)
        for read in filter(os.path.exists, inputs):
            _check_input(output, path.resolve(), Path(read).resolve())
    places = [Path(output.path).resolve() for output in outputs]
    for i, place in enumerate(places):
        if place in places[:i]:
            first = outputs[places.index(place)]
            raise ValueError(
                f"{first.option} and {outputs[i].option} are both {outputs[i].path}; name two places"
            )
    for output, place in zip(outputs, places, strict=True):
        if isinstance(output, File):
            _check_writable(place.parent)
        else:
            _check_writable(place)
            if output.names != ("*",) and place.is_dir() and any(place.iterdir()):
                print(
                    f"note: {output.path} is not empty; files of the same names are replaced",
                    file=sys.stderr,
                )


def _check_file(output: File, path: Path) -> None:
    if path.suffix.lower() not in output.suffixes:
        raise ValueError(
            f"{output.option} is {path}; a name that ends in {' or '.join(output.suffixes)} is expected, "
            "which is what is written"
        )
    if path.is_dir():
        raise FileExistsError(f"{output.option} is {path}, a folder; name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent} ({output.option})")


def _check_folder(output: Folder, path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name a folder, new or old, as {output.option}")


def _check_input(output: File | Folder, path: Path, read: Path) -> None:
    """Refuses an output that would replace, or mix with, what is read; both paths are absolute."""
    if path == read or (path.exists() and path.samefile(read)):
        raise ValueError(
            f"{output.option} is {output.path}, which is read as well and would be lost; name another place"
        )
    if isinstance(output, File):
        is_lost = read.is_dir() and path.parent == read and path.exists()
    elif read.is_relative_to(path):
        inner = read.relative_to(path).as_posix()
        is_lost = read.is_dir() or any(fnmatch(inner, pattern) for pattern in output.names)
    else:
        is_lost = False
    if is_lost:
        raise ValueError(
            f"{output.option} is {output.path}, and files in {read} could be lost; name another place"
        )


def _check_writable(place: Path) -> None:
    """Creates a file that vanishes at once: permissions do not show what root or a read-only disk allows."""
    folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OSError(
            error.errno, f"nothing can be written: {error.strerror}", str(folder)
        ) from error
    if free < LEAST_FREE_BYTES:
        raise OSError(
            f"{folder}: the disk is full, {free} bytes are free; make room, or name another"
        )
