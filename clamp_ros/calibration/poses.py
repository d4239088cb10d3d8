"""Poses of the arms from which the wrist cameras see a board: what a good session goes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.board import Board
from clamp_ros.contract.errors import CalibrationError
from clamp_ros.contract.robot import ARM_SLICES, ARMS, LOWER_LIMITS, REST_POSE, UPPER_LIMITS
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import apply, invert

_BASE_RAD = (0.0, -0.6, 0.6, 0.0, 0.9, 0.0)
_SPREAD_RAD = (0.7, 0.5, 0.5, 1.0, 0.6, 1.2)
"""Arms are tried within this of `_BASE_RAD`, where a gripper looks down at its side of the table."""
_TRIES = 40_000
_LOWEST_M, _OWN_SIDE_M = 0.12, 0.04
"""A gripper stays this far above the table, and on its own side of the cell's middle."""
_NEAR_M = 0.1
_MARGIN = 0.47
"""Half of the part of a picture, to each side, that counts as within it."""
_SEEN, _FACING = 0.5, 0.6
"""Share of the board's corners in the picture, and cosine between the view and the board's normal, at least."""


class Camera(Protocol):
    """A wrist camera as it is thought to be; a few centimetres and degrees off do no harm."""

    @property
    def pinhole(self) -> Pinhole:
        """Its intrinsics."""
        ...

    @property
    def frame_from_camera(self) -> NDArray[np.float64]:
        """(4, 4) pose on the gripper."""
        ...


def looking_poses(
    board: Board, cameras: Mapping[str, Camera], world_from_board: NDArray[np.float64], count: int,
    rng: np.random.Generator,
) -> list[NDArray[np.float64]]:  # fmt: skip
    """(14,) joints at which each arm's wrist camera has much of the board in its picture, from different sides.

    Args:
        board: the board.
        cameras: by name; wrist_left and wrist_right are used.
        world_from_board: (4, 4) pose of the board.
        count: how many.
        rng: poses are drawn.

    Raises:
        CalibrationError: fewer were found.
    """
    found: dict[str, list[NDArray[np.float64]]] = {arm: [] for arm in ARMS}
    corners = apply(world_from_board, board.corners_m)
    base, spread = np.array(_BASE_RAD), np.array(_SPREAD_RAD)
    for arm in ARMS:
        camera = cameras[f"wrist_{arm}"]
        pinhole, sign = camera.pinhole, 1.0 if arm == "left" else -1.0
        size = np.array((pinhole.width, pinhole.height))
        for _ in range(_TRIES):
            if len(found[arm]) == count:
                break
            joints = np.array(REST_POSE)
            drawn = base + spread * rng.uniform(-1.0, 1.0, 6)
            joints[ARM_SLICES[arm]][:6] = np.clip(drawn, LOWER_LIMITS[:6], UPPER_LIMITS[:6])
            gripper = world_from_gripper(arm, joints)
            if gripper[2, 3] < _LOWEST_M or sign * gripper[0, 3] > -_OWN_SIDE_M:
                continue
            world_from_camera = gripper @ camera.frame_from_camera
            pixels, z = pinhole.project(apply(invert(world_from_camera), corners))
            inside = (z > _NEAR_M) & (np.abs(pixels / size - 0.5) < _MARGIN).all(axis=1)
            facing = world_from_camera[:3, 2] @ world_from_board[:3, 2]
            if inside.sum() >= _SEEN * len(corners) and facing > _FACING:
                found[arm].append(joints[ARM_SLICES[arm]])
        if len(found[arm]) < count:
            raise CalibrationError(f"{len(found[arm])} poses of the {arm} arm see the board, {count} are wanted")
    return [np.concatenate([found["left"][i], found["right"][i]]) for i in range(count)]
