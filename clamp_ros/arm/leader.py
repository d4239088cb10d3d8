"""One leader arm: moved by a person, weightless if wanted, or driven to the followers' pose. Driven by one thread.

A leader is limp unless it is told otherwise, and whatever goes wrong it becomes limp: nothing hangs on it, and a hand
is at it. While it is driven, its motors have little current, so that a hand can stop it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.aloha2 import (
    FOLLOWER_IDS,
    LEADER,
    LEADER_MODELS,
    SHUTDOWN,
    VELOCITY_LIMIT,
    Drive,
    MotorSpec,
    eeprom_settings,
)
from clamp_ros.arm.arm import Arm, MotorConfig
from clamp_ros.arm.gravity import GravityModel
from clamp_ros.arm.registers import MODE_CURRENT, MODE_CURRENT_POSITION, MODE_POSITION, Model
from clamp_ros.arm.units import AMPERE_PER_UNIT, GRIPPER, RAD_S_PER_UNIT, ArmUnits
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ArmError, ConfigError
from clamp_ros.contract.robot import GripperMap

_REBOOT_S = 3.0


@dataclass(frozen=True)
class LeaderSide:
    """Parameters of one leader."""

    port: str = param("/dev/ttyDXL_leader_left", "serial port of the arm's bus")
    ids: tuple[int, ...] = param(
        FOLLOWER_IDS, f"motor ids in the order {', '.join(spec.name for spec in LEADER)}", minimum=0, maximum=252
    )
    joint_signs: tuple[int, ...] = param(
        (1,) * 6, "direction of each arm joint over its motor's; 1 with ALOHA 2's drive modes", choices=(-1, 1)
    )
    joint_offsets_rad: tuple[float, ...] = param(
        (0.0,) * 6, "angle of each arm joint at its motor's centre", unit="rad", minimum=-0.5, maximum=0.5
    )
    handle_closed_rad: float = param(
        0.0, "angle of the handle's motor where it is squeezed as far as it goes: the follower grips with its full "
        "force; calibrate it", unit="rad", minimum=-3.15, maximum=3.15,
    )  # fmt: skip
    handle_open_rad: float = param(
        0.0, "angle of the handle's motor where it is wide open; calibrate it", unit="rad", minimum=-3.15, maximum=3.15
    )

    def __post_init__(self) -> None:
        check(self)
        if len(self.ids) != len(LEADER) or len(set(self.ids)) != len(self.ids):
            raise ConfigError(f"ids is {self.ids}, expected {len(LEADER)} different ones")

    def units(self) -> ArmUnits:
        """The leader's conversions, into the followers' units; the handle's is the affine map to the gripper.

        Raises:
            ClampError: the handle is not calibrated, or a list has the wrong length.
        """
        if self.handle_closed_rad == self.handle_open_rad:
            raise ConfigError(
                f"handle_closed_rad and handle_open_rad are both {self.handle_open_rad}: measure them on your leader "
                "(docs/hardware.md, Teleoperation)"
            )
        handle = GripperMap(self.handle_closed_rad, self.handle_open_rad)
        return ArmUnits(self.joint_signs, self.joint_offsets_rad, handle)


@dataclass(frozen=True)
class LeaderMotors:
    """Parameters of the leaders' motors, of both arms alike."""

    reply_s: float = param(
        0.006, "how long a motor may take to answer, USB included", unit="s", minimum=0.001, maximum=0.1
    )
    retry_s: float = param(
        0.02, "an instruction is repeated for this long before it counts as failed", unit="s", minimum=0.0, maximum=0.5
    )
    watchdog_s: float = param(
        0.1, "motors that have torque stop by themselves after hearing nothing for this long", unit="s",
        minimum=0.02, maximum=2.5,
    )  # fmt: skip
    fresh_s: float = param(
        0.1, "a reading counts for this long; the followers hold while there is none", unit="s",
        minimum=0.02, maximum=2.0,
    )  # fmt: skip
    silent_s: float = param(
        0.5, "a leader that has not answered for this long is set up anew", unit="s", minimum=0.1, maximum=30.0
    )
    drive_current: int = param(
        400, "limit of the current while a leader is driven; enough to lift it, and no more", unit="2.69 mA",
        minimum=20, maximum=1193,
    )  # fmt: skip
    drive_rad_s: float = param(0.6, "top speed while a leader is driven", unit="rad/s", minimum=0.05, maximum=2.0)
    assist: float = param(
        0.0, "part of a leader's weight that its motors carry while a person moves it; 0: no torque",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    assist_current: int = param(300, "limit of the current that carries it", unit="2.69 mA", minimum=0, maximum=1193)
    gravity: GravityModel = field(default_factory=GravityModel)

    def __post_init__(self) -> None:
        check(self)

    @property
    def rest(self) -> Drive:
        """What the motors do while a person moves the leader."""
        return Drive.ASSIST if self.assist > 0.0 else Drive.FREE


class Leader(Arm):
    """One leader.

    Attributes:
        mode: what its motors do.
    """

    SPECS: ClassVar[tuple[MotorSpec, ...]] = LEADER
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
            self._configure()
            self.read()
            self.hold_here()

    def _eeprom_settings(self, motor: int, spec: MotorSpec) -> dict[str, int]:
        """The operating mode is not among them: it changes with what the motors do."""
        settings = eeprom_settings(spec, self._master_id(spec)) | {"shutdown": SHUTDOWN}
        del settings["operating_mode"], settings["current_limit"]
        limit = self.bus.models[motor].max_current
        return settings | ({"current_limit": limit} if limit else {})

    def _ram_settings(self, motor: int) -> dict[str, int]:
        settings = super()._ram_settings(motor) | {
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
            settings = {motor: self._ram_settings(motor) for motor in modes}
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
