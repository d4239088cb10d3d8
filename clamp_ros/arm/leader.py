"""One leader arm: moved by a person, weightless if wanted, or driven to the followers' pose. Driven by one thread.

A leader is limp unless it is told otherwise, and whatever goes wrong it becomes limp: nothing hangs on it, and a hand
is at it. While it is driven, its motors have little current, so that a hand can stop it.
"""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm import setup
from clamp_ros.arm.aloha2 import LEADER_MODELS, SHUTDOWN, VELOCITY_LIMIT, Drive
from clamp_ros.arm.arm import Arm
from clamp_ros.arm.registers import MODE_CURRENT, MODE_CURRENT_POSITION, MODE_POSITION, Model
from clamp_ros.arm.settings import LeaderMotors, LeaderSide, MotorConfig
from clamp_ros.arm.units import AMPERE_PER_UNIT, GRIPPER, RAD_S_PER_UNIT
from clamp_ros.contract.errors import ArmError

_REBOOT_S = 3.0


class Leader(Arm):
    """One leader.

    Attributes:
        mode: what its motors do.
    """

    ALSO: ClassVar[tuple[Model, ...]] = LEADER_MODELS

    def __init__(self, name: str, side: LeaderSide, motors: LeaderMotors) -> None:
        super().__init__(name, side, MotorConfig(
            reply_s=motors.reply_s, retry_s=motors.retry_s, watchdog_s=motors.watchdog_s, torque_off_to_configure=True,
        ))  # fmt: skip
        self._motors = motors
        self.mode = Drive.FREE
        self.powered = []

    def label(self, motor: int) -> str:
        """A motor in words."""
        return f"{self.name} leader's {self.specs[motor].name} (motor {motor})"

    def start(self) -> None:
        """Opens the bus, lets go of the arm, restarts motors that report an error, checks and sets up all, reads them.

        Raises:
            ArmError: a motor is missing, wrong, or cannot be set up.
        """
        with self.bus.patient():
            self.bus.open()
            self.bus.identify(self.ALSO)
            self.enter(Drive.FREE)
            broken = [motor for motor in self.specs if self.bus.read(motor, "hardware_error_status")]
            for motor in broken:
                self.bus.reboot(motor)
                self.notes.append(f"restarted {self.label(motor)}, which reported an error")
            deadline = time.monotonic() + _REBOOT_S
            while broken and self.bus.silent() and time.monotonic() < deadline:
                pass
            setup.configure(self)
            self.read()
            self.hold_here()

    def eeprom_settings(self, motor: int) -> dict[str, int]:
        """The operating mode is not among them: it changes with what the motors do."""
        settings = super().eeprom_settings(motor) | {"shutdown": SHUTDOWN}
        del settings["operating_mode"], settings["current_limit"]
        limit = self.bus.models[motor].max_current
        return settings | ({"current_limit": limit} if limit else {})

    def ram_settings(self, motor: int) -> dict[str, int]:
        """As a follower's, but slowly, and with no current of its own."""
        settings = super().ram_settings(motor) | {
            "profile_velocity": min(max(round(self._motors.drive_rad_s / RAD_S_PER_UNIT), 1), VELOCITY_LIMIT)
        }
        settings.pop("goal_current", None)
        return settings

    def enter(self, mode: Drive) -> None:
        """Has the motors do something else. In between they are limp: what they do can only be changed without torque.

        Raises:
            ArmError: a motor does not answer.
        """
        self.torque_off()
        self.mode, self.powered = Drive.FREE, []
        if mode is Drive.FREE:
            return
        with self.bus.patient():
            modes = {motor: found for motor in self.specs if (found := self._operating_mode(motor, mode)) is not None}
            for motor, found in modes.items():
                if self.bus.read(motor, "operating_mode") != found:
                    self.bus.write(motor, "operating_mode", found)
            settings = {motor: self.ram_settings(motor) for motor in modes}
            for name in settings[next(iter(modes))]:  # a change of mode may have reset them
                self.bus.write_all(name, {motor: values[name] for motor, values in settings.items()})
            self.read()
            self.hold_here()
            self.powered = list(modes)
            self._watchdogs = self._watchdog_settings()
            if mode is Drive.ASSIST:  # a current that nobody takes back is worse than what a homing offset may do
                self._watchdogs = dict.fromkeys(modes, max(*self._watchdogs.values(), 1))
            for motor, ticks in self._watchdogs.items():  # before there is torque: none is without
                self.bus.write(motor, "bus_watchdog", ticks)
            self._write_effort(mode)
            for motor in modes:
                self.bus.write(motor, "torque_enable", 1)
        self.mode, self.torque = mode, True
        self._write_effort(mode)

    def _operating_mode(self, motor: int, mode: Drive) -> int | None:
        """None for a motor that stays limp."""
        if self.specs[motor].joint == GRIPPER:
            return None
        has_current = bool(self.bus.models[motor].max_current)
        if mode is Drive.ASSIST:
            return MODE_CURRENT if has_current else None
        return MODE_CURRENT_POSITION if has_current else MODE_POSITION

    def act(self, wanted: NDArray[np.float64] | None, now_s: float) -> None:
        """One cycle of what the motors do, after a reading.

        Args:
            wanted: (7,) where a driven leader shall be; None stays.
            now_s: any monotonic clock.

        Raises:
            ArmError: the port does not take it.
        """
        if self.mode is Drive.DRIVEN:
            self.drive(wanted, now_s)
        elif self.mode is Drive.ASSIST:
            self._write_effort(self.mode)

    def _write_goals(self) -> None:
        if self.goal is None:
            return
        ticks = self.units.ticks(self.goal)
        specs = {motor: spec for motor, spec in self.specs.items() if motor in self.powered and spec.shadow_of is None}
        self.bus.write_all("goal_position", {
            motor: min(max(ticks[spec.joint], spec.min_ticks), spec.max_ticks) for motor, spec in specs.items()
        })  # fmt: skip

    def _write_effort(self, mode: Drive) -> None:
        """The limit of the current of a driven arm; the current itself of one whose weight is carried."""
        if mode is Drive.DRIVEN:
            with_current = [motor for motor in self.powered if self.bus.models[motor].max_current]
            self.bus.write_all("goal_current", dict.fromkeys(with_current, self._motors.drive_current))
            self._write_goals()
        else:
            self.bus.write_all("goal_current", self._currents())

    def _currents(self) -> dict[int, int]:
        """What carries the arm where it was last read, in counts; the motors of a joint share it."""
        if self.measured is None:
            raise ArmError(f"the {self.name} leader has not been read yet")
        config = self._motors
        torques = config.assist * config.gravity.torques(self.measured[:GRIPPER]) * self.units.signs
        currents: dict[int, int] = {}
        for motor in self.powered:
            spec = self.specs[motor]
            if spec.shadow_of is not None:  # it obeys what its master is told
                continue
            share = 1 + sum(other.shadow_of == spec.name for other in self.specs.values())
            counts = torques[spec.joint] / (share * self.bus.models[motor].torque_nm_per_a * AMPERE_PER_UNIT)
            currents[motor] = round(min(max(counts, -config.assist_current), config.assist_current))
        return currents

    def watch(self) -> str | None:
        """As a follower's, but without its advice: a leader mends itself.

        Raises:
            ArmError: a motor does not answer.
        """
        problem = super().watch()
        return problem and problem.split(";")[0]

    def rearm(self) -> None:
        """After the motors' watchdogs ran out: begins anew what they did.

        Raises:
            ArmError: the motors do not answer.
        """
        self._watch.trips += 1
        self.enter(self.mode)
