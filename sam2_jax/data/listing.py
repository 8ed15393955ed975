"""What lies in the folders of a dataset, and which of it is used."""

import logging
import os
from collections.abc import Collection

from sam2_jax.experiment import Dataset

logger = logging.getLogger(__name__)

LISTED_SUFFIXES = (".jpg", ".jpeg", ".png", ".mp4", ".json")  # that names in lists may carry


def check_folder(path: str, what: str) -> str:
    """Returns the path of a folder; a FileNotFoundError that says `what` it holds if there is none."""
    if not path:
        raise ValueError(f"the folder of {what} is not given")
    if not os.path.isdir(path):
        raise FileNotFoundError(f"no such folder, which should hold {what}: {path}")
    return path


def list_folders(path: str) -> list[str]:
    """Returns the names of the folders in a folder; hidden ones are left out."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_files(path: str, suffixes: tuple[str, ...], recursive: bool = False) -> dict[str, str]:
    """Returns the files of a folder by their names without suffix, in the order of time.

    Args:
        path: the folder.
        suffixes: in lower case, of the files to list; hidden files are left out.
        recursive: also those in folders within, whose names then begin with these.
    """
    found = {}
    for folder, inner, files in os.walk(path, followlinks=True):
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in suffixes and not file.startswith("."):
                full = os.path.join(folder, file)
                found[os.path.relpath(os.path.join(folder, stem), path)] = full
        if not recursive:
            inner.clear()
    return {name: found[name] for name in sorted(found, key=time_order)}


def time_order(name: str) -> tuple[int, str]:
    """Sorts numbers as numbers, whether they have leading zeros or not."""
    return len(name), name


def warn_if_fewer(used: int, total: int, of_what: str, missing: str) -> None:
    """Logs how many of something cannot be used, since what is missing is missing."""
    if used < total:
        logger.warning("%d of the %d %s have no %s", total - used, total, of_what, missing)


def select(names: Collection[str], dataset: Dataset, found: str) -> list[str]:
    """Returns the names that a dataset uses, sorted: by its lists, then `first` and `count`.

    Args:
        names: all that there are.
        dataset: says which.
        found: says what the names are and where they were found, for the error.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: no name is left.
    """
    used = set(names)
    if dataset.file_list:
        wanted = read_list(dataset.file_list)
        used &= wanted
        warn_if_fewer(len(used), len(wanted), f"names in {dataset.file_list}", "video or image")
    if dataset.excluded_list:
        used -= read_list(dataset.excluded_list)
    stop = None if dataset.count < 0 else dataset.first + dataset.count
    chosen = sorted(used)[dataset.first : stop]
    if not chosen:
        limits = [
            f"{field}={value!r}"
            for field in ("file_list", "excluded_list", "first", "count")
            if (value := getattr(dataset, field)) != getattr(Dataset, field)
        ]
        raise ValueError(
            f"nothing to use: there are {len(names)} {found}"
            + (f", and none is left by {', '.join(limits)}" if names and limits else "")
        )
    return chosen


def read_list(path: str) -> set[str]:
    """Returns the names in a text file, one a line, without suffixes of pictures, videos, annotations.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such list of names: {path}")
    with open(path, encoding="utf-8-sig") as file:
        lines = [line.strip() for line in file if line.strip()]
    splits = [os.path.splitext(line) for line in lines]
    return {stem if suffix.lower() in LISTED_SUFFIXES else stem + suffix for stem, suffix in splits}
