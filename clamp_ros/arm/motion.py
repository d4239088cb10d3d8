"""A smooth way from one pose to another, for the arms' own motions: home and sleep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PEAK = 1.875
"""Peak speed of a minimum-jerk motion over its mean speed."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Minimum jerk (Flash and Hogan 1985): speed and acceleration begin and end at zero. All joints arrive together.

    Attributes:
        start, end: (N,) positions.
        start_s: when it begins.
        duration_s: how long it takes.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_s: float
    duration_s: float

    @classmethod
    def between(cls, start: NDArray[np.float64], end: NDArray[np.float64], start_s: float, speed: float) -> Motion:
        """One whose fastest joint never exceeds `speed`."""
        distance = float(np.abs(end - start).max(initial=0.0))
        return cls(start, end, start_s, max(_PEAK * distance / speed, 0.1))

    def at(self, now_s: float) -> NDArray[np.float64]:
        """(N,) positions at a time; the start before it begins, the end once it is over."""
        u = min(max((now_s - self.start_s) / self.duration_s, 0.0), 1.0)
        return self.start + (self.end - self.start) * (u**3 * (10.0 - 15.0 * u + 6.0 * u**2))

    def over(self, now_s: float) -> bool:
        """Whether the end has been reached."""
        return now_s >= self.start_s + self.duration_s
