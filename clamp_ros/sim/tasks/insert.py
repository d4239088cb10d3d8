"""Pen in Container, Can Opener in Caddy and Screwdriver in Caddy: put a long thing where it belongs (Section IV-A)."""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.grid import place_on_grid
from clamp_ros.sim.tasks.inserting import (
    COMPARTMENTS,
    CONTAINER,
    RODS,
    Opening,
    length_inside_m,
    rests_inside,
    stays_inside,
)
from clamp_ros.sim.tasks.task import Task, gripped_by, gripper_distances_m, touching

REACHING_M = 0.15
LIFTED_M = 0.04
_STAGES = ("idle", "reaching", "grasped", "lifted", "above {}", "placed", "done")


class Insert(Task):
    """One long thing, its goal, and five other objects on the grid.

    Attributes:
        opening: where the thing that is moved belongs.
        top, bottom: the rows of the grid.
        max_yaw_rad: how far objects are turned at most.
    """

    opening: Opening
    top: tuple[str, ...]
    bottom: tuple[str, ...]
    max_yaw_rad: float
    max_seconds = 30.0

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Three objects in the top row, three in the bottom row, each in any order."""
        place_on_grid(model, data, rng, self.top, self.bottom, self.max_yaw_rad)

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """It stays in its opening, alone there, touching nothing else; hands off, all at rest."""
        others = (name for name in RODS if name in self.objects and name != self.moved)
        return stays_inside(model, data, self.moved, self.opening) and all(
            length_inside_m(data, name, self.opening) == 0.0 for name in others
        )

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """How far the episode is: index into `stages`, from the state alone."""
        if self.success(model, data):
            return 6
        if rests_inside(model, data, self.moved, self.opening):
            return 5
        contacts = touching(model, data, self.moved)
        body = data.body(self.moved)
        if gripped_by(contacts) is not None:
            if "world" in contacts:
                return 2
            goal = data.body(self.opening.name).xpos
            if np.linalg.norm(body.xpos[:2] - goal[:2]) < 0.08 and body.xpos[2] > TABLE_TOP_M + self.opening.rim_m:
                return 4
            return 3 if body.xpos[2] > TABLE_TOP_M + LIFTED_M else 2
        return int(min(gripper_distances_m(data, self.moved).values()) < REACHING_M)


class PenInContainer(Insert):
    """The table ware of Mug on Plate; the pen goes into the container."""

    name = "pen_in_container"
    description = "Pick up the pen and place it in the container."
    moved, goal, opening = "pen", "container", CONTAINER
    top, bottom = ("plate", "bowl", "container"), ("mug", "pen", "banana")
    objects = (*top, *bottom)
    max_yaw_rad = np.pi
    stages = tuple(stage.format("container") for stage in _STAGES)


class _InCaddy(Insert):
    top, bottom = ("caddy", "screwdriver", "magnifier"), ("can_opener", "thumb_drive", "scissors")
    objects = (*top, *bottom)
    stages = tuple(stage.format("caddy") for stage in _STAGES)


class CanOpenerInCaddy(_InCaddy):
    """Tools turned by up to 90 degrees; the can opener goes into the caddy's left compartment."""

    name = "can_opener_in_caddy"
    description = "Pick up the can opener and place it in the left caddy."
    moved, goal, opening = "can_opener", "caddy", COMPARTMENTS["left"]
    max_yaw_rad = 0.5 * np.pi


class ScrewdriverInCaddy(_InCaddy):
    """Tools turned by up to 180 degrees; the screwdriver goes into the caddy's right compartment."""

    name = "screwdriver_in_caddy"
    description = "Pick up the screwdriver and place it in the right caddy."
    moved, goal, opening = "screwdriver", "caddy", COMPARTMENTS["right"]
    max_yaw_rad = np.pi
