"""What a task is, and the questions about a scene's state that tasks are made of.

Success and progress are pure functions of the state: they read positions, velocities and contacts that MuJoCo derives
from `qpos` and `qvel`, and keep no memory of their own. `World` refreshes the derived quantities before it asks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.robot import ARMS
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.objects import ADD_OBJECT

FALLEN_RAD = np.deg2rad(15.0)


class Task(ABC):
    """One task: its objects, how they are laid out, and when it is done.

    Attributes:
        name: as in `TASKS` and on the command line.
        description: the instruction, in words, as the text encoder reads it.
        max_seconds: an episode that has not succeeded by then has failed.
        objects: names of the objects, each a body with a free joint of the same name.
        moved: the object that the hands are to move.
        goal: the object that it is to come to, or None.
        stages: names of the values of `progress`, in order; the last means success.
        partial_stage: the stage from which on the paper awards partial success; None where it awards none.
        blind_control: the task can be done without gripping; so the control does not see the scene.
    """

    name: str
    description: str
    max_seconds: float
    objects: tuple[str, ...]
    moved: str
    goal: str | None
    stages: tuple[str, ...]
    partial_stage: str | None = None
    blind_control: bool = False

    def add_object(self, spec: mujoco.MjSpec, name: str) -> None:
        """Adds one of the task's objects, of our own geometry, to a model."""
        ADD_OBJECT[name](spec)

    def add_scenery(self, spec: mujoco.MjSpec) -> None:  # noqa: B027 (most tasks have none)
        """Adds what is there beside the objects, and no object of anybody's own takes the place of."""

    @abstractmethod
    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Lays the objects out at random; all randomness comes from `rng`."""

    @abstractmethod
    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """Whether the state is the task's goal."""

    def hopeless(self, data: mujoco.MjData) -> bool:
        """Whether an expert need not try again: what it is to move has fallen over."""
        return tilt_rad(data, self.moved) > FALLEN_RAD

    @abstractmethod
    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """Index into `stages`."""


def place(model: mujoco.MjModel, data: mujoco.MjData, name: str, xy_m: tuple[float, float], yaw_rad: float) -> None:
    """Stands an object on the table, at rest, its x axis turned by yaw_rad from the world's."""
    joint = model.joint(name)
    start = joint.qposadr[0]
    data.qpos[start : start + 7] = (
        *xy_m, TABLE_TOP_M + 0.0005, np.cos(0.5 * yaw_rad), 0.0, 0.0, np.sin(0.5 * yaw_rad)
    )  # fmt: skip
    data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0


def object_pose(data: mujoco.MjData, name: str) -> NDArray[np.float64]:
    """(4, 4) world_from_object."""
    body = data.body(name)
    pose = np.eye(4)
    pose[:3, :3] = body.xmat.reshape(3, 3)
    pose[:3, 3] = body.xpos
    return pose


def tilt_rad(data: mujoco.MjData, name: str) -> float:
    """Angle between an object's z axis and the vertical."""
    return float(np.arccos(np.clip(data.body(name).xmat[8], -1.0, 1.0)))


def at_rest(model: mujoco.MjModel, data: mujoco.MjData, name: str, linear_m_s: float, angular_rad_s: float) -> bool:
    """Whether an object moves slower than both speeds."""
    start = model.joint(name).dofadr[0]
    velocity = data.qvel[start : start + 6]
    return bool(np.linalg.norm(velocity[:3]) < linear_m_s and np.linalg.norm(velocity[3:]) < angular_rad_s)


def touching(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> set[str]:
    """Names of the bodies whose geoms touch an object; the table and the rest of the world are body `world`."""
    body = model.body(name).id
    names = set()
    for contact in data.contact[: data.ncon]:
        first, second = model.geom_bodyid[contact.geom1], model.geom_bodyid[contact.geom2]
        if contact.dist <= 0.0 and body in (first, second):
            names.add(model.body(second if first == body else first).name)
    return names


def touched_by_robot(bodies: set[str]) -> bool:
    """Whether any link of either arm is among the bodies."""
    return any(body.startswith(tuple(f"{arm}/" for arm in ARMS)) for body in bodies)


def gripped_by(bodies: set[str]) -> str | None:
    """The arm both of whose fingers are among the bodies."""
    for arm in ARMS:
        if {f"{arm}/left_finger_link", f"{arm}/right_finger_link"} <= bodies:
            return arm
    return None


def gripper_distances_m(data: mujoco.MjData, name: str) -> dict[str, float]:
    """Distance from each arm's fingertips to an object's origin."""
    origin = data.body(name).xpos
    return {arm: float(np.linalg.norm(data.site(f"{arm}/gripper").xpos - origin)) for arm in ARMS}
