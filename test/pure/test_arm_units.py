"""Counts and the contract's units, and the motion between two poses."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.arm.motion import Motion
from clamp_ros.arm.settings import ArmsConfig, LeaderSide, MotorConfig, SideConfig
from clamp_ros.arm.units import RAD_PER_TICK, RAD_S_PER_UNIT, ArmUnits, gripper_map, rad_from_ticks, ticks_from_rad
from clamp_ros.contract.errors import ConfigError, ContractError
from clamp_ros.contract.robot import ARMS, GRIPPER_CLOSED_M, LOWER_LIMITS, UPPER_LIMITS
from clamp_ros.share import share_folder

angles = st.floats(-math.pi, math.pi)
signs = st.tuples(*[st.sampled_from((-1, 1))] * 6)
offsets = st.tuples(*[st.floats(-0.5, 0.5)] * 6)
ticks7 = st.lists(st.integers(0, 4095), min_size=7, max_size=7)


def _units(signs_: tuple[int, ...] = (1,) * 6, offsets_: tuple[float, ...] = (0.0,) * 6) -> ArmUnits:
    return ArmUnits(signs_, offsets_, gripper_map(0.62, 1.62))


def test_hand_worked_numbers():
    assert rad_from_ticks(2048 + 1024) == pytest.approx(math.pi / 2)
    assert ticks_from_rad(-math.pi / 2) == 1024
    assert pytest.approx(3.1416, abs=2e-4) == RAD_S_PER_UNIT * 131, "the profile limit of the contract"


@given(angles)
def test_a_tick_is_never_further_than_half_a_tick(rad):
    assert abs(rad_from_ticks(ticks_from_rad(rad)) - rad) <= RAD_PER_TICK / 2 * (1 + 1e-9)


@given(signs, offsets, ticks7)
def test_ticks_survive_the_round_trip(signs_, offsets_, ticks):
    units = _units(signs_, offsets_)
    low, high = (ticks_from_rad(angle) for angle in (units.gripper.closed_raw, units.gripper.open_raw))
    ticks[6] = min(max(ticks[6], low + 1), high - 1)  # beyond, the gripper's map is clipped
    assert units.ticks(units.positions(ticks)) == ticks


@given(signs, ticks7, st.integers(-400, 400), st.integers(0, 6))
def test_a_velocity_is_the_change_of_the_position(signs_, ticks, velocity, joint):
    units = _units(signs_)
    ticks[6] = 2600
    step_s = 0.001
    there = np.array(ticks, dtype=float)
    there[joint] += velocity * RAD_S_PER_UNIT / RAD_PER_TICK * step_s
    counts = np.zeros(7)
    counts[joint] = velocity
    change = (units.positions(there) - units.positions(ticks)) / step_s
    assert change == pytest.approx(units.velocities(counts), abs=1e-6)


@given(
    signs,
    st.lists(st.floats(-10, 10), min_size=7, max_size=7),
    st.lists(st.integers(-400, 400), min_size=7, max_size=7),
)
def test_power_is_the_same_in_either_units(signs_, torques, velocities):
    units = _units(signs_)
    motor_power = np.array(torques) * np.array(velocities) * RAD_S_PER_UNIT
    assert units.efforts(torques) * units.velocities(velocities) == pytest.approx(motor_power, abs=1e-9)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_touching_pads_read_as_the_contract_says(touch, opened):
    if abs(touch - opened) < 1e-3:
        return
    grip = gripper_map(touch, opened)
    assert grip.to_metres(touch) == pytest.approx(GRIPPER_CLOSED_M)
    assert grip.to_metres(opened) == pytest.approx(UPPER_LIMITS[6])
    assert (grip.to_raw(LOWER_LIMITS[6]) - touch) * (touch - opened) > 0, "a lower target squeezes"


def test_a_gripper_that_is_not_calibrated_is_refused():
    with pytest.raises(ContractError, match="calibrate the gripper"):
        SideConfig().units()


def test_lists_of_the_wrong_length_are_refused():
    with pytest.raises(ConfigError, match="6 each: waist"):
        SideConfig(joint_signs=(1,) * 5, gripper_open_rad=1.0).units()
    with pytest.raises(ConfigError, match="expected 9 different"):
        SideConfig(ids=(1, 2, 3, 4, 5, 6, 7, 8, 8))
    with pytest.raises(ConfigError, match="position_p has 1 values, expected 7"):
        MotorConfig(position_p=(800,))


poses = st.lists(st.floats(-3, 3), min_size=14, max_size=14).map(np.array)


@given(poses, poses, st.floats(0.1, 3.0))
def test_a_motion_is_smooth_and_keeps_its_speed(start, end, speed):
    motion = Motion.between(start, end, 5.0, speed)
    assert motion.at(4.0) == pytest.approx(start)
    assert motion.at(5.0 + motion.duration_s) == pytest.approx(end)
    assert motion.over(5.0 + motion.duration_s) and not motion.over(5.0)
    times = np.linspace(5.0, 5.0 + motion.duration_s, 201)
    path = np.array([motion.at(t) for t in times])
    speeds = np.abs(np.diff(path, axis=0)) / (times[1] - times[0])
    assert speeds.max() <= speed * (1 + 1e-6)
    assert speeds[0].max() <= 0.01 * speed and speeds[-1].max() <= 0.01 * speed
    low, high = np.minimum(start, end), np.maximum(start, end)
    assert (path >= low - 1e-9).all() and (path <= high + 1e-9).all()


def test_the_udev_rules_name_the_default_ports_and_set_the_latency():
    rules = (Path(__file__).parents[2] / "config/99-aloha.rules").read_text()
    names = set(re.findall(r'SYMLINK\+="(\w+)"', rules))
    assert names == {f"ttyDXL_{role}_{arm}" for role in ("leader", "follower") for arm in ARMS}
    config = ArmsConfig()
    assert {Path(side.port).name for side in (config.left, config.right)} <= names
    assert 'ATTR{device/latency_timer}="1"' in rules


@pytest.mark.parametrize(("name", "node", "kind"), [
    ("arms", "arm_node", SideConfig), ("leaders", "teleop_node", LeaderSide),
])  # fmt: skip
def test_the_angles_that_ship_are_known_for_another_robots(name, node, kind):
    values = yaml.safe_load((share_folder() / f"config/{name}.yaml").read_text())[node]["ros__parameters"]
    for arm in ARMS:
        side = kind(**{**values[arm], "ids": tuple(values[arm]["ids"])})
        side.units()
        assert side.borrowed
        measured = {key: value + 0.01 for key, value in values[arm].items() if key.endswith("open_rad")}
        assert not kind(**{**values[arm], "ids": tuple(values[arm]["ids"]), **measured}).borrowed
