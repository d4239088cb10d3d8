"""Open Drawers and Close Drawers: both drawers of a chest (paper Section IV-A, real world)."""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.sim.tasks.drawer import DRAWERS, drawer_joint
from clamp_ros.sim.tasks.drawer_open import OPEN_M, REACHING_M, SHUT_M, knob_distances_m, left_alone, opening_m
from clamp_ros.sim.tasks.task import Task, gripped_by, place, touched_by_robot, touching

_STARTED_M = 0.01


class _TwoDrawers(Task):
    """The chest of Drawer Open about the middle of the table, its front to the operator, +-90 degrees.

    Attributes:
        start_m: how far each drawer is open at the start, least and most.
    """

    max_seconds = 45.0
    objects = ("drawer",)
    moved, goal = "drawer", None
    start_m: tuple[float, float]

    region_m = ((-0.10, 0.10), (0.02, 0.14))
    yaw_rad = (-np.pi, 0.0)

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Uniform in a 20 x 12 cm region: at 90 degrees, an arm must still have room to pull a drawer towards it."""
        x, y = (float(rng.uniform(*axis)) for axis in self.region_m)
        place(model, data, "drawer", (x, y), float(rng.uniform(*self.yaw_rad)))
        for drawer in DRAWERS:
            joint = model.joint(drawer_joint(drawer))
            data.qpos[joint.qposadr[0]] = float(rng.uniform(*self.start_m))
            data.qvel[joint.dofadr[0]] = 0.0

    def _near(self, data: mujoco.MjData) -> bool:
        """Whether a hand is at a knob."""
        return min(min(knob_distances_m(data, drawer).values()) for drawer in DRAWERS) < REACHING_M


class OpenDrawers(_TwoDrawers):
    """Both drawers are shut; partial success is the bottom one open."""

    name = "open_drawers"
    description = "Open the bottom drawer and the top drawer."
    stages = ("idle", "reaching", "grasped", "pulling", "bottom open", "both open", "done")
    partial_stage = "bottom open"
    start_m = (0.0, 0.0)

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """Both drawers are open, all is at rest on the table, and the hands are off."""
        return all(opening_m(model, data, drawer) > OPEN_M for drawer in DRAWERS) and left_alone(model, data)

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """How far the episode is: index into `stages`, from the state alone."""
        if self.success(model, data):
            return 6
        if opening_m(model, data, "bottom") > OPEN_M:
            return 5 if opening_m(model, data, "top") > OPEN_M else 4
        if gripped_by(touching(model, data, drawer_joint("bottom"))) is not None:
            return 3 if opening_m(model, data, "bottom") > _STARTED_M else 2
        return int(self._near(data))


class CloseDrawers(_TwoDrawers):
    """Both drawers are open; partial success is the top one closed."""

    name = "close_drawers"
    description = "Close the top drawer and the bottom drawer."
    stages = ("idle", "reaching", "pushing", "top closed", "both closed", "done")
    partial_stage = "top closed"
    start_m = (0.07, 0.10)
    blind_control = True

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """Both drawers are shut, all is at rest on the table, and the hands are off."""
        return all(opening_m(model, data, drawer) < SHUT_M for drawer in DRAWERS) and left_alone(model, data)

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """How far the episode is: index into `stages`, from the state alone."""
        if self.success(model, data):
            return 5
        if opening_m(model, data, "top") < SHUT_M:
            return 4 if opening_m(model, data, "bottom") < SHUT_M else 3
        if any(touched_by_robot(touching(model, data, drawer_joint(drawer))) for drawer in DRAWERS):
            return 2
        return int(self._near(data))
