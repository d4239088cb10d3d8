"""Actions as poses of the grippers, and back: exact but for what inverse kinematics leaves, always within limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import ARMS, CHUNK_SIZE, LOWER_LIMITS, NUM_JOINTS, REST_POSE, UPPER_LIMITS
from clamp_ros.geometry.kinematics import world_from_gripper, world_from_grippers
from clamp_ros.policy.cartesian import CARTESIAN_WIDTH, CartesianActions


def motion() -> np.ndarray:
    """(50, 14): every joint moves from the rest pose, the grippers open."""
    joints = REST_POSE + np.linspace(0.0, 0.4, CHUNK_SIZE)[:, None]
    joints[:, [6, 13]] = np.linspace(0.005, 0.03, CHUNK_SIZE)[:, None]
    return joints


def fitted(relative: bool) -> CartesianActions:
    return CartesianActions.fit(relative, motion()[None], motion()[:1])


def test_many_poses_at_once_equal_each_alone() -> None:
    joints = np.random.default_rng(0).uniform(LOWER_LIMITS, UPPER_LIMITS, (20, NUM_JOINTS))
    for arm in ARMS:
        expected = np.stack([world_from_gripper(arm, row) for row in joints])
        np.testing.assert_allclose(world_from_grippers(arm, joints), expected, atol=1e-12)


@pytest.mark.parametrize("relative", [False, True])
def test_joint_targets_come_back(relative: bool) -> None:
    actions, space = motion(), fitted(relative)
    encoded = space.encode(actions[None], actions[:1])
    assert encoded.shape == (1, CHUNK_SIZE, CARTESIAN_WIDTH) and np.abs(encoded).max() <= 1.0 + 1e-6
    assert space.encode(actions[None, :0], actions[:1]).shape == (1, 0, CARTESIAN_WIDTH)  # nothing committed
    decoded = space.decode(encoded[0], actions[0])
    np.testing.assert_allclose(decoded, actions, atol=2e-3)
    for arm in ARMS:
        off = world_from_grippers(arm, decoded)[:, :3, 3] - world_from_grippers(arm, actions)[:, :3, 3]
        assert np.linalg.norm(off, axis=1).max() < 2e-4


def test_an_absolute_action_is_the_grippers_pose_itself() -> None:
    actions, space = motion(), fitted(False)
    poses = space.poses(space.encode(actions[None], actions[:1]))[0]
    pose = world_from_gripper("right", actions[7])
    np.testing.assert_allclose(poses[7, 10:13], pose[:3, 3], atol=1e-6)
    np.testing.assert_allclose(poses[7, 13:19], np.concatenate([pose[:3, 0], pose[:3, 1]]), atol=1e-6)
    assert poses[7, 19] == pytest.approx(actions[7, 13], abs=1e-6)


def test_relative_actions_do_not_tell_where_the_robot_is() -> None:
    """Turned about its base, the arm moves alike as seen from its gripper, and otherwise as seen from the world."""
    actions, turned = motion(), motion()
    turned[:, [0, 7]] += 0.3
    for relative in (True, False):
        space = fitted(relative)
        difference = np.abs(space.encode(actions[None], actions[:1]) - space.encode(turned[None], turned[:1])).max()
        assert difference < 1e-5 if relative else difference > 0.1
    np.testing.assert_allclose(
        fitted(True).poses(fitted(True).encode(actions[None], actions[:1]))[0, 0, :9], [0, 0, 0, 1, 0, 0, 0, 1, 0],
        atol=1e-6,
    )  # fmt: skip


def test_what_is_out_of_reach_is_approached_within_the_limits() -> None:
    low, high = [-3.0] * 3 + [-1.0] * 6 + [0.0], [3.0] * 3 + [1.0] * 6 + [0.1]
    space = CartesianActions(False, np.tile(low, 2), np.tile(high, 2))
    wild = np.random.default_rng(0).uniform(-1.0, 1.0, (6, CARTESIAN_WIDTH))
    decoded = space.decode(wild, REST_POSE)
    assert np.isfinite(decoded).all() and (decoded >= LOWER_LIMITS).all() and (decoded <= UPPER_LIMITS).all()
    with pytest.raises(ContractError, match="rotation"):
        space.decode(np.zeros((1, CARTESIAN_WIDTH)), REST_POSE)


def test_ranges_have_a_floor_and_are_checked() -> None:
    still = np.tile(REST_POSE, (1, CHUNK_SIZE, 1))
    space = CartesianActions.fit(False, still, REST_POSE[None])
    np.testing.assert_allclose((space.high - space.low)[:10], [0.02] * 3 + [0.1] * 6 + [0.01])
    good: dict[str, Any] = space.to_dict()
    again = CartesianActions(**good)
    np.testing.assert_array_equal(again.low, space.low)
    for change, says in (
        ({"low": good["low"][:14]}, r"cartesian\.low is .*expected 20"),
        ({"high": [float("nan")] * 20}, r"cartesian\.high is .*finite"),
        ({"high": good["low"]}, "must lie above"),
    ):
        with pytest.raises(ContractError, match=says):
            CartesianActions(**{**good, **change})
