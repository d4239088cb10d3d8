"""The simulated cell with a task in it: reset by seed, stepped one control tick at a time, read like the real one.

A tick is 20 ms: ten physics steps under one action of absolute joint targets. Nothing here knows about ROS, pictures or
wall-clock time; `sim.render` draws a world's data and `sim.mujoco_node` puts both on topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import (
    CONTROL_PERIOD_NS,
    CONTROL_RATE_HZ,
    JOINT_NAMES,
    JOINTS_PER_ARM,
    LOWER_LIMITS,
    REST_POSE,
    UPPER_LIMITS,
    joint_vector,
)
from clamp_ros.contract.views import FusionConfig
from clamp_ros.sim.cameras import DEFAULT_CAMERAS, CameraConfig
from clamp_ros.sim.robot_model import build_robot_spec
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.tasks.assets import add_objects
from clamp_ros.sim.tasks.board import BoardOnTable
from clamp_ros.sim.tasks.task import Task, at_rest, object_pose

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_SETTLE_S = 1.0
_SETTLED_M_S = 0.01
_SETTLED_RAD_S = 0.2
_LIMIT_TOLERANCE = 1e-6
_WORKSPACE = FusionConfig()


def checked_action(action: ArrayLike) -> NDArray[np.float64]:
    """(14,) absolute joint targets, contract order, as `World.step` takes them.

    Raises:
        ContractError: wrong shape, or not finite.
        SimulationError: a target lies outside its joint's limits.
    """
    targets = joint_vector(action, "action")
    outside = (targets < LOWER_LIMITS - _LIMIT_TOLERANCE) | (targets > UPPER_LIMITS + _LIMIT_TOLERANCE)
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        raise SimulationError(
            f"action for {JOINT_NAMES[i]} is {targets[i]:.4f}, outside its limits {LOWER_LIMITS[i]} to "
            f"{UPPER_LIMITS[i]}; pass targets through the safety gate"
        )
    return targets


def privileged_text(description: str, positions: Mapping[str, ArrayLike], progress: int) -> str:
    """The text that encoders are pretrained on (paper Section III-A): task, objects' normalised positions, progress.

    It is short, since the text encoder reads 256 tokens, which the byte tokenizer fills with 255 letters.

    Args:
        description: of the task.
        positions: each object's (3,) in the world, metres. Scaled so that the workspace (the fusion's crop box) spans 0
            to 1 on each axis.
        progress: index into the task's stages.
    """
    low, high = np.array(_WORKSPACE.crop_min_m), np.array(_WORKSPACE.crop_max_m)
    objects = []
    for name, position in positions.items():
        x, y, z = np.clip((np.asarray(position) - low) / (high - low), 0.0, 1.0)
        objects.append(f"{name} at {x:.2f} {y:.2f} {z:.2f}")
    return f"{description} Objects: {', '.join(objects)}. Progress: {progress}"


class World:
    """One simulated cell.

    Args:
        task: a name of `sim.tasks.TASKS`.
        cameras: whose poses `world_from_camera` tells, by name; None for the default four.
        look: mesh, primitive or auto (`sim.robot_model.build_robot_spec`).
        robot_model: a MuJoCo Menagerie `aloha` folder to take the robot from.
        assets: folder of objects in place of our own (`sim.tasks.assets`); empty or None for our own.
        board: a calibration board lies there in place of the task's objects.

    Attributes:
        task: the task.
        assets: what was taken from that folder, as for a bag's metadata; empty if nothing was.
        cameras: its cameras, by name.
        seed: of the episode; None before the first reset.
        model, data: MuJoCo's; data is up to date (poses, contacts) after every call.

    Raises:
        SimulationError: the task is unknown, the model cannot be built, or the assets do not fit the task.
    """

    def __init__(
        self,
        task: str,
        cameras: Mapping[str, CameraConfig] | None = None,
        look: str = "auto",
        robot_model: Path | None = None,
        assets: Path | str | None = None,
        board: bool = False,
    ) -> None:
        if task not in TASKS:
            raise SimulationError(f"there is no task {task!r}; tasks are: {', '.join(sorted(TASKS))}")
        self.task: Task = BoardOnTable() if board else TASKS[task]()
        self.cameras = dict(DEFAULT_CAMERAS if cameras is None else cameras)
        spec = build_robot_spec(look, robot_model)
        self.assets = add_objects(spec, self.task, Path(assets) if assets else None)
        self.task.add_scenery(spec)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self._substeps = round(1.0 / (CONTROL_RATE_HZ * self.model.opt.timestep))
        self._ctrl = np.array([self.model.actuator(name).id for name in JOINT_NAMES])
        # a gripper's position is its left finger's, whose mirror image the right finger is held to be
        joints = [self.model.actuator_trnid[actuator, 0] for actuator in self._ctrl]
        self._qpos = self.model.jnt_qposadr[joints]
        self._qvel = self.model.jnt_dofadr[joints]
        self._ticks = 0
        self.seed: int | None = None

    def reset(self, seed: int) -> None:
        """Starts an episode: arms at rest, objects laid out by the seed and settled, time zero.

        The same seed gives the same state to the bit.

        Raises:
            SimulationError: the seed is negative, or the objects did not come to rest.
        """
        if seed < 0:
            raise SimulationError(f"seed is {seed}, expected 0 or more")
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._qpos] = REST_POSE
        self.data.qpos[self._qpos[JOINTS_PER_ARM - 1 :: JOINTS_PER_ARM] + 1] = REST_POSE[JOINTS_PER_ARM - 1]
        self.data.ctrl[self._ctrl] = REST_POSE
        self.task.reset(self.model, self.data, np.random.default_rng(seed))
        for _ in range(round(_SETTLE_S * CONTROL_RATE_HZ)):
            self._advance()
        moving = [n for n in self.task.objects if not at_rest(self.model, self.data, n, _SETTLED_M_S, _SETTLED_RAD_S)]
        if moving:
            raise SimulationError(f"{', '.join(moving)} still moved {_SETTLE_S} s after seed {seed}; try another seed")
        self.data.time = 0.0
        self._ticks = 0
        self.seed = seed

    def step(self, action: ArrayLike) -> None:
        """Holds an action for one control tick.

        Args:
            action: (14,) absolute joint targets, contract order, radians and metres.

        Raises:
            ContractError: wrong shape, or not finite.
            SimulationError: a target lies outside its joint's limits.
        """
        self.data.ctrl[self._ctrl] = checked_action(action)
        self._advance()
        self._ticks += 1

    def _advance(self) -> None:
        mujoco.mj_step(self.model, self.data, self._substeps)
        mujoco.mj_fwdPosition(self.model, self.data)  # poses and contacts of the state reached, not of the step before

    @property
    def time_ns(self) -> int:
        """Simulated time since the reset, a multiple of the control period."""
        return self._ticks * CONTROL_PERIOD_NS

    @property
    def joint_positions(self) -> NDArray[np.float64]:
        """(14,) measured, contract order, radians and metres."""
        return self.data.qpos[self._qpos].copy()

    @property
    def joint_velocities(self) -> NDArray[np.float64]:
        """(14,) measured, contract order, rad/s and m/s."""
        return self.data.qvel[self._qvel].copy()

    def object_poses(self) -> dict[str, NDArray[np.float64]]:
        """(4, 4) world_from_object of every object, by name; privileged."""
        return {name: object_pose(self.data, name) for name in self.task.objects}

    def world_from_camera(self, camera: str) -> NDArray[np.float64]:
        """(4, 4) pose of a camera's optical frame (x right, y down, z forward).

        Raises:
            SimulationError: the world has no such camera.
        """
        if camera not in self.cameras:
            raise SimulationError(f"the world has no camera {camera!r}; it has {', '.join(self.cameras)}")
        return self.cameras[camera].world_from_camera(self.data)

    def success(self) -> bool:
        """Whether the task is done; a pure function of the state."""
        return bool(self.task.success(self.model, self.data))

    def progress(self) -> int:
        """How far the task is: an index into `task.stages`; a pure function of the state."""
        return int(self.task.progress(self.model, self.data))

    def text(self) -> str:
        """The privileged text of this instant; see `privileged_text`."""
        positions = {name: pose[:3, 3] for name, pose in self.object_poses().items()}
        return privileged_text(self.task.description, positions, self.progress())

    def get_state(self) -> NDArray[np.float64]:
        """Everything the future depends on, as (N,) float64: `set_state` continues from it to the bit."""
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, state, _STATE)
        return state

    def set_state(self, state: ArrayLike) -> None:
        """Returns to a state of `get_state`.

        Raises:
            SimulationError: the state is of another model.
        """
        state = np.asarray(state, dtype=np.float64)
        size = mujoco.mj_stateSize(self.model, _STATE)
        if state.shape != (size,) or not np.isfinite(state).all():
            raise SimulationError(
                f"state has shape {state.shape}, expected ({size},) finite numbers of task {self.task.name}"
            )
        mujoco.mj_setState(self.model, self.data, state, _STATE)
        mujoco.mj_fwdPosition(self.model, self.data)
        self._ticks = round(self.data.time * CONTROL_RATE_HZ)
