"""The serial port that the vendor's SDK is given: it sleeps until bytes come, and no call outlasts its deadline.

The SDK's own waits for a reply in a busy loop, for at least 34 ms; this, for as long as the bytes need plus `reply_s`.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

import serial
from dynamixel_sdk import PortHandler

_WRITE_S = 0.05
_LATE_READS = 8
_QUIET_S = 0.002
_DRAIN_S = 0.010


class Port(PortHandler):
    """The SDK's port, except that waiting sleeps, ends in time, and nobody else may open the device."""

    def __init__(self, device: str, reply_s: float) -> None:
        super().__init__(device)
        self._reply_ms = 1e3 * reply_s
        self._late_reads = 0

    def setupPort(self, cflag_baud: int) -> bool:  # noqa: N802, the SDK's name
        """Opens the device."""
        if self.is_open:
            self.closePort()
        self.ser = serial.Serial(self.port_name, cflag_baud, timeout=0, exclusive=True)
        self.is_open = True
        self.tx_time_per_byte = 1e4 / cflag_baud
        return True

    def clearPort(self) -> None:  # noqa: N802
        """Forgets what has come and was not read."""
        self._descriptor()
        super().clearPort()

    def getCurrentTime(self) -> float:  # noqa: N802
        """Milliseconds of a clock that nobody sets."""
        return 1e3 * time.monotonic()

    def setPacketTimeout(self, packet_length: int) -> None:  # noqa: N802
        """Begins waiting for so many bytes."""
        self._late_reads = 0
        self.setPacketTimeoutMillis(self.tx_time_per_byte * packet_length + self._reply_ms)

    def writePort(self, packet: Sequence[int]) -> int:  # noqa: N802
        """Writes a packet; returns how much of it the device took in time."""
        data, written, deadline = bytes(packet), 0, time.monotonic() + _WRITE_S
        while written < len(data):
            try:
                written += os.write(self._descriptor(), data[written:])
            except BlockingIOError:
                left_s = deadline - time.monotonic()
                if left_s <= 0.0 or not select.select([], [self._descriptor()], [], left_s)[1]:
                    break
        return written

    def readPort(self, length: int) -> bytes:  # noqa: N802
        """Up to `length` bytes, as soon as there are any; once the packet's time is over, only what is there already.

        This thread may have been kept from running while the reply came.
        """
        left_ms = self.packet_timeout - self.getTimeSinceStart()
        if left_ms <= 0.0:
            self._late_reads += 1
        if length <= 0 or self._late_reads > _LATE_READS:
            return b""
        return self._read(length, max(left_ms, 0.0) / 1e3)

    def drain(self) -> int:
        """Reads until the line has been quiet for a moment; returns how many bytes there were."""
        deadline, drained = time.monotonic() + _DRAIN_S, 0
        while time.monotonic() < deadline and (data := self._read(1024, _QUIET_S)):
            drained += len(data)
        return drained

    def _read(self, length: int, wait_s: float) -> bytes:
        descriptor = self._descriptor()
        if not select.select([descriptor], [], [], wait_s)[0]:
            return b""
        data = os.read(descriptor, length)
        if not data:
            raise serial.SerialException("the device is gone")
        return data

    def _descriptor(self) -> int:
        if self.ser is None or not self.is_open:
            raise serial.SerialException("the port is closed")
        return self.ser.fileno()
