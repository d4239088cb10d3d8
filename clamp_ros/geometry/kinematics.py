"""Forward kinematics of the two arms, from the joint vector alone, so that hardware and simulation publish one TF.

Source: MuJoCo Menagerie's ALOHA 2 (body offsets and joint axes of the ViperX 300 6-DoF).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.robot import ARM_SLICES, joint_vector
from clamp_ros.geometry.transforms import axis_angle, make

WORLD_FROM_BASE: dict[str, NDArray[np.float64]] = {
    "left": make(translation=(-0.469, -0.019, 0.02)),
    "right": make(axis_angle((0.0, 0.0, 1.0), np.pi), (0.469, -0.019, 0.02)),
}
# (offset from the parent link in metres, joint axis), in the order of contract.robot.ARM_JOINTS.
ARM_CHAIN: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...] = (
    ((0.0, 0.0, 0.079), (0.0, 0.0, 1.0)),
    ((0.0, 0.0, 0.04805), (0.0, 1.0, 0.0)),
    ((0.05955, 0.0, 0.3), (0.0, 1.0, 0.0)),
    ((0.2, 0.0, 0.0), (1.0, 0.0, 0.0)),
    ((0.1, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((0.069744, 0.0, 0.0), (1.0, 0.0, 0.0)),
)
GRIPPER_LINK_FROM_GRIPPER = make(translation=(0.15, 0.0, 0.0))
"""From the wrist-rotate link to the site between the fingertips."""
_TIP = tuple(GRIPPER_LINK_FROM_GRIPPER[:3, 3].tolist())
_TURNS = tuple((offset, axis.index(1.0)) for offset, axis in ARM_CHAIN)
_BASES = {arm: pose[:3] for arm, pose in WORLD_FROM_BASE.items()}


def world_from_gripper_link(arm: str, joints: ArrayLike) -> NDArray[np.float64]:
    """(4, 4) pose of an arm's last link, frame `{arm}/gripper_link`, of a (14,) joint vector."""
    pose = WORLD_FROM_BASE[arm]
    for (offset, axis), angle in zip(ARM_CHAIN, joint_vector(joints)[ARM_SLICES[arm]], strict=False):
        pose = pose @ make(axis_angle(axis, float(angle)), offset)
    return pose


def world_from_gripper(arm: str, joints: ArrayLike) -> NDArray[np.float64]:
    """(4, 4) pose of the frame `{arm}/gripper` (contract.interfaces.gripper_frame) of a (14,) joint vector."""
    return world_from_gripper_link(arm, joints) @ GRIPPER_LINK_FROM_GRIPPER


def gripper_position(arm: str, joints: NDArray[np.float64]) -> tuple[float, float, float]:
    """The position of `world_from_gripper` alone, 30 times faster: for the command loop. The joints are not checked."""
    point = list(_TIP)
    for (offset, axis), angle in zip(reversed(_TURNS), joints[ARM_SLICES[arm]][-2::-1].tolist(), strict=True):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        cosine, sine = math.cos(angle), math.sin(angle)
        point[i], point[j] = cosine * point[i] - sine * point[j], sine * point[i] + cosine * point[j]
        point = [a + b for a, b in zip(point, offset, strict=True)]
    x, y, z = _BASES[arm] @ (*point, 1.0)
    return float(x), float(y), float(z)


def world_from_grippers(arm: str, joints: ArrayLike) -> NDArray[np.float64]:
    """(N, 4, 4) poses of `world_from_gripper` for (N, 14) joint vectors at once; trusts its input."""
    angles = np.asarray(joints, dtype=np.float64)[:, ARM_SLICES[arm]]
    pose = np.broadcast_to(WORLD_FROM_BASE[arm], (len(angles), 4, 4))
    for i, (offset, axis) in enumerate(ARM_CHAIN):
        quarter = axis_angle(axis, np.pi / 2.0)
        skew, projection = 0.5 * (quarter - quarter.T), np.outer(axis, axis)  # Rodrigues: the parts in sin, and fixed
        link = np.zeros((len(angles), 4, 4))
        sine, cosine = np.sin(angles[:, i, None, None]), np.cos(angles[:, i, None, None])
        link[:, :3, :3] = projection + cosine * (np.eye(3) - projection) + sine * skew
        link[:, :3, 3], link[:, 3, 3] = offset, 1.0
        pose = pose @ link
    return pose @ GRIPPER_LINK_FROM_GRIPPER
