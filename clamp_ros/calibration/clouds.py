"""The cameras' clouds laid over one another: how far they disagree, and a picture of it before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.problem import Matrix, Problem
from clamp_ros.calibration.session import Picture, Shot
from clamp_ros.contract.views import FusionConfig
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.geometry.transforms import apply

COLORS = {
    "front_left": (255, 90, 60), "back_right": (60, 170, 255), "wrist_left": (255, 210, 60),
    "wrist_right": (90, 230, 120),
}  # fmt: skip
_CROP = FusionConfig()
_CELL_M = 0.005
_FLAT_M = 0.004
_MIN_CELLS = 30
_PIXEL_M = 0.002
_HEIGHT_PIXEL_M = 0.0005
_SLAB_M = 0.02
_HEIGHTS_M = (-0.03, 0.15)
_GROUND = (24, 24, 32)


def cloud(picture: Picture, world_from_camera: Matrix, stride: int = 2) -> NDArray[np.float64]:
    """(N, 3) points of a picture inside the workspace, world frame, every `stride`-th pixel each way."""
    if picture.depth_mm is None:
        return np.empty((0, 3))
    depth_m = 0.001 * picture.depth_mm[::stride, ::stride].astype(np.float64)
    v, u = np.mgrid[: depth_m.shape[0], : depth_m.shape[1]] * stride
    valid = (depth_m >= _CROP.depth_min_m) & (depth_m <= _CROP.depth_max_m)
    pixels = np.stack([u[valid], v[valid]], axis=1)
    points = apply(world_from_camera, picture.pinhole.deproject(pixels, depth_m[valid]))
    return points[((points >= _CROP.crop_min_m) & (points <= _CROP.crop_max_m)).all(axis=1)]


def clouds(shot: Shot, problem: Problem, cameras: Mapping[str, Matrix]) -> dict[str, NDArray[np.float64]]:
    """Camera name to its cloud in a shot, by poses of cameras in what they are mounted on."""
    out = {}
    for name, picture in shot.pictures.items():
        if name in cameras:
            arm = problem.arm(name)
            mount = np.eye(4) if arm is None else world_from_gripper(arm, shot.joints)
            out[name] = cloud(picture, mount @ cameras[name])
    return out


def disagreement_mm(by_camera: Mapping[str, NDArray[np.float64]]) -> float:
    """By how much the cameras' heights of level places differ, median; NaN where too few places are seen by two."""
    low, high = np.array(_CROP.crop_min_m[:2]), np.array(_CROP.crop_max_m[:2])
    size = np.ceil((high - low) / _CELL_M).astype(int) + 1
    heights = []
    for points in by_camera.values():
        cells = np.ravel_multi_index(((points[:, :2] - low) / _CELL_M).astype(int).T, size)
        count = np.bincount(cells, minlength=int(size.prod())).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.bincount(cells, points[:, 2], minlength=len(count)) / count
            spread = np.sqrt(np.bincount(cells, (points[:, 2] - mean[cells]) ** 2, minlength=len(count)) / count)
        heights.append(np.where((count >= 3) & (spread < _FLAT_M), mean, np.nan))
    if not heights:
        return np.nan
    stacked = np.array(heights)
    both = stacked[:, np.isfinite(stacked).sum(axis=0) >= 2]
    if both.shape[1] < _MIN_CELLS:
        return np.nan
    return 1e3 * float(np.median(np.nanmax(both, axis=0) - np.nanmin(both, axis=0)))


def overlay(
    before: Mapping[str, NDArray[np.float64]], after: Mapping[str, NDArray[np.float64]], centre_m: Sequence[float]
) -> NDArray[np.uint8]:
    """A picture of both: from above, and a slice through `centre_m` along x with heights four times too large.

    Each camera has its colour; where cameras agree, they mix.

    Returns:
        (H, W, 3) uint8 RGB, before on the left.
    """
    sides = []
    for title, by_camera in (("before", before), ("after", after)):
        mm = disagreement_mm(by_camera)
        caption = title if by_camera else f"{title}: no poses"
        if np.isfinite(mm):
            caption = f"{title}: heights differ by {mm:.1f} mm"
        slab = {n: p[np.abs(p[:, 1] - centre_m[1]) < _SLAB_M] for n, p in by_camera.items()}
        x, y = (_CROP.crop_min_m[0], _CROP.crop_max_m[0]), (_CROP.crop_min_m[1], _CROP.crop_max_m[1])
        top = _raster(by_camera, (0, 1), x, y, _PIXEL_M)
        side = _raster(slab, (0, 2), x, _HEIGHTS_M, _HEIGHT_PIXEL_M)
        _caption(top, caption, (8, 18))
        _caption(side, f"slice at y = {centre_m[1]:.2f} m, heights x4", (8, 18))
        sides.append(np.vstack([top, np.full((4, top.shape[1], 3), 90, np.uint8), side]))
    image = np.hstack([sides[0], np.full((len(sides[0]), 4, 3), 90, np.uint8), sides[1]])
    for i, name in enumerate(sorted({*before, *after})):
        cv2.putText(image, name, (8 + 110 * i, len(image) - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.45,
                    COLORS.get(name, (220, 220, 220)), 1, cv2.LINE_AA)  # fmt: skip
    return image


def _raster(
    by_camera: Mapping[str, NDArray[np.float64]], axes: tuple[int, int], across_m: Sequence[float],
    up_m: Sequence[float], up_pixel_m: float,
) -> NDArray[np.uint8]:  # fmt: skip
    """(H, W, 3) of points seen along the third axis; a pixel has the mean colour of the cameras with a point there."""
    width = round((across_m[1] - across_m[0]) / _PIXEL_M)
    height = round((up_m[1] - up_m[0]) / up_pixel_m)
    total, count = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for name, points in by_camera.items():
        column = ((points[:, axes[0]] - across_m[0]) / _PIXEL_M).astype(int)
        row = ((up_m[1] - points[:, axes[1]]) / up_pixel_m).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        hit = np.zeros((height, width, 1))
        hit[row[inside], column[inside]] = 1.0
        total += hit * COLORS.get(name, (220, 220, 220))
        count += hit
    return np.where(count > 0, total / np.maximum(count, 1.0), _GROUND).astype(np.uint8)


def _caption(image: NDArray[np.uint8], text: str, at: tuple[int, int]) -> None:
    for color, shift in (((0, 0, 0), 1), ((255, 255, 255), 0)):  # a shadow keeps it readable on any ground
        place = (at[0] + shift, at[1] + shift)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
