"""One follower arm's thread: reads, drives and watches the arm at a fixed rate, and does in between what is asked."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.arm import Arm, ArmSample
from clamp_ros.arm.settings import ArmsConfig
from clamp_ros.contract.errors import ArmError

_UNANSWERED = 10
"""A bus is in fault after so many reads in a row without an answer, at the least: a process that did not run for a
while has not asked, and one late answer after it is no silence."""


class Together(Protocol):
    """Both arms, as one arm's thread sees them. None of these waits for the other arm's bus."""

    @property
    def in_fault(self) -> bool:
        """Whether they hold until somebody mends it."""
        ...

    def wanted(self, name: str, now_s: float) -> NDArray[np.float64] | None:
        """(7,) where an arm shall go now; None: stay."""
        ...

    def set_up(self) -> None:
        """An arm is ready."""
        ...

    def take(self, driver: Driver, stamp_ns: int, sample: ArmSample) -> None:
        """An arm was read."""
        ...

    def fail(self, reason: str) -> None:
        """Both hold, until somebody mends it."""
        ...

    def end(self, error: BaseException) -> None:
        """The thread has ended by what no arm can raise: a defect."""
        ...


class Driver:
    """One arm and its thread. `ask` and `start` may be called from any thread; the rest is the thread's own.

    Attributes:
        arm: the arm.
        started: whether it is set up.
        answered_s: when its bus last answered, by the monotonic clock.
        sample: the last reading and its stamp in ns, until `Together.take` has paired it.
        release: set to have it hold where it is measured, not where it was told to be.
        slowest_s: the longest cycle since somebody set this to 0.
    """

    def __init__(self, arm: Arm, config: ArmsConfig, now_ns: Callable[[], int], both: Together) -> None:
        """Nothing is opened yet.

        Args:
            arm: to be driven.
            config: rate and deadlines.
            now_ns: the clock of the samples' stamps.
            both: told of everything.
        """
        self.arm = arm
        self.started = False
        self.answered_s = 0.0
        self.sample: tuple[int, ArmSample] | None = None
        self.release = False
        self.slowest_s = 0.0
        self._silent_s = 0.0
        self._config, self._now_ns, self._both = config, now_ns, both
        self._requests: queue.SimpleQueue[tuple[Callable[[Arm], Any], Future[Any]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"arm-{arm.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread, which sets the arm up first."""
        self._thread.start()

    def stop(self) -> None:
        """Has the thread end after its cycle."""
        self._stop.set()

    def join(self) -> None:
        """Waits for the thread to end, and lets the bus go."""
        if self._thread.ident is not None:
            self._thread.join()
        self.arm.bus.close()

    def ask(self, request: Callable[[Arm], Any]) -> Future[Any]:
        """Has the thread do something between two cycles; the caller sets the deadline for the answer."""
        future: Future[Any] = Future()
        self._requests.put((request, future))
        return future

    def _run(self) -> None:
        try:
            self.arm.start()
            self.started = True
            self._both.set_up()
            period_s = 1.0 / self._config.rate_hz
            next_s = time.monotonic()
            while not self._stop.is_set():
                self._serve()
                self._cycle()
                next_s = max(next_s + period_s, time.monotonic() - period_s)
                self._stop.wait(max(next_s - time.monotonic(), 0.0))
        except BaseException as error:  # the motors' watchdogs hold the arms
            self._both.end(error)
        finally:
            while not self._requests.empty():
                self._requests.get()[1].set_exception(ArmError(f"the {self.arm.name} arm's thread has ended"))

    def _serve(self) -> None:
        try:
            request, future = self._requests.get_nowait()
        except queue.Empty:
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = request(self.arm)
        except ArmError as error:
            self._both.fail(str(error))
            future.set_exception(error)
        else:
            self._answered()
            future.set_result(result)

    def _cycle(self) -> None:
        arm, started_s = self.arm, time.monotonic()
        try:
            if arm.stalled():
                arm.rearm()
            before_ns = self._now_ns()
            sample = arm.read()
            stamp_ns = (before_ns + self._now_ns()) // 2
            self._answered()
            if self.release:
                self.release = False
                arm.hold_here(keep_grip=True)
            arm.drive(self._both.wanted(arm.name, self.answered_s), self.answered_s)
            if (problem := arm.watch()) is not None:
                self._both.fail(problem)
        except ArmError as error:
            self._unanswered(error, time.monotonic() - started_s)
            return
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
        self._both.take(self, stamp_ns, sample)

    def _answered(self) -> None:
        self.answered_s, self._silent_s = time.monotonic(), 0.0

    def _unanswered(self, error: ArmError, waited_s: float) -> None:
        limit_s = self._config.fault_after_s
        self._silent_s += min(max(waited_s, 1.0 / self._config.rate_hz), limit_s / _UNANSWERED)
        if self._silent_s <= limit_s or self._both.in_fault:
            return
        try:
            missing = self.arm.bus.silent()
        except ArmError:
            missing = []
        who = f"; no answer from {', '.join(map(self.arm.label, missing))}" if missing else ""
        self._both.fail(f"{error}{who}. Check cable and power, then call /arms/torque")
