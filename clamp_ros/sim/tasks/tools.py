"""Tools and the caddy they belong in, by our own geometry: screwdriver, magnifier, can opener, thumb drive, scissors.

Conventions are those of `tasks.objects`: origin in the middle of the underside, z up, x along the length. A tool
lies on its flat side; the caddy stands, its left compartment at -x.
"""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.sim.tasks.shapes import (
    LYING,
    about_z,
    add_visual_mesh,
    box,
    collider,
    drawn,
    free_body,
    lathe,
    paint,
    solid,
)

SCREWDRIVER_LENGTH_M = 0.150
CAN_OPENER_LENGTH_M = 0.150
TOOL_RADIUS_M = 0.078
"""No part of a tool is farther from its middle."""
CADDY_HALF_SIZE_M = (0.066, 0.046, 0.040)
CADDY_RADIUS_M = 0.081
CADDY_WALL_M = 0.004
COMPARTMENT_HALF_SIZE_M = (0.030, 0.042)
"""Along the caddy's x and y."""
COMPARTMENT_X_M = {"left": -0.032, "right": 0.032}
CADDY_FLOOR_M = 0.010

_BOX, _CAPSULE, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER


def add_caddy(spec: mujoco.MjSpec) -> None:
    """A grey tool caddy of two compartments, the left one trimmed in blue, the right one in orange."""
    body = free_body(spec, "caddy")
    grey = paint(spec, "caddy_grey", (0.42, 0.44, 0.47), 0.2, 0.3)
    trims = {"left": paint(spec, "caddy_left", (0.13, 0.36, 0.66), 0.3, 0.4),
             "right": paint(spec, "caddy_right", (0.90, 0.48, 0.10), 0.3, 0.4)}  # fmt: skip
    x, y, z = CADDY_HALF_SIZE_M
    wall, density = 0.5 * CADDY_WALL_M, 1100.0
    for sx in (-1.0, 1.0):
        for sy in (-1.0, 1.0):
            place = (sx * (x - 0.008), sy * (y - 0.008), 0.004)
            collider(body, mujoco.mjtGeom.mjGEOM_SPHERE, (0.004, 0.0, 0.0), place, density)
    floor = 0.5 * (CADDY_FLOOR_M - 0.002)  # thick: a tool lands on it at a metre a second
    box(body, (x, y, floor), (0.0, 0.0, CADDY_FLOOR_M - floor), density, grey)
    low = 0.5 * CADDY_FLOOR_M
    for side, at in (("left", wall - x), ("right", x - wall)):
        box(body, (wall, y, z - low), (at, 0.0, z + low), density, trims[side])
    box(body, (wall, y, z - low + 0.004), (0.0, 0.0, z + low + 0.004), density, grey)
    for side, sx in (("left", -1.0), ("right", 1.0)):
        for sy in (-1.0, 1.0):
            box(body, (0.5 * x, wall, z - low), (sx * 0.5 * x, sy * (y - wall), z + low), density, grey)
            band = (sx * 0.5 * x, sy * (y - wall), 2.0 * z - 0.005)
            drawn(body, _BOX, (0.5 * x, wall + 0.0008, 0.0052), band, trims[side])


