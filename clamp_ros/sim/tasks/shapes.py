"""What objects are made of: primitives that touch, and what is drawn, partly meshes made by code.

Meshes (surfaces of revolution, swept tubes) are for looks only: contacts of primitives are exact and cheap.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.geometry.transforms import quat_xyzw_from_rotation, wxyz_from_xyzw

Vertices = NDArray[np.float64]
Faces = NDArray[np.int32]

_FRICTION = (1.0, 0.005, 0.0005)
FOOT_M = 0.003
"""Radius of the spheres that round things stand on."""
LYING = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""(3, 3) turns what stands along z to lie along x."""


def lathe(profile: ArrayLike, segments: int = 48) -> tuple[Vertices, Faces]:
    """Turns a closed outline about the z axis.

    Args:
        profile: (N, 2) radius and height in metres, counter-clockwise seen with the radius to the right and z up, so
            that faces look outwards. The outline closes from its last point to its first.
        segments: number of steps around the axis.

    Returns:
        vertices (N * segments, 3) and triangles (M, 3); triangles without area, on the axis, are left out.
    """
    outline = np.asarray(profile, dtype=np.float64)
    count = len(outline)
    angles = 2.0 * np.pi * np.arange(segments) / segments
    radius, height = outline[:, 0], outline[:, 1]
    vertices = np.stack(
        [np.outer(np.cos(angles), radius), np.outer(np.sin(angles), radius), np.tile(height, (segments, 1))], axis=-1
    ).reshape(-1, 3)
    turn = np.arange(segments)[:, None] * count
    next_turn = (np.arange(1, segments + 1) % segments)[:, None] * count
    here, there = np.arange(count), (np.arange(count) + 1) % count
    first = np.stack([turn + here, next_turn + here, next_turn + there], axis=-1).reshape(-1, 3)
    second = np.stack([turn + here, next_turn + there, turn + there], axis=-1).reshape(-1, 3)
    return _without_slivers(vertices, np.concatenate([first, second]))


def tube(path: ArrayLike, radii: ArrayLike, up: ArrayLike = (0.0, 0.0, 1.0), sides: int = 16) -> tuple[Vertices, Faces]:
    """Sweeps an ellipse along a path and closes both ends.

    Args:
        path: (N, 3) points in metres; no part of it may run parallel to `up`.
        radii: (N, 2) half-widths in metres, across the path sideways and along `up`.
        up: the direction the ellipse's second axis leans to.
        sides: number of vertices around the tube.

    Returns:
        vertices (N * sides + 2, 3) and triangles (M, 3).
    """
    points, size = np.asarray(path, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    count = len(points)
    forward = np.gradient(points, axis=0)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    side = np.cross(np.asarray(up, dtype=np.float64), forward)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    upward = np.cross(forward, side)
    angles = 2.0 * np.pi * np.arange(sides) / sides
    ring = (
        points[:, None]
        + np.cos(angles)[None, :, None] * (size[:, :1] * side)[:, None]
        + np.sin(angles)[None, :, None] * (size[:, 1:] * upward)[:, None]
    )
    vertices = np.concatenate([ring.reshape(-1, 3), points[:1], points[-1:]])
    here = np.arange(sides)
    there = (here + 1) % sides
    faces = []
    for i in range(count - 1):
        a, b = i * sides, (i + 1) * sides
        faces.append(np.stack([a + here, a + there, b + there], axis=-1))
        faces.append(np.stack([a + here, b + there, b + here], axis=-1))
    last = (count - 1) * sides
    faces.append(np.stack([np.full(sides, count * sides), there, here], axis=-1))
    faces.append(np.stack([np.full(sides, count * sides + 1), last + here, last + there], axis=-1))
    return _without_slivers(vertices, np.concatenate(faces))


def _without_slivers(vertices: Vertices, faces: NDArray[np.integer]) -> tuple[Vertices, Faces]:
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return vertices, faces[area > 1e-12].astype(np.int32)


def add_visual_mesh(
    spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, mesh: tuple[Vertices, Faces], material: str
) -> None:
    """Hangs a mesh on a body as a massless geom of group 2 (looks) that touches nothing."""
    vertices, faces = mesh
    spec.add_mesh(
        name=name,
        uservert=vertices.ravel().tolist(),
        userface=faces.ravel().tolist(),
        inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
    )
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=name,
        material=material,
        contype=0,
        conaffinity=0,
        group=2,
        mass=0.0,
    )


