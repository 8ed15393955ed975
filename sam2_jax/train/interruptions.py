"""SIGTERM, SIGHUP and Ctrl-C, met between two steps."""

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

Result = TypeVar("Result")
_WORKER = "sam2_jax work that a signal may leave behind"

logger = logging.getLogger(__name__)


def is_left_behind() -> bool:
    """Tells whether work is still going on that a signal left behind; Python cannot end while it does."""
    return any(thread.name == _WORKER for thread in threading.enumerate())


class Interruptions:
    """SIGTERM, SIGHUP and Ctrl-C as wishes that are met between two steps; a second Ctrl-C is met at once.

    Where there are several processes, JAX listens to SIGTERM and finds the step at which all of them end.
    Leaving the context puts the handlers back.
    """

    def __init__(self):
        self._is_shared = jax.process_count() > 1
        self._received: set[int] = set()

    def __enter__(self) -> "Interruptions":
        listened = [signal.SIGINT, signal.SIGHUP] + [signal.SIGTERM] * (not self._is_shared)
        self._before = {number: signal.signal(number, self._receive) for number in listened}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: Any) -> None:
        self._received.add(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._is_shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def end_before(self, step: int) -> bool:
        """Whether the run ends before a step; all processes ask before every step."""
        if self._is_shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self._received)

    def unless_received(self, work: Callable[[], Result]) -> Result | None:
        """Does some work, for which Python's signals do not wait: compiling takes minutes outside of Python.

        Returns:
          What `work` returns, or None if a signal came first. Then it goes on in a thread, to be left behind
          (`is_left_behind`). Where there are several processes, which have to end together, it is waited for.
        """
        if self._is_shared:
            return work()
        done: queue.SimpleQueue = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((work(), None))
            except BaseException as error:
                done.put((None, error))

        thread = threading.Thread(target=run, name=_WORKER, daemon=True)
        thread.start()
        while thread.is_alive() and not self._received:
            thread.join(0.05)
        if thread.is_alive():
            return None
        result, error = done.get()
        if error is not None:
            raise error
        return result

    def end(self, step: int) -> None:
        """Says so, and raises a KeyboardInterrupt if it was Ctrl-C."""
        logger.info("The run is interrupted; step %d is saved.", step)
        if signal.SIGINT in self._received:
            raise KeyboardInterrupt
