"""The joint vector, its names and limits, and the gripper's map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract import robot
from clamp_ros.contract.errors import ContractError

FIGURES = json.loads((Path(__file__).parents[1] / "data" / "aloha2_model_figures.json").read_text())
vectors = st.lists(st.floats(-3.0, 3.0), min_size=14, max_size=14).map(np.array)


def test_the_vector_is_left_then_right_with_the_gripper_last() -> None:
    assert len(robot.JOINT_NAMES) == robot.NUM_JOINTS == 14
    assert robot.JOINT_NAMES[0] == "left/waist"
    assert [robot.JOINT_NAMES[i] for i in robot.GRIPPER_INDICES] == ["left/gripper", "right/gripper"]
    assert all(name.startswith("right/") for name in robot.JOINT_NAMES[robot.ARM_SLICES["right"]])


def test_order_and_limits_are_those_of_the_published_model() -> None:
    actuators = FIGURES["actuators"]
    assert [a["name"] for a in actuators] == list(robot.JOINT_NAMES)
    np.testing.assert_allclose([a["ctrlrange"][0] for a in actuators], robot.LOWER_LIMITS, atol=1e-6)
    np.testing.assert_allclose([a["ctrlrange"][1] for a in actuators], robot.UPPER_LIMITS, atol=1e-6)


def test_the_rest_pose_is_within_limits_and_nothing_can_be_changed() -> None:
    assert np.all(robot.REST_POSE > robot.LOWER_LIMITS) and np.all(robot.REST_POSE < robot.UPPER_LIMITS)
    for array in (robot.REST_POSE, robot.LOWER_LIMITS, robot.UPPER_LIMITS, robot.VELOCITY_LIMITS):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0


@given(vectors, st.permutations(range(14)))
def test_any_order_of_names_gives_contract_order(values: np.ndarray, order: list[int]) -> None:
    names = [robot.JOINT_NAMES[i] for i in order]
    np.testing.assert_array_equal(robot.order_by_name(names, values[order]), values)


@pytest.mark.parametrize(
    ("names", "values", "says"),
    [
        (robot.JOINT_NAMES[:-1], np.zeros(13), "right/gripper"),
        ((*robot.JOINT_NAMES, "tail"), np.zeros(15), "tail"),
        ((*robot.JOINT_NAMES[:-1], "right/griper"), np.zeros(14), "right/griper"),
        ((*robot.JOINT_NAMES[:-1], "left/waist"), np.zeros(14), "repeats.*left/waist"),
        (robot.JOINT_NAMES, np.zeros(13), "14 names and 13"),
        (robot.JOINT_NAMES, np.zeros((14, 1)), "positions"),
    ],
)
def test_wrong_names_are_refused_by_name(names: tuple[str, ...], values: np.ndarray, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        robot.order_by_name(names, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_joint(bad: float) -> None:
    values = np.zeros(14)
    values[8] = bad
    with pytest.raises(ContractError, match=r"command.*right/shoulder"):
        robot.joint_vector(values, "command")
    with pytest.raises(ContractError, match=r"\(13,\)"):
        robot.joint_vector(np.zeros(13))


@given(
    st.floats(-3.0, 3.0), st.floats(0.1, 3.0), st.booleans(), st.floats(0.0, 1.0),
)  # fmt: skip
def test_the_gripper_map_is_its_own_inverse_inside_the_calibration(
    closed: float, span: float, reversed_: bool, fraction: float
) -> None:
    gripper = robot.GripperMap(closed, closed - span if reversed_ else closed + span)
    metres = 0.002 + fraction * 0.035
    assert gripper.to_metres(gripper.to_raw(metres)) == pytest.approx(metres, abs=1e-9)
    assert 0.002 <= gripper.to_metres(closed + 100.0) <= 0.037


def test_the_gripper_map_by_hand() -> None:
    gripper = robot.GripperMap(closed_raw=0.6, open_raw=1.6, closed_m=0.0, open_m=0.04)
    assert gripper.to_metres(1.1) == pytest.approx(0.02)
    assert gripper.to_raw(0.01) == pytest.approx(0.85)
    assert gripper.to_metres(0.0) == 0.0
    assert gripper.to_raw(1.0) == pytest.approx(1.6)


def test_a_degenerate_gripper_map_is_refused() -> None:
    with pytest.raises(ContractError, match="calibrate"):
        robot.GripperMap(1.0, 1.0)
    with pytest.raises(ContractError, match="finite"):
        robot.GripperMap(float("nan"), 1.0)
