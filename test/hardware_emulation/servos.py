"""ALOHA 2's motors on a pseudo-terminal, as the unpatched Dynamixel SDK meets them on the wire.

A `ServoBus` speaks Protocol 2.0: CRC, byte stuffing, status packets, Fast Sync Read, shadow ids, the bus watchdog, and
faults that a test injects. An `Emulator` serves any number of them in one thread, which sleeps while nobody asks.
Run as a program it serves both follower arms until it is killed:

    python test/hardware_emulation/servos.py /tmp/follower_left /tmp/follower_right

Source: ROBOTIS e-Manual, "DYNAMIXEL Protocol 2.0".
"""

from __future__ import annotations

import contextlib
import heapq
import os
import pty
import queue
import selectors
import sys
import threading
import time
import tty
from collections.abc import Sequence
from pathlib import Path

from clamp_ros.arm.aloha2 import FOLLOWER, FOLLOWER_IDS, MotorSpec
from clamp_ros.arm.registers import ALERT, TABLE_SIZE, WATCHDOG_TRIPPED

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hardware_emulation.motor import ERROR_ACCESS, Joint, Servo
from hardware_emulation.protocol import (
    BROADCAST,
    ERROR_INSTRUCTION,
    FAST_SYNC_READ,
    HEADER,
    PING,
    READ,
    REBOOT,
    STATUS,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    crc16,
    packet,
)

REBOOT_S = 0.05


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
    """Serves buses in a thread of its own; a context manager.

    Meanwhile the threads of this process take shorter turns: a motor that has to wait for several of them at each step
    of an answer is late, where drivers and nodes share its process.
    """

    TURN_S = 0.0005

    def __init__(self, *buses: ServoBus) -> None:
        self._buses = buses
        self._waiting: list[tuple[float, int, ServoBus, bytes]] = []
        self._count = 0
        self._plugged: queue.SimpleQueue[ServoBus] = queue.SimpleQueue()
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="servos", daemon=True)
        self._turn_s = sys.getswitchinterval()

    def __enter__(self) -> Emulator:
        sys.setswitchinterval(self.TURN_S)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._turn_s)
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
