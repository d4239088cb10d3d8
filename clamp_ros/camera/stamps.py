"""When a frame was taken, by the host's clock, and whether it is a new one: from the device's clock and frame numbers.

Time enters as integers of nanoseconds, so that nothing here reads a clock.
"""

from __future__ import annotations

_DRIFT = 200e-6
"""Two quartz clocks, each good to 100 ppm, part no faster."""
_SLEW = 0.25
"""Of the time between two frames: the estimate falls by no more from one to the next, so that stamps never run back."""
_TRUSTED_DELAY_NS = 100_000_000
"""A stamp that is said to be host time already is believed if its frame arrives within this much after it."""
_RESTART_NS = 1_000_000_000
"""A device clock that falls back by more has begun anew: D4xx count 32 bits of microseconds, 71.6 minutes."""


class DeviceClock:
    """Maps a camera's clock to the host's from pairs of stamp and arrival, of which only the quickest frames count.

    A frame arrives later than it was taken by at least the transport's time. The smallest difference between arrival
    and stamp is therefore the offset of the clocks plus that least delay, and a late frame, or a hundred of them,
    moves nothing. The estimate follows the clocks' drift upwards at the rate at which they can part. What remains is
    the least delay itself, some milliseconds, which no one-way measurement can see: where the SDK has measured the
    offset by asking the device, its stamps are taken as they are, as long as they fit the arrivals.

    Attributes:
        delay_ns: how much later than the quickest frames the last one arrived.
    """

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._device_ns = 0
        self.delay_ns = 0

    def host_ns(self, device_ns: int, arrival_ns: int, synchronised: bool = False) -> int:
        """When the frame was taken, by the host's clock; never after its arrival.

        Increases from frame to frame if `device_ns` and `arrival_ns` do and `synchronised` keeps its worth.

        Args:
            device_ns: the frame's stamp by the device's clock, or by the host's as the SDK estimates it.
            arrival_ns: when the frame came, by the host's clock.
            synchronised: whether `device_ns` is meant to be host time.
        """
        observed = arrival_ns - device_ns
        elapsed = device_ns - self._device_ns
        if self._offset_ns is None or elapsed < -_RESTART_NS:
            self._offset_ns = observed
        else:
            risen = self._offset_ns + round(_DRIFT * max(elapsed, 0))
            self._offset_ns = min(risen, max(observed, self._offset_ns - round(_SLEW * max(elapsed, 0))))
        self._device_ns = device_ns
        self.delay_ns = max(observed - self._offset_ns, 0)
        if synchronised and 0 <= self._offset_ns <= _TRUSTED_DELAY_NS and observed >= 0:
            return device_ns
        return min(device_ns + self._offset_ns, arrival_ns)


class FrameWatch:
    """Tells new frames of one stream from frozen ones, and counts those lost in between."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def lost_before(self, number: int, device_ns: int) -> int | None:
        """How many frames were lost just before this one; None if this one is not new.

        Args:
            number: the device's frame number. A smaller one than the last is a device that began anew.
            device_ns: the frame's stamp by the device's clock.
        """
        last, now = self._last, (number, device_ns)
        if last is None or device_ns < last[1] - _RESTART_NS:
            self._last = now
            return 0
        if number == last[0] or device_ns <= last[1]:
            return None
        self._last = now
        return max(number - last[0] - 1, 0)
