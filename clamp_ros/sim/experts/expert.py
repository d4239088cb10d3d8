"""What every scripted expert is: a plan of joint targets made from privileged poses, played one row a control tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clamp_ros.sim.world import World


class Expert:
    """Plays a plan.

    Args:
        world: the world it acts in; only read, for `failed`.
        plan: (T, 14) absolute joint targets, contract order, one a control tick.
        held: rows of the plan before which the thing that is moved should be in a hand.
    """

    def __init__(self, world: World, plan: NDArray[np.float64], held: range = range(0)) -> None:
        self._world = world
        self._play(plan, held)

    def _play(self, plan: NDArray[np.float64], held: range = range(0)) -> None:
        self._plan, self._held, self._next = plan, held, 0

    @property
    def plan(self) -> NDArray[np.float64]:
        """(T, 14) all targets of the episode."""
        return self._plan

    @property
    def held(self) -> range:
        """Rows before which the thing that is moved should be in a hand."""
        return self._held

    @property
    def done(self) -> bool:
        """Whether every row has been played."""
        return self._next >= len(self._plan)

    @property
    def failed(self) -> bool:
        """Whether the plan has ended and the task is not done."""
        return self.done and not self._world.success()

    def act(self) -> NDArray[np.float64]:
        """(14,) the next absolute joint targets; the last ones again once the plan has ended."""
        row = self._plan[min(self._next, len(self._plan) - 1)]
        self._next = min(self._next + 1, len(self._plan))
        return row.copy()
