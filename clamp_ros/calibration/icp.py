"""Fixed cameras moved so that their clouds lie on one another: point-to-plane ICP by Open3D, kept only where it helps.

It helps where a fixed camera saw few corners, far away or at one side of its picture: then the clouds know better how
it is tilted, and the corners fit as well as before. It is not used where the scene is so flat that clouds slide along
it, where they are not brought nearer by it, or where the corners contradict: then the camera's depth is off (its scale,
or its alignment to colour), and to move the camera would only hide that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.adjust import adjust
from clamp_ros.calibration.clouds import clouds
from clamp_ros.calibration.problem import Estimate, Matrix
from clamp_ros.calibration.session import Shot
from clamp_ros.calibration.solve import Solution, distance
from clamp_ros.geometry.transforms import apply, axis_angle

NEAR_M = 0.01
"""Points further apart do not belong together: the board has placed the cameras better than that."""
_VOXEL_M = 0.003
_MIN_OVERLAP = 0.3
_MIN_RELIEF = 0.02
"""The least share of surfaces that face any direction; a bare table has none that hold a cloud sideways."""
_MIN_GAIN = 0.1
_MAX_LOSS_PX = 0.15
_MAX_MOVE_MM = 8.0
_MAX_SCALE = 0.002
"""At a metre 2 mm, which a camera would be moved by."""
_SCALE_STEPS = 10


@dataclass(frozen=True, eq=False)
class Refined:
    """What came of it.

    Attributes:
        cameras: camera name to (4, 4) frame_from_camera; those of the solution where ICP was not used.
        used: whether any camera was moved.
        messages: what was done or not, and why, a line a camera.
    """

    cameras: Mapping[str, Matrix]
    used: bool
    messages: tuple[str, ...]


def refine(solution: Solution, shots: Sequence[Shot]) -> Refined:
    """Tries to bring each fixed camera's cloud onto those of all other cameras.

    Args:
        solution: the calibration by corners.
        shots: whose clouds are used; a few are enough.
    """
    try:
        open3d: Any = importlib.import_module("open3d")
    except ImportError as error:
        message = f"ICP skipped: Open3D is not there ({error}); pip install open3d-cpu"
        return Refined(solution.cameras, False, (message,))
    cameras = dict(solution.cameras)
    messages, used = [], False
    for name in solution.problem.cameras:
        if solution.problem.arm(name) is not None:
            continue
        pose, message = _refine_one(open3d, solution, shots, cameras, name)
        messages.append(f"ICP {name}: {message}")
        if pose is not None:
            cameras[name], used = pose, True
    return Refined(cameras, used, tuple(messages))


def _refine_one(
    open3d: Any, solution: Solution, shots: Sequence[Shot], cameras: Mapping[str, Matrix], name: str
) -> tuple[Matrix | None, str]:
    mine, others = [], []
    for shot in shots:
        by_camera = clouds(shot, solution.problem, cameras)
        mine.append(by_camera.pop(name, np.empty((0, 3))))
        # where arms stand differs from shot to shot: points that only another shot has are no partners
        others += by_camera.values()
    source, target = _cloud(open3d, mine), _cloud(open3d, others)
    if min(len(source.points), len(target.points)) < 1000:
        return None, "not used: too little depth"
    registration = open3d.pipelines.registration
    before = registration.evaluate_registration(source, target, NEAR_M)
    if before.fitness < _MIN_OVERLAP:
        return None, f"not used: only {before.fitness:.0%} of its cloud is near the others'"
    pairs = np.asarray(before.correspondence_set)[:, 1]
    normals = np.asarray(target.normals)[pairs]
    relief = float(np.linalg.eigvalsh(normals.T @ normals / len(normals))[0])
    if relief < _MIN_RELIEF:
        return None, "not used: the scene is too flat to hold a cloud sideways; put a few boxes on the table"
    after = registration.registration_icp(
        source, target, NEAR_M, np.eye(4), registration.TransformationEstimationPointToPlane()
    )
    pose = np.asarray(after.transformation) @ cameras[name]
    gain = 1.0 - _plane_rms(source, target, after) / _plane_rms(source, target, before)
    moved, turned = distance(pose, cameras[name])
    loss = _rms_px(solution, {**cameras, name: pose}) - _rms_px(solution, cameras)
    what = f"clouds nearer by {gain:.0%}, moved {moved:.2f} mm {turned:.3f} deg, corners {loss:+.2f} px"
    scale = _depth_scale(open3d, source, target, np.asarray(after.transformation), pose[:3, 3])
    if abs(scale - 1.0) > _MAX_SCALE:
        return None, f"not used, its depth is off by {1.0 / scale - 1.0:+.1%} against the others': mend that; {what}"
    if gain < _MIN_GAIN:
        return None, f"not used, it does not help: {what}"
    if loss > _MAX_LOSS_PX or moved > _MAX_MOVE_MM:
        return None, f"not used, it contradicts the board: {what}; is depth aligned to color?"
    return pose, f"used: {what}"


def _cloud(open3d: Any, parts: Sequence[NDArray[np.float64]]) -> Any:
    points = np.concatenate(parts) if parts else np.empty((0, 3))
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points)).voxel_down_sample(_VOXEL_M)
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamHybrid(radius=4 * _VOXEL_M, max_nn=30))
    return cloud


def _plane_rms(source: Any, target: Any, result: Any) -> float:
    """Root mean square distance of paired points along the target's normals, m."""
    pairs = np.asarray(result.correspondence_set)
    moved = apply(np.asarray(result.transformation), np.asarray(source.points)[pairs[:, 0]])
    offsets = moved - np.asarray(target.points)[pairs[:, 1]]
    return float(np.sqrt(np.mean(np.sum(offsets * np.asarray(target.normals)[pairs[:, 1]], axis=1) ** 2))) + 1e-9