def paint(spec: mujoco.MjSpec, name: str, rgb: tuple[float, float, float], specular: float, shininess: float) -> str:
    """Adds a material of that name; returns the name."""
    spec.add_material(name=name, rgba=(*rgb, 1.0), specular=specular, shininess=shininess)
    return name


def free_body(spec: mujoco.MjSpec, name: str) -> mujoco.MjsBody:
    """A body with a free joint, both of that name."""
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    return body


def collider(
    body: mujoco.MjsBody,
    shape: mujoco.mjtGeom,
    size: tuple[float, float, float],
    position: tuple[float, float, float],
    density: float,
    rotation: np.ndarray | None = None,
) -> None:
    """A primitive of group 3: it touches, and is not drawn."""
    body.add_geom(
        type=shape,
        size=size,
        pos=position,
        quat=_quat_wxyz(rotation),
        density=density,
        group=3,
        condim=6,
        friction=_FRICTION,
        rgba=(0.5, 0.5, 0.5, 0.4),
    )


def about_z(angle: float) -> np.ndarray:
    """(3, 3) rotation about z."""
    return np.array([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]])


def foot_ring(body: mujoco.MjsBody, radius: float, density: float, count: int = 8) -> None:
    """Small spheres under a round thing, whose contact with a flat surface is exact at every tilt."""
    for angle in 2.0 * np.pi * np.arange(count) / count:
        position = (radius * float(np.cos(angle)), radius * float(np.sin(angle)), FOOT_M)
        collider(body, mujoco.mjtGeom.mjGEOM_SPHERE, (FOOT_M, 0.0, 0.0), position, density)


def wall_ring(
    body: mujoco.MjsBody,
    bottom: tuple[float, float],
    top: tuple[float, float],
    thickness: float,
    density: float,
    count: int,
) -> None:
    """A ring of boxes between two circles (radius, height) of the wall's middle; it may flare."""
    (bottom_radius, bottom_height), (top_radius, top_height) = bottom, top
    slope = np.arctan2(top_radius - bottom_radius, top_height - bottom_height)
    lean = np.array([[np.cos(slope), 0.0, np.sin(slope)], [0.0, 1.0, 0.0], [-np.sin(slope), 0.0, np.cos(slope)]])
    half_length = 0.5 * float(np.hypot(top_radius - bottom_radius, top_height - bottom_height))
    middle_radius, middle_height = 0.5 * (bottom_radius + top_radius), 0.5 * (bottom_height + top_height)
    half_width = max(bottom_radius, top_radius) * float(np.tan(np.pi / count))
    for angle in 2.0 * np.pi * (np.arange(count) + 0.5) / count:
        position = (middle_radius * float(np.cos(angle)), middle_radius * float(np.sin(angle)), middle_height)
        size = (0.5 * thickness, half_width, half_length)
        collider(body, mujoco.mjtGeom.mjGEOM_BOX, size, position, density, about_z(float(angle)) @ lean)


def box(
    body: mujoco.MjsBody,
    half_size: tuple[float, float, float],
    position: tuple[float, float, float],
    density: float,
    material: str,
    rotation: np.ndarray | None = None,
) -> None:
    """A box that touches and is drawn."""
    solid(body, mujoco.mjtGeom.mjGEOM_BOX, half_size, position, density, material, rotation)


def solid(
    body: mujoco.MjsBody,
    shape: mujoco.mjtGeom,
    size: tuple[float, float, float],
    position: tuple[float, float, float],
    density: float,
    material: str,
    rotation: np.ndarray | None = None,
) -> None:
    """A primitive that touches and is drawn."""
    collider(body, shape, size, position, density, rotation)
    drawn(body, shape, size, position, material, rotation)


def drawn(
    body: mujoco.MjsBody,
    shape: mujoco.mjtGeom,
    size: tuple[float, float, float],
    position: tuple[float, float, float],
    material: str,
    rotation: np.ndarray | None = None,
) -> None:
    """A massless primitive of group 2 that is seen and touches nothing."""
    body.add_geom(
        type=shape,
        size=size,
        pos=position,
        quat=_quat_wxyz(rotation),
        material=material,
        contype=0,
        conaffinity=0,
        group=2,
        mass=0.0,
    )


def _quat_wxyz(rotation: np.ndarray | None) -> NDArray[np.float64]:
    return np.array([1.0, 0.0, 0.0, 0.0]) if rotation is None else wxyz_from_xyzw(quat_xyzw_from_rotation(rotation))
