import threading

import pytest

from sam2_jax.serve.worker import Worker


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def run_tasks(worker, *generators, then=lambda tasks: None):
    """Starts tasks while the worker is held back; returns what they yielded, in order."""
    gate, out, ended = threading.Event(), [], [threading.Event() for _ in generators]
    worker.call(gate.wait, 10)
    tasks = [
        worker.start(steps, out.append, lambda error, end=end: (out.append(error), end.set()))
        for steps, end in zip(generators, ended, strict=True)
    ]
    then(tasks)
    gate.set()
    assert all(end.wait(10) for end in ended)
    return out


def numbered(name, count):
    for i in range(count):
        yield f"{name}{i}"


def test_tasks_take_turns(worker):
    out = run_tasks(worker, numbered("a", 3), numbered("b", 2))
    assert out == ["a0", "b0", "a1", "b1", "a2", None, None]


def test_a_call_goes_before_the_next_step(worker):
    seen = []

    def steps():
        for i in range(4):
            if i == 1:
                worker.call(seen.append, f"after {i}")
            seen.append(i)
            yield i

    run_tasks(worker, steps())
    assert seen == [0, 1, "after 1", 2, 3]


def test_cancelling_ends_one_task_and_closes_it(worker):
    closed = []

    def steps():
        try:
            yield "a0"
            tasks[0].cancel()
            yield "a1"
            yield "never"
        finally:
            closed.append(True)

    tasks = []
    out = run_tasks(worker, steps(), numbered("b", 3), then=tasks.extend)
    assert out == ["a0", "b0", "a1", "b1", None, "b2", None]
    assert closed


def test_an_error_ends_only_its_task(worker):
    def steps():
        yield "a0"
        raise ValueError("frame 1 cannot be decoded")

    out = run_tasks(worker, steps(), numbered("b", 2))
    assert [str(o) for o in out] == ["a0", "b0", "frame 1 cannot be decoded", "b1", "None"]
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result()
    assert worker.call(lambda: 5).result() == 5


def test_closing_cancels_what_waits():
    worker, gate = Worker(), threading.Event()
    running = worker.call(gate.wait, 10)
    waiting = worker.call(print, "never")
    ended = []
    worker.start(numbered("a", 1000), lambda item: None, ended.append)
    threading.Timer(0.05, gate.set).start()
    worker.close()
    assert running.done()
    assert waiting.cancelled()
    assert ended == [None]
    with pytest.raises(RuntimeError, match="closed"):
        worker.call(print)
