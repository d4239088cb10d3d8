"""The safety gate: every command passes it, and whatever comes in, what goes out is safe.

Guarantees, for any sequence of inputs: a command is finite; within the joint limits; its velocity, and the change of
its velocity, are within their limits, and no joint is ever too fast to brake before its limit (`control.limiter`). If
the target is missing, malformed or refused, or the arms do not follow, or an emergency stop is latched, the command
brakes and stays. A command that would bring a gripper out of the workspace, or an arm too near to the other, the table
or itself, is refused together with all from which the arms could not brake in time; what is too near already may move
away. Until the arms have been measured there is no command at all.

The one exception is `restart`, which is for arms that somebody else has moved: the next command is where they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import (
    ACCELERATION_LIMITS,
    CONTROL_PERIOD_NS,
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
    joint_vector,
)
from clamp_ros.control.clearance import Clearance, ClearanceConfig
from clamp_ros.control.following import Following, FollowingConfig
from clamp_ros.control.limiter import Limiter, Step
from clamp_ros.control.workspace import Workspace, WorkspaceConfig

_GRIPPERS = list(GRIPPER_INDICES)
_STANDING = np.zeros(NUM_JOINTS)
_NEARER_M = 1e-6
_STREAM_NS = 5 * CONTROL_PERIOD_NS
"""Targets further apart than this are no stream whose speed means anything."""


@dataclass(frozen=True)
class SafetyConfig:
    """Limits of the safety gate. Joint limits are the robot's and no parameter."""

    velocity_scale: float = param(
        1.0, "fraction of each joint's velocity limit that commands may use", minimum=0.01, maximum=1.0
    )
    acceleration_scale: float = param(
        1.0, "fraction of each joint's acceleration limit that commands may use, to brake as well",
        minimum=0.05, maximum=1.0,
    )  # fmt: skip
    stop_haste: float = param(
        3.0, "an emergency stop brakes at this many times the acceleration limits", minimum=1.0, maximum=10.0
    )
    max_jump_rad: float = param(
        1.2, "a target further than this from the last command is refused as a fault", unit="rad",
        minimum=0.05, maximum=6.3,
    )  # fmt: skip
    startup_s: float = param(
        0.5, "after standing still, the velocity limit rises from startup_fraction to full in this time", unit="s",
        minimum=0.0, maximum=10.0,
    )  # fmt: skip
    startup_fraction: float = param(
        0.2, "fraction of the velocity limit at the first tick after standing still", minimum=0.01, maximum=1.0
    )
    standstill_s: float = param(
        0.2, "holding for longer than this counts as standing still", unit="s", minimum=0.0, maximum=10.0
    )
    measured_timeout_s: float = param(
        0.2, "watchdog: hold when the newest joint state is older than this", unit="s", minimum=0.04, maximum=5.0
    )
    following: FollowingConfig = field(default_factory=FollowingConfig)
    workspace: WorkspaceConfig = field(default_factory=WorkspaceConfig)
    clearance: ClearanceConfig = field(default_factory=ClearanceConfig)

    def __post_init__(self) -> None:
        check(self)


class State(Enum):
    """What the gate does."""

    IDLE = "idle"
    """The arms have not been measured: no command."""
    RUNNING = "running"
    HOLDING = "holding"
    STOPPED = "stopped"
    """An emergency stop is latched."""


@dataclass(frozen=True, eq=False)
class GateResult:
    """What to send.

    Attributes:
        command: (14,) float64 in contract order, or None while idle.
        state: what the gate does.
        reason: why it is not running, or empty.
        limited: joints whose target was cut back by a limit.
    """

    command: NDArray[np.float64] | None
    state: State
    reason: str
    limited: tuple[str, ...] = ()


