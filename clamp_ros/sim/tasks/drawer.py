"""A small chest of two drawers, by our own geometry.

Its frame's origin is the middle of its underside, z is up, and x points out of its front, the way the drawers open.
"""

from __future__ import annotations

import mujoco

from clamp_ros.sim.tasks.shapes import LYING, box, collider, drawn, free_body, paint, solid

DRAWERS = ("top", "bottom")
DRAWER_WIDTH_M = 0.200
DRAWER_DEPTH_M = 0.150
DRAWER_HEIGHT_M = 0.132
DRAWER_TRAVEL_M = 0.110
KNOB_RADIUS_M = 0.0065
KNOB_HEIGHT_M = {"top": 0.098, "bottom": 0.036}
KNOB_REACH_M = 0.5 * DRAWER_DEPTH_M + 0.024
"""From the chest's middle to a knob's, along x, with its drawer shut."""

_KNOB_HALF_M = 0.012
_PANEL_M = 0.007
_FRONT_M = 0.008
_FRICTION_N = 1.2
_DAMPING = 6.0


def drawer_joint(drawer: str) -> str:
    """Name of the slide joint, and of the body, of a drawer: top or bottom."""
    return f"drawer/{drawer}"


def knob_site(drawer: str) -> str:
    """Name of the site in the middle of a drawer's knob."""
    return f"drawer/{drawer}_knob"


def add_drawer(spec: mujoco.MjSpec) -> None:
    """A birch chest, 20 x 15 x 13 cm; a blue drawer above a green one, each with an upright brass bar to pull it by."""
    body = free_body(spec, "drawer")
    birch = paint(spec, "drawer_birch", (0.72, 0.56, 0.38), 0.1, 0.2)
    brass = paint(spec, "drawer_brass", (0.80, 0.62, 0.24), 0.7, 0.7)
    x, y, z, panel, density = 0.5 * DRAWER_DEPTH_M, 0.5 * DRAWER_WIDTH_M, DRAWER_HEIGHT_M, 0.5 * _PANEL_M, 900.0
    foot = 0.004
    for sx in (-1.0, 1.0):
        for sy in (-1.0, 1.0):
            place = (sx * (x - 0.015), sy * (y - 0.015), foot)
            collider(body, mujoco.mjtGeom.mjGEOM_SPHERE, (foot, 0.0, 0.0), place, density)
    for height in (foot + panel, 0.5 * (foot + z), z - panel):
        box(body, (x, y, panel), (0.0, 0.0, height), density, birch)
    for sy in (-1.0, 1.0):
        box(body, (x, panel, 0.5 * (z - foot)), (0.0, sy * (y - panel), 0.5 * (z + foot)), density, birch)
    box(body, (panel, y, 0.5 * (z - foot)), (panel - x, 0.0, 0.5 * (z + foot)), density, birch)
    for name, colour in (("top", (0.24, 0.40, 0.58)), ("bottom", (0.30, 0.52, 0.36))):
        _add_drawer(body, name, paint(spec, f"drawer_{name}", colour, 0.2, 0.3), birch, brass)


def _add_drawer(
    chest: mujoco.MjsBody, name: str, front: str, wood: str, brass: str
) -> None:
    """An open box that slides along x, with a front panel and a T-shaped knob; parent and child do not collide."""
    body = chest.add_body(name=drawer_joint(name), pos=(0.0, 0.0, KNOB_HEIGHT_M[name]))
    body.add_joint(
        name=drawer_joint(name),
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=(1.0, 0.0, 0.0),
        range=(0.0, DRAWER_TRAVEL_M),
        damping=_DAMPING,
        frictionloss=_FRICTION_N,
    )
    x, y, z, density = 0.5 * DRAWER_DEPTH_M, 0.5 * DRAWER_WIDTH_M - 2.0 * _PANEL_M, 0.024, 500.0
    wall = 0.003
    box(body, (0.5 * _FRONT_M, y + 0.008, 0.028), (x - 0.5 * _FRONT_M + 0.004, 0.0, 0.0), density, front)
    inner = x - 0.5 * (_PANEL_M + _FRONT_M)
    box(body, (inner, y, 0.5 * wall), (-0.001, 0.0, -z), density, wood)
    for sy in (-1.0, 1.0):
        box(body, (inner, wall, z - 0.006), (-0.001, sy * (y - wall), -0.005), density, wood)
    box(body, (wall, y, z - 0.006), (wall - x + _PANEL_M + 0.001, 0.0, -0.005), density, wood)
    neck = 0.5 * (KNOB_REACH_M - x)
    place = (x + neck, 0.0, 0.0)
    capsule, cylinder = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER
    solid(body, cylinder, (0.004, neck, 0.0), place, density, brass, LYING)
    drawn(body, cylinder, (0.008, 0.001, 0.0), (x + 0.005, 0.0, 0.0), brass, LYING)
    solid(body, capsule, (KNOB_RADIUS_M, _KNOB_HALF_M, 0.0), (KNOB_REACH_M, 0.0, 0.0), density, brass)
    body.add_site(name=knob_site(name), pos=(KNOB_REACH_M, 0.0, 0.0), group=5)
