"""One follower arm: its motors set up, read, driven and watched. Driven by one thread; time enters as an argument.

`arm.leader` makes a leader arm of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm import setup
from clamp_ros.arm.aloha2 import JOINTS, VELOCITY_LIMIT, MotorSpec, eeprom_settings
from clamp_ros.arm.bus import Bus
from clamp_ros.arm.registers import WATCHDOG_TRIPPED, WATCHDOG_UNIT_S, Model, hardware_errors
from clamp_ros.arm.settings import MotorConfig, Side
from clamp_ros.arm.units import AMPERE_PER_UNIT, GRIPPER, VOLT_PER_UNIT, rad_from_ticks
from clamp_ros.contract.errors import ArmError
from clamp_ros.contract.robot import JOINTS_PER_ARM, LOWER_LIMITS, UPPER_LIMITS, VELOCITY_LIMITS

_LOWER, _UPPER = LOWER_LIMITS[:JOINTS_PER_ARM], UPPER_LIMITS[:JOINTS_PER_ARM]
_VELOCITY = VELOCITY_LIMITS[:JOINTS_PER_ARM]
_MAX_ELAPSED_S = 0.04
"""A cycle that comes late may move further, but no further than in this time."""
_REBOOT_S = 3.0
_UNSEEN = 3
"""Turns in which a motor was asked in vain, after which that is a fault."""
_MONITORED = (
    "torque_enable", "hardware_error_status", "bus_watchdog", "present_input_voltage", "present_temperature",
)  # fmt: skip


class ArmSample(NamedTuple):
    """One reading: (7,) radians and metres, per second, and N m and N; the arm's joints then its gripper."""

    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    efforts: NDArray[np.float64]


@dataclass(frozen=True)
class MotorHealth:
    """What a motor last said about itself."""

    torque: bool
    error: str
    voltage: float
    temperature: int


@dataclass
class _Watch:
    """What is watched from cycle to cycle."""

    turn: int = 0
    urgent: list[int] = field(default_factory=list)
    trips: int = 0
    unseen: dict[int, int] = field(default_factory=dict)


