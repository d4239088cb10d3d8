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
    ACCELERATION_LIMITS,
    CONTROL_PERIOD_NS,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    REST_POSE,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)
from clamp_ros.control.clearance import Clearance, ClearanceConfig
from clamp_ros.control.following import FollowingConfig
from clamp_ros.control.safety import GateResult, SafetyConfig, SafetyGate, State
from clamp_ros.control.workspace import Workspace, WorkspaceConfig

T = CONTROL_PERIOD_NS
ALONE = ClearanceConfig(enabled=False)
FAST = SafetyConfig(startup_s=0.0)
FREE = SafetyConfig(startup_s=0.0, clearance=ALONE, workspace=WorkspaceConfig((-9.0,) * 3, (9.0,) * 3))
VECTORS = hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(-5.0, 5.0))
NEAR = hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(-1.0, 1.0)).map(lambda by: REST_POSE + by)
WILD = st.one_of(
    st.none(),
    VECTORS,
    NEAR,
    hnp.arrays(np.float64, (NUM_JOINTS,), elements=st.floats(allow_nan=True, allow_infinity=True)),
    hnp.arrays(np.float64, st.integers(0, 20), elements=st.floats(-5.0, 5.0)),
    st.just("not numbers"),
    st.just([10**400] * NUM_JOINTS),
    st.just([None] * NUM_JOINTS),
)
EVENTS = st.tuples(
    st.sampled_from(["tick", "tick", "tick", "tick", "stop", "reset", "restart"]),
    st.one_of(NEAR, NEAR, NEAR, WILD),  # target
    st.sampled_from([1, 1, 1, 3]),  # ticks for which it stays
    st.one_of(st.none(), NEAR, NEAR, WILD),  # measured; "near" is near the rest pose, not the command
    st.one_of(st.none(), WILD),  # efforts
    st.one_of(st.just(T), st.just(T), st.integers(-5 * T, 5 * T)),  # time that passes
    st.integers(0, 20),  # age of the measurement in ticks
)
CONFIGS = [
    SafetyConfig(),
    FAST,
    FREE,
    SafetyConfig(startup_s=0.0, standstill_s=0.0, velocity_scale=0.3, acceleration_scale=0.3, max_jump_rad=6.3,
                 stop_haste=1.0, clearance=ALONE, following=FollowingConfig(error_rad=0.02, error_s=0.0, yield_s=0.1)),
]  # fmt: skip


@given(st.lists(EVENTS, max_size=25), st.sampled_from(CONFIGS))
@settings(max_examples=80, deadline=None)
def test_no_input_makes_an_unsafe_command(events: list[Any], config: SafetyConfig) -> None:
    gate, now, last = SafetyGate(config), 10**9, None
    speed, change = config.velocity_scale * VELOCITY_LIMITS, config.acceleration_scale * ACCELERATION_LIMITS
    velocity = np.zeros(NUM_JOINTS)
    for kind, target, ticks, measured, efforts, passed_ns, age in events:
        if kind == "stop":
            gate.stop("test")
        elif kind == "reset":
            gate.reset()
        elif kind == "restart":
            gate.restart()
            last = None
        for _ in range(ticks):
            now += passed_ns
            result = gate.check(target, now, measured, now - age * T, efforts=efforts)
            command = result.command
            assert (result.state is State.RUNNING) == (result.reason == "")
            assert (result.state is State.STOPPED) == gate.stopped
            if command is None:
                assert last is None
                continue
            assert np.isfinite(command).all()
            assert (command >= LOWER_LIMITS).all()
            assert (command <= UPPER_LIMITS).all()
            dt_s = min(max(passed_ns, 0), T) / 1e9
            if last is None:  # where the arms are
                np.testing.assert_allclose(command, np.clip(measured, LOWER_LIMITS, UPPER_LIMITS), rtol=0.0, atol=1e-12)
                velocity = np.zeros(NUM_JOINTS)
            elif dt_s < 1e-4:  # too short to tell a velocity by
                assert (np.abs(command - last) <= speed * dt_s + 1e-12).all()
                velocity = None
            else:
                before, velocity = velocity, (command - last) / dt_s
                assert (np.abs(velocity) <= speed + 1e-6).all()
                haste = config.stop_haste if gate.stopped else 1.0
                if before is not None:
                    assert (np.abs(velocity - before) <= haste * change * dt_s + 1e-6).all()
                    if result.state is State.STOPPED:
                        assert (np.abs(velocity) <= np.abs(before) + 1e-6).all()
                way = np.where(velocity > 0.0, UPPER_LIMITS - command, command - LOWER_LIMITS)
                assert (velocity**2 <= 2.0 * change * way + 1e-6).all(), "it can still brake"
            last = command


