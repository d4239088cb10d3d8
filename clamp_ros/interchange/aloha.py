"""The ALOHA 14-vector, as ACT's and LeRobot's ALOHA datasets hold it, against the contract's.

Both are in the same order, left arm then right, six joints then the gripper, and in radians. A gripper is a number that
is 0 closed and 1 open; here that is the contract's range of a finger, 0.002 to 0.037 m, with which DeepMind's aloha_sim
drives its grippers (`SIM_GRIPPER_CTRL_CLOSE` and `_OPEN`), and which a calibrated gripper of this stack has.

Source of the layout: tonyzhaozh/aloha, aloha_scripts/record_episodes.py and real_env.py; Interbotix/aloha for ALOHA 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.contract.robot import (
    CONTROL_PERIOD_NS,
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    UPPER_LIMITS,
)
from clamp_ros.geometry.pinhole import Pinhole

_GRIPPERS = list(GRIPPER_INDICES)
_CLOSED_M = LOWER_LIMITS[_GRIPPERS]
_SPAN_M = UPPER_LIMITS[_GRIPPERS] - _CLOSED_M

_START_NS = 1_000_000_000
MOTOR_NAMES = tuple(name.replace("/", "_") for name in JOINT_NAMES)
"""LeRobot's names of the same joints."""
CAMERA_NAMES = {"cam_left_wrist": "wrist_left", "cam_right_wrist": "wrist_right"}
"""Cameras of an ALOHA that stand where cameras of this stack do; `cam_high` and `cam_low` do not."""


def aloha_from_positions(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 14) with grippers 0 to 1, of joint vectors in rad and m."""
    out = positions.copy()
    out[..., _GRIPPERS] = (positions[..., _GRIPPERS] - _CLOSED_M) / _SPAN_M
    return out


def positions_from_aloha(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `aloha_from_positions`."""
    out = values.copy()
    out[..., _GRIPPERS] = values[..., _GRIPPERS] * _SPAN_M + _CLOSED_M
    return out


def aloha_from_velocities(velocities: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 14) with grippers in ranges a second, of velocities in rad/s and m/s."""
    out = velocities.copy()
    out[..., _GRIPPERS] = velocities[..., _GRIPPERS] / _SPAN_M
    return out


def velocities_from_aloha(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `aloha_from_velocities`."""
    out = values.copy()
    out[..., _GRIPPERS] = values[..., _GRIPPERS] * _SPAN_M
    return out


def clip_grippers(positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Joint vectors with grippers within the contract's range, and how many rows needed it.

    Leaders of an ALOHA squeeze beyond 0 and open beyond 1; another robot's gripper, calibrated otherwise, too.
    """
    out = positions.copy()
    out[..., _GRIPPERS] = positions[..., _GRIPPERS].clip(_CLOSED_M, _CLOSED_M + _SPAN_M)
    return out, int((out != positions).any(axis=-1).sum())


def joint_order(names: Sequence[str], where: str) -> NDArray[np.int64]:
    """(14,) where each joint of the contract stands in a dataset that names its own.

    Raises:
        RecordError: they are not this robot's joints.
    """
    plain = [name.removesuffix(".pos").replace("/", "_") for name in names]
    missing = [name for name in MOTOR_NAMES if name not in plain]
    unknown = [name for name in plain if name not in MOTOR_NAMES]
    if missing or unknown or len(plain) != NUM_JOINTS:
        raise RecordError(
            f"{where} holds other joints than this robot's: missing {missing}, unknown {unknown}; expected"
            f" {', '.join(MOTOR_NAMES)} in any order"
        )
    return np.array([plain.index(name) for name in MOTOR_NAMES], np.int64)


def camera_names(found: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Which camera of this stack each camera of a dataset is; those that are none are left out.

    Args:
        found: the dataset's.
        given: the user's word, dataset's name to this stack's; an empty name leaves a camera out.

    Raises:
        ConfigError: the user names a camera that is not there, or two become one.
    """
    for theirs, ours in given.items():
        if theirs not in found:
            raise ConfigError(f"--camera {theirs}={ours}: the dataset's cameras are {', '.join(found) or 'none'}")
        if ours and ours not in CAMERAS:
            raise ConfigError(f"--camera {theirs}={ours}: this stack's cameras are {', '.join(CAMERAS)}")
    names = {name: given.get(name, CAMERA_NAMES.get(name, name if name in CAMERAS else "")) for name in found}
    names = {theirs: ours for theirs, ours in names.items() if ours}
    if len(set(names.values())) != len(names):
        raise ConfigError(f"two cameras of the dataset would become one: {names}; say which by --camera THEIRS=OURS")
    return names


def row_stamps(count: int) -> NDArray[np.int64]:
    """(T,) nanoseconds of the rows of a dataset that says nothing of time but that they are 50 a second."""
    return _START_NS + np.arange(count, dtype=np.int64) * CONTROL_PERIOD_NS


@dataclass(frozen=True)
class Foreign:
    """What the user knows of a dataset that was not exported by this stack.

    Attributes:
        cameras: the dataset's camera name to this stack's; an empty name leaves a camera out.
        intrinsics: this stack's camera name to (fx, fy, cx, cy) in pixels.
        gripper: the unit of its grippers: `range` 0 to 1, or `metres`.
        colors: the order of channels in its images.
        image_every: take the image of every so many rows, where the file does not say when it was taken.
        task: its task, for the metadata.
    """

    cameras: dict[str, str] = field(default_factory=dict)
    intrinsics: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    gripper: str = "range"
    colors: str = "rgb"
    image_every: int = 1
    task: str = ""

    def positions(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joint vectors in rad and m."""
        return positions_from_aloha(values) if self.gripper == "range" else values

    def velocities(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Velocities in rad/s and m/s."""
        return velocities_from_aloha(values) if self.gripper == "range" else values

    def pinhole(self, camera: str, size: tuple[int, int]) -> Pinhole | None:
        """Intrinsics of a camera of this stack, if they were given."""
        given = self.intrinsics.get(camera)
        return None if given is None else Pinhole(size[1], size[0], *given)

    def held(self, count: int) -> NDArray[np.int64]:
        """(T,) which of the images that are taken each row shows."""
        return np.arange(count, dtype=np.int64) // self.image_every
