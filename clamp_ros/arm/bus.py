"""One Dynamixel bus, Protocol 2.0, over the vendor's SDK: every call ends by a deadline, and is counted.

A reply does not say which question it answers: after one that was lost, a motor is pinged first, and when it has
answered, whatever came late has come before it and is forgotten.
"""

from __future__ import annotations

import os
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dynamixel_sdk import BROADCAST_ID, COMM_RX_CORRUPT, COMM_RX_TIMEOUT, COMM_SUCCESS
from dynamixel_sdk.protocol2_packet_handler import Protocol2PacketHandler

from clamp_ros.arm.port import Port
from clamp_ros.arm.registers import ALERT, Model
from clamp_ros.contract.errors import ArmError

BAUD = 1_000_000
_PATIENCE_S = 0.2
_LATEST_S = 0.15
"""An answer that is later than this is not one any more."""
_SETTLE_S = 0.6


@dataclass
class Traffic:
    """What went over the bus so far.

    Attributes:
        sent: instructions that ask for a reply.
        lost: no reply in time.
        corrupt: replies that were cut short, garbled, or not to the question.
        lost_by_id: what was lost or corrupt in instructions to one motor alone.
    """

    sent: int = 0
    lost: int = 0
    corrupt: int = 0
    lost_by_id: dict[int, int] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Fraction of replies that did not come, or not as they should."""
        return (self.lost + self.corrupt) / self.sent if self.sent else 0.0


class MotorState(NamedTuple):
    """One motor's registers 126 to 135, in counts; `effort` is current or load, by model."""

    position: int
    velocity: int
    effort: int
    alert: bool


_STATE_ADDRESS, _STATE_SIZE = 126, 10


