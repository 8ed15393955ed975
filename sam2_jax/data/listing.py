"""What lies in the folders of a dataset, in which order, and which of it is used."""

import functools
import logging
import os
import re
from collections.abc import Collection

logger = logging.getLogger(__name__)

LISTED_SUFFIXES = (".jpg", ".jpeg", ".png", ".mp4", ".json")  # that names in lists may carry


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts frames by time: text as text, and the numbers in it as numbers ("2" before "10").

    Names of one number, such as "1" and "01", stand side by side.
    """
    parts: list[str | int] = re.split("([0-9]+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def check_folder(path: str, what: str) -> str:
    """Returns the path of a folder; a FileNotFoundError that says `what` it holds if there is none."""
    if not path:
        raise ValueError(f"the folder of {what} is not given")
    if not os.path.isdir(path):
        raise FileNotFoundError(f"no such folder, which should hold {what}: {path}")
    return path


def list_folders(path: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted as text; hidden ones are left out."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_files(path: str, suffixes: tuple[str, ...], recursive: bool = False) -> dict[str, str]:
    """Returns the files of a folder by their names without suffix, in `natural_order`.

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
    return {name: found[name] for name in sorted(found, key=natural_order)}


@functools.lru_cache(maxsize=4096)
def warn_once(message: str, *values: object) -> None:
    """Logs a warning, unless it was said before: files are read again and again."""
    logger.warning(message, *values)


def warn_if_fewer(used: int, total: int, of_what: str, missing: str) -> None:
    """Logs how many of something cannot be used, since what is missing is missing."""
    if used < total:
        logger.warning("%d of the %d %s have no %s", total - used, total, of_what, missing)


def select(
    names: Collection[str],
    found: str,
    first: int = 0,
    count: int = -1,
    file_list: str = "",
    excluded_list: str = "",
) -> list[str]:
    """Returns the names of videos or images to use, sorted as text.

    Args:
        names: all that there are.
        found: says what the names are and where they were found, for the error.
        first: of those that the lists leave, used are number `first` ...
        count: ... to `first + count - 1`; -1 is all.
        file_list: text file that names those to use, one a line; "" is all.
        excluded_list: text file that names those to leave out.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: no name is left.
    """
    used = set(names)
    if file_list:
        wanted = read_list(file_list)
        used &= wanted
        warn_if_fewer(len(used), len(wanted), f"names in {file_list}", "video or image")
    if excluded_list:
        used -= read_list(excluded_list)
    chosen = sorted(used)[first : None if count < 0 else first + count]
    if not chosen:
        given = {"file_list": file_list, "excluded_list": excluded_list, "first": first}
        given["count"] = None if count < 0 else count
        limits = [f"{field}={value!r}" for field, value in given.items() if value not in ("", None)]
        raise ValueError(
            f"nothing to use: there are {len(names)} {found}"
            + (f", and none is left by {', '.join(limits)}" if names else "")
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
