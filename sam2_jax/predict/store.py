"""Arrays under limits: what was kept longest goes from the device to the host, and from there to disk."""

import itertools
import os
import shutil
import tempfile
import weakref
from typing import Any

import jax
import numpy as np

DEFAULT_LIMIT = 4 << 30  # bytes in memory; one object's answers on 5,000 frames at 1024 px
DEVICE_LIMIT = 1 << 30  # bytes on an accelerator


class _Key:
    """Names a kept array; the array goes when it does."""

    def __init__(self, number: int):
        self.number = number


class Kept:
    """An array in a store, or a part of one; the whole is there until nobody refers to it or a part of it."""

    def __init__(self, store: "Store", key: _Key, index: tuple[int, ...] = ()):
        self._store, self._key, self._index = store, key, index

    def at(self, *index: int) -> "Kept":
        """The part at an index of the leading axes."""
        return Kept(self._store, self._key, self._index + index)

    def get(self) -> np.ndarray:
        """Returns the array, to be treated as read-only; nothing but the part itself is fetched or read."""
        return self._store._get(self._key.number, self._index)


class _Tier(dict[int, Any]):
    """Arrays by number, oldest first, and how large they are together."""

    num_bytes = 0

    def add(self, number: int, array: Any) -> None:
        self[number] = array
        self.num_bytes += array.nbytes

    def drop(self, number: int) -> bool:
        array = self.pop(number, None)
        self.num_bytes -= 0 if array is None else array.nbytes
        return array is not None


class Store:
    """Keeps arrays on the device and in memory up to a limit each, and the rest in files, gone with the store.

    Attributes:
      limit: bytes in memory.
      device_limit: bytes on the device.
    """

    def __init__(
        self,
        limit: int = DEFAULT_LIMIT,
        folder: str | os.PathLike | None = None,
        device_limit: int | None = None,
    ):
        """Makes an empty store.

        Args:
          limit: bytes in memory; 0 puts everything on disk.
          folder: an existing folder for the files; None is the system's temporary folder.
          device_limit: bytes on the device; None is 1 GiB, and 0 where the device's memory is the host's.

        Raises:
          ValueError: a limit is negative.
          FileNotFoundError: there is no such folder.
        """
        if device_limit is None:
            device_limit = 0 if jax.default_backend() == "cpu" else DEVICE_LIMIT
        if min(limit, device_limit) < 0:
            wrong = min(limit, device_limit)
            raise ValueError(f"The memory limit is {wrong} bytes; 0 or more is expected.")
        if folder is not None and not os.path.isdir(folder):
            raise FileNotFoundError(f"no such folder: {os.fspath(folder)}")
        self.limit, self.device_limit = limit, device_limit
        self._parent = folder
        self._folder: str | None = None  # made when it is needed
        self._numbers = itertools.count()
        self._on_device, self._in_memory = _Tier(), _Tier()
        self._on_disk: dict[int, np.dtype] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return self._in_memory.num_bytes

    @property
    def num_device_bytes(self) -> int:
        """Bytes on the device."""
        return self._on_device.num_bytes

    def keep(self, array: np.ndarray | jax.Array) -> Kept:
        """Takes an array over.

        Raises:
          OSError: the limit is reached and the disk is full; what was kept before is all there.
        """
        number = next(self._numbers)
        if isinstance(array, jax.Array) and array.nbytes <= self.device_limit:
            while self._on_device and self.num_device_bytes + array.nbytes > self.device_limit:
                oldest = next(iter(self._on_device))
                self._keep_in_memory(oldest, np.asarray(self._on_device[oldest]))
                self._on_device.drop(oldest)
            self._on_device.add(number, array)
        else:
            self._keep_in_memory(number, np.asarray(array))
        key = _Key(number)
        weakref.finalize(key, self._release, number).atexit = False
        return Kept(self, key)

    def _keep_in_memory(self, number: int, array: np.ndarray) -> None:
        while self._in_memory and self.num_bytes + array.nbytes > self.limit:
            oldest = next(iter(self._in_memory))
            self._write(oldest, self._in_memory[oldest])
            self._in_memory.drop(oldest)
        if array.nbytes > self.limit:
            self._write(number, array)
        else:
            self._in_memory.add(number, array)

    def _path(self, number: int) -> str:
        if self._folder is None:
            self._folder = os.path.abspath(tempfile.mkdtemp(prefix="sam2_jax_", dir=self._parent))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return os.path.join(self._folder, f"{number}.npy")

    def _write(self, number: int, array: np.ndarray) -> None:
        path = self._path(number)
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
        self._on_disk[number] = array.dtype

    def _get(self, number: int, index: tuple[int, ...]) -> np.ndarray:
        for tier in (self._on_device, self._in_memory):
            if number in tier:
                return np.asarray(tier[number][index])
        bits = np.load(self._path(number), mmap_mode="r", allow_pickle=False)
        return np.array(bits[index]).view(self._on_disk[number])

    def _release(self, number: int) -> None:
        if self._on_device.drop(number) or self._in_memory.drop(number):
            return
        if self._on_disk.pop(number, None) is not None and os.path.exists(self._path(number)):
            os.remove(self._path(number))