@given(st.lists(st.tuples(NEAR, st.integers(1, 15), st.booleans()), max_size=8))
@settings(max_examples=15, deadline=None)
def test_no_target_brings_the_arms_out_of_their_space(targets: list[Any]) -> None:
    """With the braking in between: a millimetre is what the poses looked at do not tell of those between them."""
    gate, clearance, workspace, now = SafetyGate(FAST), Clearance(), Workspace(), 0
    gate.check(None, now, REST_POSE)
    command = REST_POSE
    for target, ticks, wanted in targets:
        for _ in range(ticks):
            now += T
            result = gate.check(target if wanted else None, now, command).command
            assert result is not None
            command = result
            assert clearance.shortfalls(command).max() < 1e-3
            assert workspace.shortfalls(command).max() < 1e-3


def settled(config: SafetyConfig = FAST) -> SafetyGate:
    gate = SafetyGate(config)
    gate.check(None, 0, REST_POSE)
    return gate


def offset(joint: str, by: float) -> np.ndarray:
    target = REST_POSE.copy()
    target[JOINT_NAMES.index(joint)] += by
    return target


class Arms:
    """A gate and arms that are wherever they are told to be, one tick after another."""

    def __init__(self, config: SafetyConfig = FREE) -> None:
        self.gate = settled(config)
        self.now = 0
        self.command = REST_POSE.copy()
        self.velocity = np.zeros(NUM_JOINTS)

    def tick(self, target: Any, *, measured: Any = "followed", **rest: Any) -> GateResult:
        self.now += T
        where = self.command if isinstance(measured, str) else measured
        result = self.gate.check(target, self.now, where, **rest)
        assert result.command is not None
        self.velocity = (result.command - self.command) / 0.02
        self.command = result.command
        return result

    def run(self, target: Any, ticks: int) -> GateResult:
        result = self.tick(target)
        for _ in range(ticks - 1):
            result = self.tick(target)
        return result


def test_nothing_is_sent_before_the_arms_are_measured() -> None:
    gate = SafetyGate()
    result = gate.check(REST_POSE, 0, None)
    assert result.command is None
    assert result.state is State.IDLE
    assert result.reason == "no joint states yet"
    assert gate.check(REST_POSE, 0, np.full(14, np.nan)).command is None
    late = gate.check(REST_POSE, 10**9, REST_POSE, 0)
    assert late.command is None
    assert "1.00 s old" in late.reason


def test_the_first_command_is_the_measured_pose() -> None:
    pose = REST_POSE + 0.3
    pose[0] = 4.0  # beyond its limit
    command = SafetyGate().check(REST_POSE, 0, pose).command
    np.testing.assert_array_equal(command, np.clip(pose, LOWER_LIMITS, UPPER_LIMITS))


def test_a_stream_within_every_limit_passes_unchanged() -> None:
    arms = Arms(FAST)
    for i in range(1, 100):
        target = offset("left/elbow", 0.1 * (1.0 - np.cos(0.1 * i)))
        result = arms.tick(target)
        np.testing.assert_allclose(arms.command, target, atol=2e-3 if i < 3 else 1e-9)
        assert result.state is State.RUNNING
    assert result.limited == ()


def test_speed_and_acceleration_are_limited_and_the_joint_named() -> None:
    arms = Arms()
    result = arms.tick(offset("right/waist", 1.0))
    assert result.limited == ("right/waist",)
    assert arms.velocity[7] == pytest.approx(ACCELERATION_LIMITS[7] * 0.02)
    arms.run(offset("right/waist", 1.2), 1)
    assert arms.velocity[7] == pytest.approx(2 * ACCELERATION_LIMITS[7] * 0.02)
    slow = Arms(SafetyConfig(startup_s=0.0, velocity_scale=0.1, acceleration_scale=0.5, clearance=ALONE))
    slow.tick(offset("right/waist", 1.0))
    assert slow.velocity[7] == pytest.approx(0.5 * ACCELERATION_LIMITS[7] * 0.02)
    slow.run(offset("right/waist", 1.0), 20)
    assert slow.velocity[7] == pytest.approx(0.1 * VELOCITY_LIMITS[7])


def test_a_late_tick_may_not_catch_up() -> None:
    late, timely = settled(), settled()
    far = offset("left/waist", 1.0)
    np.testing.assert_array_equal(late.check(far, 50 * T, REST_POSE).command, timely.check(far, T, REST_POSE).command)


