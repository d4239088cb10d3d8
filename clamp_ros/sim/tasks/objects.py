"""The things on the table, by our own geometry: plate, bowl, container, mug, pen, banana.

Each object is a body with a free joint, named as the object. Its frame's origin is the middle of its underside, so that
an object resting on the table has its origin at the table's top; z is up, and x is the direction of its handle or
length. What touches (group 3) is made of primitives: round things stand on a ring of small spheres, which makes contact
with a flat surface exact at every tilt, and walls are boxes. What is seen (group 2) is a smooth mesh of the same size.
"""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np

from clamp_ros.sim.tasks.drawer import add_drawer
from clamp_ros.sim.tasks.shapes import (
    FOOT_M,
    LYING,
    add_visual_mesh,
    collider,
    foot_ring,
    free_body,
    lathe,
    paint,
    tube,
    wall_ring,
)
from clamp_ros.sim.tasks.tools import (
    add_caddy,
    add_can_opener,
    add_magnifier,
    add_scissors,
    add_screwdriver,
    add_thumb_drive,
)

PLATE_RADIUS_M = 0.092
PLATE_WELL_RADIUS_M = 0.066
"""The flat middle of the plate, on which things stand."""
PLATE_WELL_HEIGHT_M = 0.007
BOWL_RADIUS_M = 0.064
CONTAINER_RADIUS_M = 0.048
CONTAINER_HEIGHT_M = 0.090
MUG_RADIUS_M = 0.040
MUG_WALL_M = 0.004
MUG_HEIGHT_M = 0.080
MUG_HANDLE_REACH_M = 0.068
"""From the mug's axis to the handle's outermost point, along the mug's x axis."""
PEN_LENGTH_M = 0.140
BANANA_LENGTH_M = 0.150


def add_plate(spec: mujoco.MjSpec) -> None:
    """A shallow porcelain dish with a raised rim and a blue band, 18.4 cm across."""
    body = free_body(spec, "plate")
    density = 1600.0
    well, rim = PLATE_WELL_RADIUS_M, PLATE_RADIUS_M
    half = 0.5 * (PLATE_WELL_HEIGHT_M - FOOT_M)
    foot_ring(body, well - FOOT_M, density)
    cylinder = mujoco.mjtGeom.mjGEOM_CYLINDER
    collider(body, cylinder, (well, half, 0.0), (0.0, 0.0, PLATE_WELL_HEIGHT_M - half), density)
    wall_ring(body, (well - 0.002, 0.0055), (rim - 0.002, 0.0185), 0.004, density, 16)
    outline = [
        (0.0, 0.0025), (well - 0.006, 0.0025), (well - 0.005, 0.0), (well - 0.001, 0.0), (well + 0.002, 0.0035),
        (rim - 0.003, 0.0165), (rim, 0.0190), (rim - 0.002, 0.0205), (rim - 0.005, 0.0200),
        (well + 0.004, 0.0100), (well, 0.0080), (well - 0.004, PLATE_WELL_HEIGHT_M), (0.0, PLATE_WELL_HEIGHT_M),
    ]  # fmt: skip
    add_visual_mesh(spec, body, "plate_look", lathe(outline), paint(spec, "plate", (0.78, 0.77, 0.73), 0.5, 0.7))
    band = [
        (rim - 0.0020, 0.0202), (rim - 0.0003, 0.0188), (rim + 0.0004, 0.0192), (rim - 0.0018, 0.0210),
        (rim - 0.0052, 0.0205), (rim - 0.0090, 0.0187), (rim - 0.0088, 0.0180), (rim - 0.0050, 0.0197),
    ]  # fmt: skip
    add_visual_mesh(spec, body, "plate_band", lathe(band), paint(spec, "plate_band", (0.16, 0.30, 0.58), 0.4, 0.6))


