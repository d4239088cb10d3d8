"""Observations put together from what arrives in any order, with stamps that match, miss, or run back."""

from __future__ import annotations

import numpy as np
import pytest

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, NUM_JOINTS
from clamp_ros.contract.views import TILED_SHAPE
from clamp_ros.policy.assembly import CLOUD, VIEWS, ObservationAssembler

T = CONTROL_PERIOD_NS
TIMEOUT_NS = 500_000_000
COLOR = np.full((4, 6, 3), 7, np.uint8)


def views(value: float = 0.0) -> np.ndarray:
    return np.full(TILED_SHAPE, value, np.float32)


def joints(value: float) -> np.ndarray:
    return np.full(NUM_JOINTS, value)


def test_an_observation_is_complete_when_every_part_is_there() -> None:
    assembler = ObservationAssembler(["front_left"], TIMEOUT_NS)
    assert assembler.take() is None
    assembler.add_joints(4 * T, joints(0.4))
    assembler.add_image(VIEWS, 5 * T, views(1.0), 0)
    assert assembler.take() is None
    assembler.add_image("front_left", 5 * T, COLOR, 1)
    assert assembler.waiting_ns() is None  # joint states have not caught up
    assembler.add_joints(6 * T, joints(0.6))
    assert assembler.waiting_ns() == 5 * T
    observation = assembler.take()
    assert observation is not None
    assert observation.stamp_ns == 5 * T
    np.testing.assert_allclose(observation.joint_positions, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(observation.colors["front_left"], COLOR)
    assert assembler.take() is None  # once


def test_the_cloud_is_waited_for_where_it_is_asked_for() -> None:
    assembler = ObservationAssembler([], TIMEOUT_NS, cloud=True)
    assembler.add_joints(5 * T, joints(0.0))
    assembler.add_image(VIEWS, 5 * T, views(1.0), 0)
    assert assembler.take() is None
    points = np.ones((7, 3), np.float32)
    assembler.add_image(CLOUD, 5 * T, points, 1)
    observation = assembler.take()
    assert observation is not None and observation.cloud is not None and not observation.colors
    np.testing.assert_array_equal(observation.cloud, points)


def test_history_begins_with_the_first_observation() -> None:
    assembler = ObservationAssembler([], TIMEOUT_NS)
    for tick in range(10):  # holding, before the policy acts
        assembler.add_command(tick * T, joints(9.0))
        assembler.add_joints(tick * T, joints(0.0))

    def observe(tick: int) -> np.ndarray:
        assembler.add_joints(tick * T, joints(0.0))
        assembler.add_image(VIEWS, tick * T, views(), 0)
        observation = assembler.take()
        assert observation is not None
        return observation.action_history

    assert not observe(10).any()
    for tick in range(10, 15):
        assembler.add_command(tick * T, joints(float(tick)))
    assert observe(15)[:, 0].tolist() == [14.0, 13.0, 12.0, 11.0, 10.0] + [0.0] * 45
    assembler.begin_episode()
    assembler.add_command(15 * T, joints(15.0))
    assert not observe(16).any()


def test_the_newest_images_win() -> None:
    assembler = ObservationAssembler([], TIMEOUT_NS)
    for tick in (1, 2, 3):
        assembler.add_image(VIEWS, tick * T, views(float(tick)), 0)
        assembler.add_joints(tick * T, joints(0.0))
    observation = assembler.take()
    assert observation is not None
    assert observation.views[0, 0, 0] == 3.0
    assert assembler.take() is None


def test_a_camera_that_is_missing_is_waited_for_no_longer_than_bounded() -> None:
    assembler = ObservationAssembler(["front_left"], TIMEOUT_NS)
    assembler.add_joints(100 * T, joints(0.0))
    for tick in range(5, 60, 5):
        assembler.add_image(VIEWS, tick * T, views(), tick * T)
    assert assembler.take() is None
    assert assembler.sync.missed["front_left"] > 0


def test_a_gap_in_the_joint_states_drops_the_observation() -> None:
    assembler = ObservationAssembler([], TIMEOUT_NS)
    assembler.add_joints(0, joints(0.0))
    assembler.add_image(VIEWS, 20 * T, views(), 0)
    assembler.add_joints(40 * T, joints(1.0))
    with pytest.raises(ContractError, match="800 ms apart"):
        assembler.take()
    assert assembler.take() is None


def test_views_that_break_the_contract_drop_the_observation() -> None:
    assembler = ObservationAssembler([], TIMEOUT_NS)
    assembler.add_joints(0, joints(0.0))
    assembler.add_image(VIEWS, 0, np.zeros((10, 10, 3), np.float32), 0)
    with pytest.raises(ContractError, match="views is"):
        assembler.take()


def test_after_time_ran_back_early_stamps_are_new_again() -> None:
    assembler = ObservationAssembler([], TIMEOUT_NS)
    assembler.add_joints(500 * T, joints(5.0))
    assembler.add_command(499 * T, joints(5.0))
    assembler.add_image(VIEWS, 500 * T, views(5.0), 0)
    assert assembler.take() is not None
    assembler.reset()
    assembler.add_joints(T, joints(1.0))
    assembler.add_image(VIEWS, T, views(1.0), 1)
    observation = assembler.take()
    assert observation is not None
    assert observation.joint_positions[0] == 1.0
    assert not observation.action_history.any()
