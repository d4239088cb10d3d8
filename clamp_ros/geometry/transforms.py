"""Rigid transforms, SE(3), as (4, 4) float64 matrices named `target_from_source`.

``target_from_source @ p_source`` gives p_target, so that neighbouring names cancel:
``world_from_camera = world_from_gripper @ gripper_from_camera``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ContractError

Matrix = NDArray[np.float64]


def make(rotation: ArrayLike | None = None, translation: ArrayLike | None = None) -> Matrix:
    """(4, 4) from a (3, 3) rotation and a (3,) translation in metres; either may be left out."""
    out = np.eye(4)
    if rotation is not None:
        out[:3, :3] = rotation
    if translation is not None:
        out[:3, 3] = translation
    return out


def invert(a_from_b: Matrix) -> Matrix:
    """b_from_a; exact for rigid transforms, and cheaper than a general inverse."""
    rotation = a_from_b[:3, :3].T
    return make(rotation, -rotation @ a_from_b[:3, 3])


def apply(a_from_b: Matrix, points_b: ArrayLike) -> Matrix:
    """(..., 3) points in frame b, carried to frame a."""
    points = np.asarray(points_b, dtype=np.float64)
    return points @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def axis_angle(axis: ArrayLike, angle_rad: float) -> Matrix:
    """(3, 3) rotation by angle_rad about a unit axis (Rodrigues)."""
    x, y, z = np.asarray(axis, dtype=np.float64)
    k = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle_rad) * k + (1.0 - np.cos(angle_rad)) * (k @ k)


def rotation_from_quat_xyzw(quat_xyzw: ArrayLike) -> Matrix:
    """(3, 3) rotation from a quaternion, which is normalised first.

    Raises:
        ContractError: the quaternion is not finite, or is zero.
    """
    x, y, z, w = np.asarray(quat_xyzw, dtype=np.float64).tolist()
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not math.isfinite(norm) or norm < 1e-9:
        raise ContractError(f"quaternion {[x, y, z, w]} cannot be normalised")
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quat_xyzw_from_rotation(rotation: ArrayLike) -> NDArray[np.float64]:
    """(4,) unit quaternion with w >= 0 from a (3, 3) rotation (Shepperd's method: the largest component first)."""
    m = np.asarray(rotation, dtype=np.float64).tolist()
    trace = m[0][0] + m[1][1] + m[2][2]
    candidates = (m[0][0], m[1][1], m[2][2], trace)
    i = candidates.index(max(candidates))
    q = [0.0] * 4
    if i == 3:
        q = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1.0 + trace]
    else:
        j, k = (i + 1) % 3, (i + 2) % 3
        q[i] = 1.0 + m[i][i] - m[j][j] - m[k][k]
        q[j] = m[j][i] + m[i][j]
        q[k] = m[k][i] + m[i][k]
        q[3] = m[k][j] - m[j][k]
    norm = math.copysign(math.hypot(*q), q[3])
    return np.array([c / norm for c in q])


def wxyz_from_xyzw(quat_xyzw: ArrayLike) -> NDArray[np.float64]:
    """ROS's order to MuJoCo's."""
    return np.roll(np.asarray(quat_xyzw, dtype=np.float64), 1)


def xyzw_from_wxyz(quat_wxyz: ArrayLike) -> NDArray[np.float64]:
    """MuJoCo's order to ROS's."""
    return np.roll(np.asarray(quat_wxyz, dtype=np.float64), -1)


def slerp_xyzw(a: ArrayLike, b: ArrayLike, fraction: float) -> NDArray[np.float64]:
    """Spherical interpolation between unit quaternions along the shorter arc; fraction 0 gives a, 1 gives b."""
    qa, qb = np.asarray(a, dtype=np.float64).tolist(), np.asarray(b, dtype=np.float64).tolist()
    dot = sum(x * y for x, y in zip(qa, qb, strict=True))
    sign = math.copysign(1.0, dot)
    dot = abs(dot)
    if dot > 1.0 - 1e-10:  # closer than double precision can tell apart: the chord is the arc
        wa, wb = 1.0 - fraction, fraction
    else:
        theta = math.acos(dot)
        wa, wb = math.sin((1.0 - fraction) * theta), math.sin(fraction * theta)
    q = [wa * x + sign * wb * y for x, y in zip(qa, qb, strict=True)]
    norm = math.hypot(*q)
    return np.array([c / norm for c in q])


def interpolate(a: Matrix, b: Matrix, fraction: float) -> Matrix:
    """Linear in translation, slerp in rotation, as tf2 does."""
    quat = slerp_xyzw(quat_xyzw_from_rotation(a[:3, :3]), quat_xyzw_from_rotation(b[:3, :3]), fraction)
    return make(rotation_from_quat_xyzw(quat), (1.0 - fraction) * a[:3, 3] + fraction * b[:3, 3])


def look_at(eye_m: ArrayLike, target_m: ArrayLike, up: ArrayLike) -> Matrix:
    """frame_from_camera of an optical frame (x right, y down, z forward) at eye_m that looks at target_m.

    Raises:
        ContractError: eye and target coincide, or the line of sight is parallel to `up`.
    """
    eye, target, up = (np.asarray(v, dtype=np.float64) for v in (eye_m, target_m, up))
    forward = target - eye
    right = np.cross(forward, up)
    if np.linalg.norm(forward) < 1e-9 or np.linalg.norm(right) < 1e-9 * max(1.0, float(np.linalg.norm(forward))):
        raise ContractError(f"no view from {eye.tolist()} to {target.tolist()} with up {up.tolist()}: degenerate")
    forward /= np.linalg.norm(forward)
    right /= np.linalg.norm(right)
    return make(np.column_stack([right, np.cross(forward, right), forward]), eye)


def angle_between(a: Matrix, b: Matrix) -> float:
    """Angle in radians of the rotation that takes a to b; (4, 4) or (3, 3)."""
    relative = a[:3, :3].T @ b[:3, :3]
    # atan2 of both parts keeps its accuracy near zero, where arccos of the trace loses half the digits
    sine = 0.5 * np.linalg.norm(
        [relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]]
    )
    return float(np.arctan2(sine, 0.5 * (np.trace(relative) - 1.0)))
