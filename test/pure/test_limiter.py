"""The law of motion: limits that no sequence of targets breaks, and streams and steps followed as promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clamp_ros.contract.robot import (
    ACCELERATION_LIMITS,
    LOWER_LIMITS,
    NUM_JOINTS,
    REST_POSE,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)
from clamp_ros.control.limiter import Limiter

DT = 0.02
STILL = np.zeros(NUM_JOINTS)
ANY = hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(-1e3, 1e3))
MOVES = st.tuples(st.sampled_from(["follow", "follow", "follow", "brake"]), ANY, ANY, st.floats(0.0, DT))


def limiter(position: Any = REST_POSE) -> Limiter:
    return Limiter(LOWER_LIMITS, UPPER_LIMITS, VELOCITY_LIMITS, ACCELERATION_LIMITS, np.array(position))


@given(st.lists(MOVES, max_size=40), st.sampled_from([1.0, 0.2]))
@settings(max_examples=100, deadline=None)
def test_nothing_breaks_a_limit_and_every_state_can_brake(moves: list[Any], share: float) -> None:
    at = limiter()
    for kind, target, drift, dt_s in moves:
        before = at.step
        at.step = after = at.follow(target, drift, dt_s, share) if kind == "follow" else at.brake(dt_s)
        assert (after.position >= LOWER_LIMITS).all()
        assert (after.position <= UPPER_LIMITS).all()
        assert (np.abs(after.velocity) <= VELOCITY_LIMITS + 1e-9).all()
        assert (np.abs(after.velocity - before.velocity) <= ACCELERATION_LIMITS * dt_s + 1e-9).all()
        assert after.position == pytest.approx(before.position + after.velocity * dt_s, abs=1e-9)
        way = np.where(after.velocity > 0.0, UPPER_LIMITS - after.position, after.position - LOWER_LIMITS)
        assert (after.velocity**2 <= 2.0 * ACCELERATION_LIMITS * way + 1e-9).all()


def test_it_brakes_before_a_limit_and_reaches_it_without_a_stop_short() -> None:
    at = limiter()
    for _ in range(300):
        at.step = at.follow(UPPER_LIMITS + 1.0, STILL, DT)
    np.testing.assert_allclose(at.step.position, UPPER_LIMITS, atol=1e-9)
    np.testing.assert_allclose(at.step.velocity, 0.0, atol=1e-6)


def test_a_stream_within_the_limits_passes_unchanged() -> None:
    at, ticks = limiter(), np.arange(1, 200) * DT
    stream = REST_POSE + 0.01 * (1.0 - np.cos(2.0 * np.pi * ticks))[:, None]
    last = REST_POSE
    for target in stream:
        at.step = at.follow(target, (target - last) / DT, DT)
        np.testing.assert_allclose(at.step.position, target, atol=1e-9)
        last = target


def test_a_target_that_jumps_is_reached_without_overshoot_in_nearly_the_least_time() -> None:
    at, way = limiter(), 0.2
    target = REST_POSE + np.eye(NUM_JOINTS)[0] * way
    least_ticks = 2.0 * np.sqrt(way / ACCELERATION_LIMITS[0]) / DT  # full acceleration, then full deceleration
    waist = []
    for _ in range(40):
        at.step = at.follow(target, STILL, DT)
        waist.append(at.step.position[0])
    assert max(waist) <= way + 1e-12
    assert np.all(np.diff(waist) >= 0.0)
    arrived = int(np.argmax(np.array(waist) > way - 1e-3))
    assert least_ticks <= arrived + 1 <= 1.6 * least_ticks


def test_braking_takes_v_squared_over_2a_at_most() -> None:
    at = limiter()
    for _ in range(20):
        at.step = at.follow(REST_POSE + 1.0, STILL, DT)
    speed, begin, stop = at.step.velocity, at.step.position, at.stop_after(at.step)
    ticks = 0
    while not at.at_rest:
        at.step = at.brake(DT)
        ticks += 1
    assert ticks == np.ceil(np.max(np.abs(speed) / (ACCELERATION_LIMITS * DT)) - 1e-9)
    assert (np.abs(at.step.position - begin) <= np.abs(stop - begin) + 1e-12).all()
    hasty = limiter()
    hasty.step = hasty.follow(REST_POSE + 1.0, STILL, DT)
    hasty.step = hasty.brake(DT, 3.0)
    assert hasty.at_rest


def test_a_tick_of_no_time_moves_nothing() -> None:
    at = limiter()
    at.step = at.follow(REST_POSE + 0.5, STILL, DT)
    again = at.follow(REST_POSE - 0.5, STILL, 0.0)
    np.testing.assert_array_equal(again.position, at.step.position)
    np.testing.assert_array_equal(again.velocity, at.step.velocity)
