"""One emulated Dynamixel motor, its control table and what it refuses, and the joint that it turns.

Source: the control tables of the X series in the ROBOTIS e-Manual.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from clamp_ros.arm.registers import MODE_CURRENT, MODE_CURRENT_POSITION, MODELS, TABLE_SIZE, WATCHDOG_TRIPPED

ERROR_RANGE, ERROR_LENGTH, ERROR_LIMIT, ERROR_ACCESS = 4, 5, 6, 7
"""What a status packet says of a write that was refused."""


class Joint:
    """What one or two motors turn: a first-order lag towards their goals, no faster than their profiles allow.

    Attributes:
        shaft: angle in ticks, 0 at the middle of the turn.
        stops: where something blocks it.
        sag_ticks_s: how fast it falls, towards `stops[0]`, while no motor holds it.
        hand: somebody's, which moves it while no motor holds it: from the time, the shaft, and whether one does, to
            the shaft.
    """

    LAG_S = 0.03

    def __init__(self, shaft: float = 0.0) -> None:
        self.shaft = shaft
        self.speed = 0.0
        self.stops = (-1e9, 1e9)
        self.sag_ticks_s = 0.0
        self.hand: Callable[[float, float, bool], float] | None = None
        self.servos: list[Servo] = []
        self._then = time.monotonic()

    def move(self, now: float) -> None:
        """Brings the joint up to date: exactly, however long ago the last time was."""
        elapsed, self._then = now - self._then, now
        if elapsed <= 0.0:
            return
        start, left = self.shaft, elapsed
        pulling = [servo for servo in self.servos if servo.holds()]
        moved = self.shaft if self.hand is None else self.hand(now, self.shaft, bool(pulling))
        if pulling:
            goal = sum(servo.goal_shaft() for servo in pulling) / len(pulling)
            error, limit = goal - self.shaft, min(servo.max_speed() for servo in pulling)
            slow = limit * self.LAG_S  # nearer than this, the lag is slower than the limit
            if abs(error) > slow:
                ramp = min(left, (abs(error) - slow) / limit)
                self.shaft += math.copysign(ramp * limit, error)
                left -= ramp
            self.shaft = goal - (goal - self.shaft) * math.exp(-left / self.LAG_S)
        elif self.hand is not None:
            self.shaft = moved
        else:
            self.shaft -= self.sag_ticks_s * elapsed
        self.shaft = min(max(self.shaft, self.stops[0]), self.stops[1])
        self.speed = (self.shaft - start) / elapsed


class Servo:
    """One motor: its control table, and the joint it turns.

    Attributes:
        silent: it takes no instructions and answers none, as with its cable pulled; it stands still.
        horn: ticks by which its horn is off.
    """

    MODES = (1, 3, 4, 16)
    """Of a motor that does not measure current: velocity, position, extended position, PWM."""
    CURRENT_MODES = (0, 1, 3, 4, 5, 16)

    def __init__(self, motor: int, number: int, joint: Joint, *, mirrored: bool = False, horn: int = 0) -> None:
        self.model = MODELS[number]
        self.table = bytearray(TABLE_SIZE)
        self.joint = joint
        self.direction = -1 if mirrored else 1
        self.horn = horn
        self.silent = False
        self.awake_at = 0.0
        joint.servos.append(self)
        effort_limit = {"current_limit": self.model.max_current} if self.model.max_current else {}
        self._set(
            model_number=number, firmware_version=46, id=motor, baud_rate=1, return_delay_time=250, operating_mode=3,
            secondary_id=255, protocol_type=2, moving_threshold=10, temperature_limit=80, max_voltage_limit=160,
            min_voltage_limit=95, pwm_limit=885, velocity_limit=200, max_position_limit=4095, shutdown=0x34,
            **effort_limit,
        )  # fmt: skip
        self.power_up()

    def power_up(self) -> None:
        """The RAM's initial values."""
        self.table[64:] = bytes(TABLE_SIZE - 64)
        self._set(
            status_return_level=2, velocity_i_gain=1920, velocity_p_gain=100, position_p_gain=800, goal_pwm=885,
            present_input_voltage=120, present_temperature=32,
        )  # fmt: skip
        if self.model.max_current:
            self._set(goal_current=self.model.max_current)
        self._set(goal_position=self.position())

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            register = self.model.registers[name]
            self.table[register.address : register.address + register.size] = register.encode(value)

    def value(self, name: str) -> int:
        """A register's value."""
        register = self.model.registers[name]
        return register.decode(bytes(self.table[register.address : register.address + register.size]))

    def put(self, **values: int) -> None:
        """Sets registers from outside, whatever the motor would say to it."""
        self._set(**values)

    @property
    def id(self) -> int:
        """Its id."""
        return self.table[7]

    def _sign(self) -> int:
        return self.direction * (-1 if self.table[10] & 1 else 1)

    def position(self) -> int:
        """Present position, in ticks."""
        sign = -1 if self.table[10] & 1 else 1
        return round(2048 + self._sign() * self.joint.shaft + sign * self.horn + self.value("homing_offset"))

    def goal_shaft(self) -> float:
        """Where it wants its joint to be."""
        sign = -1 if self.table[10] & 1 else 1
        return (self.value("goal_position") - 2048 - self.value("homing_offset") - sign * self.horn) * self._sign()

    def holds(self) -> bool:
        """Whether it pulls its joint towards its goal; in current mode it has no goal to pull to."""
        return bool(self.value("torque_enable")) and self.value("operating_mode") != MODE_CURRENT

    def max_speed(self) -> float:
        """Ticks a second."""
        return (self.value("profile_velocity") or 400) * 0.229 / 60.0 * 4096

    def fail(self, bits: int) -> None:
        """A hardware error; the motor lets go if its `shutdown` says so."""
        self._set(hardware_error_status=self.value("hardware_error_status") | bits)
        if self.value("shutdown") & bits:
            self._set(torque_enable=0)

    def expire(self) -> None:
        """The bus watchdog has run out: it stops, and stays."""
        self._set(bus_watchdog=WATCHDOG_TRIPPED, profile_velocity=0, profile_acceleration=0)
        self._set(goal_position=self.position())
        if self.value("operating_mode") == MODE_CURRENT:
            self._set(goal_current=0)

    def measure(self) -> None:
        """Writes what it feels into its table."""
        joint, sign = self.joint, self._sign()
        position = self.position()
        self._set(present_position=position, present_velocity=round(sign * joint.speed * 60.0 / 0.229 / 4096))
        if self.model.max_current:
            pull = (self.value("goal_position") - position) * 4 if self.value("torque_enable") else 0
            if self.value("operating_mode") == MODE_CURRENT:
                self._set(present_current=self.value("goal_current") if self.value("torque_enable") else 0)
                return
            limited = self.value("operating_mode") == MODE_CURRENT_POSITION
            limit = self.value("goal_current" if limited else "current_limit")
            self._set(present_current=max(-limit, min(limit, pull)))

    def store(self, address: int, data: bytes) -> int:
        """A write instruction's data; returns the error number, 0 if it is taken."""
        if address + len(data) > TABLE_SIZE:
            return ERROR_ACCESS
        touched = [
            (name, register) for name, register in self.model.registers.items()
            if register.address < address + len(data) and address < register.address + register.size
        ]  # fmt: skip
        for name, register in touched:
            start = register.address - address
            if start < 0 or start + register.size > len(data):
                return ERROR_LENGTH
            if name.startswith("present_") or name in ("model_number", "firmware_version", "hardware_error_status"):
                return ERROR_ACCESS
            if register.eeprom and self.value("torque_enable"):
                return ERROR_ACCESS
            value = register.decode(data[start : start + register.size])
            if name.startswith("goal_") and self.value("bus_watchdog") == WATCHDOG_TRIPPED:
                return ERROR_RANGE
            if name == "bus_watchdog" and value > 127:
                return ERROR_RANGE
            if name == "operating_mode" and value not in (self.CURRENT_MODES if self.model.max_current else self.MODES):
                return ERROR_RANGE
            if name == "torque_enable" and value and self.value("hardware_error_status") & self.value("shutdown"):
                return ERROR_RANGE
            if name == "goal_position" and not (
                self.value("min_position_limit") <= value <= self.value("max_position_limit")
            ):
                return ERROR_LIMIT
            if name == "goal_current" and abs(value) > self.value("current_limit"):
                return ERROR_LIMIT
            if name == "torque_enable" and value and not self.value("torque_enable"):
                self._set(goal_position=self.position())
        self.table[address : address + len(data)] = data
        return 0
