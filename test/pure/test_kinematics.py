"""Forward kinematics against samples of the published model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import ARMS, REST_POSE
from clamp_ros.geometry import kinematics
from clamp_ros.geometry.transforms import angle_between, axis_angle, make, rotation_from_quat_xyzw, xyzw_from_wxyz

SAMPLES = json.loads((Path(__file__).parents[1] / "data" / "aloha2_fk_samples.json").read_text())["samples"]


def joints_of(qpos: list[float]) -> np.ndarray:
    """(14,) of the model's 16 positions, which have two coupled fingers a gripper."""
    return np.array([*qpos[:7], *qpos[8:15]])


@pytest.mark.parametrize("arm", ARMS)
def test_grippers_are_where_the_model_has_them(arm: str) -> None:
    assert len(SAMPLES) >= 40
    for sample in SAMPLES:
        joints, pose = joints_of(sample["qpos"]), sample[arm]
        site = make(np.reshape(pose["gripper_site_mat"], (3, 3)), pose["gripper_site_pos_m"])
        link = make(rotation_from_quat_xyzw(xyzw_from_wxyz(pose["gripper_link_quat_wxyz"])), pose["gripper_link_pos_m"])
        for ours, theirs in (
            (kinematics.world_from_gripper(arm, joints), site),
            (kinematics.world_from_gripper_link(arm, joints), link),
        ):
            assert np.linalg.norm(ours[:3, 3] - theirs[:3, 3]) < 1e-4
            assert math.degrees(angle_between(ours, theirs)) < 0.01


@given(st.floats(-3.0, 3.0))
def test_the_waist_turns_everything_about_its_axis(angle: float) -> None:
    joints = REST_POSE.copy()
    joints[0] = angle
    base = kinematics.WORLD_FROM_BASE["left"]
    turned = base @ make(axis_angle((0, 0, 1), angle)) @ np.linalg.inv(base)
    expected = turned @ kinematics.world_from_gripper("left", REST_POSE)
    np.testing.assert_allclose(kinematics.world_from_gripper("left", joints), expected, atol=1e-12)


def test_arms_do_not_move_each_other() -> None:
    joints = REST_POSE.copy()
    joints[:7] = 0.01
    np.testing.assert_array_equal(
        kinematics.world_from_gripper("right", joints), kinematics.world_from_gripper("right", REST_POSE)
    )


def test_a_bad_vector_is_refused() -> None:
    with pytest.raises(ContractError):
        kinematics.world_from_gripper("left", np.zeros(7))
