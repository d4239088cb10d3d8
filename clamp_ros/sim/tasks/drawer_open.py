"""Drawer Open: pull out the bottom drawer of a chest (paper Section IV-A)."""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.robot import ARMS
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.drawer import DRAWERS, drawer_joint, knob_site
from clamp_ros.sim.tasks.task import (
    Task,
    at_rest,
    gripped_by,
    place,
    tilt_rad,
    touched_by_robot,
    touching,
)

OPEN_M = 0.05
"""As aloha_sim's condition."""
SHUT_M = 0.01
"""The other drawer is open no farther."""
HANDS_OFF_M = 0.07
"""Fingertips are at least this far from the bottom drawer's knob."""
REACHING_M = 0.12
_STARTED_M = 0.01
_UPRIGHT_RAD = np.deg2rad(3.0)
_REST_M_S = 0.005
_REST_RAD_S = 0.05


class DrawerOpen(Task):
    """A chest of two drawers anywhere in the middle of the table, its front to the operator, +-45 degrees."""

    name = "drawer_open"
    description = "Open the bottom drawer."
    max_seconds = 20.0
    objects = ("drawer",)
    moved, goal = "drawer", None
    stages = ("idle", "reaching", "grasped", "pulling", "open", "done")

    region_m = ((-0.12, 0.12), (0.06, 0.16))
    yaw_rad = (-0.75 * np.pi, -0.25 * np.pi)

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Uniform in the task's region and yaw; both drawers shut."""
        x, y = (float(rng.uniform(*axis)) for axis in self.region_m)
        place(model, data, "drawer", (x, y), float(rng.uniform(*self.yaw_rad)))
        for drawer in DRAWERS:
            joint = model.joint(drawer_joint(drawer))
            data.qpos[joint.qposadr[0]] = data.qvel[joint.dofadr[0]] = 0.0

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """The bottom drawer is open, the top one shut, all is at rest on the table, and the hands are off."""
        return (
            opening_m(model, data, "bottom") > OPEN_M
            and opening_m(model, data, "top") < SHUT_M
            and left_alone(model, data, ("bottom",))
        )

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """How far the episode is: index into `stages`, from the state alone."""
        if self.success(model, data):
            return 5
        opening = opening_m(model, data, "bottom")
        if opening > OPEN_M:
            return 4
        if gripped_by(touching(model, data, drawer_joint("bottom"))) is not None:
            return 3 if opening > _STARTED_M else 2
        return int(min(knob_distances_m(data).values()) < REACHING_M)


class DrawerOpenEasy(DrawerOpen):
    """The chest in narrower poses on the left, its front turned to the left arm, so that this arm alone is handy."""

    name = "drawer_open_easy"

    region_m = ((-0.06, 0.04), (0.04, 0.10))
    yaw_rad = (-0.97 * np.pi, -0.89 * np.pi)


def opening_m(model: mujoco.MjModel, data: mujoco.MjData, drawer: str) -> float:
    """How far a drawer, top or bottom, is pulled out."""
    return float(data.qpos[model.joint(drawer_joint(drawer)).qposadr[0]])


def knob(data: mujoco.MjData, drawer: str = "bottom") -> NDArray[np.float64]:
    """(3,) world position of a drawer's knob."""
    return data.site(knob_site(drawer)).xpos.copy()


def knob_distances_m(data: mujoco.MjData, drawer: str = "bottom") -> dict[str, float]:
    """Distance from each arm's fingertips to a drawer's knob."""
    at = knob(data, drawer)
    return {arm: float(np.linalg.norm(data.site(f"{arm}/gripper").xpos - at)) for arm in ARMS}


def left_alone(model: mujoco.MjModel, data: mujoco.MjData, drawers: Iterable[str] = DRAWERS) -> bool:
    """Whether chest and drawers are at rest, upright on the table, and no hand is near the knobs of `drawers`."""
    touched = touching(model, data, "drawer").union(*(touching(model, data, drawer_joint(d)) for d in DRAWERS))
    return (
        "world" in touched
        and not touched_by_robot(touched)
        and min(min(knob_distances_m(data, drawer).values()) for drawer in drawers) >= HANDS_OFF_M
        and tilt_rad(data, "drawer") < _UPRIGHT_RAD
        and abs(float(data.body("drawer").xpos[2]) - TABLE_TOP_M) < 0.004
        and at_rest(model, data, "drawer", _REST_M_S, _REST_RAD_S)
        and all(abs(float(data.qvel[model.joint(drawer_joint(d)).dofadr[0]])) < _REST_M_S for d in DRAWERS)
    )