def add_bowl(spec: mujoco.MjSpec) -> None:
    """A round blue bowl, 12.8 cm across and 5.5 cm high."""
    body = free_body(spec, "bowl")
    density, rim = 1400.0, BOWL_RADIUS_M
    foot_ring(body, 0.030, density)
    collider(body, mujoco.mjtGeom.mjGEOM_CYLINDER, (0.034, 0.002, 0.0), (0.0, 0.0, 0.005), density)
    wall_ring(body, (0.034, 0.005), (0.053, 0.024), 0.004, density, 12)
    wall_ring(body, (0.053, 0.023), (rim - 0.002, 0.055), 0.004, density, 12)
    outline = [
        (0.0, 0.003), (0.028, 0.003), (0.029, 0.0), (0.033, 0.0), (0.036, 0.004), (0.046, 0.0125), (0.055, 0.024),
        (0.060, 0.038), (rim, 0.054), (rim - 0.002, 0.056), (rim - 0.004, 0.054), (0.056, 0.038), (0.051, 0.026),
        (0.043, 0.016), (0.034, 0.009), (0.015, 0.007), (0.0, 0.007),
    ]  # fmt: skip
    add_visual_mesh(spec, body, "bowl_look", lathe(outline), paint(spec, "bowl", (0.20, 0.42, 0.62), 0.5, 0.7))


def add_container(spec: mujoco.MjSpec) -> None:
    """An open bamboo-coloured cup for pens, 9.6 cm across and 9 cm high."""
    body = free_body(spec, "container")
    density, rim, height = 700.0, CONTAINER_RADIUS_M, CONTAINER_HEIGHT_M
    foot_ring(body, rim - 0.006, density)
    collider(body, mujoco.mjtGeom.mjGEOM_CYLINDER, (rim - 0.003, 0.003, 0.0), (0.0, 0.0, 0.004), density)
    wall_ring(body, (rim - 0.002, 0.003), (rim - 0.002, height), 0.004, density, 12)
    outline = [
        (0.0, 0.0), (rim - 0.002, 0.0), (rim, 0.002), (rim, height - 0.002), (rim - 0.002, height),
        (rim - 0.004, height - 0.002), (rim - 0.004, 0.008), (rim - 0.006, 0.007), (0.0, 0.007),
    ]  # fmt: skip
    look = paint(spec, "container", (0.74, 0.57, 0.36), 0.2, 0.3)
    add_visual_mesh(spec, body, "container_look", lathe(outline), look)


def add_mug(spec: mujoco.MjSpec) -> None:
    """A red mug of light stoneware, 8 cm wide and 8 cm high, its handle along x."""
    body = free_body(spec, "mug")
    density, radius, wall, height = 1100.0, MUG_RADIUS_M, MUG_WALL_M, MUG_HEIGHT_M
    foot_ring(body, 0.033, density)
    collider(body, mujoco.mjtGeom.mjGEOM_CYLINDER, (radius - wall, 0.002, 0.0), (0.0, 0.0, 0.005), density)
    wall_ring(body, (radius - 0.5 * wall, 0.003), (radius - 0.5 * wall, height), wall, density, 16)
    angles = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 15)
    reach, half_handle = MUG_HANDLE_REACH_M - 0.004 - radius, 0.024
    handle = np.stack(
        [radius - 0.002 + reach * np.cos(angles) ** 0.8, np.zeros(15), 0.042 + half_handle * np.sin(angles)], axis=1
    )
    for start, end in zip(handle[:-2:3], handle[3::3], strict=False):
        along = (end - start) / np.linalg.norm(end - start)
        rotation = np.column_stack([np.cross((0.0, 1.0, 0.0), along), (0.0, 1.0, 0.0), along])
        size = (0.004, 0.5 * float(np.linalg.norm(end - start)), 0.0)
        collider(body, mujoco.mjtGeom.mjGEOM_CAPSULE, size, tuple(0.5 * (start + end)), 0.5 * density, rotation)
    outline = [
        (0.0, 0.002), (0.030, 0.002), (0.031, 0.0), (0.035, 0.0), (radius - 0.001, 0.003), (radius, 0.006),
        (radius, height - 0.002), (radius - 0.001, height), (radius - wall + 0.001, height),
        (radius - wall, height - 0.002), (radius - wall, 0.010), (radius - wall - 0.003, 0.007), (0.0, 0.007),
    ]  # fmt: skip
    look = paint(spec, "mug", (0.78, 0.16, 0.12), 0.6, 0.8)
    add_visual_mesh(spec, body, "mug_look", lathe(outline), look)
    add_visual_mesh(spec, body, "mug_handle", tube(handle, np.tile((0.0040, 0.0055), (15, 1)), (0.0, 1.0, 0.0)), look)


