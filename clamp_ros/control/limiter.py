"""How commands may move: a point in joint space that never breaks its position, velocity and acceleration limits.

Speeds are chosen so that at every instant each joint can still brake before its limit. Braking at the acceleration
limit a from speed v takes v^2 / 2a whatever the ticks' lengths (shorter, the longer they are), so a joint with a way d
before it may go on, for a tick dt, at the v that leaves a stop: v dt + v^2 / 2a = d. The same law brings a joint to a
target that jumped away, without overshoot; a target that moves is followed with its own speed, so that a stream that
keeps the limits passes unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_REACHED = 1e-12


class Step(NamedTuple):
    """Where a tick leads: (N,) positions and velocities."""

    position: Vector
    velocity: Vector


class Limiter:
    """Proposes steps and keeps the one that is taken.

    Args:
        lower, upper: (N,) position limits.
        velocity: (N,) largest speeds.
        acceleration: (N,) largest changes of velocity in a second.
        position: (N,) where it begins, at rest; within the limits.

    Attributes:
        step: the last one taken.
    """

    def __init__(self, lower: Vector, upper: Vector, velocity: Vector, acceleration: Vector, position: Vector) -> None:
        self._lower, self._upper = lower, upper
        self._speed, self._acceleration = velocity, acceleration
        self.step = Step(position, np.zeros_like(position))

    @property
    def at_rest(self) -> bool:
        """Whether nothing moves."""
        return not self.step.velocity.any()

    def follow(self, target: Vector, drift: Vector, dt_s: float, share: float = 1.0) -> Step:
        """The step of a tick towards a target.

        Args:
            target: (N,) finite positions; may lie outside the limits.
            drift: (N,) the velocity with which the target moves; zeros for one that stays.
            dt_s: length of the tick; 0 moves nothing.
            share: of the largest speeds that may be used; braking down to it takes its time.
        """
        position, velocity = self.step
        change = self._acceleration * dt_s
        drift = np.clip(drift, -self._speed, self._speed)
        gap = target - drift * dt_s - position
        wanted = drift + np.copysign(self._speed_before(np.abs(gap), change), gap)
        cruise = np.maximum(share * self._speed, np.abs(velocity) - change)
        highest = np.minimum(np.minimum(velocity + change, cruise), self._speed_before(self._upper - position, change))
        lowest = np.maximum(np.maximum(velocity - change, -cruise), -self._speed_before(position - self._lower, change))
        return self._moved(np.minimum(np.maximum(wanted, lowest), highest), dt_s, target)

    def brake(self, dt_s: float, haste: float = 1.0) -> Step:
        """The step of a tick that loses speed, with `haste` (1 or more) times the acceleration limits."""
        velocity = self.step.velocity
        slower = np.maximum(np.abs(velocity) - haste * self._acceleration * dt_s, 0.0)
        return self._moved(np.copysign(slower, velocity), dt_s, self.step.position)

    def stop_after(self, step: Step) -> Vector:
        """(N,) where braking right after a step would end at the latest."""
        position, velocity = step
        return np.clip(position + 0.5 * velocity * np.abs(velocity) / self._acceleration, self._lower, self._upper)

    def _speed_before(self, way: Vector, change: Vector) -> Vector:
        """The speed at which a joint may use the next tick, with so much way before it has to stand."""
        return np.sqrt(change**2 + 2.0 * self._acceleration * np.maximum(way, 0.0)) - change

    def _moved(self, velocity: Vector, dt_s: float, target: Vector) -> Step:
        position = self.step.position + velocity * dt_s
        position = np.where(np.abs(position - target) < _REACHED, target, position)
        return Step(np.clip(position, self._lower, self._upper), velocity)
