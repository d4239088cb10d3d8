"""What was seen, as numbers: views of the board by camera and shot, the joints of then; and where a solution starts.

One view ties a camera to the board. A gripper's pose comes from the joints, so wrist cameras tie the board to the
robot's frame, and what fixed cameras see of the board ties them to it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import CalibrationError
from clamp_ros.contract.interfaces import gripper_frame
from clamp_ros.contract.robot import ARMS
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import angle_between, invert, make

Matrix = NDArray[np.float64]

ARM_OF_FRAME = {gripper_frame(arm): arm for arm in ARMS}
_METRES_PER_RADIAN = 0.5
"""What a turn weighs beside a shift when poses are compared: the distance of a camera from the board."""
_FLIP_RAD = 0.05
"""Two poses of a gripper are turned against each other as the camera's are; where not, a view's pose is flipped."""


@dataclass(frozen=True, eq=False)
class View:
    """The corners of the board that one camera saw in one shot.

    Attributes:
        shot: number of the shot, into `Problem.joints`.
        camera: its name.
        place: where the board lay.
        points_m: (N, 3) corners in the board's frame.
        pixels: (N, 2) where they were seen.
        depth_m: (N,) measured depth of the corners, NaN where there was none.
    """

    shot: int
    camera: str
    place: int
    points_m: Matrix
    pixels: Matrix
    depth_m: Matrix


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that the adjustment knows.

    Attributes:
        mounts: camera name to the frame that it is mounted on: `world`, `left/gripper` or `right/gripper`.
        pinholes: camera name to its intrinsics.
        joints: (S, 14) measured, one row a shot.
        views: what was seen.
    """

    mounts: Mapping[str, str]
    pinholes: Mapping[str, Pinhole]
    joints: Matrix
    views: Sequence[View]

    def arm(self, camera: str) -> str | None:
        """The arm that carries a camera; None for a fixed one."""
        return ARM_OF_FRAME.get(self.mounts[camera])

    def world_from_mount(self, view: View) -> Matrix:
        """(4, 4) pose of what the view's camera is mounted on, by the measured joints."""
        arm = self.arm(view.camera)
        return np.eye(4) if arm is None else world_from_gripper(arm, self.joints[view.shot])

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those with a view, in the order of `mounts`."""
        seen = {view.camera for view in self.views}
        return tuple(camera for camera in self.mounts if camera in seen)

    def of(self, cameras: Iterable[str]) -> Problem:
        """The same with the views of some cameras only."""
        names = set(cameras)
        return Problem(self.mounts, self.pinholes, self.joints, [v for v in self.views if v.camera in names])


@dataclass(eq=False)
class Estimate:
    """A solution, or where one starts.

    Attributes:
        cameras: camera name to (4, 4) frame_from_camera.
        boards: place to (4, 4) world_from_board.
        joints: (shot, arm) to (6,) what is to be added to the measured joints, rad.
        scale: true over stated size of the board.
    """

    cameras: dict[str, Matrix]
    boards: dict[int, Matrix]
    joints: dict[tuple[int, str], NDArray[np.float64]] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class _Posed:
    """A view with the poses of the board that fit it: the best, and its mirror image where that fits nearly as well."""

    view: View
    camera_from_boards: list[Matrix]


def board_poses(view: View, pinhole: Pinhole) -> list[Matrix]:
    """(4, 4) camera_from_board, the best first; none where few corners, nearly in a line, fit no pose.

    A small or distant plane looks nearly the same tilted towards the camera as away from it. Both poses are given where
    one's residual is less than twice the other's.
    """
    _, rotations, translations, _ = cv2.solvePnPGeneric(
        view.points_m, view.pixels[:, None], pinhole.k, np.zeros(5), flags=cv2.SOLVEPNP_IPPE
    )
    poses = []
    for rotation, translation in zip(rotations, translations, strict=True):
        rotation, translation = cv2.solvePnPRefineLM(
            view.points_m, view.pixels[:, None], pinhole.k, np.zeros(5), rotation, translation
        )
        pose = make(cv2.Rodrigues(rotation)[0], np.asarray(translation).ravel())
        pixels, z = pinhole.project(view.points_m @ pose[:3, :3].T + pose[:3, 3])
        if np.isfinite(pose).all() and (z > 0.0).all():
            poses.append((float(np.sqrt(np.mean((pixels - view.pixels) ** 2))), pose))
    poses.sort(key=lambda item: item[0])
    return [pose for rms, pose in poses if rms <= 2.0 * poses[0][0] + 1e-6]


def hand_eye(grippers: Sequence[Matrix], boards: Sequence[Matrix], places: Sequence[int]) -> Matrix | None:
    """gripper_from_camera in closed form from (world_from_gripper, camera_from_board) pairs; None if undetermined.

    The gripper's motion between two shots of one place, A, and the camera's, B, obey A X = X B. The rotation is the one
    that takes the axes of B's turns to those of A's, the translation a least-squares solution. It takes turns about
    two axes. Source: Park and Martin, Robot sensor calibration: solving AX = XB on the Euclidean group, 1994.
    """
    motions = []
    for i in range(len(grippers)):
        for j in range(i):
            if places[i] != places[j]:
                continue
            a, b = invert(grippers[j]) @ grippers[i], boards[j] @ invert(boards[i])
            if abs(angle_between(np.eye(4), a) - angle_between(np.eye(4), b)) < _FLIP_RAD:
                motions.append((a, b))
    if len(motions) < 2:
        return None
    axes_a, axes_b = (np.array([_rotation_vector(m[k][:3, :3]) for m in motions]) for k in (0, 1))
    u, strength, vt = np.linalg.svd(axes_a.T @ axes_b)
    if strength[1] < 1e-2 * len(motions) * 0.01 or strength[1] < 1e-3 * strength[0]:
        return None
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    left = np.concatenate([a[:3, :3] - np.eye(3) for a, _ in motions])
    right = np.concatenate([rotation @ b[:3, 3] - a[:3, 3] for a, b in motions])
    return make(rotation, np.linalg.lstsq(left, right, rcond=None)[0])


def _rotation_vector(rotation: Matrix) -> NDArray[np.float64]:
    return np.asarray(cv2.Rodrigues(rotation)[0], dtype=np.float64).ravel()


def start(problem: Problem, known: Mapping[str, Matrix] | None = None) -> Estimate:
    """Where the adjustment begins: known cameras give the board's places, these the other cameras, and so on.

    Args:
        problem: what was seen.
        known: camera name to (4, 4) frame_from_camera; None: wrist cameras by `hand_eye`.

    Raises:
        CalibrationError: a camera or a place cannot be reached from the known cameras; the message says why.
    """
    posed = [
        _Posed(view, poses) for view in problem.views if (poses := board_poses(view, problem.pinholes[view.camera]))
    ]  # fmt: skip
    cameras = dict(known) if known is not None else _by_hand_eye(problem, posed)
    cameras = {name: pose for name, pose in cameras.items() if name in problem.cameras}
    if not cameras:
        raise CalibrationError(
            "no wrist camera's pose on its gripper can be told: it takes three or more shots of one place of the board "
            "between which the gripper turned, by 20 degrees or more and about different axes"
        )
    boards: dict[int, Matrix] = {}
    while True:
        size = len(cameras), len(boards)
        for place in {p.view.place for p in posed} - boards.keys():
            votes = [
                [problem.world_from_mount(p.view) @ cameras[p.view.camera] @ pose for pose in p.camera_from_boards]
                for p in posed if p.view.place == place and p.view.camera in cameras
            ]  # fmt: skip
            if votes:
                boards[place] = _consensus(votes)
        for camera in set(problem.cameras) - cameras.keys():
            votes = [
                [invert(problem.world_from_mount(p.view)) @ boards[p.view.place] @ invert(pose)
                 for pose in p.camera_from_boards]
                for p in posed if p.view.camera == camera and p.view.place in boards
            ]  # fmt: skip
            if votes:
                cameras[camera] = _consensus(votes)
        if size == (len(cameras), len(boards)):
            break
    for camera in problem.cameras:
        if camera not in cameras:
            raise CalibrationError(
                f"{camera} never saw the board at a place where a camera with a known pose saw it too; take shots in "
                "which both see it"
            )
    return Estimate(cameras, boards)


def _by_hand_eye(problem: Problem, posed: Sequence[_Posed]) -> dict[str, Matrix]:
    found = {}
    for camera in problem.cameras:
        views = [p for p in posed if p.view.camera == camera]
        if problem.arm(camera) is None:
            continue
        pose = hand_eye(
            [problem.world_from_mount(p.view) for p in views], [p.camera_from_boards[0] for p in views],
            [p.view.place for p in views],
        )  # fmt: skip
        if pose is not None:
            found[camera] = pose
    return found


def _consensus(votes: Sequence[Sequence[Matrix]]) -> Matrix:
    """The candidate that the voters, each by the nearest of its own candidates, are closest to."""

    def distance(candidate: Matrix, vote: Sequence[Matrix]) -> float:
        nearest = min(
            float(np.linalg.norm(candidate[:3, 3] - pose[:3, 3])) + _METRES_PER_RADIAN * angle_between(candidate, pose)
            for pose in vote
        )
        return min(nearest, 0.5)  # a wild one is no worse than a wrong one

    candidates = [pose for vote in votes for pose in vote]
    return min(candidates, key=lambda candidate: sum(distance(candidate, vote) for vote in votes))