def test_when_time_stands_or_runs_back_nothing_moves() -> None:
    arms = Arms()
    arms.run(offset("left/waist", 1.0), 5)
    for now in (arms.now, arms.now - 7 * T):
        np.testing.assert_array_equal(
            arms.gate.check(offset("left/waist", 1.0), now, arms.command).command, arms.command
        )


def test_position_limits_hold() -> None:
    arms = Arms()
    for i in range(1, 250):
        arms.tick(np.clip(UPPER_LIMITS + 0.01, None, REST_POSE + 0.03 * i))
    np.testing.assert_allclose(arms.command, UPPER_LIMITS, atol=1e-9)


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


def test_a_hold_brakes_and_an_emergency_stop_brakes_faster() -> None:
    ticks = {}
    for how in ("hold", "stop"):
        arms = Arms()
        arms.run(offset("left/waist", 1.0), 6)
        speed, begin = arms.velocity[0], arms.command[0]
        assert speed > 1.5
        if how == "stop":
            arms.gate.stop("button")
        ticks[how], change = 0, (3.0 if how == "stop" else 1.0) * ACCELERATION_LIMITS[0] * 0.02
        while arms.velocity[0] > 1e-9:
            before = arms.velocity[0]
            arms.tick(None)
            assert 0.0 <= before - arms.velocity[0] <= change + 1e-9
            ticks[how] += 1
        assert arms.command[0] - begin <= speed**2 / (2.0 * change / 0.02)
    assert ticks == {"hold": 6, "stop": 2}, "as long as it took to speed up, and a third of it"


def test_a_gripper_may_be_told_to_close_at_once() -> None:
    arms = Arms(FAST)
    arms.run(offset("left/gripper", 0.0286), 20)
    assert arms.command[6] == pytest.approx(0.037, abs=1e-6)


def test_the_watchdog_holds_when_measurements_stop() -> None:
    gate = settled()
    assert gate.check(offset("left/elbow", 0.01), 10 * T, REST_POSE, 0).state is State.RUNNING  # 0.2 s
    result = gate.check(REST_POSE, 11 * T, REST_POSE, 0)
    assert result.state is State.HOLDING
    assert "0.22 s old" in result.reason
    assert gate.check(REST_POSE, 11 * T, None).reason == "no joint states"
    assert "not finite" in gate.check(REST_POSE, 12 * T, REST_POSE * np.nan).reason


def test_an_emergency_stop_is_latched_until_reset() -> None:
    gate = settled()
    gate.stop("button pressed")
    gate.stop("again")
    for i in range(2, 20):
        result = gate.check(offset("left/elbow", 0.05), i * T, REST_POSE)
        assert result.state is State.STOPPED
        assert result.reason == "button pressed"
        np.testing.assert_array_equal(result.command, REST_POSE)
    gate.restart()
    assert gate.stopped
    gate.reset()
    assert not gate.stopped
    assert gate.check(REST_POSE, 20 * T, REST_POSE).state is State.RUNNING


def test_motion_starts_gently_after_standing_still() -> None:
    arms = Arms(SafetyConfig(startup_s=0.5, startup_fraction=0.1, standstill_s=0.2, clearance=ALONE))
    full, speeds = VELOCITY_LIMITS[0], []
    for i in range(40):
        arms.tick(offset("left/waist", min(0.1 + 0.07 * i, 1.1)))
        speeds.append(arms.velocity[0])
    assert speeds[1] == pytest.approx((0.1 + 0.9 * 0.02 / 0.5) * full)
    assert max(speeds) > 0.6 * full
    arms.run(None, 20)
    arms.tick(offset("left/waist", 0.0))
    arms.tick(offset("left/waist", 0.0))
    assert -arms.velocity[0] == pytest.approx((0.1 + 0.9 * 0.02 / 0.5) * full), "from a standstill again"


def test_an_arm_that_lags_too_far_for_too_long_is_held_where_it_is() -> None:
    arms = Arms()
    stuck = REST_POSE
    result = arms.run(offset("left/elbow", 0.3), 30)
    assert result.state is State.RUNNING
    target = offset("left/elbow", 0.5)
    for _ in range(15):
        assert arms.tick(target, measured=stuck).state is State.RUNNING, "not yet for longer than 0.3 s"
    for _ in range(10):
        result = arms.tick(target, measured=stuck)
    assert result.state is State.HOLDING
    assert "left/elbow has been off its command for 0.3" in result.reason
    assert "limit 0.35" in result.reason
    for _ in range(35):
        result = arms.tick(target, measured=stuck)
    assert arms.command[2] == pytest.approx(stuck[2], abs=1e-3), "the obstacle is not pressed on"
    assert result.state is State.HOLDING
    for _ in range(20):
        result = arms.tick(target)
    assert result.state is State.RUNNING, "once yield_s is over it goes on"