class SafetyGate:
    """The gate; see the module. Pure: time and measurements are arguments.

    Raises:
        ConfigError: the clearance check is on, and mujoco is not installed.
    """

    def __init__(self, config: SafetyConfig | None = None) -> None:
        self._config = config = config or SafetyConfig()
        self._jump = np.full(NUM_JOINTS, config.max_jump_rad)
        self._jump[_GRIPPERS] = np.inf  # a gripper's whole travel is a target like any other
        clearance = [Clearance(config.clearance)] if config.clearance.enabled else []
        self._bounds: list[Clearance | Workspace] = [*clearance, Workspace(config.workspace)]
        self._following = Following(config.following)
        self._stop_reason: str | None = None
        self._checked_ns = 0
        self.restart()

    @property
    def stopped(self) -> bool:
        """Whether an emergency stop is latched."""
        return self._stop_reason is not None

    def stop(self, reason: str) -> None:
        """Latches the emergency stop; the first reason stays. Any thread may call it."""
        if self._stop_reason is None:
            self._stop_reason = reason

    def reset(self) -> None:
        """Releases the emergency stop; motion begins again as from standstill."""
        self._stop_reason = None
        self._running_ns = 0

    def restart(self) -> None:
        """Forgets the last command: the next one starts from the measured pose. A latched stop stays.

        For a simulation that was reset, or arms that were moved by someone else.
        """
        self._limiter: Limiter | None = None
        self._shortfalls: list[NDArray[np.float64]] | None = None  # of the last command, where they are known
        self._target: tuple[NDArray[np.float64], int] | None = None
        self._blocked = ""
        self._relief: tuple[NDArray[np.float64], str] | None = None
        self._relief_ns = 0
        self._running_ns = 0
        self._held_ns = 0
        self._following.clear()

    def check(
        self,
        target: ArrayLike | None,
        now_ns: int,
        measured: ArrayLike | None,
        measured_ns: int | None = None,
        reason: str = "no target",
        efforts: ArrayLike | None = None,
    ) -> GateResult:
        """Turns a target into a command; call it once a control tick.

        A tick that comes late moves no further than one in time, and one at which time stands or runs back does not
        move at all.

        Args:
            target: (14,) absolute joint targets in contract order, rad and m; None holds.
            now_ns: the tick's time; running backwards is harmless.
            measured: (14,) newest measured positions, or None before the first.
            measured_ns: their stamp; None means they are of now.
            reason: why there is no target.
            efforts: (14,) measured with them, N m and N; None where the robot does not tell.
        """
        elapsed_ns = min(max(now_ns - self._checked_ns, 0), CONTROL_PERIOD_NS)
        self._checked_ns = now_ns
        where, strain, fault = self._measured(now_ns, measured, measured_ns, efforts)
        if self._limiter is None:
            if where is None or fault:
                return GateResult(None, State.STOPPED if self.stopped else State.IDLE, self._stop_reason or fault)
            start = np.clip(where, LOWER_LIMITS, UPPER_LIMITS)
            speed = self._config.velocity_scale * VELOCITY_LIMITS
            change = self._config.acceleration_scale * ACCELERATION_LIMITS
            self._limiter, elapsed_ns = Limiter(LOWER_LIMITS, UPPER_LIMITS, speed, change, start), 0
        limiter, dt_s = self._limiter, elapsed_ns / 1e9
        if self._stop_reason is not None:
            step = limiter.brake(dt_s, self._config.stop_haste)
            return self._hold(limiter, step, State.STOPPED, self._stop_reason, elapsed_ns)
        if fault or where is None:
            return self._hold(limiter, limiter.brake(dt_s), State.HOLDING, fault, elapsed_ns)
        if (relieved := self._relieve(limiter, where, strain, elapsed_ns)) is not None:
            return relieved
        wanted, why = (None, reason) if target is None else _vector(target, "target")
        if wanted is not None:
            wanted, why = self._reachable(limiter, wanted)
        if wanted is None:
            return self._hold(limiter, limiter.brake(dt_s), State.HOLDING, why, elapsed_ns)
        return self._move(limiter, wanted, now_ns, elapsed_ns)

    def _measured(
        self, now_ns: int, measured: ArrayLike | None, measured_ns: int | None, efforts: ArrayLike | None
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, str]:
        """Positions, efforts, and what is wrong with them, or empty."""
        if measured is None:
            return None, None, "no joint states yet" if self._limiter is None else "no joint states"
        age_s = 0.0 if measured_ns is None else (now_ns - measured_ns) / 1e9
        if age_s > self._config.measured_timeout_s:
            limit_s = self._config.measured_timeout_s
            return None, None, f"joint states are {age_s:.2f} s old, limit {limit_s:.2f} s"
        where, fault = _vector(measured, "measured positions")
        strain, unclear = (None, "") if efforts is None else _vector(efforts, "measured efforts")
        return where, strain, fault or unclear

    def _relieve(
        self, limiter: Limiter, where: NDArray[np.float64], strain: NDArray[np.float64] | None, elapsed_ns: int
    ) -> GateResult | None:
        """Where the arms do not follow: they hold where they are, gently, so that nothing goes on being pressed."""
        overload = self._following.check(limiter.step.position, where, strain, elapsed_ns / 1e9)
        if self._relief is None:
            if overload is None:
                return None
            relief = where.copy()
            relief[_GRIPPERS] = limiter.step.position[_GRIPPERS]  # what they hold, they keep
            self._relief, self._relief_ns = (relief, overload), 0
        relief, reason = self._relief
        self._relief_ns += elapsed_ns
        if self._relief_ns > self._config.following.yield_s * 1e9 and overload is None:
            self._relief = None
        step = limiter.follow(relief, _STANDING, elapsed_ns / 1e9, self._config.startup_fraction)
        if self._refusal(limiter, step):
            step = limiter.brake(elapsed_ns / 1e9)
        return self._hold(limiter, step, State.HOLDING, reason, elapsed_ns)

    def _reachable(self, limiter: Limiter, wanted: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, str]:
        """A target, or None and why it is refused."""
        jump = np.abs(wanted - limiter.step.position)
        if (far := np.flatnonzero(jump > self._jump)).size:
            i = int(far[np.argmax(jump[far])])
            limit = self._jump[i]
            return None, f"target of {JOINT_NAMES[i]} is {jump[i]:.2f} rad from the last command, limit {limit:.2f}"
        if self._blocked and not limiter.at_rest:  # no second try before the first has come to rest
            return None, self._blocked
        return wanted, ""

    def _hold(self, limiter: Limiter, step: Step, state: State, reason: str, elapsed_ns: int) -> GateResult:
        if not np.array_equal(step.position, limiter.step.position):
            self._shortfalls = None
        limiter.step = step
        self._target = None
        self._held_ns += elapsed_ns
        if self._held_ns > self._config.standstill_s * 1e9:
            self._running_ns = 0
        return GateResult(step.position.copy(), state, reason)

    def _move(self, limiter: Limiter, wanted: NDArray[np.float64], now_ns: int, elapsed_ns: int) -> GateResult:
        config = self._config
        ramp = min(self._running_ns / 1e9 / config.startup_s, 1.0) if config.startup_s > 0.0 else 1.0
        share = config.startup_fraction + ramp * (1.0 - config.startup_fraction)
        target = np.clip(wanted, LOWER_LIMITS, UPPER_LIMITS)
        step = limiter.follow(target, self._drift(target, now_ns), elapsed_ns / 1e9, share)
        # once refused, the target itself has to leave: else the arms would creep on, a try after another
        self._blocked = self._refusal(limiter, step, target if self._blocked else None)
        if self._blocked:
            return self._hold(limiter, limiter.brake(elapsed_ns / 1e9), State.HOLDING, self._blocked, elapsed_ns)
        self._target = target, now_ns
        self._held_ns = 0
        self._running_ns += elapsed_ns
        limiter.step = step
        limited = tuple(JOINT_NAMES[i] for i in np.flatnonzero(np.abs(step.position - wanted) > 1e-9))
        return GateResult(step.position.copy(), State.RUNNING, "", limited)

    def _drift(self, target: NDArray[np.float64], now_ns: int) -> NDArray[np.float64]:
        """(14,) the velocity of the stream of targets, as far as it is one."""
        if self._target is None or not 0 < now_ns - self._target[1] <= _STREAM_NS:
            return _STANDING
        return (target - self._target[0]) / ((now_ns - self._target[1]) / 1e9)

    def _refusal(self, limiter: Limiter, step: Step, target: NDArray[np.float64] | None = None) -> str:
        """Why a step must not be taken, or empty: it, or braking after it, would leave the bounds further than now.

        So would its target, where that is given.
        """
        here, stop = limiter.step.position, limiter.stop_after(step)
        if np.array_equal(step.position, here) and np.array_equal(stop, here):
            return ""
        if self._shortfalls is None:
            self._shortfalls = [bound.shortfalls(here) for bound in self._bounds]
        reached = [bound.shortfalls(step.position) for bound in self._bounds]
        poses = (step.position, 0.5 * (step.position + stop), stop, *(() if target is None else (target,)))
        for bound, now, soon in zip(self._bounds, self._shortfalls, reached, strict=True):
            for pose in poses:
                nearer = (soon if pose is step.position else bound.shortfalls(pose)) - now
                if nearer.max() > _NEARER_M:
                    return bound.says(pose, int(nearer.argmax()))
        self._shortfalls = reached
        return ""


def _vector(values: ArrayLike, what: str) -> tuple[NDArray[np.float64] | None, str]:
    """(14,) finite numbers, or None and what is wrong with them."""
    try:
        return joint_vector(values, what), ""
    except (ContractError, OverflowError, TypeError, ValueError) as error:
        return None, str(error)
