"""The safety gate: every command passes it, and whatever comes in, what goes out is safe.

Guarantees, for any sequence of inputs: a command is finite; within the joint limits; no further from the command before
than the velocity and step limits allow; and if the target is missing, malformed or refused, or an emergency stop is
latched, it is the command before. Until the arms have been measured there is no command at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import (
    CONTROL_PERIOD_NS,
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
    joint_vector,
)

_MAX_PERIODS = 2
"""A tick that comes late may move further, but no further than this many periods' worth."""


@dataclass(frozen=True)
class SafetyConfig:
    """Limits of the safety gate. Joint limits are the robot's and no parameter."""

    velocity_scale: float = param(
        1.0, "fraction of each joint's velocity limit that commands may use", minimum=0.01, maximum=1.0
    )
    max_step_rad: float = param(
        0.1, "largest change of an arm joint's command in one tick, however late it comes", unit="rad",
        minimum=0.001, maximum=0.5,
    )  # fmt: skip
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
    """The gate; see the module. Pure: time and measurements are arguments."""

    def __init__(self, config: SafetyConfig | None = None) -> None:
        self._config = config or SafetyConfig()
        self._jump = np.full(NUM_JOINTS, self._config.max_jump_rad)
        self._jump[list(GRIPPER_INDICES)] = np.inf  # a gripper's whole travel is a target like any other
        self._step = np.full(NUM_JOINTS, self._config.max_step_rad)
        self._step[list(GRIPPER_INDICES)] = np.inf
        self._stop_reason: str | None = None
        self._command: NDArray[np.float64] | None = None
        self._checked_ns = 0
        self._held_ns = 0
        self._running_ns = 0

    @property
    def stopped(self) -> bool:
        """Whether an emergency stop is latched."""
        return self._stop_reason is not None

    def stop(self, reason: str) -> None:
        """Latches the emergency stop; the first reason stays."""
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
        self._command = None
        self._running_ns = 0
        self._held_ns = 0

    def check(
        self,
        target: ArrayLike | None,
        now_ns: int,
        measured: ArrayLike | None,
        measured_ns: int | None = None,
        reason: str = "no target",
    ) -> GateResult:
        """Turns a target into a command; call it once a control tick.

        Args:
            target: (14,) absolute joint targets in contract order, rad and m; None holds.
            now_ns: the tick's time; running backwards is harmless.
            measured: (14,) newest measured positions, or None before the first.
            measured_ns: their stamp; None means they are of now.
            reason: why there is no target.
        """
        elapsed_ns = min(max(now_ns - self._checked_ns, 0), _MAX_PERIODS * CONTROL_PERIOD_NS)
        self._checked_ns = now_ns
        if self._command is None:
            start, why = _start(measured)
            if start is None:
                return GateResult(None, State.STOPPED if self.stopped else State.IDLE, self._stop_reason or why)
            self._command, elapsed_ns = start, 0
        if self._stop_reason is not None:
            return self._hold(State.STOPPED, self._stop_reason, elapsed_ns)
        fault = self._watchdog(now_ns, measured, measured_ns)
        if fault is not None or target is None:
            return self._hold(State.HOLDING, fault or reason, elapsed_ns)
        try:
            wanted = joint_vector(target, "target")
        except (ContractError, TypeError, ValueError) as error:
            return self._hold(State.HOLDING, str(error), elapsed_ns)
        jump = np.abs(wanted - self._command)
        if (far := np.flatnonzero(jump > self._jump)).size:
            i = int(far[np.argmax(jump[far])])
            return self._hold(
                State.HOLDING,
                f"target of {JOINT_NAMES[i]} is {jump[i]:.2f} rad from the last command, limit {self._jump[i]:.2f}",
                elapsed_ns,
            )
        return self._move(wanted, elapsed_ns)

    def _watchdog(self, now_ns: int, measured: ArrayLike | None, measured_ns: int | None) -> str | None:
        if measured is None:
            return "no joint states"
        age_s = 0.0 if measured_ns is None else (now_ns - measured_ns) / 1e9
        if age_s > self._config.measured_timeout_s:
            return f"joint states are {age_s:.2f} s old, limit {self._config.measured_timeout_s:.2f} s"
        return None

    def _hold(self, state: State, reason: str, elapsed_ns: int) -> GateResult:
        self._held_ns += elapsed_ns
        if self._held_ns > self._config.standstill_s * 1e9:
            self._running_ns = 0
        return GateResult(self._previous().copy(), state, reason)

    def _move(self, wanted: NDArray[np.float64], elapsed_ns: int) -> GateResult:
        self._held_ns = 0
        config, last = self._config, self._previous()
        ramp = min(self._running_ns / 1e9 / config.startup_s, 1.0) if config.startup_s > 0.0 else 1.0
        self._running_ns += elapsed_ns
        speed = config.velocity_scale * (config.startup_fraction + ramp * (1.0 - config.startup_fraction))
        step = np.minimum(VELOCITY_LIMITS * speed * elapsed_ns / 1e9, self._step)
        command = np.clip(np.clip(wanted, last - step, last + step), LOWER_LIMITS, UPPER_LIMITS)
        limited = tuple(JOINT_NAMES[i] for i in np.flatnonzero(np.abs(command - wanted) > 1e-9))
        self._command = command
        return GateResult(command.copy(), State.RUNNING, "", limited)

    def _previous(self) -> NDArray[np.float64]:
        if self._command is None:
            raise ContractError("the gate has no command yet; the arms must be measured first")
        return self._command


def _start(measured: ArrayLike | None) -> tuple[NDArray[np.float64] | None, str]:
    """The first command: the measured pose, within the limits."""
    if measured is None:
        return None, "no joint states yet"
    try:
        return np.clip(joint_vector(measured, "measured positions"), LOWER_LIMITS, UPPER_LIMITS), ""
    except (ContractError, TypeError, ValueError) as error:
        return None, str(error)
