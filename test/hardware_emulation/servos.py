"""ALOHA 2's motors on a pseudo-terminal, as the unpatched Dynamixel SDK meets them on the wire.

A `ServoBus` speaks Protocol 2.0: CRC, byte stuffing, status packets, Fast Sync Read, shadow ids, the bus watchdog, and
faults that a test injects. An `Emulator` serves any number of them in one thread, which sleeps while nobody asks.
Run as a program it serves both follower arms until it is killed:

    python test/hardware_emulation/servos.py /tmp/follower_left /tmp/follower_right

Sources: ROBOTIS e-Manual, "DYNAMIXEL Protocol 2.0" and the control tables of the X series.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import pty
import queue
import selectors
import sys
import threading
import time
import tty
from collections.abc import Callable, Sequence
from pathlib import Path

from clamp_ros.arm.aloha2 import FOLLOWER, FOLLOWER_IDS, MotorSpec
from clamp_ros.arm.registers import (
    ALERT,
    MODE_CURRENT,
    MODE_CURRENT_POSITION,
    MODELS,
    TABLE_SIZE,
    WATCHDOG_TRIPPED,
)

BROADCAST = 0xFE
PING, READ, WRITE, REBOOT, SYNC_READ, FAST_SYNC_READ, SYNC_WRITE, STATUS = 1, 2, 3, 8, 0x82, 0x8A, 0x83, 0x55
ERROR_INSTRUCTION, ERROR_RANGE, ERROR_LENGTH, ERROR_LIMIT, ERROR_ACCESS = 2, 4, 5, 6, 7
HEADER = b"\xff\xff\xfd\x00"
REBOOT_S = 0.05


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
        table.append(crc & 0xFFFF)
    return table


_CRC = _crc_table()


def crc16(data: bytes, crc: int = 0) -> int:
    """Protocol 2.0's CRC-16 (polynomial 0x8005, IBM's BUYPASS) of more data."""
    for byte in data:
        crc = (crc << 8) & 0xFFFF ^ _CRC[(crc >> 8) ^ byte]
    return crc


def packet(motor: int, instruction: int, parameters: bytes) -> bytes:
    """A whole packet, with stuffing and CRC."""
    body = (bytes((instruction,)) + parameters).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    data = HEADER + bytes((motor,)) + (len(body) + 2).to_bytes(2, "little") + body
    return data + crc16(data).to_bytes(2, "little")


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


class ServoBus:
    """Motors on one pseudo-terminal.

    Attributes:
        port: path of the device to open.
        servos: whatever is connected; two may share an id.
        drop, corrupt, cut: how many of the next replies are lost, garbled, sent by half.
        delay_s: how late replies are.
        collide: motors that share an id garble each other, instead of answering one after the other.
        instructions: how many valid ones came, by instruction.
    """

    def __init__(self, servos: Sequence[Servo]) -> None:
        self.servos = list(servos)
        self.drop = self.corrupt = self.cut = 0
        self.delay_s = 0.0
        self.collide = False
        self.instructions: dict[int, int] = {}
        self.lock = threading.RLock()
        self.master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.port = os.ttyname(self._slave)
        self.busy_until = 0.0
        self._buffer = b""
        self._heard_at = time.monotonic()

    def __getitem__(self, motor: int) -> Servo:
        return next(servo for servo in self.servos if servo.id == motor)

    def unplug(self) -> None:
        """The cable is pulled: whoever holds the port finds it gone."""
        with self.lock:
            for descriptor in (self.master, self._slave):
                if descriptor >= 0:
                    os.close(descriptor)
            self.master = self._slave = -1

    def replug(self) -> None:
        """The cable is back, as another device; `Emulator.serve` then serves it, and `port` is its new path."""
        with self.lock:
            self.master, self._slave = pty.openpty()
            tty.setraw(self._slave)
            os.set_blocking(self.master, False)
            self.port = os.ttyname(self._slave)
            self._buffer = b""

    def positions(self) -> dict[int, int]:
        """Present positions by id, in ticks."""
        with self.lock:
            self.pass_time(time.monotonic())
            return {servo.id: servo.position() for servo in self.servos}

    def values(self, name: str) -> dict[int, int]:
        """One register of each motor that has it, by id."""
        with self.lock:
            self.pass_time(time.monotonic())
            return {servo.id: servo.value(name) for servo in self.servos if name in servo.model.registers}

    def pass_time(self, now: float) -> None:
        """Moves the joints, and lets watchdogs run out at their time."""
        for servo in self.servos:
            watchdog = servo.value("bus_watchdog")
            if 0 < watchdog < WATCHDOG_TRIPPED and now - self._heard_at > 0.02 * watchdog:
                servo.joint.move(min(now, self._heard_at + 0.02 * watchdog))
                servo.expire()
        for joint in {id(servo.joint): servo.joint for servo in self.servos}.values():
            joint.move(now)

    def hear(self, data: bytes, now: float) -> list[bytes]:
        """Bytes from the host; returns the replies."""
        self._buffer += data
        replies = []
        while (start := self._buffer.find(HEADER[:3])) >= 0:
            self._buffer = self._buffer[start:]
            if len(self._buffer) < 7 or len(self._buffer) < (size := 7 + int.from_bytes(self._buffer[5:7], "little")):
                break
            whole, self._buffer = self._buffer[:size], self._buffer[size:]
            if size >= 10 and crc16(whole[:-2]) == int.from_bytes(whole[-2:], "little"):
                self.pass_time(now)
                self._heard_at = now
                self.instructions[whole[7]] = self.instructions.get(whole[7], 0) + 1
                body = whole[8:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
                replies += self._spoil(self._obey(whole[4], whole[7], body, now))
        return replies

    def _spoil(self, replies: list[bytes]) -> list[bytes]:
        spoilt = []
        for reply in replies:
            if self.drop:
                self.drop -= 1
                continue
            if self.corrupt:
                self.corrupt -= 1
                reply = reply[:9] + bytes((reply[9] ^ 0x5A,)) + reply[10:]
            if self.cut:
                self.cut -= 1
                reply = reply[: len(reply) // 2]
            spoilt.append(reply)
        return spoilt

    def _alive(self, now: float) -> list[Servo]:
        return [servo for servo in self.servos if not servo.silent and now >= servo.awake_at]

    def _obey(self, motor: int, instruction: int, body: bytes, now: float) -> list[bytes]:
        alive = self._alive(now)
        if instruction in (SYNC_READ, FAST_SYNC_READ):
            return self._sync_read(alive, instruction, body)
        if instruction == SYNC_WRITE:
            address, size = int.from_bytes(body[0:2], "little"), int.from_bytes(body[2:4], "little")
            for start in range(4, len(body) - size, 1 + size):
                for servo in alive:
                    if body[start] in (servo.id, servo.table[12]):
                        servo.store(address, body[start + 1 : start + 1 + size])
            return []
        replies = []
        for servo in alive:
            if motor == servo.id or motor == BROADCAST:
                error, parameters = self._single(servo, instruction, body, now)
                level = servo.value("status_return_level")
                wanted = level == 2 or (level == 1 and instruction == READ)
                if instruction == PING or (motor != BROADCAST and wanted):
                    replies.append(packet(servo.id, STATUS, bytes((error | _alert(servo),)) + parameters))
            elif motor == servo.table[12] and instruction in (WRITE, REBOOT):  # a shadow obeys, and is silent
                self._single(servo, instruction, body, now)
        if self.collide and len(replies) > 1 and motor != BROADCAST:
            return [bytes(a & b for a, b in zip(replies[0], replies[1][1:] + b"\xff", strict=True))]
        return replies

    def _single(self, servo: Servo, instruction: int, body: bytes, now: float) -> tuple[int, bytes]:
        if instruction == PING:
            return 0, bytes(servo.table[0:2] + servo.table[6:7])
        if instruction == READ:
            address, size = int.from_bytes(body[0:2], "little"), int.from_bytes(body[2:4], "little")
            servo.measure()
            if address + size > TABLE_SIZE:
                return ERROR_ACCESS, b""
            return 0, bytes(servo.table[address : address + size])
        if instruction == WRITE:
            return servo.store(int.from_bytes(body[0:2], "little"), body[2:]), b""
        if instruction == REBOOT:
            servo.power_up()
            servo.awake_at = now + REBOOT_S
            return 0, b""
        return ERROR_INSTRUCTION, b""

    def _sync_read(self, alive: list[Servo], instruction: int, body: bytes) -> list[bytes]:
        address, size, ids = int.from_bytes(body[0:2], "little"), int.from_bytes(body[2:4], "little"), body[4:]
        # each motor waits for the one before it: behind a silent one nobody speaks
        answering: list[Servo] = []
        for motor in ids:
            servo = next((servo for servo in alive if servo.id == motor), None)
            if servo is None:
                break
            servo.measure()
            answering.append(servo)
        if instruction == SYNC_READ:
            return [
                packet(servo.id, STATUS, bytes((_alert(servo),)) + bytes(servo.table[address : address + size]))
                for servo in answering
            ]
        # one packet, to which each motor adds its part and the CRC of all until there; it is not stuffed
        reply = HEADER + bytes((BROADCAST,)) + (len(ids) * (size + 4) + 1).to_bytes(2, "little") + bytes((STATUS,))
        crc = crc16(reply)
        for servo in answering:
            part = bytes((_alert(servo), servo.id)) + bytes(servo.table[address : address + size])
            crc = crc16(part, crc)
            stamp = crc.to_bytes(2, "little")
            crc = crc16(stamp, crc)
            reply += part + stamp
        return [reply] if answering else []


def _alert(servo: Servo) -> int:
    return ALERT if servo.value("hardware_error_status") else 0


class Emulator:
    """Serves buses in a thread of its own; a context manager."""

    def __init__(self, *buses: ServoBus) -> None:
        self._buses = buses
        self._waiting: list[tuple[float, int, ServoBus, bytes]] = []
        self._count = 0
        self._plugged: queue.SimpleQueue[ServoBus] = queue.SimpleQueue()
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="servos", daemon=True)

    def __enter__(self) -> Emulator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._waker, b".")
        self._thread.join()
        for bus in self._buses:
            bus.unplug()
        os.close(self._wake)
        os.close(self._waker)

    def serve(self, bus: ServoBus) -> None:
        """Serves one of its buses again that was plugged in anew."""
        self._plugged.put(bus)
        os.write(self._waker, b"+")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ, None)
            for bus in self._buses:
                selector.register(bus.master, selectors.EVENT_READ, bus)
            while True:
                wait = None if not self._waiting else max(self._waiting[0][0] - time.monotonic(), 0.0)
                for key, _ in selector.select(wait):
                    if key.data is None:
                        if os.read(self._wake, 1) == b".":
                            return
                        bus = self._plugged.get()
                        if bus.master in selector.get_map():  # the number of a device that is gone
                            selector.unregister(bus.master)
                        selector.register(bus.master, selectors.EVENT_READ, bus)
                    elif not self._serve(key.data):
                        selector.unregister(key.fd)
                self._send(time.monotonic())

    def _serve(self, bus: ServoBus) -> bool:
        with bus.lock:
            if bus.master < 0:
                return False
            try:
                data = os.read(bus.master, 4096)
            except BlockingIOError:
                return True
            except OSError:
                return False
            now = time.monotonic()
            for reply in bus.hear(data, now):
                self._count += 1
                bus.busy_until = max(now + bus.delay_s, bus.busy_until)  # replies keep their order
                heapq.heappush(self._waiting, (bus.busy_until, self._count, bus, reply))
        return True

    def _send(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, _, bus, reply = heapq.heappop(self._waiting)
            with bus.lock:
                if bus.master >= 0:
                    os.write(bus.master, reply)


def follower(shafts: Sequence[float] | None = None, specs: Sequence[MotorSpec] = FOLLOWER) -> ServoBus:
    """A follower arm out of the box: factory settings but for the ids, its shadows mounted the other way round.

    Args:
        shafts: (7,) where the joints stand, ticks from the middle in the joints' direction; by default the sleep pose.
        specs: the motors.
    """
    shafts = (0.0, -1173.0, 1010.0, 0.0, -1023.0, 0.0, 600.0) if shafts is None else shafts
    masters = {spec.joint: spec for spec in specs if spec.shadow_of is None}
    # a motor that needs the drive mode "reverse" is mounted the other way round than its joint turns
    joints = [Joint(shaft) for shaft in shafts]
    assert set(masters) == set(range(len(joints)))
    return ServoBus([
        Servo(motor, spec.model.number, joints[spec.joint], mirrored=bool(spec.drive_mode))
        for motor, spec in zip(FOLLOWER_IDS, specs, strict=True)
    ])


def main() -> None:
    """Serves one arm a path given, which becomes a link to its port."""
    with contextlib.suppress(PermissionError):  # servos do not wait for the computer's other work
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(40))
    paths = [Path(path) for path in sys.argv[1:]]
    buses = [follower() for _ in paths]
    for path, bus in zip(paths, buses, strict=True):
        path.unlink(missing_ok=True)
        path.symlink_to(bus.port)
        print(f"{path} -> {bus.port}", flush=True)
    with Emulator(*buses):
        threading.Event().wait()


if __name__ == "__main__":
    main()
