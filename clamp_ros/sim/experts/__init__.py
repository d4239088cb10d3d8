"""Scripted experts: they know where everything is, and show how a task is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clamp_ros.contract.errors import SimulationError
from clamp_ros.sim.experts.drawer_open import make_drawer_open_expert
from clamp_ros.sim.experts.expert import Expert
from clamp_ros.sim.experts.insert import make_insert_expert
from clamp_ros.sim.experts.mug_on_plate import make_mug_on_plate_expert
from clamp_ros.sim.experts.persistent import Persistent
from clamp_ros.sim.experts.plate_on_rack import make_plate_on_rack_expert
from clamp_ros.sim.experts.recycle_cans import make_recycle_cans_expert
from clamp_ros.sim.experts.two_drawers import make_two_drawers_expert

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

_EXPERTS = {
    "mug_on_plate": make_mug_on_plate_expert,
    "mug_on_plate_easy": make_mug_on_plate_expert,
    "drawer_open": make_drawer_open_expert,
    "drawer_open_easy": make_drawer_open_expert,
    "pen_in_container": make_insert_expert,
    "can_opener_in_caddy": make_insert_expert,
    "screwdriver_in_caddy": make_insert_expert,
    "plate_on_rack": make_plate_on_rack_expert,
    "open_drawers": make_two_drawers_expert,
    "close_drawers": make_two_drawers_expert,
    "real_mug_on_plate": make_mug_on_plate_expert,
    "real_plate_on_rack": make_plate_on_rack_expert,
    "recycle_cans": make_recycle_cans_expert,
}


def make_expert(world: World, rng: np.random.Generator) -> Persistent:
    """An expert for the world's task and present state, arms at rest; all its variety comes from `rng`.

    Raises:
        SimulationError: the task has no expert, or the scene is out of the arms' reach.
    """
    if world.task.name not in _EXPERTS:
        raise SimulationError(f"task {world.task.name} has no scripted expert; tasks that have one: {sorted(_EXPERTS)}")
    return Persistent(world, lambda: _EXPERTS[world.task.name](world, rng))


__all__ = ["Expert", "make_expert"]