def _depth_scale(open3d: Any, source: Any, target: Any, moved: Matrix, center: NDArray[np.float64]) -> float:
    """By how much a camera's depth has to be multiplied to fit the others', its pose free: 1 where they agree.

    A wrong scale and a shift along the axis look alike at one distance only; the scene has many. Point-to-plane least
    squares over six movements and the scale about the camera, linearised, with new partners every time.

    Args:
        open3d: the module.
        source: the camera's cloud.
        target: the others'.
        moved: (4, 4) where registration has brought the source.
        center: (3,) where the camera then is, m.
    """
    registration = open3d.pipelines.registration
    transform, total = moved.copy(), 1.0
    for _ in range(_SCALE_STEPS):
        pairs = np.asarray(registration.evaluate_registration(source, target, NEAR_M, transform).correspondence_set)
        points = apply(transform, np.asarray(source.points)[pairs[:, 0]]) - center
        normals = np.asarray(target.normals)[pairs[:, 1]]
        gaps = np.sum((np.asarray(target.points)[pairs[:, 1]] - center - points) * normals, axis=1)
        columns = np.column_stack([np.cross(points, normals), normals, np.sum(points * normals, axis=1)])
        near = np.abs(gaps) <= 2.5 * (1.4826 * np.median(np.abs(gaps)) + 1e-5)
        step = np.linalg.lstsq(columns[near], gaps[near], rcond=None)[0]
        change = np.eye(4)
        angle = float(np.linalg.norm(step[:3]))
        change[:3, :3] = (1.0 + step[6]) * axis_angle(step[:3] / max(angle, 1e-12), angle)
        change[:3, 3] = center - change[:3, :3] @ center + step[3:6]
        transform, center, total = change @ transform, center + step[3:6], total * (1.0 + step[6])
    return total


def _rms_px(solution: Solution, cameras: Mapping[str, Matrix]) -> float:
    """How well corners fit with cameras held there and the board's places free."""
    begin = solution.adjusted.estimate
    held = adjust(solution.problem, Estimate(dict(cameras), begin.boards, begin.joints), free=())
    return float(np.sqrt(np.mean(np.concatenate([np.sum(r**2, axis=1) for r in held.residuals]))))
