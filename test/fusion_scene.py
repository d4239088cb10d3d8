"""A table with boxes, cylinders and balls seen by depth cameras: an analytic ray caster in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clamp_ros.fusion.cloud import DepthFrame
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import axis_angle, look_at, make

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """Centre, half sizes (metres) and yaw (radians)."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float = 0.0

    def depth(self, origin: Array, rays: Array) -> Array:
        turn = axis_angle((0.0, 0.0, 1.0), -self.yaw)
        o = turn @ (origin - self.centre)
        d = rays @ turn.T
        with np.errstate(divide="ignore", invalid="ignore"):
            near = (-np.sign(d) * self.half - o) / d
            far = (np.sign(d) * self.half - o) / d
        enter, leave = np.nanmax(near, axis=-1), np.nanmin(far, axis=-1)
        return np.where((enter <= leave) & (enter > 0.0), enter, np.inf)


@dataclass(frozen=True)
class Cylinder:
    """Upright: centre of the base, radius and height (metres)."""

    base: tuple[float, float, float]
    radius: float
    height: float

    def depth(self, origin: Array, rays: Array) -> Array:
        o = origin - np.array(self.base)
        a = rays[..., 0] ** 2 + rays[..., 1] ** 2
        b = rays[..., :2] @ o[:2]
        c = o[:2] @ o[:2] - self.radius**2
        with np.errstate(divide="ignore", invalid="ignore"):
            side = (-b - np.sqrt(b * b - a * c)) / a
            z = o[2] + side * rays[..., 2]
            side = np.where((side > 0.0) & (z >= 0.0) & (z <= self.height), side, np.inf)
            top = (self.height - o[2]) / rays[..., 2]
            at = o[:2] + top[..., None] * rays[..., :2]
            top = np.where((top > 0.0) & ((at * at).sum(axis=-1) <= self.radius**2), top, np.inf)
        return np.fmin(side, top)


@dataclass(frozen=True)
class Ball:
    """Centre and radius (metres)."""

    centre: tuple[float, float, float]
    radius: float

    def depth(self, origin: Array, rays: Array) -> Array:
        o = origin - np.array(self.centre)
        a = (rays * rays).sum(axis=-1)
        b = rays @ o
        with np.errstate(invalid="ignore"):
            t = (-b - np.sqrt(b * b - a * (o @ o - self.radius**2))) / a
        return np.where(t > 0.0, t, np.inf)


Shape = Box | Cylinder | Ball


def scene(seed: int = 0) -> list[Shape]:
    """The table's top at z = 0, a floor, and seeded objects on the table."""
    rng = np.random.default_rng(seed)
    shapes: list[Shape] = [Box((0.0, 0.0, -0.05), (0.61, 0.37, 0.05)), Box((0.0, 0.0, -0.80), (5.0, 5.0, 0.05))]
    for x in (-0.22, 0.0, 0.22):
        for y in (-0.14, 0.13):
            cx, cy = x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)
            kind = rng.integers(3)
            if kind == 0:
                half = rng.uniform(0.02, 0.05, size=3)
                shapes.append(Box((cx, cy, half[2]), tuple(half), rng.uniform(-np.pi, np.pi)))
            elif kind == 1:
                shapes.append(Cylinder((cx, cy, 0.0), rng.uniform(0.02, 0.06), rng.uniform(0.02, 0.14)))
            else:
                radius = rng.uniform(0.025, 0.05)
                shapes.append(Ball((cx, cy, radius), radius))
    return shapes


def ray_cast(shapes: list[Shape], pinhole: Pinhole, world_from_camera: Array) -> Array:
    """(H, W) depth in metres along the optical axis; inf where nothing is hit."""
    v, u = np.mgrid[: pinhole.height, : pinhole.width].astype(np.float64)
    rays = pinhole.deproject(np.stack([u, v], axis=-1), np.ones(u.shape)) @ world_from_camera[:3, :3].T
    depth = np.full(u.shape, np.inf)
    for shape in shapes:
        np.minimum(depth, shape.depth(world_from_camera[:3, 3], rays), out=depth)
    return depth


def depth_frame(
    shapes: list[Shape],
    pinhole: Pinhole,
    pose: Array,
    rng: np.random.Generator,
    *,
    noise: float = 0.0,
    holes: float = 0.0,
) -> DepthFrame:
    """A camera's image: millimetres, with noise that grows as `noise` * z^2 (metres), and a share of pixels missing."""
    depth = ray_cast(shapes, pinhole, pose)
    depth = np.where(np.isfinite(depth), depth, 0.0)
    depth += noise * depth**2 * rng.standard_normal(depth.shape)
    depth[rng.random(depth.shape) < holes] = 0.0
    return DepthFrame(np.clip(np.rint(depth * 1e3), 0, 65535).astype(np.uint16), pinhole, pose)


CORNERS = ((-0.61, -0.37, 0.70), (0.61, 0.37, 0.70), (0.61, -0.37, 0.70), (-0.61, 0.37, 0.70))
LOOK_AHEAD = look_at((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def gripper_poses() -> dict[str, Array]:
    """World poses of both grippers, above the table, inclined 50 degrees down."""
    tilt = axis_angle((0.0, 1.0, 0.0), np.deg2rad(50.0))
    flip = axis_angle((0.0, 0.0, 1.0), np.pi)
    return {"left": make(tilt, (-0.18, -0.02, 0.12)), "right": make(flip @ tilt, (0.18, 0.03, 0.12))}


def cameras(corners: int, wrists: int, width: int = 848, height: int = 480) -> list[tuple[Pinhole, Array]]:
    """Intrinsics and poses of corner cameras (fovy 42 degrees) and of wrist cameras (58) 12 cm behind the grippers."""
    out = [
        (Pinhole.from_fovy(width, height, np.deg2rad(42.0)), look_at(eye, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
        for eye in CORNERS[:corners]
    ]
    for arm in ("left", "right")[:wrists]:
        pose = gripper_poses()[arm] @ make(translation=(-0.12, 0.0, 0.06)) @ LOOK_AHEAD
        out.append((Pinhole.from_fovy(width, height, np.deg2rad(58.0)), pose))
    return out


def frames(
    corners: int,
    wrists: int,
    width: int = 848,
    height: int = 480,
    *,
    seed: int = 0,
    noise: float = 0.001,
    holes: float = 0.01,
) -> list[DepthFrame]:
    """What these cameras see of `scene(seed)`."""
    rng = np.random.default_rng(seed)
    shapes = scene(seed)
    return [
        depth_frame(shapes, p, pose, rng, noise=noise, holes=holes)
        for p, pose in cameras(corners, wrists, width, height)
    ]
