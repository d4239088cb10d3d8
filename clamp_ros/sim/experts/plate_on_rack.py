"""Expert for Plate on Rack: take the plate by its rim, turn it on edge, stand it in a divider, let go.

The gripper comes from outside, pitched 40 degrees, rolled by 90: one finger goes under the rim and one over it, where
the plate is nearest to the arm. It lifts and pitches down within its arm's vertical plane, and leaves that plane only
with the wrist well bent. In the hand the plate keeps the tilt of the grasp, so over the rack, with the plate on edge
below it, the gripper leans out of the vertical by 40 degrees; which way depends on the rack's yaw and on which face
looks where. Of all arms, faces and dividers the first that is in reach is taken; divider and finger are
drawn at random.

Some first grasps fail, by fingers that meet the rim instead of passing over and under it; `Persistent` tries again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.robot import ARMS, REST_POSE
from clamp_ros.geometry.kinematics import WORLD_FROM_BASE
from clamp_ros.geometry.transforms import axis_angle, invert, make
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
    outward_rad,
    reach_m,
    ready_pose,
)
from clamp_ros.sim.experts.trajectory import ArmPath
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.rack import DEEP_PLATE_HEIGHT_M, DEEP_PLATE_RADIUS_M, STANDING_M, slot_middles_m

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

GRASP_PITCH_RAD = np.deg2rad(40.0)
CARRY_PITCH_RAD = np.deg2rad(68.0)
"""After the lift: with the wrist well bent, the gripper may leave its arm's vertical plane."""
_RIM_SLOPE_RAD = np.deg2rad(33.0)
OPENING_GRIP_M = 0.0195
"""Fingers 23 mm apart around a rim of 4 mm: wider, the lower one would touch the table."""
RIM_DEPTH_M = 0.014
"""From the rim's edge to the aim of the pads; dry friction stops them some millimetres short."""
RAISED_M = 0.003
"""Above that aim while the fingers come in: the upper one must not meet the rim."""
BACKED_OFF_M = 0.06
LIFT_M = 0.20
ABOVE_M = 0.145
DROP_M = 0.006


def rim_point(arm: str, world_from_plate: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) where the pads hold the rim of a lying plate: where it is nearest to the arm."""
    middle = world_from_plate[:3, 3]
    azimuth = outward_rad(arm, middle)
    edge = middle - (DEEP_PLATE_RADIUS_M - RIM_DEPTH_M * np.cos(_RIM_SLOPE_RAD)) * np.array(
        [np.cos(azimuth), np.sin(azimuth), 0.0]
    )
    edge[2] += DEEP_PLATE_HEIGHT_M - 0.002 - RIM_DEPTH_M * np.sin(_RIM_SLOPE_RAD)
    return edge


def make_plate_on_rack_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans the whole episode from the poses of plate and rack.

    Raises:
        SimulationError: no arm reaches both in any way.
    """
    poses = world.object_poses()
    plate, rack = poses["plate"], poses["rack"]
    droop = Droop(world.model)
    pace = float(rng.uniform(0.85, 1.15))
    aim = rng.normal(0.0, 0.0015, 2)

    def way(
        arm: str, roll_sign: float, slot_m: float, face: float, spin: float, speed: float
    ) -> Expert:
        pads = rim_point(arm, plate)
        grasp = gripper_pose(arm, pads, GRASP_PITCH_RAD, roll_sign * 0.5 * np.pi)
        gripper_from_plate = invert(grasp) @ plate
        # the plate as it should stand: its face along the rack's x, the point held at the top (turned by `spin`)
        held = plate[:3, :3].T @ (grasp[:3, 3] - plate[:3, 3])
        turn = float(np.arctan2(held[1], held[0]))
        normal, up = face * rack[:3, 0], np.array([0.0, 0.0, 1.0])
        standing = np.column_stack([up, np.cross(normal, up), normal]) @ axis_angle((0.0, 0.0, 1.0), spin - turn)
        middle = rack[:3, :3] @ np.array([slot_m, 0.0, 0.0]) + rack[:3, 3]
        middle[2] = TABLE_TOP_M + STANDING_M + DROP_M
        middle[:2] += aim
        middle -= 0.013 * normal

        def over(up_m: float) -> NDArray[np.float64]:
            goal = make(standing, middle + np.array([0.0, 0.0, up_m])) @ invert(gripper_from_plate)
            return droop.lead(arm, goal, near=lifted)

        def at(shift: NDArray[np.float64]) -> NDArray[np.float64]:
            taken = gripper_pose(arm, pads + shift, GRASP_PITCH_RAD, roll_sign * 0.5 * np.pi)
            return droop.lead(arm, taken, planar=True)

        approach = grasp[:3, 0]
        path = ArmPath(arm, REST_POSE, speed)
        lifted = gripper_pose(arm, pads + np.array([0.0, 0.0, LIFT_M]), CARRY_PITCH_RAD, roll_sign * 0.5 * np.pi)
        placed, above = over(0.0), over(ABOVE_M)
        ready = ready_pose(arm, plate[:3, 3])
        path.move(path.seconds_to(ready), ready)
        hover(path, lambda shift: at(shift - BACKED_OFF_M * approach), OPENING_GRIP_M, rng)
        path.move(0.9, at(np.array([0.0, 0.0, RAISED_M])), blend_s=0.1)
        path.move(0.5, grip_m=CLOSED_M)
        taken_tick = path.ticks
        raised = droop.lead(arm, lifted, planar=True)
        path.move(1.2 * path.seconds_to(raised), raised)
        path.move(1.4 * path.seconds_to(above), above, blend_s=0.2)
        path.move(1.1, placed, blend_s=0.1)
        path.move(0.2)
        held = range(taken_tick, path.ticks)
        path.move(0.4, grip_m=OPENING_GRIP_M)
        away = placed.copy()
        away[:3, 3] -= 0.09 * placed[:3, 0]
        path.move(0.9, away, blend_s=0.05)
        back = ready_pose(arm, rack[:3, 3])
        path.move(path.seconds_to(back), back, blend_s=0.2)
        go_home(path)
        path.move(0.5)
        targets = path.joint_targets()
        make_room(targets, OTHER[arm])
        return Expert(world, targets, held)

    # neither too near, where the wrist would have to fold, nor too far
    arms = sorted(
        ARMS, key=lambda arm: abs(reach_m(arm, plate[:3, 3]) - 0.52) + 0.7 * abs(reach_m(arm, rack[:3, 3]) - 0.50)
    )
    if rng.random() < 0.2:
        arms.reverse()
    slots = rng.permutation(slot_middles_m())
    signs = rng.permutation([1.0, -1.0])

    def leaning(arm: str) -> list[float]:
        """The faces in order of how little the gripper must leave its arm's vertical plane."""
        out = rack[:2, 3] - WORLD_FROM_BASE[arm][:2, 3]
        return sorted((1.0, -1.0), key=lambda face: float(face * rack[:2, 0] @ out))

    return first_possible(
        lambda arm=arm, face=face, slot=slot, spin=spin, sign=sign, slower=slower: way(
            arm, float(sign), float(slot), face, spin, slower * pace
        )
        for slower, slot in ((1.0, slots[0]), (0.7, slots[1]), (0.5, slots[2]))
        for arm in arms
        for spin in (0.0, 0.5, -0.5, 0.9, -0.9)
        for face in leaning(arm)
        for sign in signs
    )
