"""Arrays on the host under a memory limit: what was kept longest goes to disk first."""

import itertools
import os
import shutil
import tempfile
import weakref

import numpy as np

DEFAULT_LIMIT = 4 << 30  # bytes; one object's answers on 5,000 frames at 1024 px


class Kept:
    """An array in a vault, there until nobody refers to it."""

    def __init__(self, vault: "Vault", key: int):
        self._vault, self._key = vault, key

    def get(self) -> np.ndarray:
        """Returns the array, to be treated as read-only."""
        return self._vault._get(self._key)


class Vault:
    """Keeps arrays in memory up to a limit and the rest in files, which are gone with the vault.

    Attributes:
      limit: bytes in memory.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, folder: str | os.PathLike | None = None):
        """Makes an empty vault.

        Args:
          limit: bytes in memory; 0 puts everything on disk.
          folder: an existing folder for the files; None is the system's temporary folder.

        Raises:
          ValueError: the limit is negative.
          FileNotFoundError: there is no such folder.
        """
        if limit < 0:
            raise ValueError(f"The memory limit is {limit} bytes; 0 or more is expected.")
        if folder is not None and not os.path.isdir(folder):
            raise FileNotFoundError(f"no such folder: {os.fspath(folder)}")
        self.limit = limit
        self._parent = folder
        self._folder: str | None = None  # made when it is needed
        self._keys = itertools.count()
        self._in_memory: dict[int, np.ndarray] = {}
        self._on_disk: dict[int, np.dtype] = {}
        self.num_bytes = 0

    def keep(self, array: np.ndarray) -> Kept:
        """Takes an array over.

        Raises:
          OSError: the limit is reached and the disk is full; what was kept before is all there.
        """
        while self._in_memory and self.num_bytes + array.nbytes > self.limit:
            key, oldest = next(iter(self._in_memory.items()))
            self._write(key, oldest)
            self._on_disk[key] = oldest.dtype
            self._drop_from_memory(key)
        key = next(self._keys)
        if array.nbytes > self.limit:
            self._write(key, array)
            self._on_disk[key] = array.dtype
        else:
            self._in_memory[key] = array
            self.num_bytes += array.nbytes
        kept = Kept(self, key)
        weakref.finalize(kept, self._release, key).atexit = False
        return kept

    def _drop_from_memory(self, key: int) -> None:
        self.num_bytes -= self._in_memory.pop(key).nbytes

    def _path(self, key: int) -> str:
        if self._folder is None:
            self._folder = os.path.abspath(tempfile.mkdtemp(prefix="sam2_jax_", dir=self._parent))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return os.path.join(self._folder, f"{key}.npy")

    def _write(self, key: int, array: np.ndarray) -> None:
        path = self._path(key)
        try:
            with open(path, "wb") as file:
                # NumPy's format does not know bfloat16.
                bits = np.ascontiguousarray(array).view(f"u{array.itemsize}")
                np.lib.format.write_array(file, bits, allow_pickle=False)
        except OSError as error:
            if os.path.exists(path):
                os.remove(path)
            raise OSError(
                error.errno,
                f"the session reached its memory limit of {self.limit} bytes and cannot write to "
                f"{os.path.dirname(path)} ({error.strerror}); free space there, or pass a larger "
                "memory_limit or another spill_folder",
            ) from error

    def _get(self, key: int) -> np.ndarray:
        if key in self._in_memory:
            return self._in_memory[key]
        return np.load(self._path(key), allow_pickle=False).view(self._on_disk[key])

    def _release(self, key: int) -> None:
        if key in self._in_memory:
            self._drop_from_memory(key)
        elif self._on_disk.pop(key, None) is not None and os.path.exists(self._path(key)):
            os.remove(self._path(key))
