"""One follower arm: its motors set up, read, driven and watched. Driven by one thread; time enters as an argument.

`arm.leader` makes a leader arm of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.aloha2 import FOLLOWER, FOLLOWER_IDS, JOINTS, VELOCITY_LIMIT, MotorSpec, eeprom_settings
from clamp_ros.arm.bus import Bus
from clamp_ros.arm.registers import WATCHDOG_TRIPPED, WATCHDOG_UNIT_S, Model, hardware_errors
from clamp_ros.arm.units import AMPERE_PER_UNIT, GRIPPER, VOLT_PER_UNIT, ArmUnits, gripper_map, rad_from_ticks
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ArmError, ConfigError
from clamp_ros.contract.robot import JOINTS_PER_ARM, LOWER_LIMITS, UPPER_LIMITS, VELOCITY_LIMITS

_LOWER, _UPPER = LOWER_LIMITS[:JOINTS_PER_ARM], UPPER_LIMITS[:JOINTS_PER_ARM]
_VELOCITY = VELOCITY_LIMITS[:JOINTS_PER_ARM]
_MAX_ELAPSED_S = 0.04
"""A cycle that comes late may move further, but no further than in this time."""
_SHADOW_TICKS = 8
_MAX_HOMING_TICKS = 1024
_REBOOT_S = 3.0
_UNSEEN = 3
"""Turns in which a motor was asked in vain, after which that is a fault."""
_MONITORED = (
    "torque_enable", "hardware_error_status", "bus_watchdog", "present_input_voltage", "present_temperature",
)  # fmt: skip


class Side(Protocol):
    """What an arm has to know about itself."""

    @property
    def port(self) -> str:
        """Path of its bus."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """Of its motors, in the order of its specs."""
        ...

    def units(self) -> ArmUnits:
        """Its conversions."""
        ...


@dataclass(frozen=True)
class SideConfig:
    """Parameters of one arm."""

    port: str = param("/dev/ttyDXL_follower_left", "serial port of the arm's bus")
    ids: tuple[int, ...] = param(
        FOLLOWER_IDS, f"motor ids in the order {', '.join(spec.name for spec in FOLLOWER)}", minimum=0, maximum=252
    )
    joint_signs: tuple[int, ...] = param(
        (1,) * 6, "direction of each arm joint over its motor's; 1 with ALOHA 2's drive modes", choices=(-1, 1)
    )
    joint_offsets_rad: tuple[float, ...] = param(
        (0.0,) * 6, "angle of each arm joint at its motor's centre", unit="rad", minimum=-0.5, maximum=0.5
    )
    gripper_touch_rad: float = param(
        0.0, "angle of the gripper's motor where the empty pads touch; calibrate it", unit="rad",
        minimum=-3.15, maximum=3.15,
    )  # fmt: skip
    gripper_open_rad: float = param(
        0.0, "angle of the gripper's motor where it is wide open; calibrate it", unit="rad", minimum=-3.15, maximum=3.15
    )

    def __post_init__(self) -> None:
        check(self)
        if len(self.ids) != len(FOLLOWER) or len(set(self.ids)) != len(self.ids):
            raise ConfigError(f"ids is {self.ids}, expected {len(FOLLOWER)} different ones")

    def units(self) -> ArmUnits:
        """The arm's conversions.

        Raises:
            ClampError: the gripper is not calibrated, or a list has the wrong length.
        """
        return ArmUnits(
            self.joint_signs, self.joint_offsets_rad, gripper_map(self.gripper_touch_rad, self.gripper_open_rad)
        )


@dataclass(frozen=True)
class MotorConfig:
    """Parameters of the motors, of both arms alike."""

    reply_s: float = param(
        0.006, "how long a motor may take to answer, USB included", unit="s", minimum=0.001, maximum=0.1
    )
    retry_s: float = param(
        0.02, "an instruction is repeated for this long before it counts as failed", unit="s", minimum=0.0, maximum=0.5
    )
    watchdog_s: float = param(
        0.1, "the motors stop by themselves after hearing nothing for this long", unit="s", minimum=0.02, maximum=2.5
    )
    gripper_current: int = param(250, "limit of the gripper's current", unit="2.69 mA", minimum=20, maximum=500)
    position_p: tuple[int, ...] = param((800,) * 7, f"P gain of {', '.join(JOINTS)}", minimum=0, maximum=16383)
    position_i: tuple[int, ...] = param((0,) * 7, "I gain, likewise", minimum=0, maximum=16383)
    position_d: tuple[int, ...] = param((0,) * 7, "D gain, likewise", minimum=0, maximum=16383)
    torque_off_to_configure: bool = param(
        False, "let go of the arms at start where a setting differs that can only be written without torque"
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("position_p", "position_i", "position_d"):
            if len(getattr(self, name)) != JOINTS_PER_ARM:
                raise ConfigError(f"{name} has {len(getattr(self, name))} values, expected {JOINTS_PER_ARM}")


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

    SPECS: ClassVar[tuple[MotorSpec, ...]] = FOLLOWER
    ALSO: ClassVar[tuple[Model, ...]] = ()
    """Models that a motor may be of instead of its spec's."""

    def __init__(self, name: str, side: Side, config: MotorConfig) -> None:
        self.name = name
        self.units = side.units()
        self.config = config
        self.specs: dict[int, MotorSpec] = dict(zip(side.ids, self.SPECS, strict=True))
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

    def _master_id(self, spec: MotorSpec) -> int | None:
        return None if spec.shadow_of is None else self._ids[spec.shadow_of]

    # Setting up.

    def start(self) -> None:
        """Opens the bus, checks every motor, sets it up and reads it. Torque stays as it is.

        Raises:
            ArmError: a motor is missing, wrong, or cannot be set up.
        """
        with self.bus.patient():
            self.bus.open()
            self.bus.identify(self.ALSO)
            self._configure()
            self.read()
            self.hold_here()

    def _configure(self) -> None:
        """Writes what differs; first the masters, since what is written to them reaches their shadows, too."""
        for motor in self.specs:
            self.bus.write(motor, "bus_watchdog", 0)  # where it had run out, goals are locked
        for _ in range(2):
            if not (wrong := self._wrong_settings()):
                break
            self._write_settings(wrong)
        if wrong := self._wrong_settings():
            motor, name, value, found = wrong[0]
            raise ArmError(f"{self.label(motor)} does not keep {name}: it is {found} after writing {value}")
        if not self._any_torque():
            self._align_shadows()
        for motor in self.specs:
            for name, value in self._ram_settings(motor).items():
                if self.bus.read(motor, name) != value:
                    self.bus.write(motor, name, value)

    def _wrong_settings(self) -> list[tuple[int, str, int, int]]:
        """(motor, register, wanted, found) of the EEPROM."""
        wrong = []
        for motor, spec in self.specs.items():
            wanted = self._eeprom_settings(motor, spec)
            found = self.bus.read_many(motor, list(wanted))
            wrong += [(motor, name, value, found[name]) for name, value in wanted.items() if found[name] != value]
        return wrong

    def _eeprom_settings(self, motor: int, spec: MotorSpec) -> dict[str, int]:
        return eeprom_settings(spec, self._master_id(spec))

    def _write_settings(self, wrong: list[tuple[int, str, int, int]]) -> None:
        if self._any_torque():
            if not self.config.torque_off_to_configure:
                motor, name, value, found = wrong[0]
                raise ArmError(
                    f"{name} of {self.label(motor)} is {found}, not {value} ({len(wrong)} settings differ); they can "
                    "only be written without torque, and torque is on: lay the arms on their cradles and start with "
                    "motors.torque_off_to_configure:=true"
                )
            self.torque_off()
        for motor, name, value, found in wrong:
            self.bus.write(motor, name, value)
            self.notes.append(f"{name} of {self.label(motor)} set from {found} to {value}")

    def _any_torque(self) -> bool:
        return any(self.bus.read(motor, "torque_enable") for motor in self.specs)

    def _align_shadows(self) -> None:
        """Two motors on one joint whose zeros differ would pull against each other: moves the shadow's zero."""
        for motor, spec in self.specs.items():
            if (master := self._master_id(spec)) is None:
                continue
            apart = self.bus.read(master, "present_position") - self.bus.read(motor, "present_position")
            if abs(apart) <= _SHADOW_TICKS:
                continue
            offset = self.bus.read(motor, "homing_offset") + apart
            if abs(offset) > _MAX_HOMING_TICKS:
                raise ArmError(
                    f"{self.label(motor)} stands {apart} ticks from {self.label(master)}, more than its homing offset "
                    f"can mend ({_MAX_HOMING_TICKS}); mount its horn anew"
                )
            self.bus.write(motor, "homing_offset", offset)
            self.notes.append(f"homing_offset of {self.label(motor)} set to {offset}")

    def _ram_settings(self, motor: int) -> dict[str, int]:
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
