"""Where a server keeps its files: its own folder, removed when it stops, or else by the next server."""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

_PREFIX = "sam2_jax_serve_"
_STARTING_SECONDS = 60  # how long a new folder may lack its lock


@contextlib.contextmanager
def server_folder(parent: str | None = None) -> Iterator[str]:
    """Makes a folder that only this user can read, after removing what dead servers left.

    Its owner holds a lock on it, which the system releases however the process ends.

    Args:
      parent: where; None is the system's temporary folder.

    Yields:
      Its path; the folder is removed at the end.
    """
    import fcntl

    parent = parent or tempfile.gettempdir()
    remove_leftovers(parent)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    try:
        with open(os.path.join(folder, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: str) -> None:
    """Removes the folders of this user's servers that are no longer running."""
    with os.scandir(parent) as entries:
        names = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    for folder in names:
        with contextlib.suppress(OSError):
            if _is_left_over(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left_over(folder: str) -> bool:
    import fcntl

    about = os.lstat(folder)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        return False
    try:
        with open(os.path.join(folder, "lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return time.time() - about.st_mtime > _STARTING_SECONDS
    except BlockingIOError:
        return False
    return True


def check_free_space(folder: str, free_mb: int) -> None:
    """Raises an OSError if less than `free_mb` MiB are free on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if free < free_mb << 20:
        raise OSError(
            f"only {free >> 20} MiB are free on the server's disk, and {free_mb} MiB must stay free: "
            "close finished sessions or try again later"
        )
