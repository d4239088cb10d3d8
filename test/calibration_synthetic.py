"""Views of a ChArUco board by projection, and pictures of it by a homography: exact, quick, and without a simulator."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from calibration_scene import board_places, mounts
from numpy.typing import NDArray

from clamp_ros.calibration.board import Board
from clamp_ros.calibration.poses import looking_poses
from clamp_ros.calibration.problem import ARM_OF_FRAME, Problem, View
from clamp_ros.calibration.solve import Observed
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import apply, axis_angle, invert, make
from clamp_ros.sim.cameras import default_cameras

Matrix = NDArray[np.float64]

CAMERAS = default_cameras(width=848, height=480)
TRUTH = {name: camera.frame_from_camera for name, camera in CAMERAS.items()}
PINHOLES = {name: camera.pinhole for name, camera in CAMERAS.items()}
BOARD = Board()


def world_from_camera(camera: str, joints: Matrix) -> Matrix:
    """(4, 4) true pose of a camera at (14,) joints."""
    arm = ARM_OF_FRAME.get(mounts()[camera])
    return TRUTH[camera] if arm is None else world_from_gripper(arm, joints) @ TRUTH[camera]


def observed(
    places: int = 3, per_place: int = 4, *, pixel_sigma: float = 0.0, joint_sigma: float = 0.0, seed: int = 0,
    scale: float = 1.0, cameras: Sequence[str] = tuple(CAMERAS), present: dict[str, Matrix] | None = None,
) -> Observed:  # fmt: skip
    """What the cameras see of a board that is `scale` times as large as it is said to be; nothing hides it."""
    rng = np.random.default_rng(seed)
    views, joints = [], []
    for place, world_from_board in enumerate(board_places(BOARD, places)):
        for pose in looking_poses(BOARD, CAMERAS, world_from_board, per_place, rng):
            for camera in cameras:
                points = apply(world_from_board, scale * BOARD.corners_m)
                pixels, z = PINHOLES[camera].project(apply(invert(world_from_camera(camera, pose)), points))
                size = (PINHOLES[camera].width, PINHOLES[camera].height)
                inside = (z > 0.05) & (pixels > 3).all(axis=1) & (pixels < np.array(size) - 4).all(axis=1)
                if inside.sum() >= 6:
                    noisy = pixels[inside] + pixel_sigma * rng.standard_normal((int(inside.sum()), 2))
                    views.append(View(len(joints), camera, place, BOARD.corners_m[inside], noisy, z[inside]))
            joints.append(pose + joint_sigma * rng.standard_normal(14))
    problem = Problem({c: mounts()[c] for c in cameras}, PINHOLES, np.array(joints), views)
    return Observed(BOARD, problem, [f"shot_{i:03d}" for i in range(len(joints))], [], present or {})


def shifted(poses: dict[str, Matrix], metres: float = 0.02, radians: float = 0.05, seed: int = 1) -> dict[str, Matrix]:
    """Poses that are off by so much, each in a direction of its own."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, pose in poses.items():
        shift, axis = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
        out[name] = pose @ make(axis_angle(axis, radians), metres * shift)
    return out


def picture(board: Board, pinhole: Pinhole, camera_from_board: Matrix) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a board on grey ground, as a pinhole camera sees it."""
    per_m, margin = 12 / 0.005, 0.5 * board.square_m
    image = board.image(per_m, margin)
    board_from_image = np.array([[1 / per_m, 0, 0.5 / per_m - margin], [0, 1 / per_m, 0.5 / per_m - margin], [0, 0, 1]])
    plane = np.column_stack([camera_from_board[:3, :2], camera_from_board[:3, 3]])
    over = 3  # drawn larger and reduced: warpPerspective alone would alias
    larger = np.array([[over, 0, 0.5 * (over - 1)], [0, over, 0.5 * (over - 1)], [0, 0, 1.0]])
    homography = larger @ pinhole.k @ plane @ board_from_image
    size = (over * pinhole.width, over * pinhole.height)
    drawn = cv2.warpPerspective(image, homography, size, flags=cv2.INTER_LINEAR, borderValue=(128,))
    grey = cv2.resize(drawn, (pinhole.width, pinhole.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2), dtype=np.uint8)