def add_pen(spec: mujoco.MjSpec) -> None:
    """A thick blue marker pen, 14 cm long, lying along x; its cap is at +x."""
    body = free_body(spec, "pen")
    radius, half = 0.0065, 0.5 * PEN_LENGTH_M
    cylinder = mujoco.mjtGeom.mjGEOM_CAPSULE
    collider(body, cylinder, (radius, half - radius, 0.0), (0.0, 0.0, radius), 900.0, LYING)
    # the clip keeps it from rolling, as a real one's does
    collider(body, mujoco.mjtGeom.mjGEOM_BOX, (0.018, 0.0015, 0.0015), (0.048, radius + 0.0015, 0.0015), 900.0)
    collider(body, mujoco.mjtGeom.mjGEOM_BOX, (0.018, 0.0015, 0.0015), (0.048, -radius - 0.0015, 0.0015), 900.0)

    def part(name: str, profile: list[tuple[float, float]], material: str) -> None:
        vertices, faces = lathe([(r, z) for r, z in profile], 20)
        add_visual_mesh(spec, body, name, (vertices @ LYING.T + (0.0, 0.0, radius), faces), material)

    white = paint(spec, "pen_barrel", (0.92, 0.92, 0.92), 0.3, 0.5)
    blue = paint(spec, "pen_cap", (0.10, 0.16, 0.60), 0.5, 0.7)
    part("pen_barrel", [(0.0, -0.060), (0.0060, -0.060), (0.0060, 0.030), (0.0, 0.030)], white)
    part("pen_end", [(0.0, -half), (0.0050, -half), (0.0062, -half + 0.002), (0.0062, -0.060), (0.0, -0.060)], blue)
    part("pen_cap", [(0.0, 0.022), (radius, 0.022), (radius, half - 0.004), (0.0050, half), (0.0, half)], blue)


def add_banana(spec: mujoco.MjSpec) -> None:
    """A ripe banana, 15 cm from tip to tip, lying on its side and bent in the horizontal plane."""
    body = free_body(spec, "banana")
    bend_radius, half_angle = 0.105, 0.80
    angles = np.linspace(-half_angle, half_angle, 21)
    path = np.stack(
        [bend_radius * np.sin(angles), bend_radius * (np.cos(angles) - 1.0) + 0.016, np.full(21, 0.016)], axis=1
    )
    thickness = 0.016 * np.clip(1.0 - np.abs(angles / half_angle) ** 4, 0.0, 1.0) ** 0.5
    thickness = np.maximum(thickness, np.where(angles > 0.0, 0.0045, 0.0035))
    for start, end in zip(range(2, 18, 4), range(6, 22, 4), strict=False):
        a, b = path[start], path[min(end, 18)]
        along = (b - a) / np.linalg.norm(b - a)
        rotation = np.column_stack([np.cross((0.0, 0.0, 1.0), along), (0.0, 0.0, 1.0), along])
        rotation[:, 0] = np.cross(rotation[:, 1], rotation[:, 2])
        radius = 0.016 if abs(angles[start] + angles[min(end, 18)]) < 0.5 else 0.0145
        size = (radius, 0.5 * float(np.linalg.norm(b - a)), 0.0)
        middle = 0.5 * (a + b)
        collider(body, mujoco.mjtGeom.mjGEOM_CAPSULE, size, (middle[0], middle[1], radius), 800.0, rotation)
    yellow = paint(spec, "banana", (0.93, 0.78, 0.16), 0.2, 0.3)
    brown = paint(spec, "banana_tip", (0.30, 0.22, 0.10), 0.1, 0.2)
    add_visual_mesh(spec, body, "banana_look", tube(path, np.stack([thickness, thickness], axis=1)), yellow)
    for name, ends, radius in (("banana_stem", slice(19, 21), 0.0055), ("banana_bottom", slice(0, 2), 0.0042)):
        add_visual_mesh(spec, body, name, tube(path[ends], np.full((2, 2), radius)), brown)


ADD_OBJECT: dict[str, Callable[[mujoco.MjSpec], None]] = {
    "plate": add_plate,
    "bowl": add_bowl,
    "container": add_container,
    "mug": add_mug,
    "pen": add_pen,
    "banana": add_banana,
    "drawer": add_drawer,
    "caddy": add_caddy,
    "screwdriver": add_screwdriver,
    "magnifier": add_magnifier,
    "can_opener": add_can_opener,
    "thumb_drive": add_thumb_drive,
    "scissors": add_scissors,
}
"""How each object is added to a model, by name."""
