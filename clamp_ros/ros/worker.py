"""A thread that works on the newest item and drops what it cannot keep up with, so that callbacks never wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class NewestWorker(Generic[Item]):
    """Runs a function on submitted items in a thread of its own; a newer item replaces one that has not begun.

    Attributes:
        dropped: how many items were replaced.
    """

    def __init__(self, work: Callable[[Item], None], *, start: Callable[[], None] | None = None) -> None:
        """Starts the thread.

        Args:
            work: called with each item.
            start: called first, in the same thread, say to compile kernels; items wait meanwhile.
        """
        self._work = work
        self._start = start
        self._condition = threading.Condition()
        self._item: Item | None = None
        self._closed = False
        self._failure: BaseException | None = None
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="newest-worker", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        """Hands over an item; returns at once.

        Raises:
            BaseException: what ended the thread, where something did.
        """
        self.check()
        with self._condition:
            if self._item is not None:
                self.dropped += 1
            self._item = item
            self._condition.notify()

    def check(self) -> None:
        """Raises what ended the thread, where something did: call it from a timer, so that the node ends as well."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Lets the item in progress end, forgets what waits, and ends the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._start is not None:
                self._start()
            while (item := self._next()) is not None:
                self._work(item)
        except BaseException as error:  # handed to the node's own thread by `check`
            self._failure = error

    def _next(self) -> Item | None:
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._item is not None)
            item, self._item = self._item, None
            return None if self._closed else item
