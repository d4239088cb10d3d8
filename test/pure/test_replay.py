"""A recording as targets: bounded on the way to it, itself while it plays, still at its end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_bag import TICKS, joints_at, make_bag

from clamp_ros.contract.errors import ConfigError, ContractError, RecordError
from clamp_ros.contract.interfaces import JOINT_COMMANDS
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, GRIPPER_INDICES, LOWER_LIMITS, REST_POSE, UPPER_LIMITS
from clamp_ros.record.episode import JointSeries
from clamp_ros.record.replay import Player, ReplayConfig, load_commands

PERIOD_S = 1e-9 * CONTROL_PERIOD_NS


def recording(ticks: int = 60, period_ns: int = CONTROL_PERIOD_NS) -> JointSeries:
    """A waist that swings, from 0.3 rad."""
    positions = np.tile(REST_POSE, (ticks, 1))
    positions[:, 0] = 0.3 + 0.2 * np.sin(0.1 * np.arange(ticks))
    stamps = 5_000_000_000 + period_ns * np.arange(ticks, dtype=np.int64)
    return JointSeries(stamps, positions, np.full_like(positions, np.nan))


def play(player: Player, start: np.ndarray, following=lambda tick: True, period_ns=CONTROL_PERIOD_NS) -> dict:
    """The targets of every phase until it is done."""
    now, targets = 1_000, {}
    player.begin(start, now)
    for tick in range(20_000):
        now += period_ns
        target = player.tick(now, following(tick))
        targets.setdefault(player.phase, []).append(target)
        if player.phase == "done":
            return {phase: np.array(rows) for phase, rows in targets.items()}
    raise AssertionError(f"never done: {player.phase}")


def test_a_recording_at_its_own_speed_is_played_unchanged_and_then_held():
    series = recording()
    played = play(Player(series, ReplayConfig(hold_s=0.5)), np.array(REST_POSE))
    # the approach's last target is the recording's first, and its last is asked for while it is held
    assert np.array_equal(np.concatenate([played["play"], played["hold"][:1]]), series.positions)
    assert (played["hold"] == series.positions[-1]).all()
    assert len(played["hold"]) == pytest.approx(0.5 / PERIOD_S, abs=1)


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 1.0), min_size=14, max_size=14), st.floats(0.05, 2.0))
def test_from_anywhere_the_way_to_the_first_pose_is_smooth_and_bounded(shares, speed):
    start = LOWER_LIMITS + np.array(shares) * (UPPER_LIMITS - LOWER_LIMITS)
    series = recording(3)
    player = Player(series, ReplayConfig(approach_rad_s=speed, approach_gripper_m_s=0.02))
    played = play(player, start)
    way = np.vstack([start, played["approach"], series.positions[0]])
    arms = np.delete(way, list(GRIPPER_INDICES), axis=1)
    assert np.abs(np.diff(arms, axis=0)).max() <= speed * PERIOD_S * (1 + 1e-9)
    assert np.abs(np.diff(way[:, list(GRIPPER_INDICES)], axis=0)).max() <= 0.02 * PERIOD_S * (1 + 1e-9)


def test_half_the_speed_takes_twice_as_long_and_lies_between_the_samples():
    series = recording()
    played = play(Player(series, ReplayConfig(speed=0.5)), np.array(REST_POSE))["play"]
    assert len(played) == 2 * (len(series) - 1)
    assert np.allclose(played[::2], series.positions[:-1], atol=1e-9)
    assert np.allclose(played[1::2], 0.5 * (series.positions[:-1] + series.positions[1:]), atol=1e-9)


def test_while_the_arms_do_not_follow_the_target_waits_for_them():
    series = recording()
    away = range(40, 60)
    player = Player(series, ReplayConfig(interrupted_s=1.0, approach_rad_s=2.0))
    played = play(player, series.positions[0], following=lambda tick: tick not in away)["play"]
    steps = np.abs(np.diff(played[:, 0]))
    assert np.count_nonzero(steps == 0.0) == len(away)
    assert steps.max() <= np.abs(np.diff(series.positions[:, 0])).max() + 1e-12


def test_late_ticks_play_late_and_never_faster():
    series = recording()
    played = play(Player(series, ReplayConfig()), series.positions[0], period_ns=5 * CONTROL_PERIOD_NS)["play"]
    assert np.abs(np.diff(played[:, 0])).max() <= 1.5 * np.abs(np.diff(series.positions[:, 0])).max() + 1e-12


def test_arms_that_never_follow_and_time_that_runs_back_end_it():
    player = Player(recording(), ReplayConfig(interrupted_s=1.0))
    with pytest.raises(RecordError, match="not followed for 1 s"):
        play(player, np.array(REST_POSE), following=lambda tick: False)
    player.begin(np.array(REST_POSE), 10_000)
    with pytest.raises(RecordError, match="time ran back"):
        player.tick(9_999, True)
    with pytest.raises(ContractError, match="the pose to set out from"):
        player.begin(np.full(14, np.nan), 0)


def test_commands_are_read_from_a_bag(tmp_path):
    metadata, commands = load_commands(make_bag(tmp_path / "bag"))
    assert (metadata.task, metadata.seed) == ("mug_on_plate", 7)
    assert np.array_equal(commands.positions, [joints_at(t) + 0.01 for t in range(TICKS)])


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"skip": lambda topic, tick: topic == JOINT_COMMANDS.name}, "has no /joint_commands"),
        ({"skip": lambda topic, tick: 20 <= tick < 50}, r"gap of 0\.62 s, 0\.38 s from its start"),
        ({"joints": lambda tick: joints_at(tick) + (9.0 if tick == 3 else 0.0)}, "left/waist is commanded to"),
        ({"joints": lambda tick: joints_at(tick) * (np.nan if tick == 9 else 1.0)}, "not finite"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path, fault, complaint):
    with pytest.raises(RecordError, match=complaint):
        load_commands(make_bag(tmp_path / "bag", **fault))


def test_faster_than_it_was_is_no_replay():
    with pytest.raises(ConfigError, match="speed is 2"):
        ReplayConfig(speed=2.0)
