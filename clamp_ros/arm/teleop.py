"""Teleoperation as a pure law: where the leaders are, what the arms are told, and what time it is in; a target out.

A take-over goes: idle -> approaching -> following. Until the control node follows the targets of this law, they are
the commands it sends anyway. Then the followers stand still, and the leaders are driven to their pose; whatever
difference is left, as where leaders cannot be driven or a hand is in the way, the followers close slowly. From then on
they follow. Each gripper stays as it is until its handle passes its position, so that nothing held is dropped.

Whatever comes in, one target is no further from the one before than the velocity limits allow, the first is the
command of the moment, and none is outside the joint limits. What goes wrong ends it: no target, and the arms hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.aloha2 import Drive
from clamp_ros.contract.config import check, param
from clamp_ros.contract.robot import (
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)
from clamp_ros.control.sources import NOBODY

MAX_ELAPSED_S = 0.04
"""A target that comes late may move further, but no further than in this time."""
_GRIPPERS = list(GRIPPER_INDICES)
_IS_ARM = np.ones(NUM_JOINTS, dtype=bool)
_IS_ARM[_GRIPPERS] = False
_LANDING_PER_S = 4.0
"""Closing a difference, a joint is no faster than this many times what is left of it: it comes softly to rest."""
_LANDING_SLOWEST = 0.1
"""But no slower than this part of its limit."""


@dataclass(frozen=True)
class TeleopConfig:
    """Parameters of the law."""

    align: bool = param(True, "drive the leaders to the followers' pose before a person has them")
    align_s: float = param(20.0, "how long that, and letting go, may take", unit="s", minimum=1.0, maximum=120.0)
    approach_rad_s: float = param(
        0.5, "top speed of the followers' joints while they close what is left", unit="rad/s", minimum=0.01, maximum=1.5
    )
    approach_m_s: float = param(0.05, "top speed of their grippers then", unit="m/s", minimum=0.001, maximum=0.25)
    close_rad: float = param(
        0.05, "they follow when no joint is further from its leader than this", unit="rad", minimum=0.005, maximum=0.3
    )
    follow: float = param(0.9, "part of each joint's velocity limit that following may use", minimum=0.05, maximum=1.0)
    ramp_s: float = param(
        1.0, "both speeds rise from standstill, or from one to the other, in this time", unit="s",
        minimum=0.0, maximum=10.0,
    )  # fmt: skip
    lead_rad: float = param(
        0.3, "a target is no further than this ahead of the command: what the gate holds back is not wound up",
        unit="rad", minimum=0.1, maximum=1.0,
    )  # fmt: skip
    lag_rad: float = param(
        1.0, "following ends when a leader's joint is further than this from its target", unit="rad",
        minimum=0.1, maximum=6.3,
    )  # fmt: skip
    handle_m: float = param(
        0.002, "a gripper is caught when its handle is within this, or passes it", unit="m",
        minimum=0.0002, maximum=0.02,
    )  # fmt: skip
    leader_lost_s: float = param(
        0.5, "following ends when a leader has not been read for this long; until then the followers hold", unit="s",
        minimum=0.05, maximum=5.0,
    )  # fmt: skip
    take_s: float = param(
        2.0, "how long the control node may take to follow the targets", unit="s", minimum=0.1, maximum=30.0
    )

    def __post_init__(self) -> None:
        check(self)


class State(Enum):
    """What teleoperation does."""

    IDLE = "idle"
    APPROACHING = "approaching"
    FOLLOWING = "following"
    STOPPED = "stopped"
    """It ended by itself: the arms hold, and nobody else has them, until it is started again or handed back."""


class Step(NamedTuple):
    """What to do now.

    Attributes:
        target: (14,) for the control node, or None.
        drive: what the leaders' motors shall do.
        pose: (14,) where driven leaders shall go; the same array for as long as it is the same motion.
    """

    target: NDArray[np.float64] | None
    drive: Drive
    pose: NDArray[np.float64] | None = None


class Teleop:
    """The law; see the module. Time is an argument.

    Attributes:
        state: what it does.
        reason: why, where it is not obvious.
    """

    def __init__(self, config: TeleopConfig, rest: Drive = Drive.FREE) -> None:
        """Idle.

        Args:
            config: the parameters.
            rest: what the leaders' motors do while a person has them.
        """
        self._config = config
        self._rest = rest
        self.state, self.reason = State.IDLE, ""
        self._target = np.zeros(NUM_JOINTS)
        self._pose: NDArray[np.float64] | None = None
        self._taken = self._aligned = self._released = False
        self._now_ns = self._since_ns = self._seen_ns = 0
        self._handles: NDArray[np.float64] | None = None
        self._caught = [False, False]

    @property
    def active(self) -> bool:
        """Whether it sends targets."""
        return self.state in (State.APPROACHING, State.FOLLOWING)

    def start(self, now_ns: int) -> None:
        """Begins to take over, at the first tick that knows the command."""
        self.state, self.reason = State.APPROACHING, "taking over"
        self._pose, self._handles, self._caught = None, None, [False, False]
        self._taken = self._released = False
        self._aligned = not self._config.align
        self._now_ns = self._since_ns = self._seen_ns = now_ns

    def stop(self) -> None:
        """Ends it: no targets any more."""
        self.state, self.reason = State.IDLE, ""

    def fail(self, reason: str) -> None:
        """Ends it because something is wrong."""
        self.state, self.reason = State.STOPPED, reason

    def tick(
        self,
        now_ns: int,
        command: NDArray[np.float64] | None,
        leader: NDArray[np.float64] | None,
        followed: str,
        drive: Drive | None = None,
        settled: bool = False,
    ) -> Step:
        """One step.

        Args:
            now_ns: any clock; running backwards is harmless.
            command: (14,) that the arms were last told, within the limits; None where nobody tells them.
            leader: (14,) where the leaders are, in the followers' units; None where they were not read lately.
            followed: whose targets the control node follows, as on /control/source.
            drive: what the leaders' motors do.
            settled: driven leaders have come as far as they will.
        """
        elapsed_s = min(max((now_ns - self._now_ns) / 1e9, 0.0), MAX_ELAPSED_S)
        self._now_ns = now_ns
        if leader is not None and np.isfinite(leader).all():
            self._seen_ns = now_ns
        else:
            leader = None
        if self.active and command is None:
            self.fail("nobody tells the arms where to be; does control_node run, and are the arms measured?")
        if command is None or not self.active:
            return Step(None, self._rest)
        if not self._taken:
            return self._take(command, followed == "teleop")
        if followed == NOBODY:
            self.fail("the arms were stopped, or moved by something else")
        elif followed != "teleop":
            self.stop()
            self.reason = f"the control node was told to follow {followed}"
        if not self.active:
            return Step(None, self._rest)
        if self.state is State.FOLLOWING or (self._aligned and self._released):
            return self._follow(command, leader, elapsed_s)
        return self._align(drive, settled)

    def _take(self, command: NDArray[np.float64], taken: bool) -> Step:
        """Until the control node follows these targets: what the arms are told anyway."""
        self._target = np.clip(command, LOWER_LIMITS, UPPER_LIMITS)
        if taken:
            self._taken, self._since_ns, self.reason = True, self._now_ns, "the leaders come to the followers' pose"
        elif self._over(self._config.take_s):
            self.fail(f"the control node has not followed the targets within {self._config.take_s:g} s")
            return Step(None, self._rest)
        return Step(self._target.copy(), self._rest)

    def _align(self, drive: Drive | None, settled: bool) -> Step:
        """The followers hold; the leaders are driven to them, then let go of."""
        if self._pose is None:
            self._pose = self._target.copy()
        if not self._aligned and drive is Drive.DRIVEN and settled:
            self._aligned = True
        if self._over(self._config.align_s):
            self._aligned = self._released = True  # a leader that stays silent is seen to below
        elif self._aligned and drive is self._rest:
            self._released = True
        if self._aligned and self._released:
            self._since_ns, self._seen_ns = self._now_ns, self._now_ns
            self.reason = "the followers come to the leaders"
        wanted = self._rest if self._aligned else Drive.DRIVEN
        return Step(self._target.copy(), wanted, self._pose)

    def _follow(self, command: NDArray[np.float64], leader: NDArray[np.float64] | None, elapsed_s: float) -> Step:
        """Approaching and following: towards the leaders, no faster than allowed."""
        if leader is None:
            silent_s = (self._now_ns - self._seen_ns) / 1e9
            if silent_s > self._config.leader_lost_s:
                self.fail(f"a leader has not been read for {silent_s:.1f} s")
                return Step(None, self._rest)
            return Step(self._target.copy(), self._rest)
        wanted = np.clip(leader, LOWER_LIMITS, UPPER_LIMITS)
        self._catch(wanted)
        behind = np.where(_IS_ARM, np.abs(wanted - self._target), 0.0)
        if self.state is State.FOLLOWING and behind.max() > self._config.lag_rad:
            i = int(behind.argmax())
            self.fail(
                f"{JOINT_NAMES[i]} is {behind[i]:.2f} rad from its leader, limit {self._config.lag_rad:g}: "
                "the leader was too fast, or the arm was held back"
            )
            return Step(None, self._rest)
        for i, caught in zip(GRIPPER_INDICES, self._caught, strict=True):
            if not caught:
                wanted[i] = self._target[i]
        lead = np.where(_IS_ARM, self._config.lead_rad, np.inf)
        wanted = np.clip(np.clip(wanted, command - lead, command + lead), LOWER_LIMITS, UPPER_LIMITS)
        step = self._speed(wanted) * elapsed_s
        self._target = np.clip(wanted, self._target - step, self._target + step)
        if self.state is State.APPROACHING and behind.max() <= self._config.close_rad:
            self.state, self.reason, self._since_ns = State.FOLLOWING, "", self._now_ns
        return Step(self._target.copy(), self._rest)

    def _speed(self, wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        """(14,) how fast each joint's target may move now."""
        config = self._config
        part = min((self._now_ns - self._since_ns) / 1e9 / config.ramp_s, 1.0) if config.ramp_s > 0.0 else 1.0
        slow = np.where(_IS_ARM, config.approach_rad_s, config.approach_m_s)
        fast = VELOCITY_LIMITS * config.follow
        slow = np.minimum(slow, fast)
        if self.state is State.FOLLOWING:
            return slow + max(part, 0.0) * (fast - slow)
        landing = np.maximum(_LANDING_PER_S * np.abs(wanted - self._target), _LANDING_SLOWEST * slow)
        return np.minimum(slow * max(part, 0.0), landing)

    def _catch(self, wanted: NDArray[np.float64]) -> None:
        """A gripper is its handle's from when the handle is where the gripper is, or passes it."""
        handles, before = wanted[_GRIPPERS], self._handles
        apart = handles - self._target[_GRIPPERS]
        for n, i in enumerate(GRIPPER_INDICES):
            passed = before is not None and (before[n] - self._target[i]) * apart[n] <= 0.0
            if passed or abs(apart[n]) <= self._config.handle_m:
                self._caught[n] = True
        self._handles = handles

    def _over(self, limit_s: float) -> bool:
        return self._now_ns - self._since_ns > limit_s * 1e9