def add_screwdriver(spec: mujoco.MjSpec) -> None:
    """A screwdriver with a chunky red and black handle at -x and a flat blade at +x, 15 cm long."""
    body = free_body(spec, "screwdriver")
    red = paint(spec, "screwdriver_handle", (0.80, 0.10, 0.08), 0.5, 0.6)
    black = paint(spec, "screwdriver_grip", (0.08, 0.08, 0.09), 0.1, 0.2)
    steel = paint(spec, "screwdriver_steel", (0.66, 0.68, 0.70), 0.9, 0.8)
    half, radius = 0.5 * SCREWDRIVER_LENGTH_M, 0.0125
    # a square core lies still and is gripped on its flats
    collider(body, _BOX, (0.041, radius, radius), (0.041 - half, 0.0, radius), 650.0)
    collider(body, _CAPSULE, (0.0035, 0.030, 0.0), (half - 0.0335, 0.0, radius), 4000.0, LYING)

    def part(name: str, profile: list[tuple[float, float]], material: str, segments: int) -> None:
        vertices, faces = lathe(profile, segments)
        add_visual_mesh(spec, body, name, (vertices @ LYING.T + (0.0, 0.0, radius), faces), material)

    end, neck = -half, 0.082 - half
    part("screwdriver_handle", [
        (0.0, end), (0.009, end), (0.0135, end + 0.004), (0.0135, end + 0.016), (0.0125, end + 0.020),
        (0.0, end + 0.020),
    ], red, 12)  # fmt: skip
    part("screwdriver_grip", [
        (0.0, end + 0.020), (0.0130, end + 0.020), (0.0140, end + 0.040), (0.0130, neck - 0.016),
        (0.0095, neck - 0.010), (0.0, neck - 0.010),
    ], black, 8)  # fmt: skip
    part("screwdriver_collar", [
        (0.0, neck - 0.010), (0.0110, neck - 0.010), (0.0110, neck - 0.004), (0.0070, neck), (0.0, neck),
    ], red, 16)  # fmt: skip
    part("screwdriver_shaft", [(0.0, neck), (0.0035, neck), (0.0035, half - 0.014), (0.0, half - 0.014)], steel, 16)
    drawn(body, _BOX, (0.007, 0.0042, 0.0011), (half - 0.007, 0.0, radius), steel)


def add_can_opener(spec: mujoco.MjSpec) -> None:
    """A can opener, 15 cm long: two teal handles side by side at -x, a steel head with wheel and key at +x."""
    body = free_body(spec, "can_opener")
    teal = paint(spec, "can_opener_handle", (0.06, 0.52, 0.52), 0.3, 0.5)
    steel = paint(spec, "can_opener_steel", (0.68, 0.69, 0.71), 0.9, 0.8)
    dark = paint(spec, "can_opener_wheel", (0.25, 0.26, 0.28), 0.7, 0.6)
    half, radius = 0.5 * CAN_OPENER_LENGTH_M, 0.0085
    for side in (-1.0, 1.0):
        at = (0.0505 - half, side * 0.0095, radius)
        drawn(body, _CAPSULE, (radius, 0.042, 0.0), at, teal, LYING)
        collider(body, _BOX, (0.047, radius, radius), at, 620.0)  # round ones would be squeezed out of a hand
        box(body, (0.020, 0.0045, 0.003), (half - 0.045, side * 0.0075, radius), 4000.0, steel)
    box(body, (0.021, 0.0135, 0.0028), (half - 0.021, 0.0, radius), 4000.0, steel)
    solid(body, _CYLINDER, (0.0115, 0.0035, 0.0), (half - 0.0125, 0.003, radius + 0.006), 3000.0, dark)
    drawn(body, _CYLINDER, (0.0035, 0.0065, 0.0), (half - 0.0125, 0.003, radius + 0.006), steel)
    # the key one turns, below: flat wings that also keep the head level
    solid(body, _CYLINDER, (0.0040, 0.0030, 0.0), (half - 0.020, 0.0, radius - 0.0055), 3000.0, steel)
    box(body, (0.0045, 0.0170, 0.0022), (half - 0.020, 0.0, 0.0022), 3000.0, steel)


