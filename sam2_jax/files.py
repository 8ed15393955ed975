"""Files and folders that take their names only when they are complete, JSON, checksums, the user's cache."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class PartialFile:
    """A file being written beside the one that it replaces once it is complete.

    Attributes:
        path: the final name; a file of that name stays as it is until `commit`.
        partial: the name to write to, hidden and in the same folder.

    Raises:
        FileNotFoundError: the folder does not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.path.abspath(path)
        folder, name = os.path.split(self.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"no such folder: {folder}")
        self.partial = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.partial")

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Makes errors of the system, such as a full disk, name the final file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), self.path) from error

    def commit(self) -> None:
        """Gives the file its final name."""
        with self.named_errors():
            os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Removes what was written; does nothing after `commit`."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.partial)

    @contextlib.contextmanager
    def written(self) -> Iterator[str]:
        """Gives the name to write to; the file takes its final name if all went well, else it is gone."""
        try:
            with self.named_errors():
                yield self.partial
            self.commit()
        finally:
            self.discard()


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a whole file, or leaves everything as it was.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the disk is full or the folder read-only; the error names the file.
    """
    with PartialFile(path).written() as partial, open(partial, "wb") as file:
        file.write(data)


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON document.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; the error names the file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {os.fspath(path)}")
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())  # UTF-8 or 16, with a byte order mark or without
    except ValueError as error:  # also the error of bytes that are no text
        raise ValueError(f"{os.fspath(path)} is not JSON, or is cut short: {error}") from error


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a folder to fill; it takes the place of `path` if all went well, else it is gone."""
    path = Path(path).absolute()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Returns the folder for what can be fetched or computed again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam2_jax"
