"""Success of the drawer, inserting and rack tasks at its edges both ways, their layouts, and their experts."""

from __future__ import annotations

from functools import cache

import mujoco
import numpy as np
import pytest
from expert_play import play

from clamp_ros.contract.robot import CONTROL_RATE_HZ, GRIPPER_INDICES, REST_POSE
from clamp_ros.geometry.transforms import axis_angle, quat_xyzw_from_rotation, wxyz_from_xyzw
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.tasks.drawer import drawer_joint
from clamp_ros.sim.tasks.drawer_open import OPEN_M, SHUT_M
from clamp_ros.sim.tasks.insert import Insert
from clamp_ros.sim.tasks.inserting import COMPARTMENTS, RODS, length_inside_m
from clamp_ros.sim.tasks.rack import SLOT_M, STANDING_M
from clamp_ros.sim.tasks.task import object_pose
from clamp_ros.sim.world import World

TASKS = (
    "drawer_open", "drawer_open_easy", "pen_in_container", "can_opener_in_caddy", "screwdriver_in_caddy",
    "plate_on_rack",
)  # fmt: skip


@cache
def world(task: str) -> World:
    return World(task, look="primitive")


def put(world: World, name: str, position: np.ndarray, rotation: np.ndarray, settle_s: float = 1.5) -> None:
    start = world.model.joint(name).qposadr[0]
    world.data.qpos[start : start + 3] = position
    world.data.qpos[start + 3 : start + 7] = wxyz_from_xyzw(quat_xyzw_from_rotation(rotation))
    for _ in range(round(settle_s * CONTROL_RATE_HZ)):
        world.step(REST_POSE)
    mujoco.mj_fwdPosition(world.model, world.data)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_come_to_rest_where_they_were_put_and_are_not_done(task: str) -> None:
    scene = world(task)
    for seed in range(3):
        scene.reset(seed)
        assert not scene.success()
        assert scene.progress() == 0
        assert all(abs(pose[2, 3]) < 0.006 and pose[2, 2] > 0.99 for pose in scene.object_poses().values())
        text = scene.text()
        assert all(f"{name} at " in text for name in scene.task.objects)


def pulled(bottom_m: float, top_m: float = 0.0) -> World:
    scene = world("drawer_open")
    scene.reset(1)
    for drawer, opening in (("bottom", bottom_m), ("top", top_m)):
        scene.data.qpos[scene.model.joint(drawer_joint(drawer)).qposadr[0]] = opening
    for _ in range(10):
        scene.step(REST_POSE)
    return scene


@pytest.mark.parametrize(("bottom_m", "top_m", "done"), [
    (OPEN_M + 0.004, 0.0, True), (OPEN_M - 0.004, 0.0, False), (0.09, SHUT_M + 0.004, False), (0.0, 0.09, False),
])
def test_the_bottom_drawer_alone_must_be_open(bottom_m: float, top_m: float, done: bool) -> None:
    assert pulled(bottom_m, top_m).success() is done


def test_a_drawer_still_moving_is_not_done() -> None:
    scene = pulled(0.06)
    assert scene.success()
    scene.data.qvel[scene.model.joint(drawer_joint("bottom")).dofadr[0]] = 0.05
    assert not scene.success()


def test_hands_must_be_off_the_drawer() -> None:
    scene = pulled(0.06)
    pose = object_pose(scene.data, "drawer")
    scene.data.site_xpos[scene.model.site("left/gripper").id] = pose[:3, :3] @ (0.16, 0.0, 0.036) + pose[:3, 3]
    assert not scene.success()


UPRIGHT = axis_angle((0.0, 1.0, 0.0), -0.5 * np.pi)


def inserted(task: str, side_m: float = 0.0, lift_m: float = 0.0, settle_s: float = 2.5) -> World:
    """Drops the task's thing upright over its opening, displaced along the other object's x axis."""
    scene = world(task)
    scene.reset(2)
    goal = scene.task
    assert isinstance(goal, Insert)
    pose = object_pose(scene.data, goal.opening.name)
    over = np.array([goal.opening.x_m + side_m, 0.0, 0.095 + lift_m])
    put(scene, goal.moved, pose[:3, :3] @ over + pose[:3, 3], pose[:3, :3] @ UPRIGHT, settle_s)
    return scene


@pytest.mark.parametrize("task", ("pen_in_container", "can_opener_in_caddy", "screwdriver_in_caddy"))
def test_what_was_dropped_into_its_opening_stays_there_and_is_done(task: str) -> None:
    scene = inserted(task)
    assert scene.success()
    assert scene.task.stages[scene.progress()] == "done"


