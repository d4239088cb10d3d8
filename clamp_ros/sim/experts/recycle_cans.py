"""Expert for Recycle Cans: one upright can after the other is taken round its middle and dropped into a bin.

The gripper works in the vertical plane through its arm's base and comes from above, so a can's yaw does not matter.
Which cans, in which order and into which bins is drawn at random; each by the arm that is handy for it, so that both
arms take part where the leftmost can is among them. A second attempt is about the cans that are left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import ARMS, REST_POSE
from clamp_ros.sim.experts.droop import Droop
from clamp_ros.sim.experts.expert import Expert
from clamp_ros.sim.experts.gripping import (
    CLOSED_M,
    OTHER,
    first_possible,
    go_home,
    gripper_pose,
    hover,
    make_room,
    reach_m,
    ready_pose,
)
from clamp_ros.sim.experts.trajectory import ArmPath
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.bins import BIN_HEIGHT_M, BINS, CANS
from clamp_ros.sim.tasks.recycle_cans import WANTED, cans_inside, in_bin
from clamp_ros.sim.tasks.task import object_pose, tilt_rad

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

WIDE_M = 0.0365
"""Fingers 57 mm apart around a can of 50 mm."""
GRASP_M = 0.062
"""Height of the pads above a can's underside."""
CLEARANCE_M = 0.10
CLEAR_OF_RIM_M = 0.030
"""Of a can's underside when it is carried over a bin."""
INTO_BIN_M = 0.030
"""How far below the rim the underside is when the can is let go."""
_STANDING_RAD = np.deg2rad(10.0)


def make_recycle_cans_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans for as many cans as are still wanted.

    Raises:
        SimulationError: too few cans stand, or an arm does not reach them.
    """
    inside = cans_inside(world.model, world.data)
    standing = [c for c in CANS if c not in inside and tilt_rad(world.data, c) < _STANDING_RAD]
    missing = WANTED - len(inside)
    if len(standing) < missing:
        raise SimulationError(f"{len(inside)} cans are in bins and {len(standing)} still stand, {WANTED} are wanted")
    chosen = [standing[i] for i in rng.permutation(len(standing))[: max(missing, 0)]]
    # one can a bin: on top of another, standing one it would stick out
    free = [str(b) for b in rng.permutation(list(BINS)) if not any(in_bin(world.data, can, str(b)) for can in inside)]
    plans = [_plan(world, rng, can, to) for can, to in zip(chosen, free, strict=False)]
    return Expert(world, np.concatenate(plans) if plans else REST_POSE[None])


def _plan(world: World, rng: np.random.Generator, can: str, into: str) -> NDArray[np.float64]:
    """(T, 14) targets, from rest to rest, that put a can into a bin."""
    at_can = object_pose(world.data, can)[:3, 3]
    droop = Droop(world.model)
    pace, usual_pitch = float(rng.uniform(0.85, 1.15)), float(rng.uniform(np.deg2rad(48.0), np.deg2rad(60.0)))
    aim = np.array([*(at_can[:2] + rng.normal(0.0, 0.0015, 2)), TABLE_TOP_M + GRASP_M + float(rng.normal(0.0, 0.003))])
    bin_xy = object_pose(world.data, into)[:2, 3] + rng.normal(0.0, 0.008, 2)
    over = BIN_HEIGHT_M + CLEAR_OF_RIM_M + float(rng.uniform(0.0, 0.015))

    def way(arm: str, pitch: float, speed: float) -> NDArray[np.float64]:
        def at(point: NDArray[np.float64], up_m: float = 0.0) -> NDArray[np.float64]:
            return droop.lead(arm, gripper_pose(arm, point + np.array([0.0, 0.0, up_m]), pitch), planar=True)

        above_bin = np.array([*bin_xy, aim[2] + over])
        path = ArmPath(arm, REST_POSE, speed)
        hover(path, lambda shift: at(aim + shift, CLEARANCE_M), WIDE_M, rng)
        path.move(1.0, at(aim), blend_s=0.2)
        path.move(0.5, grip_m=CLOSED_M)
        lifted, carried = at(aim, over), at(above_bin)
        path.move(1.0, lifted)
        path.move(1.2 * path.seconds_to(carried), carried, blend_s=0.3)
        let_go = at(above_bin, BIN_HEIGHT_M - INTO_BIN_M - over)
        path.move(0.7, let_go, blend_s=0.1)
        path.move(0.2)
        path.move(0.4, grip_m=WIDE_M)
        path.move(0.7, carried, blend_s=0.05)
        ready = ready_pose(arm, np.array([*bin_xy, 0.0]))
        path.move(path.seconds_to(ready), ready, blend_s=0.2)
        go_home(path)
        targets = path.joint_targets()
        make_room(targets, OTHER[arm])
        return targets

    # the arm whose reach to can and bin is the most convenient, now and then the other
    arms = sorted(ARMS, key=lambda arm: abs(reach_m(arm, at_can) - 0.45) + 0.5 * max(reach_m(arm, bin_xy) - 0.6, 0.0))
    if rng.random() < 0.15:
        arms.reverse()
    return first_possible(
        lambda arm=arm, pitch=pitch, slower=slower: way(arm, pitch, slower * pace)
        for slower in (1.0, 0.7)
        for arm in arms
        for pitch in (usual_pitch, np.deg2rad(45.0), np.deg2rad(40.0), np.deg2rad(65.0))
    )
