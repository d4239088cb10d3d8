"""The world's laws: determinism, state round trip, control ticks, and what it says to wrong input."""

from __future__ import annotations

import re

import numpy as np
import pytest

from clamp_ros.contract.errors import ContractError, SimulationError
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE, UPPER_LIMITS
from clamp_ros.sim.cameras import DEFAULT_CAMERAS
from clamp_ros.sim.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World("mug_on_plate", look="primitive")


def wave(tick: int) -> np.ndarray:
    action = np.array(REST_POSE)
    action[[0, 7]] += 0.3 * np.sin(0.1 * tick)
    action[[6, 13]] = 0.02
    return action


def test_equal_seeds_give_equal_states_to_the_bit_and_others_do_not(world: World) -> None:
    world.reset(7)
    first = world.get_state()
    world.reset(8)
    assert not np.array_equal(world.get_state(), first)
    world.reset(7)
    np.testing.assert_array_equal(world.get_state(), first)
    other = World("mug_on_plate", look="primitive")
    other.reset(7)
    np.testing.assert_array_equal(other.get_state(), first)


def test_a_restored_state_continues_to_the_bit(world: World) -> None:
    world.reset(1)
    for tick in range(5):
        world.step(wave(tick))
    saved, time_ns = world.get_state(), world.time_ns
    said = world.text(), world.progress()
    for tick in range(5, 15):
        world.step(wave(tick))
    expected = world.get_state()
    world.reset(2)
    world.set_state(saved)
    assert world.time_ns == time_ns
    assert (world.text(), world.progress()) == said
    np.testing.assert_array_equal(world.get_state(), saved)
    for tick in range(5, 15):
        world.step(wave(tick))
    np.testing.assert_array_equal(world.get_state(), expected)


def test_reading_does_not_change_the_state(world: World) -> None:
    world.reset(3)
    before = world.get_state()
    _ = world.text(), world.success(), world.object_poses(), world.joint_positions.fill(0.0), world.joint_velocities
    np.testing.assert_array_equal(world.get_state(), before)


def test_a_step_is_one_control_period(world: World) -> None:
    world.reset(0)
    assert world.time_ns == 0
    for tick in range(1, 4):
        world.step(REST_POSE)
        assert world.time_ns == tick * CONTROL_PERIOD_NS
        assert world.data.time == pytest.approx(tick * 0.02)


def test_a_reset_scene_is_at_rest_with_the_arms_near_their_rest_pose(world: World) -> None:
    world.reset(11)
    assert np.abs(world.data.qvel).max() < 0.02
    np.testing.assert_allclose(world.joint_positions, REST_POSE, atol=0.05)  # arms sag a little under their weight


def test_joints_follow_the_action(world: World) -> None:
    world.reset(0)
    target = np.array(REST_POSE)
    target[[0, 13]] = 0.4, 0.03
    for _ in range(75):
        world.step(target)
    assert world.joint_positions[0] == pytest.approx(0.4, abs=0.01)
    assert world.joint_positions[13] == pytest.approx(0.03, abs=0.002)
    assert world.joint_positions[7] == pytest.approx(0.0, abs=0.01)


def test_text_names_task_objects_and_progress(world: World) -> None:
    world.reset(0)
    text = world.text()
    assert text.startswith(world.task.description)
    for name in world.task.objects:
        values = re.search(rf"{name} at (\d\.\d\d) (\d\.\d\d) (\d\.\d\d)[,.]", text)
        assert values and all(0.0 <= float(value) <= 1.0 for value in values.groups())
    assert text.endswith(f"Progress: {world.progress()}")


def test_camera_poses_are_their_configurations(world: World) -> None:
    world.reset(0)
    camera = DEFAULT_CAMERAS["front_left"]
    np.testing.assert_allclose(world.world_from_camera("front_left"), camera.frame_from_camera, atol=1e-12)
    with pytest.raises(SimulationError, match="no camera 'front'"):
        world.world_from_camera("front")


def test_wrong_input_is_refused_and_named(world: World) -> None:
    world.reset(0)
    before = world.get_state()
    with pytest.raises(SimulationError, match=r"no task 'mug_on_plat'.*mug_on_plate"):
        World("mug_on_plat")
    with pytest.raises(SimulationError, match="seed is -1"):
        world.reset(-1)
    with pytest.raises(ContractError, match=r"\(13,\)"):
        world.step(np.zeros(13))
    with pytest.raises(ContractError, match="left/elbow"):
        world.step(np.where(np.arange(14) == 2, np.nan, REST_POSE))
    with pytest.raises(SimulationError, match="right/gripper"):
        world.step(np.where(np.arange(14) == 13, UPPER_LIMITS + 0.01, REST_POSE))
    with pytest.raises(SimulationError, match="state has shape"):
        world.set_state(np.zeros(3))
    np.testing.assert_array_equal(world.get_state(), before)
