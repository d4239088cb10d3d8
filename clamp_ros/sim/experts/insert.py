"""Expert for pens and tools that belong into something open: take it lying, turn it upright, lower it in, let go.

The gripper comes from above, pitched almost straight down, and rolls until its fingers close across the thing, whatever
its yaw. On the way to the goal it pitches up and rolls back: what lay along the gripper's z axis then stands upright.
The end that pointed away from the arm is the upper one. How far the gripper pitches up depends on the reach; the thing
may lean by as much when it is let go. Either arm does it where it reaches both; which is tried first is drawn at
random. A thing with room for two hands may be handed over: one arm takes it by what will be its lower part and holds it
out upright, the other takes the upper part and goes on with it. That is how it is done where no arm reaches both, and,
now and then, where the goal is the other arm's.
"""

from __future__ import annotations

import itertools
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
from clamp_ros.sim.experts.trajectory import ArmPath, together
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
APPROACH_M = 0.08
"""How far from the thing a hand stops before it takes it from the other, and to where the other withdraws."""
HAND_OVER_S = 0.15
"""Rest before the next hand moves."""
MEETING_M, MEETING_SPREAD_M = np.array([0.0, -0.02, 0.26]), np.array([0.02, 0.012, 0.015])
"""Where hands meet: between the arms' bases, above everything on the table."""
ELSEWHERE_M = 0.10
"""The goal is the other arm's where it is nearer to that by so much."""
HAND_OVER_SHARE = 0.5
_HOLD_PITCH_RAD = tuple(np.deg2rad(angle) for angle in (12.0, 18.0, 24.0))
_MORE_PITCH_RAD = tuple(np.deg2rad(angle) for angle in (0.0, 10.0, -10.0, 20.0))
"""Held out at a pitch, received at the same from the other side: upright at twice that pitch, or nearly so."""
_PICK_PITCH_RAD = (np.deg2rad(80.0), np.deg2rad(68.0), np.deg2rad(56.0))
_PLACE_PITCH_RAD = tuple(np.deg2rad(angle) for angle in (12.0, 20.0, 28.0, 36.0, 44.0, 52.0))


def roll_across(arm: str, point: NDArray[np.float64], pitch_rad: float, along: NDArray[np.float64]) -> float:
    """Roll, within +-90 degrees, at which the fingers close across a direction."""
    rotation = gripper_pose(arm, point, pitch_rad)[:3, :3]
    forward, side = float(rotation[:, 2] @ along), float(rotation[:, 1] @ along)
    return float(np.arctan2(-side, forward)) if forward >= 0.0 else float(np.arctan2(side, -forward))


