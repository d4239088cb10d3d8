"""Trash bins and soda cans, by our own geometry; frames as in `objects`: origin amid the underside, z up."""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.sim.tasks.shapes import (
    FOOT_M,
    add_visual_mesh,
    collider,
    foot_ring,
    free_body,
    lathe,
    paint,
    wall_ring,
)

RGB = tuple[float, float, float]

CAN_RADIUS_M = 0.025
"""Of a small slim can: the fingers open 58 mm, around a usual one of 66 mm they do not go."""
CAN_HEIGHT_M = 0.100
BIN_HEIGHT_M = 0.125
BIN_FLOOR_M = 0.020
"""A heavy foot; what falls in would go through a thin one."""
BIN_INNER_RADIUS_M = (0.058, 0.070)
"""At the floor, and at the rim."""
BINS: dict[str, RGB] = {"blue_bin": (0.13, 0.33, 0.62), "gray_bin": (0.42, 0.44, 0.46)}
CANS: dict[str, RGB] = {
    "red_can": (0.74, 0.08, 0.10), "green_can": (0.12, 0.50, 0.22), "orange_can": (0.93, 0.48, 0.08),
}  # fmt: skip
_WALL_M = 0.004


def add_bin(spec: mujoco.MjSpec, name: str) -> None:
    """A round waste bin with a rolled rim, 15 cm across at the top and 12.5 cm high, weighted at its foot."""
    body = free_body(spec, name)
    (low, high), height = BIN_INNER_RADIUS_M, BIN_HEIGHT_M
    density = 900.0
    foot_ring(body, low - FOOT_M, density)
    half = 0.5 * (BIN_FLOOR_M - 0.001)
    collider(body, mujoco.mjtGeom.mjGEOM_CYLINDER, (low, half, 0.0), (0.0, 0.0, BIN_FLOOR_M - half), 2.0 * density)
    half_wall = 0.5 * _WALL_M
    wall_ring(body, (low + half_wall, 0.003), (high + half_wall, height), _WALL_M, density, 20)
    outline = [
        (0.0, 0.0), (low + 0.001, 0.0), (low + _WALL_M, 0.002), (high + _WALL_M, height - 0.010),
        (high + 0.007, height - 0.009), (high + 0.0085, height - 0.005), (high + 0.007, height), (high, height),
        (low, BIN_FLOOR_M + 0.002), (low - 0.002, BIN_FLOOR_M), (0.0, BIN_FLOOR_M),
    ]  # fmt: skip
    add_visual_mesh(spec, body, f"{name}_look", lathe(outline), paint(spec, name, BINS[name], 0.3, 0.4))
    outer = [low + _WALL_M + (high - low) * z / height for z in (0.052, 0.082)]
    band = [
        (outer[0], 0.052), (outer[0] + 0.0012, 0.052), (outer[1] + 0.0012, 0.082), (outer[1], 0.082),
    ]  # fmt: skip
    add_visual_mesh(spec, body, f"{name}_band", lathe(band), paint(spec, f"{name}_band", (0.88, 0.89, 0.88), 0.2, 0.3))


def add_can(spec: mujoco.MjSpec, name: str) -> None:
    """An empty slim soda can, 5 cm across and 10 cm high, 21 g, with a white stripe round it and an aluminium top."""
    body = free_body(spec, name)
    radius, height, density = CAN_RADIUS_M, CAN_HEIGHT_M, 90.0
    middle = (0.0, 0.0, 0.5 * height)
    collider(body, mujoco.mjtGeom.mjGEOM_CAPSULE, (radius, 0.5 * height - radius, 0.0), middle, density)
    edge = 0.004
    for z in (edge, height - edge):
        for angle in 2.0 * np.pi * np.arange(10) / 10:
            at = ((radius - edge) * float(np.cos(angle)), (radius - edge) * float(np.sin(angle)), z)
            collider(body, mujoco.mjtGeom.mjGEOM_SPHERE, (edge, 0.0, 0.0), at, 10.0 * density)
    aluminium = paint(spec, f"{name}_metal", (0.74, 0.75, 0.77), 0.9, 0.9)
    colour = paint(spec, name, CANS[name], 0.6, 0.8)
    white = paint(spec, f"{name}_stripe", (0.92, 0.92, 0.90), 0.5, 0.7)
    ends = [
        (0.0, 0.004), (0.017, 0.004), (0.0185, 0.0), (0.0205, 0.0), (radius - 0.0005, 0.0075),
        (radius - 0.0005, height - 0.008), (0.0215, height - 0.002), (0.0215, height), (0.0200, height),
        (0.0195, height - 0.004), (0.0, height - 0.004),
    ]  # fmt: skip
    add_visual_mesh(spec, body, f"{name}_metal", lathe(ends), aluminium)
    for part, low, high, proud, material in (
        ("body", 0.0080, height - 0.0085, 0.0, colour), ("stripe", 0.058, 0.070, 0.0002, white),
    ):  # fmt: skip
        ring = [(0.0, low), (radius + proud, low), (radius + proud, high), (0.0, high)]
        add_visual_mesh(spec, body, f"{name}_{part}", lathe(ring), material)
    tab = [(0.0, height - 0.0042), (0.006, height - 0.0042), (0.006, height - 0.0030), (0.0, height - 0.0030)]
    vertices, faces = lathe(tab, 20)
    dark = paint(spec, f"{name}_tab", (0.45, 0.46, 0.48), 0.9, 0.9)
    add_visual_mesh(spec, body, f"{name}_tab", (vertices * (1.4, 0.8, 1.0) + (0.005, 0.0, 0.0), faces), dark)
