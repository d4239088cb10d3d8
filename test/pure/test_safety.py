"""The gate's guarantees as properties over any sequence of inputs, and each of its answers by example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import (
    CONTROL_PERIOD_NS,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    REST_POSE,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)
from clamp_ros.control.safety import SafetyConfig, SafetyGate, State

T = CONTROL_PERIOD_NS
FAST = SafetyConfig(startup_s=0.0)
VECTORS = hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(-5.0, 5.0))
WILD = st.one_of(
    st.none(),
    VECTORS,
    hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(allow_nan=True, allow_infinity=True)),
    hnp.arrays(np.float64, st.integers(0, 20), elements=st.floats(-5.0, 5.0)),
    st.just("not numbers"),
)
EVENTS = st.tuples(
    st.sampled_from(["tick", "tick", "tick", "tick", "stop", "reset", "restart"]),
    WILD,  # target
    st.one_of(st.none(), VECTORS, WILD),  # measured
    st.integers(-5, 5),  # ticks that pass
    st.integers(0, 20),  # age of the measurement in ticks
)


@given(st.lists(EVENTS, max_size=40), st.sampled_from([SafetyConfig(), FAST, SafetyConfig(velocity_scale=0.1)]))
@settings(max_examples=300, deadline=None)
def test_no_input_makes_an_unsafe_command(events: list[Any], config: SafetyConfig) -> None:
    gate, now, last = SafetyGate(config), 10**9, None
    for kind, target, measured, ticks, age in events:
        if kind == "stop":
            gate.stop("test")
        elif kind == "reset":
            gate.reset()
        elif kind == "restart":
            gate.restart()
            last = None
        now += ticks * T
        result = gate.check(target, now, measured, now - age * T)
        command = result.command
        if command is None:
            assert last is None
            assert result.reason
            continue
        assert np.isfinite(command).all()
        assert (command >= LOWER_LIMITS).all()
        assert (command <= UPPER_LIMITS).all()
        if last is None:  # where the arms are
            np.testing.assert_array_equal(command, np.clip(measured, LOWER_LIMITS, UPPER_LIMITS))
        else:
            step = np.abs(command - last)
            periods = min(max(ticks, 0), 2)
            assert (step <= VELOCITY_LIMITS * config.velocity_scale * 0.02 * periods + 1e-12).all()
            assert (step[:6] <= config.max_step_rad + 1e-12).all()
            if result.state is not State.RUNNING:
                np.testing.assert_array_equal(command, last)
        assert (result.state is State.RUNNING) == (result.reason == "")
        assert (result.state is State.STOPPED) == gate.stopped
        last = command


def settled(config: SafetyConfig = FAST) -> SafetyGate:
    gate = SafetyGate(config)
    gate.check(None, 0, REST_POSE)
    return gate


def offset(joint: str, by: float) -> np.ndarray:
    target = REST_POSE.copy()
    target[JOINT_NAMES.index(joint)] += by
    return target


def test_nothing_is_sent_before_the_arms_are_measured() -> None:
    gate = SafetyGate()
    result = gate.check(REST_POSE, 0, None)
    assert result.command is None
    assert result.state is State.IDLE
    assert result.reason == "no joint states yet"
    assert gate.check(REST_POSE, 0, np.full(14, np.nan)).command is None


def test_the_first_command_is_the_measured_pose() -> None:
    pose = REST_POSE + 0.3
    pose[0] = 4.0  # beyond its limit
    command = SafetyGate().check(REST_POSE, 0, pose).command
    np.testing.assert_array_equal(command, np.clip(pose, LOWER_LIMITS, UPPER_LIMITS))


def test_a_target_within_every_limit_passes_unchanged() -> None:
    gate, target = settled(), offset("left/elbow", 0.05)
    result = gate.check(target, T, REST_POSE)
    np.testing.assert_array_equal(result.command, target)
    assert (result.state, result.reason, result.limited) == (State.RUNNING, "", ())


def test_speed_is_limited_and_the_joint_named() -> None:
    gate = settled()
    result = gate.check(offset("right/waist", 1.0), T, REST_POSE)
    assert result.limited == ("right/waist",)
    assert result.command is not None
    assert result.command[7] == pytest.approx(3.1416 * 0.02)
    assert settled(SafetyConfig(startup_s=0.0, velocity_scale=0.5)).check(
        offset("right/waist", 1.0), T, REST_POSE
    ).command[7] == pytest.approx(3.1416 * 0.01)  # type: ignore[index]


def test_a_late_tick_may_not_catch_up() -> None:
    result = settled().check(offset("left/waist", 1.0), 50 * T, REST_POSE)
    assert result.command is not None
    assert result.command[0] == pytest.approx(0.1)  # max_step_rad, though two periods' speed would be 0.126


def test_position_limits_hold() -> None:
    gate = settled()
    high = UPPER_LIMITS + 0.01
    for i in range(1, 200):
        target = np.clip(high, None, REST_POSE + 0.05 * i)
        command = gate.check(target, i * T, REST_POSE).command
    np.testing.assert_allclose(command, UPPER_LIMITS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (None, "chunk ran out"),
        (offset("left/elbow", np.nan), "not finite at: left/elbow"),
        (offset("right/wrist_rotate", np.inf), "not finite at: right/wrist_rotate"),
        (np.zeros(13), "shape (13,)"),
        ("up", "up"),
        (offset("left/waist", 1.5), "left/waist is 1.50 rad from the last command, limit 1.20"),
    ],
)
def test_bad_targets_hold_and_say_why(target: Any, says: str) -> None:
    gate = settled()
    result = gate.check(target, T, REST_POSE, reason="chunk ran out")
    np.testing.assert_array_equal(result.command, REST_POSE)
    assert result.state is State.HOLDING
    assert says in result.reason
    assert gate.check(REST_POSE, 2 * T, REST_POSE).state is State.RUNNING  # a good one goes on


def test_a_gripper_may_be_told_to_close_at_once() -> None:
    gate = settled()
    command = REST_POSE
    for i in range(1, 12):
        command = gate.check(offset("left/gripper", 0.0286), i * T, REST_POSE).command
    assert command[6] == pytest.approx(0.037)  # type: ignore[index]


def test_the_watchdog_holds_when_measurements_stop() -> None:
    gate, target = settled(), offset("left/elbow", 0.05)
    assert gate.check(target, 10 * T, REST_POSE, 0).state is State.RUNNING  # 0.2 s
    result = gate.check(REST_POSE, 11 * T, REST_POSE, 0)
    assert result.state is State.HOLDING
    assert "0.22 s old" in result.reason
    np.testing.assert_array_equal(result.command, target)
    assert gate.check(REST_POSE, 11 * T, None).reason == "no joint states"


def test_an_emergency_stop_is_latched_until_reset() -> None:
    gate, target = settled(), offset("left/elbow", 0.05)
    gate.check(target, T, REST_POSE)
    gate.stop("button pressed")
    gate.stop("again")
    for i in range(2, 20):
        result = gate.check(REST_POSE, i * T, REST_POSE)
        assert result.state is State.STOPPED
        assert result.reason == "button pressed"
        np.testing.assert_array_equal(result.command, target)
    gate.restart()
    assert gate.stopped
    gate.reset()
    assert not gate.stopped
    assert gate.check(REST_POSE, 20 * T, REST_POSE).state is State.RUNNING


def test_motion_starts_gently_after_standing_still() -> None:
    config = SafetyConfig(startup_s=0.5, startup_fraction=0.2, standstill_s=0.2)
    gate, last, steps = settled(config), REST_POSE[0], []
    for i in range(1, 40):
        command = gate.check(offset("left/waist", 1.1), i * T, REST_POSE).command
        assert command is not None
        steps.append(command[0] - last)
        last = command[0]
    full = 3.1416 * 0.02
    assert steps[0] == pytest.approx(0.2 * full)
    assert np.all(np.diff(steps[:25]) > 0.0)
    assert max(steps) == pytest.approx(full)

    def next_step(hold_ticks: int, tick: int) -> float:
        nonlocal last
        for i in range(hold_ticks):
            last = gate.check(None, (tick + i) * T, REST_POSE).command[0]  # type: ignore[index]
        moved = gate.check(offset("left/waist", 0.0), (tick + hold_ticks) * T, REST_POSE).command
        return abs(moved[0] - last)  # type: ignore[index]

    assert next_step(10, 40) == pytest.approx(full)  # 0.2 s: a late chunk, not a standstill
    assert next_step(11, 60) == pytest.approx(0.2 * full)


def test_after_a_restart_the_arms_are_measured_anew() -> None:
    gate = settled()
    gate.restart()
    elsewhere = offset("left/elbow", 0.2)
    np.testing.assert_array_equal(gate.check(None, T, elsewhere).command, elsewhere)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="velocity_scale"):
        SafetyGate(SafetyConfig(velocity_scale=1.5))
