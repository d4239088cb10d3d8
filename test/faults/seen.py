"""What a running system did, as far as it was seen: goals on the wire, messages, and what they tell of the arms."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hardware_emulation.servos import ServoBus, follower
from numpy.typing import NDArray

from clamp_ros.contract.interfaces import JOINT_COMMANDS, JOINT_STATES
from clamp_ros.contract.robot import REST_POSE

QUIET_S = 0.4
STILL_RAD = 0.002
TICK_RAD = 2.0 * math.pi / 4096
_HELD_S = 0.75 * QUIET_S  # the last goals of a motion that ends may differ by less than `STILL_RAD`

Joints = NDArray[np.float64]


class WatchedBus(ServoBus):
    """A bus that writes down every change of the motors' goals: what the arm is really told."""

    def __init__(self) -> None:
        """A follower arm out of the box."""
        arm = follower()
        super().__init__(arm.servos)
        arm.unplug()
        self.goals: list[tuple[float, Joints]] = []

    def hear(self, data: bytes, now: float) -> list[bytes]:
        """As its parent; then looks at the goals of the seven masters."""
        replies = super().hear(data, now)
        goal = np.array([self[motor].goal_shaft() for motor in (1, 2, 4, 6, 7, 8, 9)]) * TICK_RAD
        if not self.goals or np.any(goal != self.goals[-1][1]):
            self.goals.append((now, goal))
            if len(self.goals) > 20_000:
                del self.goals[:10_000]
        return replies


@dataclass
class Mark:
    """A moment, and what had been seen until then."""

    at_s: float
    log: int
    measured: Joints


@dataclass
class Seen:
    """What the watching node heard, newest last; each with its time of arrival, `time.monotonic`."""

    commands: list[tuple[float, Joints]] = field(default_factory=list)
    measured: list[tuple[float, Joints]] = field(default_factory=list)
    said: list[tuple[float, str]] = field(default_factory=list)
    diagnostics: list[tuple[float, str]] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    newest_ns: int = 0
    stamps: dict[str, list[int]] = field(default_factory=lambda: {JOINT_COMMANDS.name: [], JOINT_STATES.name: []})

    def forget(self, before_s: float) -> None:
        """Drops what is old."""
        lists: list[list[Any]] = [self.commands, self.measured, self.said, self.diagnostics]
        for rows in lists:
            rows[:] = [row for row in rows if row[0] >= before_s]
        for stamps in self.stamps.values():
            stamps.clear()


def spread(part: Joints, where: slice) -> Joints:
    """One arm's joints in a vector of both, NaN elsewhere."""
    both = np.full(14, np.nan)
    both[where] = part
    return both


def rows_has(rows: list[tuple[float, Joints]], part: slice) -> bool:
    """Whether an arm is among rows."""
    return any(not np.isnan(row[part.start]) for _, row in rows)


def travel(rows: list[tuple[float, Joints]]) -> float:
    """How far the joint that was told most was told to go."""
    spans = [0.0]
    for part in (slice(0, 7), slice(7, 14)):
        own = np.array([row[part] for _, row in rows if not np.isnan(row[part.start])])
        if len(own) > 1:
            spans.append(float(np.ptp(own, axis=0).max()))
    return max(spans)


def held_since_s(rows: list[tuple[float, Joints]], begin_s: float, end_s: float) -> float | None:
    """When the arms first began to be told nothing else for a while; None if they never were.

    Args:
        rows: goals since `begin_s`.
        begin_s: of the fault.
        end_s: now.
    """
    changes = [begin_s]
    for part in (slice(0, 7), slice(7, 14)):
        own = [(at_s, row[part]) for at_s, row in rows if not np.isnan(row[part.start])]
        anchor = own[0][1] if own else None
        for at_s, goal in own:
            if anchor is not None and np.abs(goal - anchor).max() > STILL_RAD:
                anchor = goal
                changes.append(at_s)
    changes.sort()
    for since_s, next_s in itertools.pairwise([*changes, end_s]):
        if next_s - since_s >= _HELD_S:
            return since_s
    return None


def gate_held_s(said: list[tuple[float, str]], begin_s: float) -> float | None:
    """When the control node first said, from `begin_s` on, that it holds; None if it did not."""
    words = ("control: holding", "control: stopped")
    return next((at_s for at_s, text in said if at_s >= begin_s and text.startswith(words)), None)


def largest_step(rows: list[tuple[float, Joints]]) -> float:
    """The largest change from one goal to the next, over both arms."""
    steps = [0.0]
    for part in (slice(0, 7), slice(7, 14)):
        own = np.array([row[part] for _, row in rows if not np.isnan(row[part.start])])
        if len(own) > 1:
            steps.append(float(np.abs(np.diff(own, axis=0))[:, :6].max()))
    return max(steps)


def farthest_off(rows: list[tuple[float, Joints]]) -> float:
    """How far a goal was from the way of the policy of a system under test, which moves nothing but both waists."""
    own = [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    off = [float(np.nanmax(np.abs(row[own] - REST_POSE[own]), initial=0.0)) for _, row in rows]
    return max(off, default=0.0)