class Bus:
    """A bus and the motors on it. One thread at a time.

    Attributes:
        device: path of the serial port.
        models: id to model, in the order in which they are read.
        traffic: counters.
        sent_s: when the motors were last spoken to, by `time.monotonic`.
    """

    def __init__(self, device: str, models: Mapping[int, Model], *, reply_s: float, retry_s: float) -> None:
        """Nothing is opened yet.

        Args:
            device: path of the serial port.
            models: id to what the motor has to be.
            reply_s: how long a motor may take to begin its reply.
            retry_s: an instruction is repeated for this long before it counts as failed.
        """
        self.device = device
        self.models = dict(models)
        self.traffic = Traffic()
        self.sent_s = 0.0
        self._port = Port(device, reply_s)
        self._packets = Protocol2PacketHandler()
        self._retry_s = retry_s
        self._fast = False
        self._unsure = False
        self._turn = 0

    def open(self) -> None:
        """Opens the port, again where it was open.

        Raises:
            ArmError: it is missing, forbidden, or in use.
        """
        self.close()
        try:
            self._port.setBaudRate(BAUD)
        except (OSError, termios.error) as error:
            raise ArmError(f"{self.device} cannot be opened: {_why(self.device, error)}") from None

    def close(self) -> None:
        """Closes the port; harmless where it is closed."""
        if self._port.is_open:
            try:
                self._port.closePort()
            except (OSError, termios.error):
                self._port.is_open = False

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within, instructions are repeated for longer: for setting up, while nothing moves."""
        retry_s, self._retry_s = self._retry_s, max(self._retry_s, _PATIENCE_S)
        try:
            yield
        finally:
            self._retry_s = retry_s

    @property
    def is_open(self) -> bool:
        """Whether the port is open; it may be gone all the same."""
        return self._port.is_open

    def identify(self, also: Sequence[Model] = ()) -> None:
        """Checks that every motor is there, alone with its id, and of its model; and how they can be read.

        Args:
            also: models that are as good at any place; `models` then says which were found.

        Raises:
            ArmError: names every motor that is not as expected.
        """
        problems = [problem for motor in list(self.models) if (problem := self.examine(motor, also)) is not None]
        if problems:
            raise ArmError(f"{self.device}: {'; '.join(problems)}. Check power, cables and ids (1 Mbps, Protocol 2.0)")
        self._fast = all(
            self.read(motor, "firmware_version") >= model.fast_sync_firmware for motor, model in self.models.items()
        )

    def examine(self, motor: int, also: Sequence[Model] = ()) -> str | None:
        """Whether a motor is there, alone with its id, and of its model; returns what is wrong, in words.

        Args:
            motor: its id.
            also: models that are as good; `models` then says which was found.

        Raises:
            ArmError: the port is gone.
        """
        model = self.models[motor]
        found, result, twice = self._ask_alone(motor)
        garbled = result == COMM_RX_CORRUPT
        if twice or garbled:  # late answers to earlier questions look the same
            self._settle()
            found, result, twice = self._ask_alone(motor)
        if result != COMM_SUCCESS:
            shared = " in order; do two motors share the id?" if garbled or result == COMM_RX_CORRUPT else ""
            return f"motor {motor} ({model.name}) does not answer{shared}"
        if twice:
            return f"motor {motor} answers twice: two motors share the id; set one to its own"
        for other in also:
            if found == other.number:
                self.models[motor] = model = other
        if found != model.number:
            return f"motor {motor} has model number {found}, expected {model.number} ({model.name})"
        return None

    def _ask_alone(self, motor: int) -> tuple[int, int, bool]:
        """Pings a motor; also tells whether more came than the answer."""
        found, result = self._repeat(lambda: self._ping(motor), motor)
        return found, result, result == COMM_SUCCESS and self._drain() > 0

    def _settle(self) -> None:
        """Throws away what arrives until the line has been silent for longer than an answer can be late."""
        now_s = time.monotonic()
        deadline_s, heard_s = now_s + _SETTLE_S, now_s
        while now_s < min(deadline_s, heard_s + _LATEST_S):
            drained = self._drain()  # waits for a moment, where there is nothing
            now_s = time.monotonic()
            heard_s = now_s if drained else heard_s

    def silent(self) -> list[int]:
        """Ids of the motors that do not answer a ping now."""
        return [
            motor for motor in self.models
            if all(self._attempt(lambda m=motor: self._ping(m), motor)[1] != COMM_SUCCESS for _ in range(2))
        ]  # fmt: skip

    def _ping_next(self) -> int:
        """Pings one motor after another, call by call, since one of them may be dead."""
        self._turn = (self._turn + 1) % len(self.models)
        return self._ping(list(self.models)[self._turn])[1]

    def _ping(self, motor: int) -> tuple[int, int, int]:
        return self._packets.ping(self._port, motor)

    def read(self, motor: int, name: str) -> int:
        """One register of one motor.

        Raises:
            ArmError: no answer within the deadline.
        """
        register = self.models[motor].registers[name]
        return register.decode(self._read(motor, register.address, register.size, name))

    def read_many(self, motor: int, names: Sequence[str]) -> dict[str, int]:
        """Several registers of one motor, in one read of all that lies between them.

        Raises:
            ArmError: no answer within the deadline.
        """
        registers = {name: self.models[motor].registers[name] for name in names}
        start = min(register.address for register in registers.values())
        end = max(register.address + register.size for register in registers.values())
        data = self._read(motor, start, end - start, "its registers")
        return {
            name: register.decode(data[register.address - start : register.address - start + register.size])
            for name, register in registers.items()
        }

    def _read(self, motor: int, address: int, size: int, what: str) -> bytes:
        def attempt() -> tuple[bytes, int, int]:
            data, result, error = self._packets.readTxRx(self._port, motor, address, size)
            if result == COMM_SUCCESS and not error & ~ALERT and len(data) != size:
                result = COMM_RX_CORRUPT
            return bytes(data or ()), result, error

        data, result, error = self._repeat_error(attempt, motor)
        self._check(motor, f"reading {what}", result, error)
        return data

    def write(self, motor: int, name: str, value: int) -> None:
        """Sets one register of one motor, and waits for its word.

        Raises:
            ArmError: no answer within the deadline, or it refuses.
        """
        register = self.models[motor].registers[name]
        data = list(register.encode(value))

        def attempt() -> tuple[None, int, int]:
            result, error = self._packets.writeTxRx(self._port, motor, register.address, register.size, data)
            return None, result, error

        _, result, error = self._repeat_error(attempt, motor)
        self._check(motor, f"writing {value} to {name}", result, error)

    def reboot(self, motor: int) -> None:
        """Restarts a motor: errors are forgotten, torque goes off, and it does not answer for a moment."""
        _, result, error = self._repeat_error(lambda: (None, *self._packets.reboot(self._port, motor)), motor)
        self._check(motor, "rebooting", result, error)

    def _check(self, motor: int, doing: str, result: int, error: int) -> None:
        if result != COMM_SUCCESS:
            why = "garbled answers" if result == COMM_RX_CORRUPT else "no answer"
            raise ArmError(f"{self.device}: {doing} of motor {motor} failed: {why} in {1e3 * self._retry_s:.0f} ms")
        if error & ~ALERT:
            text = self._packets.getRxPacketError(error & ~ALERT).removeprefix("[RxPacketError] ")
            raise ArmError(f"{self.device}: {doing} of motor {motor} was refused: {text}")

    def read_states(self) -> dict[int, MotorState]:
        """Position, velocity and current of every motor, in one exchange.

        Raises:
            ArmError: not all of them answered within the deadline.
        """
        states, result = self._repeat(self._states_fast if self._fast else self._states, None)
        if result != COMM_SUCCESS:
            why = "the answer was garbled" if result == COMM_RX_CORRUPT else "not every motor answered"
            raise ArmError(f"{self.device}: reading the motors failed for {1e3 * self._retry_s:.0f} ms: {why}")
        return states

    def _ask_states(self, fast: bool) -> int:
        ids = list(self.models)
        return self._packets.syncReadTx(self._port, _STATE_ADDRESS, _STATE_SIZE, ids, len(ids), fast)

    def _states_fast(self) -> tuple[dict[int, MotorState], int, int]:
        """The SDK's GroupSyncRead does the same, but throws the error bytes away."""
        result = self._ask_states(True)
        if result != COMM_SUCCESS:
            return {}, result, 0
        slot = _STATE_SIZE + 4  # error, id, data, CRC
        data, result, _ = self._packets.fastSyncReadRx(self._port, BROADCAST_ID, slot * len(self.models))
        if result != COMM_SUCCESS:
            return {}, result, 0
        # the SDK cuts the answer to the asked length, whatever the packet's own was, and lets other packets through
        if len(data) != slot * len(self.models):
            return {}, COMM_RX_CORRUPT, 0
        states = {}
        for start in range(0, len(data), slot):
            error, motor = data[start], data[start + 1]
            states[motor] = _state(bytes(data[start + 2 : start + 2 + _STATE_SIZE]), error)
        return states, COMM_SUCCESS if states.keys() == self.models.keys() else COMM_RX_CORRUPT, 0

    def _states(self) -> tuple[dict[int, MotorState], int, int]:
        """One status packet a motor, for firmware that does not know Fast Sync Read."""
        result = self._ask_states(False)
        states = {}
        for motor in self.models if result == COMM_SUCCESS else ():
            data, result, error = self._packets.readRx(self._port, motor, _STATE_SIZE)
            if result != COMM_SUCCESS:
                return {}, result, 0
            if len(data) != _STATE_SIZE:
                return {}, COMM_RX_CORRUPT, 0
            states[motor] = _state(bytes(data), error)
        return states, result, 0

    def write_all(self, name: str, values: Mapping[int, int]) -> None:
        """Sets one register of many motors in one packet. Nobody answers: what matters has to be read back.

        Raises:
            ArmError: the port does not take it.
        """
        if not values:
            return
        register = self.models[next(iter(values))].registers[name]  # at the same place in every model that has it
        parameters = [byte for motor, value in values.items() for byte in (motor, *register.encode(value))]
        _, result, _ = self._attempt(
            lambda: (None, self._sync_write(register.address, register.size, parameters), 0), None, counts=False
        )
        if result != COMM_SUCCESS:
            raise ArmError(f"{self.device}: writing {name} failed: the port does not take it")

    def _sync_write(self, address: int, size: int, parameters: Sequence[int]) -> int:
        return self._packets.syncWriteTxOnly(self._port, address, size, parameters, len(parameters))

    def _repeat(self, attempt: Callable[[], tuple[Any, int, int]], motor: int | None) -> tuple[Any, int]:
        value, result, _ = self._repeat_error(attempt, motor)
        return value, result

    def _repeat_error(self, attempt: Callable[[], tuple[Any, int, int]], motor: int | None) -> tuple[Any, int, int]:
        """Repeats until there is an answer, at least twice, and no longer than the deadline."""
        deadline, tries = time.monotonic() + self._retry_s, 0
        while True:
            value, result, error = self._attempt(attempt, motor)
            tries += 1
            if result == COMM_SUCCESS or (tries > 1 and time.monotonic() > deadline):
                return value, result, error

    def _attempt(
        self, attempt: Callable[[], tuple[Any, int, int]], motor: int | None, counts: bool = True
    ) -> tuple[Any, int, int]:
        """One exchange; the SDK's result is COMM_SUCCESS, COMM_RX_TIMEOUT, COMM_RX_CORRUPT, or another failure.

        Raises:
            ArmError: the port is gone.
        """
        try:
            self.sent_s = time.monotonic()
            if self._unsure:
                self._unsure = self._ping_next() != COMM_SUCCESS
            value, result, error = (None, COMM_RX_TIMEOUT, 0) if self._unsure else attempt()
        except (IndexError, TypeError):  # the SDK takes a packet's length on trust
            value, result, error = None, COMM_RX_CORRUPT, 0
            self._port.is_using = False
        except (OSError, termios.error) as failure:
            self._port.is_using = False
            raise ArmError(f"{self.device} is gone: {failure}; check the USB cable and the arm's power") from None
        self.traffic.sent += counts
        if result != COMM_SUCCESS:
            self._unsure = True
            self.traffic.lost += result == COMM_RX_TIMEOUT
            self.traffic.corrupt += result == COMM_RX_CORRUPT
            if motor is not None:
                self.traffic.lost_by_id[motor] = self.traffic.lost_by_id.get(motor, 0) + 1
            self._drain()
        return value, result, error

    def _drain(self) -> int:
        try:
            return self._port.drain()
        except OSError as failure:
            raise ArmError(f"{self.device} is gone: {failure}; check the USB cable") from None


def _state(data: bytes, error: int) -> MotorState:
    return MotorState(
        position=int.from_bytes(data[6:10], "little", signed=True),
        velocity=int.from_bytes(data[2:6], "little", signed=True),
        effort=int.from_bytes(data[0:2], "little", signed=True),
        alert=bool(error & ALERT),
    )


def _why(device: str, error: BaseException) -> str:
    path = Path(device)
    if not path.exists():
        return "it does not exist; connect the arm, switch it on, and install config/99-aloha.rules (docs/hardware.md)"
    if not os.access(path, os.R_OK | os.W_OK):
        return "no permission; install config/99-aloha.rules or join the group dialout, then log in again"
    return f"{error}; is another driver using it?"
