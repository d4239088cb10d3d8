"""Both leader arms: a thread a bus, which reads it, does what is wished, and finds it again after it was unplugged."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.aloha2 import Drive
from clamp_ros.arm.leader import Leader
from clamp_ros.arm.motion import Motion
from clamp_ros.arm.settings import LeaderMotors, LeaderSide
from clamp_ros.arm.units import GRIPPER
from clamp_ros.contract.errors import ArmError
from clamp_ros.contract.robot import ARM_SLICES, ARMS

_RETRY_S = 1.0
_ARRIVED_RAD = 0.03
_BEHIND_RAD = 0.35
_PATIENCE_S = 2.0


class LeaderSample(NamedTuple):
    """Both leaders now.

    Attributes:
        positions: (14,) contract order, the followers' units.
        drive: what the motors of both do; None while they differ.
        settled: driven leaders have come as far as they will.
    """

    positions: NDArray[np.float64]
    drive: Drive | None
    settled: bool


class _Wish(NamedTuple):
    drive: Drive
    pose: NDArray[np.float64] | None


@dataclass
class _Side:
    """What one leader's thread tells the others; each attribute is replaced as a whole."""

    arm: Leader
    problem: str = "not read yet"
    answered_s: float = 0.0
    positions: NDArray[np.float64] | None = None
    drive: Drive = Drive.FREE
    settled: bool = False
    ready: bool = False
    wish: _Wish | None = None
    motion: Motion | None = None


class Leaders:
    """Both leaders. Nobody waits: wishes are left, and readings are picked up."""

    def __init__(self, left: LeaderSide, right: LeaderSide, motors: LeaderMotors, rate_hz: int) -> None:
        """Nothing is opened yet; `start` begins.

        Raises:
            ClampError: a handle is not calibrated.
        """
        self._motors, self._rate_hz = motors, rate_hz
        sides = {"left": left, "right": right}
        self._sides = {name: _Side(Leader(name, sides[name], motors)) for name in ARMS}
        self._wish = _Wish(motors.rest, None)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(side,), name=f"leader-{name}", daemon=True)
            for name, side in self._sides.items()
        ]

    def start(self) -> None:
        """Starts the threads; `check` says whether they live."""
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raises what ended a thread, where something did: a defect, no fault of an arm."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Lets go of both leaders and of their buses."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def arm(self, name: str) -> Leader:
        """One leader, for its counters."""
        return self._sides[name].arm

    @property
    def problem(self) -> str | None:
        """What is wrong with a leader that cannot be read, or None."""
        problems = [f"{name} leader: {side.problem}" for name, side in self._sides.items() if side.problem]
        return "; ".join(problems) or None

    def wish(self, drive: Drive, pose: NDArray[np.float64] | None = None) -> None:
        """What the motors shall do from now on.

        Args:
            drive: of both leaders.
            pose: (14,) where driven leaders shall go; a new array begins a new motion.
        """
        if drive is not self._wish.drive or pose is not self._wish.pose:
            self._wish = _Wish(drive, pose)

    def sample(self) -> LeaderSample | None:
        """The newest reading of both, or None where one is too old."""
        now_s = time.monotonic()
        sides = list(self._sides.values())
        positions = [side.positions for side in sides if side.positions is not None]
        if len(positions) < len(sides) or any(now_s - side.answered_s > self._motors.fresh_s for side in sides):
            return None
        drives = {side.drive for side in sides}
        return LeaderSample(
            np.concatenate(positions), drives.pop() if len(drives) == 1 else None, all(side.settled for side in sides)
        )

    # One leader's thread.

    def _run(self, side: _Side) -> None:
        try:
            next_s = time.monotonic()
            while not self._stop.is_set():
                if not side.ready and not self._connect(side):
                    continue
                try:
                    self._cycle(side)
                except ArmError as error:
                    self._unanswered(side, error)
                next_s = max(next_s + 1.0 / self._rate_hz, time.monotonic())
                self._stop.wait(next_s - time.monotonic())
        except BaseException as error:  # `check` raises it in the node's thread
            self._failure = error
            self._stop.set()
        finally:
            self._let_go(side)

    def _connect(self, side: _Side) -> bool:
        try:
            side.arm.start()
        except ArmError as error:
            side.problem = str(error)
            self._stop.wait(_RETRY_S)
            return False
        side.ready, side.answered_s, side.positions = True, time.monotonic(), side.arm.measured
        side.wish, side.motion, side.drive, side.settled = None, None, Drive.FREE, False
        return True

    def _cycle(self, side: _Side) -> None:
        arm, wish = side.arm, self._wish
        if arm.stalled():
            arm.rearm()
        if wish is not side.wish:
            self._begin(side, wish)
        sample = arm.read()
        now_s = time.monotonic()
        arm.act(None if side.motion is None else side.motion.at(now_s), now_s)
        problem = arm.watch()
        if problem is not None:
            side.ready = False  # begins anew, which lets go, and restarts motors that report an error
            raise ArmError(problem)
        if side.motion is not None and not side.settled:
            side.settled = _settled(side.motion, sample.positions, now_s)
            if side.settled:
                side.motion = None  # stays where it has come to
        side.positions, side.drive, side.answered_s, side.problem = sample.positions, arm.mode, now_s, ""

    def _begin(self, side: _Side, wish: _Wish) -> None:
        arm = side.arm
        side.settled, side.motion = False, None
        if arm.mode is not wish.drive:
            arm.enter(wish.drive)
        if wish.drive is Drive.DRIVEN and wish.pose is not None and arm.measured is not None:
            end = wish.pose[ARM_SLICES[arm.name]].copy()
            end[GRIPPER] = arm.measured[GRIPPER]  # the handle is the person's
            side.motion = Motion.between(arm.measured, end, time.monotonic(), self._motors.drive_rad_s)
        side.wish = wish

    def _unanswered(self, side: _Side, error: ArmError) -> None:
        if not side.ready or time.monotonic() - side.answered_s > self._motors.silent_s:
            side.problem, side.ready = str(error), False

    def _let_go(self, side: _Side) -> None:
        try:
            if side.arm.bus.is_open:
                side.arm.enter(Drive.FREE)
        except ArmError:
            pass  # it is gone, or its motors' watchdogs let go of it
        finally:
            side.arm.bus.close()


def _settled(motion: Motion, positions: NDArray[np.float64], now_s: float) -> bool:
    """Whether a driven leader has come as far as it will: to the end, or to where something, or somebody, stops it."""
    behind = np.abs(positions - motion.at(now_s))[:GRIPPER].max()
    arrived = motion.over(now_s) and np.abs(positions - motion.end)[:GRIPPER].max() < _ARRIVED_RAD
    return bool(arrived or behind > _BEHIND_RAD or now_s > motion.start_s + motion.duration_s + _PATIENCE_S)
