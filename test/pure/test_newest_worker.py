"""The thread that works on the newest item."""

from __future__ import annotations

import threading

import pytest

from clamp_ros.ros.worker import NewestWorker

TIMEOUT_S = 10.0


def test_a_newer_item_replaces_one_that_waits() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        begun.set()
        assert go.wait(TIMEOUT_S)
        if item == 4:
            done.set()

    worker = NewestWorker(work)
    worker.submit(1)
    assert begun.wait(TIMEOUT_S)
    for item in (2, 3, 4):
        worker.submit(item)
    go.set()
    assert done.wait(TIMEOUT_S)
    worker.close()
    assert seen == [1, 4]
    assert worker.dropped == 2


def test_items_wait_for_the_start() -> None:
    order: list[str] = []
    begin, done = threading.Event(), threading.Event()

    def start() -> None:
        assert begin.wait(TIMEOUT_S)
        order.append("start")

    def work(item: str) -> None:
        order.append(item)
        done.set()

    worker = NewestWorker(work, start=start)
    worker.submit("item")
    begin.set()
    assert done.wait(TIMEOUT_S)
    worker.close()
    assert order == ["start", "item"]


def test_what_waits_at_the_close_is_forgotten() -> None:
    begun, go = threading.Event(), threading.Event()
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        begun.set()
        go.wait(TIMEOUT_S)

    worker = NewestWorker(work)
    worker.submit(1)
    assert begun.wait(TIMEOUT_S)
    worker.submit(2)
    closing = threading.Thread(target=worker.close)
    closing.start()
    with worker._condition:
        assert worker._condition.wait_for(lambda: worker._closed, TIMEOUT_S)
    go.set()
    closing.join(TIMEOUT_S)
    assert seen == [1]


def test_what_ends_the_thread_is_raised_where_the_node_sees_it() -> None:
    def work(item: int) -> None:
        raise ZeroDivisionError(item)

    worker = NewestWorker(work)
    worker.submit(1)
    worker._thread.join(TIMEOUT_S)
    for see in (worker.check, lambda: worker.submit(2)):
        with pytest.raises(ZeroDivisionError):
            see()
    worker.close()
