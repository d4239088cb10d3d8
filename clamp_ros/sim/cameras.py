"""The simulated cameras: where each is mounted, its optics, its rate and the faults of its depth.

A camera is fixed in the world or to a gripper frame, and is independent of the MuJoCo model: it can be moved or
resized without building the model again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ConfigError, SimulationError
from clamp_ros.contract.interfaces import CAMERAS, gripper_frame
from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import (
    invert,
    look_at,
    make,
    quat_xyzw_from_rotation,
    rotation_from_quat_xyzw,
    wxyz_from_xyzw,
    xyzw_from_wxyz,
)
from clamp_ros.sim.figures import figures

OPTICAL_FROM_GL = make(np.diag([1.0, -1.0, -1.0]))
"""OpenGL's and MuJoCo's cameras look along -z with y up, the optical frame along z with y down; its own inverse."""

CORNER_FOVY_DEG = 42.0
"""A D435's colour camera."""
WRIST_FOVY_DEG = 58.0
"""A D405, as in Menagerie's ALOHA 2."""
CORNERS_M = {"front_left": (-0.61, -0.37, 0.70), "back_right": (0.61, 0.37, 0.70)}
"""Opposite corners of the table, 0.70 m up (paper Section IV-A), aimed at the table's centre."""
FRAMES = (WORLD_FRAME, *(gripper_frame(arm) for arm in ARMS))


@dataclass(frozen=True)
class DepthFaults:
    """What a stereo depth camera does wrong; all zero is a perfect one.

    Attributes:
        noise_m: standard deviation at 1 m; it grows with the square of the depth, as stereo's does.
        hole_fraction: share of the picture, 0 to 1, in small blobs without depth.
        min_m: nearer than this there is no depth.
        seed: of the noise; a frame's noise depends on seed, camera and frame number alone.
        edge_px: standard deviation, in pixels, of where a depth is taken from, which makes outlines ragged.
        baseline_m: between the two imagers; what only one of them sees, at the left of things, has no depth.
    """

    noise_m: float = 0.0
    hole_fraction: float = 0.0
    min_m: float = 0.0
    seed: int = 0
    edge_px: float = 0.0
    baseline_m: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.noise_m <= 1.0 and 0.0 <= self.hole_fraction <= 1.0 and 0.0 <= self.min_m <= 10.0):
            raise ConfigError(f"{self} is out of range, expected noise_m 0..1, hole_fraction 0..1, min_m 0..10")
        if not (0.0 <= self.edge_px <= 10.0 and 0.0 <= self.baseline_m <= 1.0):
            raise ConfigError(f"{self} is out of range, expected edge_px 0..10, baseline_m 0..1")
        if self.seed < 0:
            raise ConfigError(f"seed of the depth noise is {self.seed}, expected 0 or more")


@dataclass(frozen=True)
class CameraConfig:
    """One simulated RGB-D camera.

    Attributes:
        name: of its topics and frames; unique.
        frame: what it is mounted on: `world`, `left/gripper` or `right/gripper`.
        position_m, quat_xyzw: pose of its optical frame (x right, y down, z forward) in `frame`.
        fovy_deg: vertical field of view.
        width, height: of the picture, pixels.
        rate_hz: frames a second of simulated time; divides the 50 Hz of control.
        faults: of its depth.
    """

    name: str
    frame: str
    position_m: tuple[float, float, float]
    quat_xyzw: tuple[float, float, float, float]
    fovy_deg: float
    width: int = 424
    height: int = 240
    rate_hz: float = 10.0
    faults: DepthFaults = DepthFaults()

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ConfigError(f"frame of camera {self.name} is {self.frame!r}, expected one of {', '.join(FRAMES)}")
        if not 1.0 <= self.fovy_deg <= 150.0:
            raise ConfigError(f"fovy_deg of camera {self.name} is {self.fovy_deg}, expected 1 to 150")
        if not (8 <= self.width <= 4096 and 8 <= self.height <= 4096):
            raise ConfigError(f"camera {self.name} is {self.width}x{self.height} pixels, expected 8 to 4096 each way")

    @property
    def pinhole(self) -> Pinhole:
        """Intrinsics of color and depth."""
        return Pinhole.from_fovy(self.width, self.height, math.radians(self.fovy_deg))

    @property
    def frame_from_camera(self) -> NDArray[np.float64]:
        """(4, 4) pose of the optical frame in `frame`."""
        return make(rotation_from_quat_xyzw(self.quat_xyzw), self.position_m)

    def world_from_camera(self, data: mujoco.MjData) -> NDArray[np.float64]:
        """(4, 4) pose of the optical frame in a world whose kinematics are up to date."""
        if self.frame == WORLD_FRAME:
            return self.frame_from_camera
        site = data.site(self.frame)
        return make(site.xmat.reshape(3, 3), site.xpos) @ self.frame_from_camera

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CameraConfig:
        """The inverse of `to_dict`."""
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**{**plain, "faults": DepthFaults(**values["faults"])})


