"""Expert for Mug on Plate: pinch the mug's rim, carry it over the plate, set it down, let go, go back to rest.

How it grasps. The gripper works in the vertical plane through its arm's base: from the base, one draws the tangent to
the mug's wall; where it touches, the plane is tangent to the wall and the fingers close straight across it. So the
forearm and wrist hardly roll, the gripper may lean forward by any angle, which lengthens the reach, and the grasp is a
smooth function of the mug's position. There are two tangents; the handle must not be in the way of the one chosen.

Which arm: a function of the scene, `choose_arm`. Which side of the mug: `choose_side`. The other arm stays at rest, or
leans back where mug and plate stand on opposite sides and it would be in the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.robot import REST_POSE
from clamp_ros.geometry.kinematics import WORLD_FROM_BASE
from clamp_ros.sim.experts.droop import Droop
from clamp_ros.sim.experts.expert import Expert
from clamp_ros.sim.experts.gripping import CLOSED_M, HOLD_S, OPEN_M, OTHER, gripper_pose, make_room
from clamp_ros.sim.experts.trajectory import ArmPath
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.objects import MUG_HEIGHT_M, MUG_RADIUS_M, MUG_WALL_M, PLATE_WELL_HEIGHT_M

if TYPE_CHECKING:
    from clamp_ros.sim.world import World

PINCH_DEPTH_M = 0.020
CLEARANCE_M = 0.075
LIFT_M = 0.090
RELEASE_LEAD_M = 0.009
"""While lowering, the gripper trails its target by this much towards the base; the mug stays where it touches."""
ACROSS_M = 0.58
"""Reaching farther than this, mug and plate stand on opposite sides, and the idle gripper is in the way."""
_RIM_RADIUS_M = MUG_RADIUS_M - 0.5 * MUG_WALL_M
_HANDLE_CLEARANCE_RAD = np.deg2rad(60.0)
_PITCH_REACH_M = (0.50, 0.70)
_PITCH_RAD = (np.deg2rad(60.0), np.deg2rad(45.0))


def choose_arm(mug_xy: NDArray[np.float64], plate_xy: NDArray[np.float64]) -> str:
    """The arm on whose side mug and plate are together; if they are on opposite sides, the mug's; in doubt, the right.

    The thresholds lie half-way between what the grid's columns can give, so that no jitter changes the arm.
    """
    both = float(mug_xy[0] + plate_xy[0])
    if abs(both) > 0.1:
        return "left" if both < 0.0 else "right"
    return "left" if mug_xy[0] < -0.1 else "right"


def pinch_point(arm: str, centre_xy: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """(2,) where the tangent from the arm's base touches the rim of a mug that stands at centre_xy.

    Args:
        arm: left or right.
        centre_xy: (2,) the mug's axis.
        side: +1 or -1, the tangent to the left or to the right of the mug as the arm sees it.
    """
    to_base = WORLD_FROM_BASE[arm][:2, 3] - centre_xy
    distance = float(np.linalg.norm(to_base))
    angle = -side * float(np.arccos(min(_RIM_RADIUS_M / distance, 1.0)))
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    return centre_xy + rotation @ to_base * (_RIM_RADIUS_M / distance)


def choose_side(arm: str, world_from_mug: NDArray[np.float64]) -> int:
    """The side towards the plate's row (positive y), unless the handle is within 60 degrees of the pinch point."""
    preferred = 1 if arm == "left" else -1
    direction = pinch_point(arm, world_from_mug[:2, 3], preferred) - world_from_mug[:2, 3]
    handle = world_from_mug[:2, 0] / np.linalg.norm(world_from_mug[:2, 0])
    near_handle = float(handle @ direction) / _RIM_RADIUS_M > np.cos(_HANDLE_CLEARANCE_RAD)
    return -preferred if near_handle else preferred


def make_mug_on_plate_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans the whole episode from the poses of mug and plate; speed and waypoints vary a little with `rng`.

    Raises:
        SimulationError: mug or plate is out of the arm's reach.
    """
    poses = world.object_poses()
    mug, plate = poses["mug"], poses["plate"]
    arm = choose_arm(mug[:2, 3], plate[:2, 3])
    side = choose_side(arm, mug)
    goal_xy = plate[:2, 3] + rng.normal(0.0, 0.003, 2)
    pinch = pinch_point(arm, mug[:2, 3] + rng.normal(0.0, 0.002, 2), side)
    droop = Droop(world.model)
    base = WORLD_FROM_BASE[arm][:2, 3]
    outward = (goal_xy - base) / np.linalg.norm(goal_xy - base)
    release = pinch_point(arm, goal_xy + RELEASE_LEAD_M * outward, side)
    reach = max(float(np.linalg.norm(point - base)) for point in (pinch, release))
    pitch = float(np.interp(reach, _PITCH_REACH_M, _PITCH_RAD)) + float(rng.normal(0.0, 0.02))
    height = TABLE_TOP_M + MUG_HEIGHT_M - PINCH_DEPTH_M

    def at(xy: NDArray[np.float64], z: float) -> NDArray[np.float64]:
        return droop.lead(arm, gripper_pose(arm, np.array([*xy, z]), pitch))

    path = ArmPath(arm, REST_POSE, speed=float(rng.uniform(0.85, 1.15)))
    above = at(pinch + rng.normal(0.0, 0.006, 2), height + CLEARANCE_M + float(rng.uniform(-0.01, 0.01)))
    lift = LIFT_M + float(rng.uniform(-0.01, 0.01))
    lifted, carried = at(pinch, height + lift), at(release, height + lift)
    lowered, left_alone = at(release, height + PLATE_WELL_HEIGHT_M), at(release, height + CLEARANCE_M)
    path.move(path.seconds_to(above), above, OPEN_M)
    path.move(0.8, at(pinch, height), blend_s=0.3)
    path.move(0.45, grip_m=CLOSED_M)
    taken_tick = path.ticks
    path.move(0.8, lifted)
    path.move(path.seconds_to(carried), carried, blend_s=0.5)
    path.move(0.8, lowered, blend_s=0.3)
    held = range(taken_tick, path.ticks)
    path.move(0.35, grip_m=OPEN_M)
    path.move(0.6, left_alone, blend_s=0.1)
    path.move(path.seconds_to(path.start_pose), path.start_pose, float(REST_POSE[6]), blend_s=0.35)
    path.move(HOLD_S)
    targets = path.joint_targets()
    if reach > ACROSS_M:
        make_room(targets, OTHER[arm])
    return Expert(world, targets, held)


