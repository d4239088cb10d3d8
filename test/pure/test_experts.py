"""Inverse kinematics, smooth paths, and the Mug on Plate expert."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import (
    ARM_SLICES,
    ARMS,
    CONTROL_RATE_HZ,
    GRIPPER_INDICES,
    LOWER_LIMITS,
    REST_POSE,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)
from clamp_ros.geometry.kinematics import WORLD_FROM_BASE, world_from_gripper
from clamp_ros.geometry.transforms import angle_between, axis_angle, make
from clamp_ros.sim.experts import Expert, make_expert
from clamp_ros.sim.experts.droop import Droop
from clamp_ros.sim.experts.gripping import gripper_pose
from clamp_ros.sim.experts.ik import forward, rotation_vector, solve
from clamp_ros.sim.experts.mug_on_plate import choose_arm, choose_side, pinch_point
from clamp_ros.sim.experts.persistent import way_home
from clamp_ros.sim.experts.trajectory import ArmPath, minimum_jerk
from clamp_ros.sim.world import World

REST = {arm: REST_POSE[ARM_SLICES[arm]][:6] for arm in ARMS}
GRASP_XY = {"left": (-0.1, -0.1), "right": (0.1, -0.1)}


@pytest.fixture(scope="module")
def world() -> World:
    return World("mug_on_plate_easy", look="primitive")


@pytest.mark.parametrize("arm", ARMS)
def test_forward_is_the_contract_s_kinematics(arm: str) -> None:
    joints = REST_POSE + 0.1 * np.sin(np.arange(14))
    pose, _ = forward(arm, joints[ARM_SLICES[arm]][:6])
    np.testing.assert_allclose(pose, world_from_gripper(arm, joints), atol=1e-12)


@pytest.mark.parametrize("arm", ARMS)
def test_jacobian_is_the_derivative(arm: str) -> None:
    joints, step = REST[arm] + 0.2, 1e-6
    pose, jacobian = forward(arm, joints)
    for i in range(6):
        moved, _ = forward(arm, joints + step * (np.arange(6) == i))
        turn = rotation_vector(moved[:3, :3] @ pose[:3, :3].T)
        numeric = np.concatenate([moved[:3, 3] - pose[:3, 3], turn]) / step
        np.testing.assert_allclose(jacobian[:, i], numeric, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.4, 0.4), min_size=6, max_size=6))
def test_solve_inverts_forward(offsets: list[float]) -> None:
    wanted = REST["left"] + (0.0, 0.3, 0.0, 0.0, 0.9, 0.0) + np.array(offsets)
    pose, _ = forward("left", wanted)
    reached, _ = forward("left", solve("left", pose, REST["left"]))
    assert np.linalg.norm(reached[:3, 3] - pose[:3, 3]) < 2e-5
    assert angle_between(reached, pose) < 2e-4


def test_solve_says_what_is_out_of_reach() -> None:
    with pytest.raises(SimulationError, match=r"left arm cannot bring its gripper to \[2.0, 0.0, 0.3\]"):
        solve("left", make(translation=(2.0, 0.0, 0.3)), REST["left"])


def test_rotation_vector_inverts_axis_angle() -> None:
    for angle in (0.0, 1e-7, 0.5, 3.1):
        np.testing.assert_allclose(rotation_vector(axis_angle((0.6, 0.0, 0.8), angle)), (0.6 * angle, 0.0, 0.8 * angle),
                                   atol=1e-9)


def test_minimum_jerk_starts_and_ends_at_rest() -> None:
    t = np.linspace(-0.5, 1.5, 2001)
    s = minimum_jerk(t)
    assert s[0] == 0.0 and s[-1] == 1.0 and minimum_jerk(0.5) == pytest.approx(0.5)
    assert (np.diff(s) >= 0.0).all() and np.abs(np.diff(s, 2)).max() < 1e-5


@pytest.mark.parametrize("arm", ARMS)
def test_a_path_reaches_its_waypoints_and_keeps_wrist_and_other_arm_still(arm: str) -> None:
    pose = gripper_pose(arm, np.array([*GRASP_XY[arm], 0.15]), np.deg2rad(60.0))
    path = ArmPath(arm, REST_POSE)
    path.move(1.5, pose, 0.03)
    path.move(0.8, path.start_pose, 0.02, blend_s=0.3)
    reached, grip_m = path.pose_at(10.0)
    np.testing.assert_allclose(reached, path.start_pose, atol=1e-9)
    assert grip_m == pytest.approx(0.02)
    targets = path.joint_targets()
    assert len(targets) == round(2.0 * CONTROL_RATE_HZ)
    other = ARM_SLICES["right" if arm == "left" else "left"]
    np.testing.assert_array_equal(targets[:, other], np.tile(REST_POSE[other], (len(targets), 1)))
    rolls = targets[:, ARM_SLICES[arm]][:, [3, 5]]
    assert np.abs(rolls).max() < 0.03  # passes the straight wrist without a flip


def test_a_path_too_fast_is_refused() -> None:
    path = ArmPath("left", REST_POSE)
    path.move(0.2, gripper_pose("left", np.array([-0.1, -0.2, 0.1]), 1.0))
    with pytest.raises(SimulationError, match=r"too fast.*make the moves longer"):
        path.joint_targets()


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("side", [1, -1])
def test_the_pinch_point_is_on_the_rim_where_the_line_from_the_base_is_tangent(arm: str, side: int) -> None:
    centre = np.array([0.05, -0.12])
    point = pinch_point(arm, centre, side)
    base = WORLD_FROM_BASE[arm][:2, 3]
    assert np.linalg.norm(point - centre) == pytest.approx(0.038)
    assert (point - centre) @ (point - base) == pytest.approx(0.0, abs=1e-12)
    line = centre - base
    assert np.sign(line[0] * (point - base)[1] - line[1] * (point - base)[0]) == side


def test_the_handle_is_never_where_the_fingers_close() -> None:
    for arm in ARMS:
        for yaw in np.linspace(-np.pi, np.pi, 73):
            mug = make(axis_angle((0.0, 0.0, 1.0), float(yaw)), (0.0, -0.14, 0.0))
            direction = pinch_point(arm, mug[:2, 3], choose_side(arm, mug)) - mug[:2, 3]
            assert mug[:2, 0] @ direction / 0.038 < np.cos(np.deg2rad(59.0))


@pytest.mark.parametrize(("mug_x", "plate_x", "arm"), [
    (-0.19, -0.19, "left"), (-0.19, 0.0, "left"), (0.0, -0.19, "left"), (-0.19, 0.19, "left"),
    (0.19, 0.19, "right"), (0.19, 0.0, "right"), (0.0, 0.19, "right"), (0.19, -0.19, "right"), (0.0, 0.0, "right"),
])
def test_jitter_never_changes_the_arm(mug_x: float, plate_x: float, arm: str) -> None:
    for dm in (-0.015, 0.015):
        for dp in (-0.015, 0.015):
            assert choose_arm(np.array([mug_x + dm, -0.14]), np.array([plate_x + dp, 0.14])) == arm


def test_led_arm_hangs_where_it_should(world: World) -> None:
    world.reset(0)
    wanted = gripper_pose("left", np.array([-0.15, 0.05, 0.25]), np.deg2rad(60.0))
    errors = []
    for pose in (wanted, Droop(world.model).lead("left", wanted)):
        action = np.array(REST_POSE)
        action[:6] = solve("left", pose, REST["left"])
        world.reset(0)
        for _ in range(150):
            world.step(action)
        errors.append(float(np.linalg.norm(world.data.site("left/gripper").xpos - wanted[:3, 3])))
    assert errors[0] > 0.008  # what there is to make up for
    assert errors[1] < 0.5 * errors[0]  # dry friction in shoulder and elbow is left


def play(world: World, expert: Expert, **held: float) -> None:
    while not expert.done:
        action = expert.act()
        if "gripper" in held:
            action[list(GRIPPER_INDICES)] = held["gripper"]
        world.step(action)


@pytest.mark.parametrize(("task", "seed"), [("mug_on_plate_easy", 0), ("mug_on_plate_easy", 1), ("mug_on_plate", 1),
                                            ("mug_on_plate", 2)])
def test_the_expert_does_the_task_smoothly_within_limits(task: str, seed: int) -> None:
    world = World(task, look="primitive")
    world.reset(seed)
    expert = make_expert(world, np.random.default_rng(seed))
    plan = expert.plan
    speed = np.diff(plan, axis=0, prepend=REST_POSE[None]) * CONTROL_RATE_HZ
    assert ((plan >= LOWER_LIMITS) & (plan <= UPPER_LIMITS)).all()
    assert (np.abs(speed) <= VELOCITY_LIMITS).all()
    assert np.abs(np.diff(speed, axis=0)).max() < 0.6  # rad/s within a tick: 30 rad/s^2
    np.testing.assert_allclose(plan[-1], REST_POSE, atol=2e-3)
    seen = []
    while not expert.done:
        world.step(expert.act())
        seen.append(world.progress())
    assert not expert.failed
    first = [seen.index(stage) for stage in range(1, 7)]
    assert first == sorted(first)
    assert len(plan) / CONTROL_RATE_HZ < world.task.max_seconds


def test_a_gripper_that_does_not_close_fails(world: World) -> None:
    world.reset(0)
    expert = make_expert(world, np.random.default_rng(0))
    play(world, expert, gripper=0.036)
    assert expert.failed
    assert world.progress() < 2


def test_equal_generators_give_equal_plans_and_others_vary(world: World) -> None:
    world.reset(4)
    first, second, third = (make_expert(world, np.random.default_rng(seed)).plan for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert first.shape != third.shape or not np.array_equal(first, third)


def test_an_expert_that_lost_its_grasp_goes_home_smoothly_and_tries_again(world: World) -> None:
    """The gripper is kept open until the expert notices; its second try is left alone."""
    world.reset(3)
    expert = make_expert(world, np.random.default_rng([3, 1]))
    actions, began = [REST_POSE], 0
    while not expert.done:
        action = expert.act()
        actions.append(action.copy())
        if expert.attempts == 2 and not began:
            began = len(actions) - 1
        if expert.attempts == 1:
            action[list(GRIPPER_INDICES)] = UPPER_LIMITS[GRIPPER_INDICES[0]]
        world.step(action)
    assert expert.attempts == 2
    assert world.success() and not expert.failed
    speed = np.diff(np.array(actions), axis=0) * CONTROL_RATE_HZ
    assert (np.abs(speed) <= VELOCITY_LIMITS).all()
    assert np.abs(np.diff(speed, axis=0)).max() < 0.6  # as smooth as a plan, where it breaks off, too
    np.testing.assert_allclose(actions[began - 1], REST_POSE, atol=1e-12)  # the second plan starts there


def test_an_expert_gives_up_what_has_fallen(world: World) -> None:
    world.reset(3)
    expert = make_expert(world, np.random.default_rng([3, 1]))
    start = world.model.joint("mug").qposadr[0]
    world.data.qpos[start : start + 7] = (0.0, -0.1, 0.05, np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0)
    while not expert.done:
        world.step(expert.act())
    assert expert.attempts == 1 and expert.failed


def test_the_way_home_opens_the_hand_that_was_busy_and_ends_at_rest() -> None:
    action = np.array(REST_POSE)
    action[:7] += (0.3, 0.2, -0.2, 0.0, 0.4, 0.0, -0.006)
    step = np.array([0.02, -0.01, 0.01, 0.0, 0.03, *(9 * [0.0])])
    rows = way_home(action, step)
    np.testing.assert_allclose(rows[-1], REST_POSE, atol=1e-12)
    assert rows[:, 6].max() == pytest.approx(0.036) and (rows[:, 13] == REST_POSE[13]).all()
    assert ((rows >= LOWER_LIMITS) & (rows <= UPPER_LIMITS)).all()
    speed = np.diff(rows, axis=0, prepend=[action - step, action]) * CONTROL_RATE_HZ
    assert (np.abs(speed) < VELOCITY_LIMITS).all()
    assert np.abs(np.diff(speed[1:], axis=0)).max() < 0.6