def fixed_camera(name: str, eye_m: ArrayLike, target_m: ArrayLike, fovy_deg: float, **optics: Any) -> CameraConfig:
    """A camera in the world at eye_m that looks at target_m, upright; `optics` are fields of CameraConfig."""
    return _placed(name, WORLD_FRAME, look_at(eye_m, target_m, (0.0, 0.0, 1.0)), fovy_deg, **optics)


def wrist_camera(arm: str, fovy_deg: float = WRIST_FOVY_DEG, **optics: Any) -> CameraConfig:
    """The camera on an arm's gripper, at the pose of Menagerie's `wrist_cam_{arm}`."""
    bodies = {body["name"]: body for body in figures()["bodies"]}
    camera = next(c for c in figures()["cameras"] if c["name"] == f"wrist_cam_{arm}")
    site = next(s for s in figures()["sites"] if s["name"] == gripper_frame(arm))
    link_from_camera = _pose(bodies[camera["body"]]) @ _pose(camera) @ OPTICAL_FROM_GL
    return _placed(f"wrist_{arm}", gripper_frame(arm), invert(_pose(site)) @ link_from_camera, fovy_deg, **optics)


def default_cameras(**optics: Any) -> dict[str, CameraConfig]:
    """The four cameras of contract.interfaces.CAMERAS, by name; `optics` are fields of CameraConfig for all of them."""
    corners = [fixed_camera(n, eye, (0.0, 0.0, 0.0), CORNER_FOVY_DEG, **optics) for n, eye in CORNERS_M.items()]
    cameras = {camera.name: camera for camera in (*corners, *(wrist_camera(arm, **optics) for arm in ARMS))}
    return {name: cameras[name] for name in CAMERAS}


def _pose(figure: Mapping[str, Any]) -> NDArray[np.float64]:
    return make(rotation_from_quat_xyzw(xyzw_from_wxyz(figure["quat_wxyz"])), figure["pos_m"])


def _placed(name: str, frame: str, pose: NDArray[np.float64], fovy_deg: float, **optics: Any) -> CameraConfig:
    x, y, z = pose[:3, 3].tolist()
    quat = quat_xyzw_from_rotation(pose[:3, :3]).tolist()
    return CameraConfig(name, frame, (x, y, z), (quat[0], quat[1], quat[2], quat[3]), fovy_deg, **optics)


DEFAULT_CAMERAS: dict[str, CameraConfig] = default_cameras()
"""The simulation's cameras: 424x240 at 10 Hz, without depth faults."""

OVERVIEW_CAMERA = fixed_camera("overview", (0.0, -1.05, 0.78), (0.0, 0.0, 0.12), 45.0, width=640, height=360)
"""For films of an episode; no part of the robot."""


def select_cameras(names: Iterable[str], cameras: Mapping[str, CameraConfig]) -> dict[str, CameraConfig]:
    """Those of `cameras` that are named, in that order.

    Raises:
        ConfigError: a name is unknown or repeated.
    """
    names = list(names)
    for name in names:
        if name not in cameras or names.count(name) > 1:
            raise ConfigError(f"cameras are {names}, expected different ones of {', '.join(cameras)}")
    return {name: cameras[name] for name in names}


def add_cameras(spec: mujoco.MjSpec, cameras: Iterable[CameraConfig]) -> None:
    """Adds cameras to a model under their names, for MuJoCo's viewer and for looking up their poses by name.

    Raises:
        SimulationError: the model has no site for a camera's frame.
    """
    for camera in cameras:
        body, body_from_frame = spec.worldbody, np.eye(4)
        if camera.frame != WORLD_FRAME:
            site = spec.site(camera.frame)
            if site is None:
                raise SimulationError(f"the model has no site {camera.frame!r} for camera {camera.name}")
            body = site.parent
            body_from_frame = make(rotation_from_quat_xyzw(xyzw_from_wxyz(site.quat)), site.pos)
        pose = body_from_frame @ camera.frame_from_camera @ OPTICAL_FROM_GL
        body.add_camera(name=camera.name, pos=pose[:3, 3], fovy=camera.fovy_deg,
                        quat=wxyz_from_xyzw(quat_xyzw_from_rotation(pose[:3, :3])))
