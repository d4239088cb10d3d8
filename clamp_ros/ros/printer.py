"""Lines for a terminal that may take none for a while: Ctrl-S, a pager, a connection that stalls."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

LAST_WORDS_S = 2.0


class Printer:
    """Writes lines in a thread of its own, so that nobody waits for the terminal; at most `LIMIT` lines wait for it.

    Those that find no room are dropped, and their number is told in their place. An output that is gone takes nothing
    any more, and that is all.
    """

    LIMIT = 5_000

    def __init__(self, output: TextIO) -> None:
        """Nothing is written before `start`.

        Args:
            output: its descriptor is written to, where it has one.
        """
        self._output = output
        try:
            self._descriptor = output.fileno()
        except (OSError, ValueError):  # a file in memory
            self._descriptor = -1
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)

    def start(self) -> None:
        """Starts the thread; it ends with the process if the terminal never takes anything again."""
        self._thread.start()

    def write(self, line: str) -> None:
        """Takes a line, without its end; never waits for the output."""
        with self._changed:
            if len(self._lines) >= self.LIMIT:
                self._dropped += 1
            else:
                if self._dropped:
                    self._lines.append(f"... {self._dropped} lines were dropped: the terminal took none")
                    self._dropped = 0
                self._lines.append(line)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Waits until all is written, but no longer than that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._lines or self._closed)
                    if not self._lines:
                        return
                    line = self._lines.popleft()
                self._print(f"{line}\n")
        with self._changed:
            self._lines.clear()

    def _print(self, text: str) -> None:
        if self._descriptor < 0:
            self._output.write(text)
            self._output.flush()
            return
        left = text.encode()
        while left:  # not by the stream: at exit, Python would wait for its lock
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select((), (self._descriptor,), ())


@contextlib.contextmanager
def telling(output: TextIO, prefix: str = "") -> Iterator[Callable[[str], None]]:
    """Gives what takes a line for the user and waits for no terminal: the next key may be the emergency stop.

    Args:
        output: as a `Printer` takes it.
        prefix: before every line.
    """
    printer = Printer(output)
    printer.start()
    try:
        yield lambda text: printer.write(f"{prefix}{text}")
    finally:
        printer.close(LAST_WORDS_S)
