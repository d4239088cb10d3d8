"""Values that travel between stages are checked when they are built, and only then."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.observation import ActionChunk, Observation, RgbdFrame
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.contract.views import TILED_SHAPE
from clamp_ros.geometry.pinhole import Pinhole

NAN_POSE = np.full((4, 4), np.nan)
FRAME: dict[str, Any] = {
    "camera": "front_left",
    "stamp_ns": 0,
    "color": np.zeros((3, 4, 3), np.uint8),
    "depth_mm": np.zeros((3, 4), np.uint16),
    "pinhole": Pinhole(4, 3, 1.0, 1.0, 0.0, 0.0),
    "world_from_camera": np.eye(4),
}
OBSERVATION: dict[str, Any] = {
    "stamp_ns": 0,
    "views": np.zeros(TILED_SHAPE, np.float32),
    "colors": {"front_left": np.zeros((3, 4, 3), np.uint8)},
    "joint_positions": np.zeros(14, np.float32),
    "action_history": np.zeros((50, 14), np.float32),
}


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = np.nan
    return array


def test_whole_values_are_accepted_and_frozen() -> None:
    frame, observation = RgbdFrame(**FRAME), Observation(**OBSERVATION)
    with pytest.raises(FrozenInstanceError):
        frame.stamp_ns = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        observation.stamp_ns = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("color", np.zeros((4, 3, 3), np.uint8), "front_left"),
        ("color", np.zeros((3, 4, 3), np.float32), "float32"),
        ("depth_mm", np.zeros((3, 4), np.float32), "uint16"),
        ("depth_mm", [[0]], "list"),
        ("world_from_camera", np.eye(3), r"\(3, 3\)"),
        ("world_from_camera", NAN_POSE, "finite"),
        ("pinhole", Pinhole(5, 3, 1.0, 1.0, 0.0, 0.0), r"\(3, 5, 3\)"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(key: str, value: Any, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        RgbdFrame(**{**FRAME, key: value})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("views", np.zeros((224, 1120, 3), np.float32), "views"),
        ("views", with_nan(OBSERVATION["views"]), "views.*finite"),
        ("joint_positions", np.zeros(14), "float64"),
        ("joint_positions", with_nan(OBSERVATION["joint_positions"]), "joint_positions.*finite"),
        ("action_history", np.zeros((49, 14), np.float32), "49"),
        ("colors", {"wrist_left": np.zeros((3, 4), np.uint8)}, "wrist_left"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(key: str, value: Any, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        Observation(**{**OBSERVATION, key: value})


def test_rows_of_a_chunk_are_due_a_control_period_apart() -> None:
    chunk = ActionChunk(1_000_000_007, np.zeros((50, 14)))
    assert chunk.due_ns(0) == 1_000_000_007
    assert chunk.due_ns(49) - chunk.due_ns(0) == 49 * CONTROL_PERIOD_NS == 980_000_000


@pytest.mark.parametrize("actions", [np.zeros((49, 14)), np.zeros((50, 14), np.float32), np.full((50, 14), np.inf)])
def test_a_chunk_that_does_not_fit_is_refused(actions: np.ndarray) -> None:
    with pytest.raises(ContractError, match="actions"):
        ActionChunk(0, actions)
