"""Episodes in processes of their own, watched: one that crashes or stalls costs its episode, and never the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from clamp_ros.contract.errors import ClampError, ConfigError
from clamp_ros.score.results import DIED, STALLED, Reached, Row

START_S = 600.0
"""For a player to be made: the first one compiles kernels and prepares meshes, on a busy machine."""
_BEAT_S = 0.5

Beat = Callable[[float, Reached], None]
"""Called by a player at every tick, with the episode's simulated seconds and the stages reached so far."""
Player = Callable[[int, Beat], Row]
"""Plays the episode of a seed."""
Lost = Callable[[int, str, str, float, Reached, float], Row]
"""Makes the row of an episode that nobody ended: seed, outcome, reason, seconds, stages reached, wall seconds."""


class WorkerError(ClampError):
    """A player cannot be made, or something other than its policy ended it."""


def play_in_workers(
    make: Callable[[], Player], seeds: Sequence[int], lost: Lost, *, workers: int = 1, stall_s: float = 300.0
) -> Generator[Row, None, None]:
    """Yields a row a seed, as the episodes end.

    Args:
        make: makes the player of a process; picklable.
        seeds: of the episodes.
        lost: makes the row of an episode whose process stalled or died.
        workers: processes.
        stall_s: wall time without a tick after which an episode has failed and its process is ended.

    Raises:
        ConfigError: a number is out of range.
        ClampError: a player cannot be made, or ran into something that is not its policy's fault (a full disk).
    """
    if workers < 1 or not stall_s > 0.0:
        raise ConfigError(f"workers is {workers} and stall_s is {stall_s}, expected at least 1 and a positive number")
    queue = list(seeds)
    running: list[_Worker] = []
    try:
        while queue or running:
            while queue and len(running) < workers and len([w for w in running if w.seed is None]) < len(queue):
                running.append(_Worker(make, stall_s))
            timeout = max(0.0, min(w.deadline for w in running) - time.monotonic())
            ready = wait([w.connection for w in running], timeout)
            for worker in list(running):
                if worker.connection in ready:
                    row = worker.hear(lost)
                elif time.monotonic() > worker.deadline:
                    row = worker.give_up(lost)
                else:
                    continue
                if row is not None:
                    yield row
                if worker.idle and queue:
                    worker.start(queue.pop(0))
                elif worker.ended or worker.idle:
                    worker.close()
                    running.remove(worker)
    finally:
        for worker in running:
            worker.close()


@dataclass
class _Worker:
    """A process, and what is known about it."""

    make: Callable[[], Player]
    stall_s: float
    seed: int | None = None
    idle: bool = False
    ended: bool = False
    started: float = 0.0
    last: tuple[float, Reached] = field(default_factory=lambda: (0.0, {}))

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked GL context does not render
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, self.make), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process ends the connection
        self.deadline = time.monotonic() + START_S

    def start(self, seed: int) -> None:
        """Sends it a seed to play."""
        self.seed, self.idle, self.last = seed, False, (0.0, {})
        self.started = time.monotonic()
        self.deadline = self.started + self.stall_s
        with contextlib.suppress(OSError):  # it has just died, which the connection's end tells
            self.connection.send(seed)

    def hear(self, lost: Lost) -> Row | None:
        """Takes a message; a row, if the episode has ended."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return self._lost(DIED, f"the policy's process ended: {_ending(self.process.exitcode)}", lost)
        if kind == "refused":
            raise value
        if kind == "beat":
            self.last, self.deadline = value, time.monotonic() + self.stall_s
            return None
        self.idle, self.seed = True, None
        return value if kind == "row" else None

    def give_up(self, lost: Lost) -> Row:
        """Ends a process whose time is over."""
        self.process.kill()
        self.process.join()
        limit = START_S if self.seed is None else self.stall_s
        return self._lost(STALLED, f"no tick for {limit:g} s: the policy stalled", lost)

    def _lost(self, outcome: str, reason: str, lost: Lost) -> Row:
        self.ended = True
        if self.seed is None:
            raise WorkerError(f"before its first episode: {reason}")
        return lost(self.seed, outcome, reason, *self.last, time.monotonic() - self.started)

    def close(self) -> None:
        """Ends the process."""
        self.connection.close()
        if not self.idle:
            self.process.kill()
        self.process.join(5.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{hint}"
    return f"exit code {code}"


def _end_with_parent() -> None:
    """Ends this process, whatever it hangs in, when its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(connection: Connection, make: Callable[[], Player]) -> None:
    """The process: makes the player, then plays every seed it is sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    beaten, known = 0.0, 0

    def send(kind: str, value: Any) -> None:
        connection.send((kind, value))

    def beat(seconds: float, reached: Reached) -> None:
        nonlocal beaten, known
        if time.monotonic() - beaten > _BEAT_S or len(reached) != known:
            beaten, known = time.monotonic(), len(reached)
            send("beat", (seconds, dict(reached)))

    try:
        play = make()
        send("ready", None)
        while True:
            seed = connection.recv()
            beaten, known = 0.0, 0
            send("row", play(seed, beat))
    except ClampError as error:
        send("refused", error)
    except (EOFError, BrokenPipeError):  # the parent has no more seeds, or is gone
        return