def test_a_gripper_that_holds_a_thing_is_no_lag() -> None:
    arms = Arms(FAST)
    for _ in range(100):
        result = arms.tick(offset("left/gripper", -0.006), measured=offset("left/gripper", 0.02))
    assert result.state is State.RUNNING


def test_an_arm_that_strains_for_too_long_is_held() -> None:
    arms, efforts = Arms(), np.zeros(NUM_JOINTS)
    efforts[8] = -20.0  # the right shoulder; its motors stall at 21.2 N m
    for _ in range(24):
        assert arms.tick(REST_POSE, efforts=efforts).state is State.RUNNING
    arms.tick(REST_POSE, efforts=efforts)
    result = arms.tick(REST_POSE, efforts=efforts)
    assert result.state is State.HOLDING
    assert "right/shoulder has strained for 0.5" in result.reason
    assert "with 20.0 N m, limit 17.0" in result.reason
    unclear = Arms().tick(REST_POSE, efforts=efforts * np.nan)
    assert (unclear.state, "efforts is not finite" in unclear.reason) == (State.HOLDING, True)


def test_fingers_stop_above_the_table_and_may_leave_it() -> None:
    arms, clearance = Arms(FAST), Clearance()
    down = REST_POSE.copy()
    down[[1, 2, 4]] = -0.48, 1.2, 0.5 * np.pi - 1.2 + 0.48
    start = arms.command
    for i in range(1, 120):
        arms.tick(start + min(i / 100, 1.0) * (down - start))
    through = down.copy()
    through[1] += 0.3
    through[4] -= 0.3
    for i in range(1, 60):
        result = arms.tick(down + min(i / 50, 1.0) * (through - down))
    assert result.state is State.HOLDING
    assert "finger_link is" in result.reason
    assert "from table, limit 1.0 mm" in result.reason
    nearest = clearance.nearest(arms.command, 0.05)
    assert nearest is not None
    assert 0.001 - 1e-6 <= nearest.distance_m < 0.012
    held = arms.command
    assert arms.run(through, 10).state is State.HOLDING
    np.testing.assert_allclose(arms.command, held, atol=2e-3)
    assert arms.run(down, 3).state is State.RUNNING


def test_arms_that_are_too_near_may_part_but_not_approach() -> None:
    across = REST_POSE.copy()
    across[[1, 8]], across[[2, 9]] = -0.4, 0.9
    assert Clearance(ClearanceConfig(arm_arm_m=0.2)).shortfalls(across).max() > 0.05
    gate = SafetyGate(SafetyConfig(startup_s=0.0, clearance=ClearanceConfig(arm_arm_m=0.2)))
    gate.check(None, 0, across)
    apart, together = across.copy(), across.copy()
    apart[[1, 8]] -= 0.3
    together[[1, 8]] += 0.3
    refused = gate.check(together, T, across)
    assert refused.state is State.HOLDING
    assert "limit 200.0 mm" in refused.reason
    np.testing.assert_array_equal(refused.command, across)
    assert gate.check(apart, 2 * T, across).state is State.RUNNING


def test_a_gripper_stays_in_its_workspace() -> None:
    arms = Arms(SafetyConfig(startup_s=0.0, clearance=ALONE, workspace=WorkspaceConfig(max_m=(0.66, 0.0, 0.75))))
    for i in range(1, 60):
        result = arms.tick(offset("left/waist", 0.01 * i))
    assert result.state is State.HOLDING
    assert "left/gripper y is" in result.reason
    assert Workspace(WorkspaceConfig(max_m=(0.66, 0.0, 0.75))).shortfalls(arms.command).max() < 1e-6
    assert arms.run(REST_POSE, 3).state is State.RUNNING


def test_after_a_restart_the_arms_are_measured_anew() -> None:
    gate = settled()
    gate.restart()
    elsewhere = offset("left/elbow", 0.2)
    np.testing.assert_array_equal(gate.check(None, T, elsewhere).command, elsewhere)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="velocity_scale"):
        SafetyGate(SafetyConfig(velocity_scale=1.5))
    with pytest.raises(ConfigError, match="stop_haste"):
        SafetyGate(SafetyConfig(stop_haste=0.5))
