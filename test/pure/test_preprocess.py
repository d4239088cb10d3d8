"""Normalisation: inverse laws, statistics, the meaning of zero rows; resizing by hand-worked averages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import LOWER_LIMITS, NUM_JOINTS, REST_POSE, UPPER_LIMITS
from clamp_ros.policy.preprocess import Normalization, preprocess_rgb

LIMITS = Normalization(np.zeros(14), np.ones(14), LOWER_LIMITS, UPPER_LIMITS)


@given(hnp.arrays(np.float64, (5, NUM_JOINTS), elements=st.floats(0.0, 1.0)))
def test_actions_round_trip(unit: np.ndarray) -> None:
    actions = LOWER_LIMITS + unit * (UPPER_LIMITS - LOWER_LIMITS)
    normalised = LIMITS.actions(actions)
    assert normalised.dtype == np.float32
    assert np.abs(normalised).max() <= 1.0 + 1e-6
    np.testing.assert_allclose(LIMITS.actions_inverse(normalised), actions, atol=1e-6)


@given(hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(-1e6, 1e6)))
def test_the_inverse_never_leaves_the_range(normalised: np.ndarray) -> None:
    actions = LIMITS.actions_inverse(normalised)
    assert (actions >= LOWER_LIMITS).all()
    assert (actions <= UPPER_LIMITS).all()


def test_fit_standardises() -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(0.2, 0.5, (500, NUM_JOINTS))
    a = rng.uniform(-0.7, 1.1, (400, NUM_JOINTS))
    norm = Normalization.fit(q, a)
    z = norm.proprio(q)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1.0, atol=1e-5)
    u = norm.actions(a)
    np.testing.assert_allclose(u.min(axis=0), -1.0, atol=1e-6)
    np.testing.assert_allclose(u.max(axis=0), 1.0, atol=1e-6)


def test_an_idle_joint_is_not_scaled_by_nothing() -> None:
    idle = np.tile(REST_POSE, (10, 1))
    norm = Normalization.fit(idle, idle)
    np.testing.assert_allclose(norm.proprio(idle), 0.0, atol=1e-6)
    np.testing.assert_allclose(norm.actions(idle), 0.0, atol=1e-6)
    assert norm.proprio_std[0] == pytest.approx(0.03)
    assert norm.proprio_std[6] == pytest.approx(0.01)
    assert norm.action_max[0] - norm.action_min[0] == pytest.approx(0.1)
    assert norm.action_max[13] - norm.action_min[13] == pytest.approx(0.01)


def test_missing_history_rows_stay_zero() -> None:
    history = np.zeros((50, NUM_JOINTS), dtype=np.float32)
    history[:3] = REST_POSE
    out = LIMITS.history(history)
    np.testing.assert_array_equal(out[3:], 0.0)
    np.testing.assert_array_equal(out[:3], LIMITS.actions(history[:3]))
    assert out[:3].any(axis=1).all()
    assert out.dtype == np.float32


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("proprio_mean", np.zeros(13), "proprio_mean"),
        ("proprio_std", np.zeros(14), "positive"),
        ("action_min", np.full(14, np.nan), "action_min"),
        ("action_max", LOWER_LIMITS, "action_max"),
    ],
)
def test_bad_statistics_are_refused(field: str, value: np.ndarray, says: str) -> None:
    good = {"proprio_mean": np.zeros(14), "proprio_std": np.ones(14)}
    good |= {"action_min": LOWER_LIMITS, "action_max": UPPER_LIMITS}
    with pytest.raises(ContractError, match=says):
        Normalization(**(good | {field: value}))


@pytest.mark.parametrize("bad", [np.zeros((0, 14)), np.zeros((3, 13)), np.full((2, 14), np.inf)])
def test_fit_refuses_what_it_cannot_fit(bad: np.ndarray) -> None:
    with pytest.raises(ContractError, match="proprio"):
        Normalization.fit(bad, np.zeros((1, 14)))


def test_rgb_is_averaged_over_areas() -> None:
    color = np.zeros((4, 4, 3), dtype=np.uint8)
    color[:2, :2, 0] = [[10, 20], [30, 40]]  # mean 25
    color[2:, 2:, 2] = 255
    out = preprocess_rgb(color, 2, 2)
    assert out.shape == (3, 2, 2)
    assert out.dtype == np.float32
    assert out[0, 0, 0] == pytest.approx(25 / 255)
    assert out[2, 1, 1] == 1.0
    assert out[1].max() == 0.0


def test_rgb_of_the_right_size_is_only_scaled() -> None:
    color = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = preprocess_rgb(color, 6, 8)
    np.testing.assert_allclose(out, color.transpose(2, 0, 1) / 255.0, atol=1e-7)
    assert out.flags.c_contiguous