class Arm:
    """One arm.

    Attributes:
        name: left or right.
        bus: its bus.
        goal: (7,) where the motors are told to be, in the contract's units; None before the first reading.
        measured: (7,) where they last were; None before the first reading.
        gripper_rad: the angle of the gripper's motor, before its map.
        torque: whether they are to hold.
        powered: the motors that hold then.
        health: motor id to what it last said.
        notes: what was changed in the motors' memory since the start, in words.
    """

    ALSO: ClassVar[tuple[Model, ...]] = ()
    """Models that a motor may be of instead of its spec's."""

    def __init__(self, name: str, side: Side, config: MotorConfig) -> None:
        self.name = name
        self.units = side.units()
        self.config = config
        self.specs: dict[int, MotorSpec] = dict(zip(side.ids, side.SPECS, strict=True))
        self.bus = Bus(
            side.port, {motor: spec.model for motor, spec in self.specs.items()},
            reply_s=config.reply_s, retry_s=config.retry_s,
        )  # fmt: skip
        self._ids = {spec.name: motor for motor, spec in self.specs.items()}
        self._masters = [self._ids[joint] for joint in JOINTS]
        self.goal: NDArray[np.float64] | None = None
        self.gripper_rad = 0.0
        self.measured: NDArray[np.float64] | None = None
        self.torque = False
        self.powered = list(self.specs)
        self.health: dict[int, MotorHealth] = {}
        self.notes: list[str] = []
        self._watch = _Watch()
        self._watchdogs: dict[int, int] = {}
        self._driven_s = 0.0

    @property
    def watchdog_trips(self) -> int:
        """How often the motors stopped because they heard nothing."""
        return self._watch.trips

    def label(self, motor: int) -> str:
        """A motor in words."""
        return f"{self.name} {self.specs[motor].name} (motor {motor})"

    def master(self, motor: int) -> int | None:
        """The motor whose commands a shadow follows; None for one that is no shadow."""
        master = self.specs[motor].shadow_of
        return None if master is None else self._ids[master]

    # Setting up.

    def start(self) -> None:
        """Opens the bus, checks every motor, sets it up and reads it. Torque stays as it is.

        Raises:
            ArmError: a motor is missing, wrong, or cannot be set up.
        """
        with self.bus.patient():
            self.bus.open()
            self.bus.identify(self.ALSO)
            setup.configure(self)
            self.read()
            self.hold_here()

    def eeprom_settings(self, motor: int) -> dict[str, int]:
        """What has to stand in a motor's memory, by register."""
        return eeprom_settings(self.specs[motor], self.master(motor))

    def ram_settings(self, motor: int) -> dict[str, int]:
        """What a motor has to be told after every start, by register."""
        spec, config = self.specs[motor], self.config
        settings = {
            "position_p_gain": config.position_p[spec.joint],
            "position_i_gain": config.position_i[spec.joint],
            "position_d_gain": config.position_d[spec.joint],
            "profile_acceleration": 0,
            "profile_velocity": VELOCITY_LIMIT,
        }
        return settings | ({"goal_current": config.gripper_current} if spec.joint == GRIPPER else {})

    # Torque.

    def torque_on(self) -> None:
        """Holds the arm where it stands.

        Raises:
            ArmError: a motor does not answer, or reports a hardware error.
        """
        with self.bus.patient():
            self._torque_on()

    def _torque_on(self) -> None:
        for motor in self.specs:
            self._look_at(motor)
        broken = [f"{self.label(motor)}: {health.error}" for motor, health in self.health.items() if health.error]
        if broken:
            raise ArmError(f"hardware error of {'; '.join(broken)}; let it cool, free the arm, then call /arms/reboot")
        self.read()
        self._hold_with_grip()
        self._write_goals()
        for motor in self.specs:
            if not self.health[motor].torque:
                self.bus.write(motor, "torque_enable", 1)
        self._watchdogs = self._watchdog_settings()
        for motor, ticks in self._watchdogs.items():
            self.bus.write(motor, "bus_watchdog", ticks)
        self.torque = True

    def _hold_with_grip(self) -> None:
        """Makes the measured pose the goal; a gripper that is under torque goes on squeezing as it does."""
        self.hold_here()
        gripper = self._ids["gripper"]
        if self.goal is not None and self.health[gripper].torque:
            self.goal[GRIPPER] = self.units.gripper.to_metres(rad_from_ticks(self.bus.read(gripper, "goal_position")))

    def _watchdog_settings(self) -> dict[int, int]:
        """Each motor's `bus_watchdog`; 0 for one with a homing offset, which stays at its last goal without.

        Firmware is known that runs away when the watchdog of such a motor runs out (ROBOTIS-GIT/DynamixelSDK#584).
        """
        ticks = max(round(self.config.watchdog_s / WATCHDOG_UNIT_S), 1)
        return {motor: 0 if self.bus.read(motor, "homing_offset") else ticks for motor in self.powered}

    def torque_off(self) -> None:
        """Lets go: the arm falls. Every motor is told, whatever the others answer.

        Raises:
            ArmError: a motor does not answer.
        """
        self.torque = False
        errors = []
        with self.bus.patient():
            for name in ("torque_enable", "bus_watchdog"):
                for motor in self.specs:
                    try:
                        self.bus.write(motor, name, 0)
                    except ArmError as error:
                        errors.append(error)
        if errors:
            raise errors[0]

    def recover(self) -> None:
        """Opens the bus anew, checks and sets up the motors, and holds the arm where it stands.

        Raises:
            ArmError: what is wrong is still wrong.
        """
        self.start()
        self.torque_on()

    def reboot(self) -> list[str]:
        """Restarts the motors that report a hardware error, then holds; meanwhile their joints are limp.

        Returns:
            Which motors these were.

        Raises:
            ArmError: one does not come back, or its error stays.
        """
        with self.bus.patient():
            if not self.bus.is_open:
                self.bus.open()
            broken = [motor for motor in self.specs if self.bus.read(motor, "hardware_error_status")]
            for motor in broken:
                self.bus.reboot(motor)
        deadline = time.monotonic() + _REBOOT_S
        while self.bus.silent() and time.monotonic() < deadline:
            pass
        self.recover()
        return [self.label(motor) for motor in broken]

    # From cycle to cycle.

    def read(self) -> ArmSample:
        """Where the joints are. The effort of a joint with two motors is the sum of theirs.

        Raises:
            ArmError: not every motor answered within the deadline.
        """
        states = self.bus.read_states()
        masters = [states[motor] for motor in self._masters]
        torques = np.zeros(JOINTS_PER_ARM)
        for motor, state in states.items():
            torques[self.specs[motor].joint] += state.effort * AMPERE_PER_UNIT * self.bus.models[motor].torque_nm_per_a
        self._watch.urgent += [m for m, state in states.items() if state.alert and m not in self._watch.urgent]
        self.gripper_rad = rad_from_ticks(masters[GRIPPER].position)
        self.measured = self.units.positions([state.position for state in masters])
        return ArmSample(
            self.measured, self.units.velocities([state.velocity for state in masters]), self.units.efforts(torques)
        )

    def hold_here(self, keep_grip: bool = False) -> None:
        """Makes the measured pose the goal; `keep_grip` leaves the gripper's as it is, so that nothing is dropped."""
        if self.measured is None:
            raise ArmError(f"the {self.name} arm has not been read yet")
        goal = np.clip(self.measured, _LOWER, _UPPER)
        if keep_grip and self.goal is not None:
            goal[GRIPPER] = self.goal[GRIPPER]
        self.goal = goal

    def drive(self, wanted: NDArray[np.float64] | None, now_s: float) -> None:
        """Moves the goal towards what is wanted, no faster than the joints may, and tells the motors.

        It tells them every time, since nobody acknowledges it: what was lost is made good by the next.

        Args:
            wanted: (7,) within the limits; None stays.
            now_s: any monotonic clock.

        Raises:
            ArmError: the port does not take it.
        """
        elapsed_s = min(max(now_s - self._driven_s, 0.0), _MAX_ELAPSED_S)
        self._driven_s = now_s
        if self.goal is None or not self.torque:
            return
        if wanted is not None:
            step = _VELOCITY * elapsed_s
            self.goal = np.clip(np.clip(wanted, self.goal - step, self.goal + step), _LOWER, _UPPER)
        self._write_goals()

    def _write_goals(self) -> None:
        if self.goal is None:
            return
        goals = zip(self._masters, self.units.ticks(self.goal), strict=True)  # shadows follow by their secondary id
        self.bus.write_all("goal_position", {
            motor: min(max(ticks, self.specs[motor].min_ticks), self.specs[motor].max_ticks) for motor, ticks in goals
        })  # fmt: skip

    def watch(self) -> str | None:
        """Looks at one motor, the next in turn or one that raised its hand; returns what is wrong, in words.

        A motor that answers in sync reads, but not when it alone is asked, is wrong after `_UNSEEN` turns: another
        may have its id.

        Raises:
            ArmError: it does not answer; this once.
        """
        watch = self._watch
        motors = list(self.specs)
        if watch.urgent:
            motor = watch.urgent.pop(0)
        else:
            motor = motors[watch.turn % len(motors)]
            watch.turn += 1
        try:
            found = self._look_at(motor)
        except ArmError as error:
            watch.unseen[motor] = watch.unseen.get(motor, 0) + 1
            if watch.unseen[motor] < _UNSEEN:
                raise
            return f"{self.label(motor)} does not answer for itself: {error}. Do two motors share its id?"
        watch.unseen.pop(motor, None)
        health = self.health[motor]
        if health.error:
            return f"hardware error of {self.label(motor)}: {health.error}; free the arm, then call /arms/reboot"
        if not self.torque or motor not in self.powered:
            return None
        if not health.torque:
            return f"{self.label(motor)} has lost its torque; did its power fail? Call /arms/torque to go on"
        if found["bus_watchdog"] == WATCHDOG_TRIPPED:
            self.rearm()
        elif found["bus_watchdog"] == 0 and self._watchdogs.get(motor):
            return f"{self.label(motor)} has forgotten its bus watchdog; did it restart? Call /arms/torque to go on"
        return None

    def _look_at(self, motor: int) -> dict[str, int]:
        found = self.bus.read_many(motor, _MONITORED)
        self.health[motor] = MotorHealth(
            bool(found["torque_enable"]), hardware_errors(found["hardware_error_status"]),
            found["present_input_voltage"] * VOLT_PER_UNIT, found["present_temperature"],
        )  # fmt: skip
        return found

    def stalled(self) -> bool:
        """Whether the motors have heard nothing for so long that their watchdogs have run out, or soon will."""
        return self.torque and time.monotonic() - self.bus.sent_s > 0.8 * self.config.watchdog_s

    def rearm(self) -> None:
        """Winds the watchdogs up again after they ran out, and holds the arm where it came to stand.

        Raises:
            ArmError: the motors do not answer.
        """
        self.read()
        self._watch.trips += 1
        self.hold_here(keep_grip=True)
        everybody = list(self.specs)
        self.bus.write_all("bus_watchdog", dict.fromkeys(everybody, 0))
        self.bus.write_all("profile_velocity", dict.fromkeys(everybody, VELOCITY_LIMIT))
        self._write_goals()
        self.bus.write_all("bus_watchdog", self._watchdogs)


def gauges(arm: Arm) -> dict[str, float | str]:
    """What /diagnostics shows of an arm: its bus's losses; each motor's temperature, voltage, error and losses."""
    traffic, name = arm.bus.traffic, arm.name
    shown: dict[str, float | str] = {
        f"{name}.sent": traffic.sent, f"{name}.lost": traffic.lost, f"{name}.corrupt": traffic.corrupt,
        f"{name}.loss": traffic.loss, f"{name}.watchdog_trips": arm.watchdog_trips,
        f"{name}.gripper.angle_rad": arm.gripper_rad,
    }  # fmt: skip
    for motor, health in list(arm.health.items()):
        prefix = f"{name}.{arm.specs[motor].name}"
        shown[f"{prefix}.temperature_c"] = health.temperature
        shown[f"{prefix}.voltage"] = health.voltage
        shown[f"{prefix}.error"] = health.error or "none"
        shown[f"{prefix}.lost"] = traffic.lost_by_id.get(motor, 0)
    return shown
