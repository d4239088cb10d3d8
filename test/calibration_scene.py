"""A cell with a ChArUco board in it, drawn by MuJoCo with the simulation's cameras, and arms that look at the board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.board import Board
from clamp_ros.calibration.session import MOUNTS, Picture, Shot
from clamp_ros.contract.robot import JOINT_NAMES
from clamp_ros.geometry.transforms import axis_angle, quat_xyzw_from_rotation, wxyz_from_xyzw
from clamp_ros.sim.cameras import CameraConfig, DepthFaults, default_cameras
from clamp_ros.sim.render import Renderer
from clamp_ros.sim.robot_model import VISUAL_GROUP, build_robot_spec
from clamp_ros.sim.tasks.board import add_board, board_place, lay

ENCODER_STEP_RAD = 2.0 * np.pi / 4096
"""Of a Dynamixel X motor."""


@dataclass(frozen=True)
class Noise:
    """What is wrong with a measurement.

    Attributes:
        grey: standard deviation of each colour value, of 255.
        blur_px: of the lens.
        joint_rad: standard deviation of a joint beside the rounding to its encoder's steps.
    """

    grey: float = 3.0
    blur_px: float = 0.5
    joint_rad: float = 0.0003


class Scene:
    """The cell; a context manager. Boards are moved, arms are set, pictures are drawn."""

    def __init__(
        self, board: Board, width: int, height: int, *, boxes: bool = False, depth_faults: bool = True
    ) -> None:  # fmt: skip
        """`boxes` stand on the table, for clouds to hold on to; depth has a D435's faults, as config/sim_d435.yaml."""
        self.board = board
        focal_px = 0.5 * height / np.tan(np.deg2rad(21.0))
        faults = DepthFaults(noise_m=0.08 / (focal_px * 0.05), hole_fraction=0.01) if depth_faults else DepthFaults()
        self.cameras: Mapping[str, CameraConfig] = default_cameras(width=width, height=height, faults=faults)
        spec = build_robot_spec("primitive")
        add_board(spec, board)
        for x, y in ((-0.15, -0.25), (0.1, 0.28), (0.25, -0.22)) if boxes else ():
            turned = wxyz_from_xyzw(quat_xyzw_from_rotation(axis_angle((0, 0, 1), 2.0 * x)))
            spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.08, 0.05, 0.08), pos=(x, y, 0.08),
                                    quat=turned, group=VISUAL_GROUP, contype=0, conaffinity=0, density=0.0)  # fmt: skip
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self._renderer = Renderer(self.model, self.cameras.values())
        joints = [self.model.actuator_trnid[self.model.actuator(name).id, 0] for name in JOINT_NAMES]
        self._qpos = self.model.jnt_qposadr[joints]
        self._frame = 0

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()

    @property
    def truth(self) -> dict[str, NDArray[np.float64]]:
        """Camera name to (4, 4) frame_from_camera."""
        return {name: camera.frame_from_camera for name, camera in self.cameras.items()}

    def shoot(
        self, joints: NDArray[np.float64], world_from_board: NDArray[np.float64], place: int,
        rng: np.random.Generator, noise: Noise = Noise(),
    ) -> Shot:  # fmt: skip
        """All cameras' pictures of arms and board as they are told to be, and joints as they are measured."""
        self.data.qpos[self._qpos] = joints
        self.data.qpos[self._qpos[6::7] + 1] = joints[6::7]
        lay(self.model, self.data, world_from_board)
        mujoco.mj_forward(self.model, self.data)
        self._frame += 1
        stamp = 1_000_000_000 * self._frame
        pictures = {}
        for name, camera in self.cameras.items():
            color, depth_mm = self._renderer.render(self.data, name, self._frame)
            pictures[name] = Picture(stamp, _seen(color, rng, noise), depth_mm, camera.pinhole)
        return Shot(stamp, measured(joints, rng, noise), place, pictures)


def measured(joints: NDArray[np.float64], rng: np.random.Generator, noise: Noise) -> NDArray[np.float64]:
    """(14,) joints as encoders tell them."""
    noisy = joints + noise.joint_rad * rng.standard_normal(14)
    out = np.rint(noisy / ENCODER_STEP_RAD) * ENCODER_STEP_RAD if noise.joint_rad else noisy
    out[6::7] = joints[6::7]
    return out


def _seen(color: NDArray[np.uint8], rng: np.random.Generator, noise: Noise) -> NDArray[np.uint8]:
    image = cv2.GaussianBlur(color, (0, 0), noise.blur_px).astype(np.float32) if noise.blur_px else color
    image = image + noise.grey * rng.standard_normal(color.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def board_places(board: Board, count: int) -> list[NDArray[np.float64]]:
    """(4, 4) world_from_board of the first places on the table."""
    return [board_place(board, number) for number in range(count)]


def mounts() -> dict[str, str]:
    """As a session has them."""
    return dict(MOUNTS)
