"""The control loop's grid of due times: whole multiples of 20 ms, one after another, however the timer jitters."""

from __future__ import annotations

from clamp_ros.contract.robot import CONTROL_PERIOD_NS


class TickGrid:
    """Turns the moments at which a timer fires into due times.

    A tick is due one period after the last as long as the clock agrees within three quarters of a period; so jitter,
    and a constant phase between timer and grid, neither skip nor repeat one. Else the grid follows the clock.

    Attributes:
        skipped: ticks that were lost because the timer came too late.
    """

    def __init__(self, period_ns: int = CONTROL_PERIOD_NS) -> None:
        self._period_ns = period_ns
        self._last_ns: int | None = None
        self.skipped = 0

    def next(self, now_ns: int) -> int | None:
        """The due time of a tick at `now_ns`, or None if the last one is not over; earlier than the last if time is."""
        nearest_ns = (now_ns + self._period_ns // 2) // self._period_ns * self._period_ns
        if self._last_ns is None:
            self._last_ns = nearest_ns
            return nearest_ns
        expected_ns = self._last_ns + self._period_ns
        if 4 * abs(now_ns - expected_ns) <= 3 * self._period_ns:
            self._last_ns = expected_ns
        elif nearest_ns == self._last_ns:
            return None
        else:
            self.skipped += max(0, (nearest_ns - expected_ns) // self._period_ns)
            self._last_ns = nearest_ns
        return self._last_ns
