"""Expert for Open Drawers and Close Drawers: one drawer after the other, each by the arm that is handy for it.

Opening, the bottom drawer is first: the top one, open, would hang over its knob. Closing, it is last for the same
reason. A second attempt is about the drawers that are left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clamp_ros.contract.robot import REST_POSE
from clamp_ros.sim.experts.drawer_open import PULL_M, move_drawer
from clamp_ros.sim.experts.expert import Expert
from clamp_ros.sim.tasks.drawer import DRAWERS
from clamp_ros.sim.tasks.drawer_open import OPEN_M, SHUT_M, opening_m

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

PUSH_PAST_M = 0.006
"""A gripper stops some millimetres short of its aim; the chest gives way if it does not."""


def make_two_drawers_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans what is left to do from the chest's pose and openings.

    Raises:
        SimulationError: no arm reaches a knob from any side.
    """
    opening = {drawer: opening_m(world.model, world.data, drawer) for drawer in DRAWERS}
    if world.task.name == "open_drawers":
        moves = {d: float(rng.uniform(*PULL_M)) - opening[d] for d in ("bottom", "top") if opening[d] <= OPEN_M}
    else:
        moves = {d: -opening[d] - PUSH_PAST_M for d in ("top", "bottom") if opening[d] >= SHUT_M}
    plans = [move_drawer(world, rng, drawer, move_m) for drawer, move_m in moves.items()]
    return Expert(world, np.concatenate(plans) if plans else REST_POSE[None])