@pytest.mark.parametrize(("task", "side_m"), [
    ("can_opener_in_caddy", 0.064), ("screwdriver_in_caddy", -0.064), ("pen_in_container", 0.10),
])
def test_the_other_compartment_or_none_is_not_done(task: str, side_m: float) -> None:
    assert not inserted(task, side_m).success()


def test_what_still_falls_is_not_done() -> None:
    assert not inserted("pen_in_container", lift_m=0.05, settle_s=0.04).success()


def test_two_tools_in_one_compartment_are_not_done() -> None:
    scene = inserted("can_opener_in_caddy")
    assert scene.success()
    pose = object_pose(scene.data, "caddy")
    start = scene.model.joint("thumb_drive").qposadr[0]
    scene.data.qpos[start : start + 3] = pose[:3, :3] @ (COMPARTMENTS["left"].x_m, 0.0, 0.03) + pose[:3, 3]
    mujoco.mj_fwdPosition(scene.model, scene.data)
    assert not scene.success()


def test_length_inside_counts_what_is_below_the_rim() -> None:
    scene = world("can_opener_in_caddy")
    scene.reset(0)
    pose, opening = object_pose(scene.data, "caddy"), COMPARTMENTS["left"]
    height = RODS["can_opener"].height_m  # the line lies so far from the origin, across
    for depth in (0.0, 0.02, 0.05):
        end = np.array([opening.x_m + height, 0.0, opening.rim_m - depth + 0.075])
        start = scene.model.joint("can_opener").qposadr[0]
        scene.data.qpos[start : start + 3] = pose[:3, :3] @ end + pose[:3, 3]
        scene.data.qpos[start + 3 : start + 7] = wxyz_from_xyzw(quat_xyzw_from_rotation(pose[:3, :3] @ UPRIGHT))
        mujoco.mj_kinematics(scene.model, scene.data)
        assert length_inside_m(scene.data, "can_opener", opening) == pytest.approx(depth, abs=0.006)


def stood(slot_m: float, face: np.ndarray, up_m: float = 0.002, settle_s: float = 1.5) -> World:
    scene = world("plate_on_rack")
    scene.reset(3)
    rack = object_pose(scene.data, "rack")
    turn = axis_angle((0.0, 1.0, 0.0), 0.5 * np.pi)  # the plate's face along the rack's x
    at = rack[:3, :3] @ (slot_m - 0.013, 0.0, STANDING_M + up_m) + rack[:3, 3]
    put(scene, "plate", at, rack[:3, :3] @ face @ turn, settle_s)
    return scene


@pytest.mark.parametrize("slot_m", [-SLOT_M, 0.0, SLOT_M])
def test_a_plate_stands_in_every_divider(slot_m: float) -> None:
    scene = stood(slot_m, np.eye(3))
    assert scene.success()
    assert scene.task.stages[scene.progress()] == "done"


@pytest.mark.parametrize(("slot_m", "turn_rad", "up_m", "settle_s"), [
    (2.2 * SLOT_M, 0.0, 0.002, 1.5), (0.0, 0.5 * np.pi, 0.08, 1.5), (0.0, 0.0, 0.06, 0.04),
], ids=["beside", "across the pegs", "falling"])
def test_a_plate_elsewhere_is_not_done(slot_m: float, turn_rad: float, up_m: float, settle_s: float) -> None:
    assert not stood(slot_m, axis_angle((0.0, 0.0, 1.0), turn_rad), up_m, settle_s).success()


PLAYS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("drawer_open", (0, 3)), ("drawer_open_easy", (0,)), ("pen_in_container", (1, 2)), ("can_opener_in_caddy", (2,)),
    ("screwdriver_in_caddy", (0,)),
)  # fmt: skip


@pytest.mark.parametrize(("task", "seed"), [(task, seed) for task, seeds in PLAYS for seed in seeds])
def test_the_expert_does_the_task_smoothly_within_limits(task: str, seed: int) -> None:
    scene = world(task)
    seen = play(scene, seed)
    assert scene.success()
    assert {1, 2, len(scene.task.stages) - 1} <= set(seen)


def test_the_easy_drawer_is_the_left_arms_alone() -> None:
    scene = world("drawer_open_easy")
    for seed in range(5):
        scene.reset(seed)
        plan = make_expert(scene, np.random.default_rng(seed)).plan
        assert np.ptp(plan[:, :7], axis=0).max() > 0.5
        assert np.ptp(plan[:, 13]) == 0.0, "the right gripper has nothing to do"


@pytest.mark.parametrize("task", ["drawer_open", "pen_in_container"])
def test_a_gripper_that_does_not_close_fails(task: str) -> None:
    def keep_open(action: np.ndarray) -> None:
        action[list(GRIPPER_INDICES)] = 0.036

    scene = world(task)
    seen = play(scene, 1, keep_open)
    assert not scene.success()
    assert max(seen) < 2
