"""Distances of the robot's shapes: hand-made poses, symmetry, the table's plane, paths, and what is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clamp_ros.arm.aloha2 import HOME_RAD, SLEEP_RAD
from clamp_ros.contract.errors import ConfigError, ContractError
from clamp_ros.contract.robot import ARMS, GRIPPER_CLOSED_M, LOWER_LIMITS, NUM_JOINTS, REST_POSE, UPPER_LIMITS
from clamp_ros.control import clearance as clearance_module
from clamp_ros.control.clearance import Clearance, ClearanceConfig
from clamp_ros.control.workspace import Workspace, WorkspaceConfig
from clamp_ros.geometry.kinematics import gripper_position, world_from_gripper
from clamp_ros.sim.robot_model import TABLE_TOP_M

POSES = hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(0.0, 1.0)).map(
    lambda share: LOWER_LIMITS + share * (UPPER_LIMITS - LOWER_LIMITS)
)


def both(six: np.ndarray) -> np.ndarray:
    return np.tile(np.append(six, GRIPPER_CLOSED_M), 2)


def pose(arm: str, **joints: float) -> np.ndarray:
    names = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
    result = REST_POSE.copy()
    for name, value in joints.items():
        result[7 * ARMS.index(arm) + names.index(name)] = value
    return result


@pytest.fixture(scope="module")
def clearance() -> Clearance:
    return Clearance()


def test_the_rest_home_and_sleep_poses_are_clear_and_so_are_the_ways_between(clearance: Clearance) -> None:
    poses = [REST_POSE, both(HOME_RAD), both(SLEEP_RAD)]
    for start in poses:
        assert clearance.shortfalls(start).max() == 0.0
        for end in poses:
            assert clearance.refuses_path(start, end) is None


def down(shoulder: float) -> np.ndarray:
    """The left gripper points straight down, just above the table."""
    return pose("left", shoulder=shoulder, elbow=1.2, wrist_angle=0.5 * np.pi - 1.2 - shoulder)


def test_fingers_that_point_down_are_as_near_to_the_table_as_their_tips(clearance: Clearance) -> None:
    longer = []
    for shoulder in (-0.42, -0.45, -0.48):
        tip_m = world_from_gripper("left", down(shoulder))[2, 3] - TABLE_TOP_M
        nearest = clearance.nearest(down(shoulder), 0.03)
        assert nearest is not None
        assert nearest.first == "table"
        assert nearest.second.endswith("finger_link")
        longer.append(tip_m - nearest.distance_m)
    np.testing.assert_allclose(longer, longer[0], atol=1e-6)
    assert -0.005 < longer[0] < 0.0, "the frame `gripper` is 4 mm beyond the tips"


def test_what_is_nearest_is_named(clearance: Clearance) -> None:
    nearest = clearance.nearest(pose("right", shoulder=0.9, elbow=0.2, wrist_angle=0.5))
    assert nearest is not None
    assert nearest.distance_m < 0.0
    assert nearest.first == "table"
    assert nearest.second.startswith("right/")
    assert clearance.nearest(REST_POSE, reach_m=0.02) is None


@given(POSES)
@settings(max_examples=15, deadline=None)
def test_no_pair_is_left_out_by_the_coarse_check(clearance: Clearance, joints: np.ndarray) -> None:
    found = clearance.shortfalls(joints)
    every = clearance._distances(joints, 0.0, np.arange(clearance.count))
    np.testing.assert_allclose(found, np.maximum(clearance._limits - every, 0.0), atol=1e-9)


def test_a_path_through_the_table_and_one_through_the_other_arm_are_refused(clearance: Clearance) -> None:
    assert "from table, limit 1.0 mm" in (clearance.refuses_path(REST_POSE, down(-0.2)) or "")
    across = REST_POSE.copy()
    across[[1, 8]], across[[2, 9]] = 0.3, 0.3
    refused = clearance.refuses_path(REST_POSE, across)
    assert refused is not None
    assert "left/" in refused
    assert "right/" in refused
    assert clearance.refuses_path(down(-0.25), down(-0.6)) is None, "the way out is free"
    assert clearance.refuses_path(down(-0.25), down(-0.22)) is not None, "the way further in is not"


def test_limits_are_those_of_the_configuration() -> None:
    near = Clearance().nearest(down(-0.45))
    assert near is not None
    for limit_m, short_m in ((near.distance_m - 0.001, 0.0), (near.distance_m + 0.001, 0.001)):
        shortfalls = Clearance(ClearanceConfig(finger_table_m=limit_m)).shortfalls(down(-0.45))
        assert shortfalls.max() == pytest.approx(short_m, abs=1e-6)


def test_bad_joints_are_refused(clearance: Clearance) -> None:
    with pytest.raises(ContractError, match="not finite"):
        clearance.shortfalls(np.full(NUM_JOINTS, np.nan))


def test_without_mujoco_the_error_names_the_extra_and_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    clearance_module._robot.cache_clear()
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ConfigError, match=r"clamp_ros\[hardware\].*safety\.clearance\.enabled"):
        Clearance()
    monkeypatch.undo()
    clearance_module._robot.cache_clear()
    assert Clearance().count > 100


@given(POSES)
@settings(max_examples=30, deadline=None)
def test_a_grippers_position_is_that_of_its_transform(joints: np.ndarray) -> None:
    for arm in ARMS:
        np.testing.assert_allclose(gripper_position(arm, joints), world_from_gripper(arm, joints)[:3, 3], atol=1e-9)


def test_the_workspace_says_which_gripper_is_outside_and_how_far() -> None:
    workspace = Workspace(WorkspaceConfig(min_m=(-0.5, -0.3, 0.0), max_m=(0.5, 0.3, 0.5)))
    assert workspace.shortfalls(REST_POSE).max() == 0.0
    aside = pose("right", waist=1.2, shoulder=0.2, elbow=0.0)
    shortfalls = workspace.shortfalls(aside)
    side = int(shortfalls.argmax())
    y = world_from_gripper("right", aside)[1, 3]
    assert shortfalls[side] == pytest.approx(abs(y) - 0.3)
    assert workspace.says(aside, side) == f"right/gripper y is {y:.3f} m, outside the workspace -0.300..0.300"


@pytest.mark.parametrize(("low", "high"), [((0.0, 0.0), (1.0, 1.0, 1.0)), ((0.0, 0.0, 1.0), (1.0, 1.0, 1.0))])
def test_a_workspace_that_is_no_box_is_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="three numbers each"):
        WorkspaceConfig(low, high)
