"""What the folders of a dataset hold, in which order, and which of it is used."""

import decimal
import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Collection

logger = logging.getLogger(__name__)

# Suffixes of frames; where two pictures have the same name, the earlier suffix counts.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LISTED_SUFFIXES = (*IMAGE_SUFFIXES, ".mp4", ".json")  # that names in lists may carry


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts frames by time: text as text, and the numbers in it as numbers ("2" before "10").

    Names of the same number, such as "1" and "01", stand side by side.
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
        suffixes: of the files to list, in lower case; where several files have the same name, the
            earlier suffix counts. Hidden files are left out.
        recursive: also lists the files of subfolders, by their paths below `path`.
    """
    found: dict[str, str] = {}
    rank = lambda file: suffixes.index(os.path.splitext(file)[1].lower())
    for folder, inner, files in os.walk(path, followlinks=True):
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in suffixes and not file.startswith("."):
                full = os.path.join(folder, file)
                name = os.path.relpath(os.path.join(folder, stem), path)
                if name not in found or rank(file) < rank(found[name]):
                    found[name] = full
        if not recursive:
            inner.clear()
    return {name: found[name] for name in sorted(found, key=natural_order)}


_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def list_frames(path: str | os.PathLike) -> dict[str, str]:
    """Returns the pictures of a folder that are the frames of a video, by name, in the order of time.

    Names that are numbers, whole or decimal, are in the order of their values, others in
    `natural_order`. Where a folder has JPEGs, pictures of other kinds that belong to one of them
    (the same name, or a longer one, as `a_mask.png` beside `a.jpg`) are not frames.

    Raises:
        ValueError: which pictures are frames, or their order, is unknown.
    """
    path = os.fspath(path)
    with os.scandir(path) as entries:
        # macOS leaves "._00000.jpg" files, which are not pictures, on foreign disks.
        files = sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES)
            and not entry.name.startswith(".")
            and not entry.is_dir()
        )
    stem = lambda file: os.path.splitext(file)[0]
    is_jpeg = lambda file: file.lower().endswith((".jpg", ".jpeg"))
    numbers = lambda name: tuple(re.findall("[0-9]+", name))
    jpegs = {stem(file) for file in files if is_jpeg(file)}
    series = {numbers(name) for name in jpegs} - {()}
    # "10" does not go on from "1", nor "1.5".
    goes_on = lambda name: any(
        name[: end.start()] in jpegs for end in re.finditer(r"$|(?=[_ -]|[.][^0-9])", name)
    )
    belongs = lambda name: goes_on(name) or numbers(name) in series
    files = [file for file in files if is_jpeg(file) or not belongs(stem(file))]
    _check_families(path, files, stem)
    is_number = {file: bool(_NUMBER.fullmatch(stem(file))) for file in files}
    if len(set(is_number.values())) == 2:
        other = min(file for file in files if not is_number[file])
        raise ValueError(
            f"{path} holds pictures named by numbers and others, such as {other}, whose place "
            "among them is unknown; move those away"
        )
    if not any(is_number.values()):
        _check_decimals(path, [stem(file) for file in files])
        return {
            stem(f): os.path.join(path, f)
            for f in sorted(files, key=lambda f: natural_order(stem(f)))
        }
    files.sort(key=lambda file: (decimal.Decimal(stem(file)), file))
    for file, following in itertools.pairwise(files):
        if decimal.Decimal(stem(file)) == decimal.Decimal(stem(following)):
            number = decimal.Decimal(stem(file))
            raise ValueError(f"{path} holds two pictures of frame {number}: {file}, {following}")
    return {stem(file): os.path.join(path, file) for file in files}


def _check_families(path: str, files: list[str], stem: Callable[[str], str]) -> None:
    """Raises a ValueError if pictures of two kinds of names have the same numbers, as depth beside colour."""
    families: dict[str, dict[tuple, str]] = {}
    for file in files:
        if _NUMBER.fullmatch(stem(file)):  # decimals are one number
            continue
        numbers = tuple(map(int, re.findall("[0-9]+", stem(file))))
        of_name = families.setdefault(re.sub("[0-9]+", "#", stem(file)), {})
        if numbers in of_name and os.path.splitext(of_name[numbers])[0] == stem(file):
            raise ValueError(
                f"{path} holds two pictures of one name, {of_name[numbers]} and {file}; move away those "
                "that are not frames"
            )
        of_name[numbers] = file
    for one, other in itertools.combinations(families.values(), 2):
        for numbers in sorted(one.keys() & other.keys() - {()}):
            raise ValueError(
                f"{path} holds two series of pictures, such as {one[numbers]} and {other[numbers]}: move "
                "away those that are not frames"
            )


def _check_decimals(path: str, stems: list[str]) -> None:
    """Raises a ValueError where "t1.9" and "t1.10" may be two decimals or two counts."""
    value = lambda name: tuple(
        decimal.Decimal(part) if part[0].isdigit() else part
        for part in re.findall(r"[0-9]+\.[0-9]+|[0-9]+|[^0-9]+", name)
    )
    has_decimals = stems and all(re.fullmatch(r"[^0-9]*[0-9]+\.[0-9]+[^0-9]*", s) for s in stems)
    if has_decimals and len({re.sub(r"[0-9]+", "#", name) for name in stems}) == 1:
        by_count, by_value = sorted(stems, key=natural_order), sorted(stems, key=value)
        for one, other in zip(by_count, by_value, strict=True):
            if one != other:
                raise ValueError(
                    f"{path} holds {one} and {other}, whose order is unknown: their numbers may be decimals "
                    "or counts; give all of them as many digits"
                )


@functools.lru_cache(maxsize=4096)
def warn_once(message: str, *values: object) -> None:
    """Logs a warning only once: files are read again and again."""
    logger.warning(message, *values)


def warn_if_fewer(
    used: Collection[str], total: Collection[str], of_what: str, missing: str
) -> None:
    """Logs how many of something are left out, and the first of them, because they have no `missing`."""
    lost = sorted(set(total).difference(used), key=natural_order)
    if lost:
        logger.warning(
            "%d of the %d %s have no %s; the first is %s",
            len(lost),
            len(total),
            of_what,
            missing,
            lost[0],
        )


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
        first: of the names that the lists leave, those from number `first` ...
        count: ... to `first + count - 1` are used; -1 is all.
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
        warn_if_fewer(used, wanted, f"names in {file_list}", "video or image")
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
