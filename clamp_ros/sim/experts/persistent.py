"""What experts do when a demonstration goes wrong: they notice, go home, and try again from where things are now.

Plans are made open loop; now and then a finger meets a rim, or a thing slips. A teleoperator who drops something picks
it up again, and that too is worth showing to a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import (
    CONTROL_RATE_HZ,
    GRIPPER_INDICES,
    LOWER_LIMITS,
    REST_POSE,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)
from clamp_ros.sim.experts.expert import Expert
from clamp_ros.sim.experts.gripping import OPEN_M
from clamp_ros.sim.experts.trajectory import COMFORT, PEAK_OVER_MEAN, minimum_jerk
from clamp_ros.sim.tasks.task import gripped_by, touching

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

ATTEMPTS = 3
PATIENCE_S = 3.0
"""How long to wait, at home, for things that still rock or creep before the attempt counts as failed."""
_LOOK_TICKS = 5
_LOST_LOOKS = 3
"""So many looks in a row at a hand without the thing in it: one may be a bounce."""
_STOP_TICKS = 10
_LEAST_HOME_S = 1.2
_OPEN_S = 0.4


def way_home(action: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brings moving arms to a stop, opens the hand that was busy, and brings both arms to rest.

    Args:
        action: (14,) present targets.
        step: (14,) by which they differ from those of the tick before.

    Returns:
        (T, 14) targets.
    """
    ticks = np.arange(1, _STOP_TICKS + 1)[:, None]
    stop = np.clip(action + step * (ticks - 0.5 * ticks**2 / _STOP_TICKS), LOWER_LIMITS, UPPER_LIMITS)
    action = stop[-1]
    opened = action.copy()
    hands = list(GRIPPER_INDICES)
    opened[hands] = np.where(np.abs(action[hands] - REST_POSE[hands]) > 1e-6, OPEN_M, action[hands])
    travel_s = PEAK_OVER_MEAN * float((np.abs(REST_POSE - opened) / VELOCITY_LIMITS).max()) / COMFORT
    rows = [stop]
    for start, end, seconds in ((action, opened, _OPEN_S), (opened, REST_POSE, max(travel_s, _LEAST_HOME_S))):
        share = minimum_jerk(np.arange(1, round(seconds * CONTROL_RATE_HZ) + 1) / round(seconds * CONTROL_RATE_HZ))
        rows.append(start + share[:, None] * (end - start))
    return np.concatenate(rows)


class Persistent(Expert):
    """Tries, and tries again.

    Args:
        world: the world it acts in; read, never changed.
        attempt: makes an expert for the world's present state, whose plan starts at rest.

    Raises:
        SimulationError: there is no first plan.
    """

    def __init__(self, world: World, attempt: Callable[[], Expert]) -> None:
        first = attempt()
        super().__init__(world, first.plan, first.held)
        self._attempt = attempt
        self._left = ATTEMPTS - 1
        self._waited = self._unseen = 0
        self._going_home = self._given_up = False
        self.attempts = 1

    @property
    def done(self) -> bool:
        """Whether the task is done and the arms are home, or there is nothing left to try."""
        if not super().done:
            return False
        return self._given_up or (not self._going_home and self._world.success())

    def act(self) -> NDArray[np.float64]:
        """(14,) the next absolute joint targets."""
        if self._lost():
            before, last = self._plan[self._next - 2 : self._next]
            self._play(way_home(last, last - before))
            self._going_home = True
        elif super().done and not self.done:
            self._waited += 1
            if self._going_home or self._waited > PATIENCE_S * CONTROL_RATE_HZ:
                self._try_again()
        return super().act()

    def _lost(self) -> bool:
        """Whether the thing that should be in the hand is not."""
        if self._next not in self._held or self._next % _LOOK_TICKS:
            return False
        world = self._world
        in_hand = gripped_by(touching(world.model, world.data, world.task.moved)) is not None
        self._unseen = 0 if in_hand else self._unseen + 1
        return self._unseen >= _LOST_LOOKS

    def _try_again(self) -> None:
        self._going_home, self._waited, self._unseen = False, 0, 0
        if self._left == 0 or self._world.task.hopeless(self._world.data):
            self._given_up = True
            return
        self._left -= 1
        try:
            again = self._attempt()
        except SimulationError:
            self._given_up = True  # it has moved out of reach
            return
        self.attempts += 1
        self._play(again.plan, again.held)
