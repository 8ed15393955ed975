"""Reading ahead: everything in order, errors in their place, and no thread left behind."""

import gc
import threading
import time

import pytest

from sam2_jax.predict.reader import FrameReader


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "reader"]


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert not threads()
    yield
    gc.collect()
    wait_until(lambda: not threads())


def take(reader):
    (item,) = reader.look(1)
    reader.take()
    return item


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_items_come_in_order(ahead):
    reader = FrameReader(iter(range(10)), ahead)
    assert reader.look(3) == [0, 1, 2]
    assert reader.look(2, start=2) == [2, 3]
    assert [take(reader) for _ in range(10)] == list(range(10))
    assert reader.look(3) == []
    assert reader.look(3, start=4) == []
    reader.close()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_error_comes_after_everything_before_it(ahead):
    def items():
        yield from range(4)
        raise KeyError("four")

    reader = FrameReader(items(), ahead)
    assert reader.look(9) == [0, 1, 2, 3]
    assert reader.look(2, start=4, wait=False) is None
    assert [take(reader) for _ in range(4)] == [0, 1, 2, 3]
    assert reader.look(1, wait=False) is None
    for _ in range(2):
        with pytest.raises(KeyError, match="four"):
            reader.look(1)


def test_no_more_is_read_ahead_than_allowed():
    read = []

    def items():
        for i in range(100):
            read.append(i)
            yield i

    reader = FrameReader(items(), 2)
    assert not read
    assert reader.look(1) == [0]
    wait_until(lambda: len(read) == 3)
    time.sleep(0.05)
    assert read == [0, 1, 2]
    reader.close()
    wait_until(lambda: not threads())
    assert read == [0, 1, 2]


def test_what_is_not_at_hand_is_not_waited_for():
    is_allowed = threading.Event()

    def items():
        yield 0
        is_allowed.wait(30)
        yield 1

    reader = FrameReader(items(), 2)
    assert reader.look(1) == [0]
    assert reader.look(1, start=1, wait=False) is None
    is_allowed.set()
    assert reader.look(1, start=1) == [1]
    alone = FrameReader(iter(range(3)), 0)
    assert alone.look(1, wait=False) is None
    assert alone.look(1) == [0]
    assert alone.look(2, wait=False) is None


@pytest.mark.parametrize("count", [0, 1, 5])
def test_it_ends_when_it_is_closed(count):
    reader = FrameReader(iter(range(100)), 3)
    assert reader.look(count + 1) == list(range(count + 1))
    assert len(threads()) == 1
    reader.close()
    reader.close()
    wait_until(lambda: not threads())


def test_it_ends_when_nobody_refers_to_it():
    reader = FrameReader(iter(range(100)), 3)
    reader.look(1)
    del reader
    gc.collect()
    wait_until(lambda: not threads())


def test_a_reader_that_is_never_asked_starts_no_thread():
    FrameReader(iter(range(3)), 2).close()
    assert not threads()
