"""The pinhole camera: intrinsics, projection and deprojection in the optical frame (x right, y down, z forward).

Pixel (0, 0) is the centre of the top-left pixel, as in OpenCV and sensor_msgs/CameraInfo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ContractError


@dataclass(frozen=True)
class Pinhole:
    """Intrinsics of an undistorted image; fx, fy, cx, cy in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ContractError(f"image size {self.width}x{self.height} is empty")
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if not all(map(math.isfinite, numbers)) or self.fx <= 0.0 or self.fy <= 0.0:
            raise ContractError(f"intrinsics fx={self.fx} fy={self.fy} cx={self.cx} cy={self.cy} are not a camera's")

    @classmethod
    def from_fovy(cls, width: int, height: int, fovy_rad: float) -> Pinhole:
        """Square pixels and a centred principal point, from the vertical field of view (MuJoCo's convention)."""
        if not 0.0 < fovy_rad < math.pi:
            raise ContractError(f"fovy is {fovy_rad} rad, expected 0 to pi")
        f = 0.5 * height / math.tan(0.5 * fovy_rad)
        return cls(width, height, f, f, 0.5 * (width - 1), 0.5 * (height - 1))

    @property
    def k(self) -> NDArray[np.float64]:
        """(3, 3) camera matrix."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def project(self, points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels (..., 2) as (u, v) and depths (...) in metres of (..., 3) points in the optical frame.

        Points at or behind the camera (z <= 0) give NaN pixels.
        """
        p = np.asarray(points, dtype=np.float64)
        z = p[..., 2]
        safe = np.where(z > 0.0, z, np.nan)
        u = self.fx * p[..., 0] / safe + self.cx
        v = self.fy * p[..., 1] / safe + self.cy
        return np.stack([u, v], axis=-1), z

    def deproject(self, pixels: ArrayLike, depth_m: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) points in the optical frame of (..., 2) pixels (u, v) at depths (...) in metres."""
        uv = np.asarray(pixels, dtype=np.float64)
        z = np.asarray(depth_m, dtype=np.float64)
        return np.stack([(uv[..., 0] - self.cx) / self.fx * z, (uv[..., 1] - self.cy) / self.fy * z, z], axis=-1)
