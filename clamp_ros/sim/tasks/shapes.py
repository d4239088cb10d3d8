"""Meshes made by code: surfaces of revolution and swept tubes, for objects that look like what they are.

Meshes are for looks only. What touches is made of primitives, whose contacts are exact and cheap (tasks.objects).
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

Vertices = NDArray[np.float64]
Faces = NDArray[np.int32]


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
