"""A drying rack for plates and a deep plate for it, by our own geometry.

The rack's frame: origin in the middle of its underside, z up; its slots follow one another along x, and a plate
standing in one has its face along x.
"""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.sim.tasks.shapes import (
    FOOT_M,
    LYING,
    add_visual_mesh,
    collider,
    foot_ring,
    free_body,
    lathe,
    paint,
    solid,
    wall_ring,
)

RACK_SLOTS = 3
SLOT_M = 0.046
"""From the middle of one slot to the next."""
RACK_HALF_SIZE_M = (0.5 * RACK_SLOTS * SLOT_M + 0.012, 0.070)
PEG_HEIGHT_M = 0.130
"""Above the middle of a plate that stands: lower pegs it would topple over."""
STANDING_M = 0.099
"""Height of the middle of a plate that stands on the rails."""
DEEP_PLATE_RADIUS_M = 0.086
DEEP_PLATE_HEIGHT_M = 0.026
_WIRE_M = 0.0032
_WELL_M = 0.052
_RAIL_Y_M = 0.045
_RAIL_Z_M = 0.0225
_WIRE_Z_M = _RAIL_Z_M - 2.0 * _WIRE_M
_PEG_Y_M = 0.050


def slot_middles_m() -> np.ndarray:
    """(RACK_SLOTS,) x of the slots in the rack's frame."""
    return SLOT_M * (np.arange(RACK_SLOTS) - 0.5 * (RACK_SLOTS - 1))


def add_rack(spec: mujoco.MjSpec) -> None:
    """A white wire rack: two rails to stand on, pairs of pegs as dividers, a frame on four rubber feet."""
    body = free_body(spec, "rack")
    white = paint(spec, "rack_wire", (0.88, 0.89, 0.91), 0.6, 0.6)
    rubber = paint(spec, "rack_feet", (0.20, 0.22, 0.24), 0.1, 0.1)
    capsule, sphere = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE
    x, y = RACK_HALF_SIZE_M
    density = 6000.0
    foot = 0.007
    across = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    for sx in (-1.0, 1.0):
        for sy in (-1.0, 1.0):
            solid(body, sphere, (foot, 0.0, 0.0), (sx * x, sy * y, foot), 1200.0, rubber)
        solid(body, capsule, (_WIRE_M, y, 0.0), (sx * x, 0.0, _WIRE_Z_M), density, white, across)
    for sy in (-1.0, 1.0):
        solid(body, capsule, (_WIRE_M, x, 0.0), (0.0, sy * _RAIL_Y_M, _RAIL_Z_M), density, white, LYING)
    for peg in range(RACK_SLOTS + 1):
        at = SLOT_M * (peg - 0.5 * RACK_SLOTS)
        for sy in (-1.0, 1.0):
            half = 0.5 * (PEG_HEIGHT_M - _WIRE_Z_M)
            solid(body, capsule, (_WIRE_M, half, 0.0), (at, sy * _PEG_Y_M, _WIRE_Z_M + half), 3000.0, white)
        solid(body, capsule, (_WIRE_M, _PEG_Y_M, 0.0), (at, 0.0, _WIRE_Z_M), density, white, across)


def add_deep_plate(spec: mujoco.MjSpec) -> None:
    """A deep plate of light melamine, 17 cm across, white with a red rim; a body named plate."""
    body = free_body(spec, "plate")
    density, well, rim, height = 1100.0, _WELL_M, DEEP_PLATE_RADIUS_M, DEEP_PLATE_HEIGHT_M
    foot_ring(body, well - FOOT_M, density)
    half = 0.0022
    collider(body, mujoco.mjtGeom.mjGEOM_CYLINDER, (well, half, 0.0), (0.0, 0.0, FOOT_M + half), density)
    wall_ring(body, (well - 0.002, 0.0050), (rim - 0.001, height - 0.002), 0.0036, density, 20)
    outline = [
        (0.0, 0.0025), (well - 0.006, 0.0025), (well - 0.005, 0.0), (well - 0.001, 0.0), (well + 0.001, 0.0035),
        (rim - 0.0015, height - 0.0050), (rim, height - 0.0020), (rim - 0.001, height), (rim - 0.003, height - 0.0005),
        (well + 0.001, 0.0090), (well - 0.003, 0.0072), (0.0, 0.0072),
    ]  # fmt: skip
    white = paint(spec, "deep_plate", (0.82, 0.81, 0.78), 0.5, 0.7)
    add_visual_mesh(spec, body, "deep_plate_look", lathe(outline), white)
    band = [
        (rim - 0.0020, height - 0.0052), (rim + 0.0004, height - 0.0020), (rim - 0.0008, height + 0.0004),
        (rim - 0.0034, height - 0.0002), (rim - 0.0075, height - 0.0035), (rim - 0.0060, height - 0.0055),
    ]  # fmt: skip
    red = paint(spec, "deep_plate_band", (0.62, 0.15, 0.13), 0.4, 0.6)
    add_visual_mesh(spec, body, "deep_plate_band", lathe(band), red)
