"""Expert for Drawer Open: pinch the bottom drawer's knob, pull, let go, back off; and how any drawer is moved.

The knob is an upright bar, which can be pinched from many sides, and the fingers need not point into the drawer. Where
the front of the chest allows it, the gripper stays in its arm's own vertical plane; else it turns from that plane only
as far as the front asks for, and does so after it has pitched down, with the wrist well bent, so that forearm and wrist
roll little. Either arm does it, and from several sides; which is tried first is drawn at random. A drawer is pushed in
one of two ways: by the pinched knob, or by shut fingers against the knob.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.robot import ARMS, REST_POSE
from clamp_ros.sim.experts.droop import Droop
from clamp_ros.sim.experts.expert import Expert
from clamp_ros.sim.experts.gripping import (
    CLOSED_M,
    OPEN_M,
    OTHER,
    aimed_pose,
    first_possible,
    go_home,
    gripper_pose,
    hover,
    make_room,
    outward_rad,
    reach_m,
    ready_pose,
)
from clamp_ros.sim.experts.trajectory import ArmPath
from clamp_ros.sim.tasks.drawer import KNOB_RADIUS_M
from clamp_ros.sim.tasks.drawer_open import knob, opening_m

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

PULL_M = (0.075, 0.10)
"""How far a drawer is to be open, drawn at random."""
OPENING_GRIP_M = 0.026
"""Fingers 36 mm apart around a bar of 13 mm: as wide as they may come to the front from aside."""
STRAIGHT_RAD = np.deg2rad(20.0)
"""Fingers that point into the drawer to within this open wide, 56 mm, and need not come as exactly."""
SHUT_FINGERS_M = 0.0079
BACKED_OFF_M = 0.075
FINGERTIP_M = 0.010
"""From the pads' middle to the end of the fingers."""
_OFF_FRONT_RAD = (np.deg2rad(15.0), np.deg2rad(30.0), np.deg2rad(45.0))
"""How far the fingers may point past the drawer's own direction."""
_FAR_OFF_FRONT_RAD = (np.deg2rad(55.0),)
"""Where nothing else is in reach: the palm may meet the other knob; farther, fingers would touch the front."""
_HANDY_RAD = np.deg2rad(100.0)
"""An arm that would have to turn farther from its own plane hits the front, or the other knob, with its palm."""


def make_drawer_open_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans the whole episode from the chest's pose.

    Raises:
        SimulationError: no arm reaches the knob from any side.
    """
    pull_m = float(rng.uniform(*PULL_M)) - opening_m(world.model, world.data, "bottom")
    return Expert(world, move_drawer(world, rng, "bottom", pull_m))


def move_drawer(world: World, rng: np.random.Generator, drawer: str, move_m: float) -> NDArray[np.float64]:
    """(T, 14) targets, from rest to rest, that move a drawer of the chest outwards by move_m; inwards where negative.

    Raises:
        SimulationError: no arm reaches its knob from any side.
    """
    out = world.object_poses()["drawer"][:3, 0]
    inward = float(np.arctan2(-out[1], -out[0]))
    at_knob = knob(world.data, drawer)
    droop = Droop(world.model)
    pace, usual_pitch = float(rng.uniform(0.85, 1.15)), float(rng.uniform(np.deg2rad(28.0), np.deg2rad(40.0)))
    pinched = move_m > 0.0 or bool(rng.random() < 0.5)
    aim = at_knob + rng.normal(0.0, 0.0015, 3)
    if not pinched:
        aim += (KNOB_RADIUS_M + FINGERTIP_M) * out

    def way(arm: str, off_front_rad: float, pitch: float, speed: float) -> NDArray[np.float64]:
        off = float(np.clip(turn[arm], -off_front_rad, off_front_rad))
        azimuth = inward + off
        in_plane = abs(turn[arm]) <= off_front_rad
        approach = aimed_pose(np.zeros(3), azimuth, pitch)[:3, 0]

        def at(shift: NDArray[np.float64]) -> NDArray[np.float64]:
            if in_plane:  # and stays in it: a little out of it, a straight wrist would have to roll
                return droop.lead(arm, gripper_pose(arm, aim + shift, pitch), planar=True)
            return droop.lead(arm, aimed_pose(aim + shift, azimuth, pitch))

        path = ArmPath(arm, REST_POSE, speed)
        ready = ready_pose(arm, at_knob)
        path.move(path.seconds_to(ready), ready)
        around_m = OPEN_M if abs(off) < STRAIGHT_RAD else OPENING_GRIP_M
        open_m = around_m if pinched else SHUT_FINGERS_M
        hover(path, lambda shift: at(shift - BACKED_OFF_M * approach), open_m, rng)
        path.move(0.9, at(np.zeros(3)), blend_s=0.2)
        if pinched:
            path.move(0.4, grip_m=CLOSED_M)
        path.move(1.4, at(move_m * out))
        path.move(0.2)
        if pinched:
            path.move(0.35, grip_m=around_m)
        away = move_m * out - (BACKED_OFF_M + 0.02) * approach
        path.move(0.8, at(away), blend_s=0.1)
        path.move(path.seconds_to(ready), ready)
        go_home(path)
        targets = path.joint_targets()
        make_room(targets, OTHER[arm])
        return targets

    turn = {arm: _wrapped(outward_rad(arm, at_knob) - inward) for arm in ARMS}
    arms = sorted(ARMS, key=lambda arm: abs(turn[arm]) + abs(reach_m(arm, at_knob) - 0.45))
    if rng.random() < 0.25 and abs(turn[arms[1]]) < _HANDY_RAD:
        arms.reverse()
    first = int(rng.integers(1, 4)) - (not pinched)  # shut fingers slip off a knob that they come to from aside
    return first_possible(
        lambda arm=arm, off=off, pitch=pitch, slower=slower: way(arm, off, pitch, slower * pace)
        for slower in (1.0, 0.7)
        for arm, sides in product(arms, (np.roll(_OFF_FRONT_RAD, -first), _FAR_OFF_FRONT_RAD))
        for pitch in (usual_pitch, np.deg2rad(45.0), np.deg2rad(55.0), np.deg2rad(22.0))
        for off in sides
    )


def _wrapped(angle_rad: float) -> float:
    return (angle_rad + np.pi) % (2.0 * np.pi) - np.pi
