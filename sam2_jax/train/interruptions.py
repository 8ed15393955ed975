"""SIGTERM and Ctrl-C, met between two steps."""

import logging
import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class Interruptions:
    """SIGTERM and Ctrl-C as wishes that are met between two steps; a second Ctrl-C is met at once.

    Where there are several processes, JAX listens to SIGTERM and finds the step at which all of them end.
    Leaving the context puts the handlers back.
    """

    def __init__(self):
        self._is_shared = jax.process_count() > 1
        self._received: set[int] = set()

    def __enter__(self) -> "Interruptions":
        listened = (signal.SIGINT,) if self._is_shared else (signal.SIGINT, signal.SIGTERM)
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

    def end(self, step: int) -> None:
        """Says so, and raises a KeyboardInterrupt if it was Ctrl-C."""
        logger.info("The run is interrupted; step %d is saved.", step)
        if signal.SIGINT in self._received:
            raise KeyboardInterrupt
