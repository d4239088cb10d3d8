"""Mug on Plate: grasp the mug and stand it on the plate (paper Section IV-A), easier, and as in the real world."""

from __future__ import annotations

import math

import mujoco
import numpy as np

from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.grid import place_on_grid
from clamp_ros.sim.tasks.objects import PLATE_WELL_RADIUS_M
from clamp_ros.sim.tasks.task import (
    Task,
    at_rest,
    gripped_by,
    gripper_distances_m,
    place,
    tilt_rad,
    touched_by_robot,
    touching,
)

UPRIGHT_RAD = math.radians(8.0)
REST_M_S = 0.005
REST_RAD_S = 0.05
HANDS_OFF_M = 0.12
"""Both grippers are at least this far from the mug's origin; while holding it by the rim they are at 0.08 m."""
REACHING_M = 0.20
LIFTED_M = 0.02


class MugOnPlate(Task):
    """The paper's six objects on the 2x3 grid, rotated by up to 180 degrees."""

    name = "mug_on_plate"
    description = "Pick up the mug and place it on the plate."
    max_seconds = 12.0
    objects = ("plate", "bowl", "container", "mug", "pen", "banana")
    moved, goal = "mug", "plate"
    stages = ("idle", "reaching", "grasped", "lifted", "above plate", "placed", "done")

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Plate, bowl and container in the top row, mug, pen and banana in the bottom row, each in any order."""
        place_on_grid(model, data, rng, ("plate", "bowl", "container"), ("mug", "pen", "banana"), np.pi)

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """The mug stands upright on the plate alone, both are at rest on the table, and the hands are off."""
        return (
            self._stands_on_plate(model, data)
            and "world" in touching(model, data, "plate")
            and not touched_by_robot(touching(model, data, "mug") | touching(model, data, "plate"))
            and min(gripper_distances_m(data, "mug").values()) >= HANDS_OFF_M
            and all(at_rest(model, data, name, REST_M_S, REST_RAD_S) for name in ("mug", "plate"))
        )

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """How far the episode is: index into `stages`, from the state alone."""
        if self.success(model, data):
            return 6
        contacts = touching(model, data, "mug")
        gripped = gripped_by(contacts) is not None
        if self._stands_on_plate(model, data):
            return 5
        if gripped and "world" not in contacts and self._plate_distance_m(data) < PLATE_WELL_RADIUS_M:
            return 4
        if gripped and data.body("mug").xpos[2] > TABLE_TOP_M + LIFTED_M:
            return 3
        if gripped:
            return 2
        return int(min(gripper_distances_m(data, "mug").values()) < REACHING_M)

    def _plate_distance_m(self, data: mujoco.MjData) -> float:
        """Horizontal distance from the plate's middle to the mug's."""
        return float(np.linalg.norm(data.body("mug").xpos[:2] - data.body("plate").xpos[:2]))

    def _stands_on_plate(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        contacts = touching(model, data, "mug")
        objects = {body for body in contacts if body in self.objects or body == "world"}
        return (
            objects == {"plate"}
            and tilt_rad(data, "mug") < UPRIGHT_RAD
            and self._plate_distance_m(data) < PLATE_WELL_RADIUS_M
        )


class MugOnPlateEasy(MugOnPlate):
    """Mug and plate only, in narrower poses near the right arm; the handle points out of its way, left or nearer."""

    name = "mug_on_plate_easy"
    objects = ("plate", "mug")

    mug_region_m = ((0.02, 0.18), (-0.19, -0.07))
    plate_region_m = ((0.00, 0.12), (0.10, 0.18))
    mug_yaw_rad = (-np.pi, -0.5 * np.pi)

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Uniform in a 16 x 12 cm region for the mug and 12 x 8 cm for the plate; the handle between -x and -y."""
        for name, region, yaw in (
            ("mug", self.mug_region_m, self.mug_yaw_rad),
            ("plate", self.plate_region_m, (-np.pi, np.pi)),
        ):
            x, y = (float(rng.uniform(*axis)) for axis in region)
            place(model, data, name, (x, y), float(rng.uniform(*yaw)))


class RealMugOnPlate(MugOnPlate):
    """As the paper scores it on the robot: partial success for a mug that was grasped."""

    name = "real_mug_on_plate"
    partial_stage = "lifted"
