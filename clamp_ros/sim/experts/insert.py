"""Expert for pens and tools that belong into something open: take it lying, turn it upright, lower it in, let go.

The gripper comes from above, pitched almost straight down, and rolls until its fingers close across the thing, whatever
its yaw. On the way to the goal it pitches up and rolls back: what lay along the gripper's z axis then stands upright.
The end that pointed away from the arm is the upper one. How far the gripper pitches up depends on the reach; the thing
may lean by as much when it is let go. Either arm does it where it reaches both; which is tried first is drawn at
random.
"""

from __future__ import annotations

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
    first_possible,
    go_home,
    gripper_pose,
    hover,
    make_room,
    reach_m,
)
from clamp_ros.sim.experts.trajectory import ArmPath
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.insert import Insert
from clamp_ros.sim.tasks.inserting import RODS

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

CLEARANCE_M = 0.075
BELOW_MIDDLE_M = 0.005
"""Aimed lower than the thing's middle, so that the pads close on its flanks; a gripper stops 2 mm short of its aim."""
LOWEST_M = 0.001
BOTH_REACH_M = 0.56
"""Nearer than this, the less handy arm may do it too: farther, it would have to come in too flat for wide things."""
LIFT_M = 0.16
CARRY_SLOWLY = 1.25
ABOVE_RIM_M = 0.030
"""Of the fingertips when they let go."""
ABOVE_FLOOR_M = 0.012
"""Of the thing's lower end, then."""
LOWER_SHARE = 0.6
"""Which point of a leaning thing goes over the middle of the opening: 0 the pads, 1 the lower end."""
WALL_M = 0.010
"""The lower end stays so far from the opening's walls; for that, it goes nearer to the middle than by LOWER_SHARE."""
CARRY_M = 0.10
"""Above where it is let go."""
SETTLE_S = 1.0
SQUEEZE_M = 0.006
"""How far the fingers are sent past contact, 12 N: squeezed harder, smooth things creep out of the fingertips."""
_SHUT_M = 0.0079
"""The finger position at which the pads touch; each unit more opens by as much on each side."""
_MARGIN_M = 0.012
_PICK_PITCH_RAD = (np.deg2rad(80.0), np.deg2rad(68.0), np.deg2rad(56.0))
_PLACE_PITCH_RAD = tuple(np.deg2rad(angle) for angle in (12.0, 20.0, 28.0, 36.0, 44.0, 52.0))


def roll_across(arm: str, point: NDArray[np.float64], pitch_rad: float, along: NDArray[np.float64]) -> float:
    """Roll, within +-90 degrees, at which the fingers close across a direction."""
    rotation = gripper_pose(arm, point, pitch_rad)[:3, :3]
    forward, side = float(rotation[:, 2] @ along), float(rotation[:, 1] @ along)
    return float(np.arctan2(-side, forward)) if forward >= 0.0 else float(np.arctan2(side, -forward))


def make_insert_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans the whole episode from the poses of the thing and its goal.

    Raises:
        SimulationError: no arm reaches both.
    """
    task = world.task
    if not isinstance(task, Insert):
        raise TypeError(f"task {task.name} does not put a long thing into an opening")
    poses = world.object_poses()
    rod, opening = RODS[task.moved], task.opening
    thing, around = poses[task.moved], poses[opening.name]
    along = thing[:3, 0]
    grip = rod.grip_m + float(rng.normal(0.0, 0.003))
    taken = thing[:3, :3] @ np.array([grip, 0.0, rod.height_m]) + thing[:3, 3]
    taken[:2] += rng.normal(0.0, 0.0015, 2)
    taken[2] = max(taken[2] - BELOW_MIDDLE_M, TABLE_TOP_M + LOWEST_M)
    goal = around[:3, :3] @ np.array([opening.x_m, 0.0, 0.0]) + around[:3, 3] + np.append(rng.normal(0.0, 0.003, 2), 0)
    grip_open = min(_SHUT_M + rod.half_width_m + _MARGIN_M, OPEN_M)
    droop = Droop(world.model)
    pace = float(rng.uniform(0.85, 1.15))

    def way(arm: str, pick_pitch: float, place_pitch: float, speed: float) -> Expert:
        roll = roll_across(arm, taken, pick_pitch, along)
        grasp = gripper_pose(arm, taken, pick_pitch, roll)
        upward = along if grasp[:3, 2] @ along >= 0.0 else -along
        below = rod.length_m * 0.5 + grip * float(upward @ along)
        drop = grasp[:3, :3].T @ (-below * upward)  # from the pads to the lower end, as the gripper sees it

        def lower_share(hanging: NDArray[np.float64]) -> float:
            across = np.abs(around[:2, :2].T @ hanging[:2])
            room = np.array(opening.half_size_m) - rod.half_width_m - WALL_M
            return max(LOWER_SHARE, min(0.9, 1.0 - float((room / np.maximum(across, 1e-9)).min())))

        def over(height: float) -> NDArray[np.float64]:
            """The pads, with the lower half of the thing over the goal, upright or leaning."""
            point = np.array([goal[0], goal[1], height])
            for _ in range(3):
                hanging = gripper_pose(arm, point, place_pitch)[:3, :3] @ drop
                point[:2] = goal[:2] - lower_share(hanging) * hanging[:2]
            point[2] = max(height, TABLE_TOP_M + opening.floor_m + ABOVE_FLOOR_M - hanging[2])
            return point

        release = over(TABLE_TOP_M + opening.rim_m + ABOVE_RIM_M)

        def at(point: NDArray[np.float64], up_m: float, pitch: float, roll: float = 0.0) -> NDArray[np.float64]:
            pose = gripper_pose(arm, point + np.array([0.0, 0.0, up_m]), pitch, roll)
            return droop.lead(arm, pose, planar=True)

        path = ArmPath(arm, REST_POSE, speed)
        hover(path, lambda shift: at(taken + shift, CLEARANCE_M, pick_pitch, roll), grip_open, rng)
        path.move(0.8, at(taken, 0.0, pick_pitch, roll), blend_s=0.2)
        path.move(0.5, grip_m=max(_SHUT_M + rod.half_width_m - SQUEEZE_M, CLOSED_M))
        taken_tick = path.ticks
        path.move(0.8, at(taken, LIFT_M, pick_pitch, roll))
        carried = at(release, CARRY_M, place_pitch)
        path.move(CARRY_SLOWLY * path.seconds_to(carried), carried, blend_s=0.3)
        path.move(0.8, at(release, 0.0, place_pitch), blend_s=0.1)
        path.move(0.2)
        held = range(taken_tick, path.ticks)
        path.move(0.4, grip_m=grip_open)
        path.move(0.7, at(release, CARRY_M, place_pitch), blend_s=0.05)
        go_home(path)
        path.move(SETTLE_S)
        targets = path.joint_targets()
        make_room(targets, OTHER[arm])
        return Expert(world, targets, held)

    arms = sorted(ARMS, key=lambda arm: max(reach_m(arm, taken) + 0.08, reach_m(arm, goal)))
    if rng.random() < 0.4 and reach_m(arms[1], taken) < BOTH_REACH_M:
        arms.reverse()
    return first_possible(
        lambda arm=arm, pick=pick, put=put, slower=slower: way(arm, pick, put, slower * pace)
        for slower in (1.0, 0.7)
        for arm in arms
        for pick in _PICK_PITCH_RAD
        for put in _PLACE_PITCH_RAD
    )
