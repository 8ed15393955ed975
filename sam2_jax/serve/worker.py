"""The one thread that uses the device: short calls first, then one step of each long task in turn."""

import collections
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

_CLOSING_SECONDS = 10  # a program that is being compiled may take minutes


class Task:
    """A generator that the worker steps through."""

    def __init__(
        self,
        steps: Generator,
        emit: Callable[[Any], None],
        finish: Callable[[BaseException | None], None],
    ):
        self.steps, self.emit, self.finish = steps, emit, finish
        self.is_cancelled = False

    def cancel(self) -> None:
        """Ends the task before its next step; what it has done stays."""
        self.is_cancelled = True


class Worker:
    """Runs calls in order of arrival, and tasks one step at a time, in turn.

    A call waits for the current step and for the calls before it, never for a whole task.
    """

    def __init__(self):
        self._calls: collections.deque[tuple[Future, Callable, tuple]] = collections.deque()
        self._tasks: collections.deque[Task] = collections.deque()
        self._has_work = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def call(self, function: Callable, *args: Any) -> Future:
        """Runs `function(*args)` before the next step of any task; the future has its result."""
        future: Future = Future()
        self._put(self._calls, (future, function, args))
        return future

    def start(
        self,
        steps: Generator,
        emit: Callable[[Any], None],
        finish: Callable[[BaseException | None], None],
    ) -> Task:
        """Starts a task.

        Args:
          steps: each `next` is one step.
          emit: takes what a step yields, in the worker's thread.
          finish: called once, last, with the error that ended the task or None.

        Returns:
          The task, which can be cancelled.
        """
        task = Task(steps, emit, finish)
        self._put(self._tasks, task)
        return task

    def close(self) -> None:
        """Stops after the current step, unless that takes long; cancels tasks and waiting calls."""
        with self._has_work:
            self._is_closed = True
            self._has_work.notify()
        self._thread.join(_CLOSING_SECONDS)

    def _put(self, queue: collections.deque, item: Any) -> None:
        with self._has_work:
            if self._is_closed:
                raise RuntimeError("the worker is closed")
            queue.append(item)
            self._has_work.notify()

    def _run(self) -> None:
        while True:
            with self._has_work:
                self._has_work.wait_for(lambda: self._calls or self._tasks or self._is_closed)
                if self._is_closed:
                    break
                call = self._calls.popleft() if self._calls else None
                task = None if call else self._tasks.popleft()
            if call:
                _answer(*call)
            elif _step(task):
                self._tasks.append(task)
        for future, _, _ in self._calls:
            future.cancel()
        for task in self._tasks:
            task.cancel()
            _step(task)


def _answer(future: Future, function: Callable, args: tuple) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function(*args))
    except BaseException as error:
        future.set_exception(error)


def _step(task: Task) -> bool:
    """Runs one step; returns whether there may be more."""
    try:
        if task.is_cancelled:
            task.steps.close()
        else:
            task.emit(next(task.steps))
            return True
    except StopIteration:
        pass
    except Exception as error:
        task.finish(error)
        return False
    task.finish(None)
    return False
