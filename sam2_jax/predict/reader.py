"""Reads ahead in a thread: Pillow and FFmpeg decode and resize beside Python and the device."""

import collections
import itertools
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any


class FrameReader:
    """What an iterator gives, looked at in order before it is taken.

    A thread runs up to `ahead` items ahead. It ends with `close`, or when nobody refers to the reader any more;
    an item that it is about is finished first.
    """

    def __init__(self, items: Iterator, ahead: int):
        """Makes a reader; the thread starts with the first look.

        Args:
          items: what is read.
          ahead: items that may be read before they are looked for; 0 reads in the caller's thread, and only
            what is waited for.
        """
        self._items, self._ahead = items, ahead
        self._found: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._is_closed = threading.Event()
        self._has_thread = False
        self._seen: collections.deque = collections.deque()
        self._end: Exception | None = None  # StopIteration, or why it ended early
        self.close = weakref.finalize(self, _stop, self._is_closed, self._room)

    def look(self, count: int, start: int = 0, wait: bool = True) -> list[Any] | None:
        """Returns the items from the `start`-th on that was not taken yet; fewer or none at the end.

        Args:
          count: how many.
          start: see above.
          wait: without it, None where they are not at hand yet, or an error has their place.

        Raises:
          Exception: what the iterator raised, if there is nothing before it.
        """
        while len(self._seen) < start + count and self._end is None:
            if not wait and self._found.empty():
                return None
            try:
                self._seen.append(self._next())
            except Exception as error:
                self._end = error
        found = list(itertools.islice(self._seen, start, start + count))
        if found or isinstance(self._end, StopIteration):
            return found
        if wait and self._end is not None:
            raise self._end
        return None

    def take(self) -> None:
        """Takes the first item."""
        self._seen.popleft()

    def _next(self) -> Any:
        if not self._ahead:
            return next(self._items)
        if not self._has_thread:
            arguments = (self._items, self._found, self._room, self._is_closed)
            # It has no reference to the reader, which could never go otherwise.
            threading.Thread(target=_read, args=arguments, name="reader", daemon=True).start()
            self._has_thread = True
        item, error = self._found.get()
        self._room.release()
        if error is not None:
            raise error
        return item


def _read(
    items: Iterator,
    found: queue.SimpleQueue,
    room: threading.Semaphore,
    is_closed: threading.Event,
) -> None:
    while room.acquire() and not is_closed.is_set():
        try:
            found.put((next(items), None))
        except BaseException as error:
            found.put((None, error))
            return


def _stop(is_closed: threading.Event, room: threading.Semaphore) -> None:
    is_closed.set()
    room.release()