class _Insertion:
    """One episode: what is to be moved whereto, and the variety that all ways of doing it share."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        task = world.task
        if not isinstance(task, Insert):
            raise TypeError(f"task {task.name} does not put a long thing into an opening")
        poses = world.object_poses()
        self.world, self.rng = world, rng
        self.rod, self.opening = RODS[task.moved], task.opening
        self.thing, self._around = poses[task.moved], poses[self.opening.name]
        self.along = self.thing[:3, 0]
        self.grip_m = self.rod.grip_m + float(rng.normal(0.0, 0.003))
        self._aside = rng.normal(0.0, 0.0015, 2)
        middle = self._around[:3, :3] @ np.array([self.opening.x_m, 0.0, 0.0]) + self._around[:3, 3]
        self.goal = middle + np.append(rng.normal(0.0, 0.003, 2), 0.0)
        self.grip_open = min(_SHUT_M + self.rod.half_width_m + _MARGIN_M, OPEN_M)
        self.grip_closed = max(_SHUT_M + self.rod.half_width_m - SQUEEZE_M, CLOSED_M)
        self._droop = Droop(world.model)
        self.pace = float(rng.uniform(0.85, 1.15))

    def taken(self, grip_m: float) -> NDArray[np.float64]:
        """(3,) where the pads take the thing, so far along it."""
        point = self.thing[:3, :3] @ np.array([grip_m, 0.0, self.rod.height_m]) + self.thing[:3, 3]
        point[:2] += self._aside
        point[2] = max(point[2] - BELOW_MIDDLE_M, TABLE_TOP_M + LOWEST_M)
        return point

    def at(
        self, arm: str, point: NDArray[np.float64], up_m: float, pitch: float, roll: float = 0.0
    ) -> NDArray[np.float64]:
        """(4, 4) what the gripper is sent to so that its pads, under gravity, get to a point."""
        pose = gripper_pose(arm, point + np.array([0.0, 0.0, up_m]), pitch, roll)
        return self._droop.lead(arm, pose, planar=True)

    def upward(self, arm: str, point: NDArray[np.float64], pitch: float) -> NDArray[np.float64]:
        """(3,) the direction along the lying thing that will point up once the gripper has rolled back."""
        grasp = gripper_pose(arm, point, pitch, roll_across(arm, point, pitch, self.along))
        return self.along if grasp[:3, 2] @ self.along >= 0.0 else -self.along

    def take(self, path: ArmPath, arm: str, point: NDArray[np.float64], pitch: float) -> int:
        """Takes the thing and lifts it; the tick at which it is in the hand."""
        roll = roll_across(arm, point, pitch, self.along)
        hover(path, lambda shift: self.at(arm, point + shift, CLEARANCE_M, pitch, roll), self.grip_open, self.rng)
        path.move(0.8, self.at(arm, point, 0.0, pitch, roll), blend_s=0.2)
        path.move(0.5, grip_m=self.grip_closed)
        taken_tick = path.ticks
        path.move(0.8, self.at(arm, point, LIFT_M, pitch, roll))
        return taken_tick

    def put(self, path: ArmPath, arm: str, drop: NDArray[np.float64], pitch: float) -> int:
        """Brings the thing over its goal, lets go and goes home; the tick until which it is in the hand.

        Args:
            path: of the arm.
            arm: that has it.
            drop: (3,) from the pads to the thing's lower end, as the gripper sees it.
            pitch: of the gripper when it lets go.
        """
        release = self._over(arm, drop, pitch)
        carried = self.at(arm, release, CARRY_M, pitch)
        path.move(CARRY_SLOWLY * path.seconds_to(carried), carried, blend_s=0.3)
        path.move(0.8, self.at(arm, release, 0.0, pitch), blend_s=0.1)
        path.move(0.2)
        let_go_tick = path.ticks
        path.move(0.4, grip_m=self.grip_open)
        path.move(0.7, self.at(arm, release, CARRY_M, pitch), blend_s=0.05)
        go_home(path)
        path.move(SETTLE_S)
        return let_go_tick

    def _over(self, arm: str, drop: NDArray[np.float64], pitch: float) -> NDArray[np.float64]:
        """(3,) the pads, with the lower half of the thing over the goal, upright or leaning."""
        height = TABLE_TOP_M + self.opening.rim_m + ABOVE_RIM_M
        point = np.array([self.goal[0], self.goal[1], height])
        for _ in range(3):
            hanging = gripper_pose(arm, point, pitch)[:3, :3] @ drop
            point[:2] = self.goal[:2] - self._lower_share(hanging) * hanging[:2]
        point[2] = max(height, TABLE_TOP_M + self.opening.floor_m + ABOVE_FLOOR_M - hanging[2])
        return point

    def _lower_share(self, hanging: NDArray[np.float64]) -> float:
        across = np.abs(self._around[:2, :2].T @ hanging[:2])
        room = np.array(self.opening.half_size_m) - self.rod.half_width_m - WALL_M
        return max(LOWER_SHARE, min(0.9, 1.0 - float((room / np.maximum(across, 1e-9)).min())))

    def with_one_arm(self, arm: str, pick_pitch: float, place_pitch: float, speed: float) -> Expert:
        """Takes it and puts it in."""
        point = self.taken(self.grip_m)
        upward = self.upward(arm, point, pick_pitch)
        grasp = gripper_pose(arm, point, pick_pitch, roll_across(arm, point, pick_pitch, self.along))
        below_m = 0.5 * self.rod.length_m + self.grip_m * float(upward @ self.along)
        path = ArmPath(arm, REST_POSE, speed)
        taken_tick = self.take(path, arm, point, pick_pitch)
        let_go_tick = self.put(path, arm, grasp[:3, :3].T @ (-below_m * upward), place_pitch)
        targets = path.joint_targets()
        make_room(targets, OTHER[arm])
        return Expert(self.world, targets, range(taken_tick, let_go_tick))

    def handed_over(
        self, giver: str, hands_m: tuple[float, float], meeting: NDArray[np.float64], pick_pitch: float,
        hold_pitch: float, place_pitch: float, speed: float,
    ) -> Expert:  # fmt: skip
        """One arm takes it and holds it out at (3,) `meeting`, the other takes it from there and puts it in."""
        taker = OTHER[giver]
        upward = self.upward(giver, self.taken(0.0), pick_pitch)
        ups_m = sorted(grip_m * float(upward @ self.along) for grip_m in hands_m)
        point = self.taken(ups_m[0] * float(upward @ self.along))
        grasp = gripper_pose(giver, point, pick_pitch, roll_across(giver, point, pick_pitch, self.along))
        give = ArmPath(giver, REST_POSE, speed)
        taken_tick = self.take(give, giver, point, pick_pitch)
        held_out = self.at(giver, meeting, 0.0, hold_pitch)
        give.move(CARRY_SLOWLY * give.seconds_to(held_out), held_out, blend_s=0.3)

        upright = gripper_pose(giver, meeting, hold_pitch)[:3, :3] @ grasp[:3, :3].T @ upward
        upper = meeting + (ups_m[1] - ups_m[0]) * upright
        receive = ArmPath(taker, REST_POSE, speed)
        met = gripper_pose(taker, upper, hold_pitch)
        before = self.at(taker, upper - APPROACH_M * met[:3, 0], 0.0, hold_pitch)
        seconds = receive.seconds_to(before)
        receive.wait_until(give.end_s - seconds / speed)
        receive.move(seconds, before, self.grip_open)
        receive.wait_until(give.end_s + HAND_OVER_S)
        receive.move(1.0, self.at(taker, upper, 0.0, hold_pitch))
        receive.move(0.5, grip_m=self.grip_closed)
        give.wait_until(receive.end_s + HAND_OVER_S)
        give.move(0.5, grip_m=self.grip_open)
        give.move(1.0, self.at(giver, meeting - APPROACH_M * held_out[:3, 0], 0.0, hold_pitch), blend_s=0.05)
        receive.wait_until(give.end_s)
        go_home(give)
        lower = -(0.5 * self.rod.length_m + ups_m[1]) * upright
        let_go_tick = self.put(receive, taker, met[:3, :3].T @ lower, place_pitch)
        return Expert(self.world, together(give, receive), range(taken_tick, let_go_tick))


def make_insert_expert(world: World, rng: np.random.Generator) -> Expert:
    """Plans the whole episode from the poses of the thing and its goal.

    Raises:
        SimulationError: no arm reaches both, and it cannot be handed over.
    """
    insertion = _Insertion(world, rng)
    taken, goal = insertion.taken(insertion.grip_m), insertion.goal
    arms = sorted(ARMS, key=lambda arm: max(reach_m(arm, taken) + 0.08, reach_m(arm, goal)))
    if rng.random() < 0.4 and reach_m(arms[1], taken) < BOTH_REACH_M:
        arms.reverse()
    alone = (
        lambda arm=arm, pick=pick, put=put, slower=slower: insertion.with_one_arm(
            arm, pick, put, slower * insertion.pace
        )
        for slower in (1.0, 0.7)
        for arm in arms
        for pick in _PICK_PITCH_RAD
        for put in _PLACE_PITCH_RAD
    )
    if insertion.rod.hands_m is None:
        return first_possible(alone)
    hands_m: tuple[float, float] = insertion.rod.hands_m
    giver = min(ARMS, key=lambda arm: reach_m(arm, taken))
    meeting = MEETING_M + rng.normal(0.0, MEETING_SPREAD_M)
    handing_over = (
        lambda pick=pick, hold=hold, more=more, slower=slower: insertion.handed_over(
            giver, hands_m, meeting, pick, hold, 2.0 * hold + more, slower * insertion.pace
        )
        for slower in (1.0, 0.7)
        for pick in _PICK_PITCH_RAD
        for hold in _HOLD_PITCH_RAD
        for more in _MORE_PITCH_RAD
    )
    elsewhere = reach_m(OTHER[giver], goal) < reach_m(giver, goal) - ELSEWHERE_M
    ways = (handing_over, alone) if elsewhere and rng.random() < HAND_OVER_SHARE else (alone, handing_over)
    return first_possible(itertools.chain(*ways))