def add_magnifier(spec: mujoco.MjSpec) -> None:
    """A magnifying glass, 14 cm long: a black handle at -x and a lens in a brass ring at +x."""
    body = free_body(spec, "magnifier")
    black = paint(spec, "magnifier_handle", (0.09, 0.08, 0.08), 0.4, 0.6)
    brass = paint(spec, "magnifier_ring", (0.78, 0.60, 0.25), 0.7, 0.7)
    glass = paint(spec, "magnifier_glass", (0.66, 0.82, 0.90), 0.9, 0.9)
    half, ring, thick = 0.070, 0.027, 0.0045
    centre = half - ring
    collider(body, _CYLINDER, (ring, thick, 0.0), (centre, 0.0, thick), 1200.0)
    collider(body, _BOX, (0.038, 0.0065, thick), (0.038 - half, 0.0, thick), 800.0)
    vertices, faces = lathe([(ring - 0.004, 0.0), (ring, 0.001), (ring, 0.008), (ring - 0.004, 0.009)], 40)
    add_visual_mesh(spec, body, "magnifier_ring", (vertices + np.array([centre, 0.0, 0.0]), faces), brass)
    drawn(body, _CYLINDER, (ring - 0.0035, 0.0022, 0.0), (centre, 0.0, thick), glass)
    drawn(body, _CAPSULE, (0.0065, 0.028, 0.0), (0.0345 - half, 0.0, 0.0065), black, LYING)
    drawn(body, _CYLINDER, (0.004, 0.008, 0.0), (0.074 - half, 0.0, thick), brass, LYING)


def add_thumb_drive(spec: mujoco.MjSpec) -> None:
    """A USB thumb drive, 6 cm long, purple with a steel plug at +x."""
    body = free_body(spec, "thumb_drive")
    purple = paint(spec, "thumb_drive_case", (0.42, 0.18, 0.56), 0.3, 0.5)
    steel = paint(spec, "thumb_drive_plug", (0.75, 0.76, 0.78), 0.9, 0.8)
    dark = paint(spec, "thumb_drive_slot", (0.10, 0.10, 0.11), 0.1, 0.1)
    box(body, (0.021, 0.0095, 0.005), (-0.009, 0.0, 0.005), 1200.0, purple)
    box(body, (0.009, 0.006, 0.00225), (0.021, 0.0, 0.005), 2000.0, steel)
    for sy in (-0.0026, 0.0026):
        drawn(body, _BOX, (0.0012, 0.0012, 0.0001), (0.024, sy, 0.0073), dark)
    drawn(body, _CYLINDER, (0.004, 0.0052, 0.0), (-0.023, 0.0, 0.005), dark)


def add_scissors(spec: mujoco.MjSpec) -> None:
    """Closed scissors, 14.5 cm long: steel blades to +x, two green rings to -x."""
    body = free_body(spec, "scissors")
    green = paint(spec, "scissors_rings", (0.18, 0.50, 0.20), 0.3, 0.5)
    steel = paint(spec, "scissors_steel", (0.70, 0.71, 0.73), 0.9, 0.8)
    thick = 0.004
    for side in (-1.0, 1.0):
        turn = about_z(side * 0.045)
        box(body, (0.042, 0.0055, 0.0012), (0.030, side * 0.003, thick + side * 0.0013), 4000.0, steel, turn)
        solid(body, _CAPSULE, (0.0042, 0.017, 0.0), (-0.024, side * 0.009, thick), 900.0, green,
              about_z(-side * 0.33) @ LYING)  # fmt: skip
        centre = (-0.053, side * 0.018, thick)
        collider(body, _CYLINDER, (0.0175, thick, 0.0), centre, 500.0)
        angles = 2.0 * np.pi * np.arange(12) / 12
        ring = [(0.0145 + 0.0036 * float(np.cos(a)), thick + 0.0038 * float(np.sin(a))) for a in angles]
        vertices, faces = lathe(ring, 28)
        mesh = (vertices * np.array([1.22, 1.0, 1.0]) + np.array([*centre[:2], 0.0]), faces)
        add_visual_mesh(spec, body, f"scissors_ring_{'left' if side > 0 else 'right'}", mesh, green)
    drawn(body, _CYLINDER, (0.0045, 0.0035, 0.0), (-0.006, 0.0, thick + 0.001), steel)
