"""Expert for Drawer Open: pinch the bottom drawer's knob, pull, let go, back off.

The knob is an upright bar, which can be pinched from many sides, and the fingers need not point into the drawer: the
gripper turns only as far from its arm's own vertical plane as the chest's front asks for, and does so after it has
pitched down, with the wrist well bent, so that forearm and wrist roll little. Either arm does it, and from several
sides; which is tried first is drawn at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clamp_ros.contract.robot import ARMS, REST_POSE
from clamp_ros.sim.experts.droop import Droop
from clamp_ros.sim.experts.expert import Expert
from clamp_ros.sim.experts.gripping import (
    CLOSED_M,
    OTHER,
    aimed_pose,
    first_possible,
    go_home,
    hover,
    make_room,
    outward_rad,
    ready_pose,
)
from clamp_ros.sim.experts.trajectory import ArmPath
from clamp_ros.sim.tasks.drawer_open import knob

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

OPENING_GRIP_M = 0.026
"""Fingers 36 mm apart around a bar of 13 mm."""
BACKED_OFF_M = 0.075
_OFF_FRONT_RAD = (np.deg2rad(15.0), np.deg2rad(30.0), np.deg2rad(45.0), np.deg2rad(55.0))
"""How far the fingers may point past the drawer's own direction; farther, they would touch its front."""


def make_drawer_open_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans the whole episode from the chest's pose.

    Raises:
        SimulationError: no arm reaches the knob from any side.
    """
    chest = world.object_poses()["drawer"]
    out = chest[:3, 0]
    inward = float(np.arctan2(-out[1], -out[0]))
    at_knob = knob(world.data)
    droop = Droop(world.model)
    pace, usual_pitch = float(rng.uniform(0.85, 1.15)), float(rng.uniform(np.deg2rad(28.0), np.deg2rad(40.0)))
    pull_m = float(rng.uniform(0.075, 0.10))
    aim = at_knob + rng.normal(0.0, 0.0015, 3)

    def way(arm: str, off_front_rad: float, pitch: float, speed: float) -> Expert:
        azimuth = inward + float(np.clip(turn[arm], -off_front_rad, off_front_rad))
        approach = aimed_pose(np.zeros(3), azimuth, pitch)[:3, 0]

        def at(shift: np.ndarray) -> np.ndarray:
            return droop.lead(arm, aimed_pose(aim + shift, azimuth, pitch))

        path = ArmPath(arm, REST_POSE, speed)
        ready = ready_pose(arm, at_knob)
        path.move(path.seconds_to(ready), ready)
        hover(path, lambda shift: at(shift - BACKED_OFF_M * approach), OPENING_GRIP_M, rng)
        path.move(0.9, at(np.zeros(3)), blend_s=0.2)
        path.move(0.4, grip_m=CLOSED_M)
        path.move(1.4, at(pull_m * out))
        path.move(0.2)
        path.move(0.35, grip_m=OPENING_GRIP_M)
        away = pull_m * out - (BACKED_OFF_M + 0.02) * approach
        path.move(0.8, at(away), blend_s=0.1)
        path.move(path.seconds_to(ready), ready)
        go_home(path)
        targets = path.joint_targets()
        make_room(targets, OTHER[arm])
        return Expert(world, targets)

    turn = {arm: _wrapped(outward_rad(arm, at_knob) - inward) for arm in ARMS}
    arms = sorted(ARMS, key=lambda arm: abs(turn[arm]), reverse=bool(rng.random() < 0.25))
    first = int(rng.integers(1, 4))
    return first_possible(
        lambda arm=arm, off=off, pitch=pitch, slower=slower: way(arm, off, pitch, slower * pace)
        for slower in (1.0, 0.7)
        for arm in arms
        for pitch in (usual_pitch, np.deg2rad(45.0), np.deg2rad(55.0), np.deg2rad(22.0))
        for off in np.roll(_OFF_FRONT_RAD, -first)
    )


def _wrapped(angle_rad: float) -> float:
    return (angle_rad + np.pi) % (2.0 * np.pi) - np.pi
