"""The law of teleoperation: whatever the poses, and whatever fails, nothing jumps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clamp_ros.arm.aloha2 import Drive
from clamp_ros.arm.teleop import MAX_ELAPSED_S, State, Step, Teleop, TeleopConfig
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import (
    CONTROL_PERIOD_NS,
    GRIPPER_INDICES,
    LOWER_LIMITS,
    NUM_JOINTS,
    REST_POSE,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)

T = CONTROL_PERIOD_NS
START_NS = 1_000_000_000
GRIPPERS = list(GRIPPER_INDICES)
ARMS_ONLY = np.delete(np.arange(NUM_JOINTS), GRIPPERS)
OPEN = 0.037


def within(fraction: np.ndarray) -> np.ndarray:
    return LOWER_LIMITS + fraction * (UPPER_LIMITS - LOWER_LIMITS)


POSES = arrays(np.float64, NUM_JOINTS, elements=st.floats(0.0, 1.0)).map(within)
ANYWHERE = arrays(np.float64, NUM_JOINTS, elements=st.floats(allow_nan=True, allow_infinity=True))


class Cell:
    """The law with a gate that lets every target through, and leaders that go where they are driven, at once."""

    def __init__(self, command: np.ndarray, leader: np.ndarray, rest: Drive = Drive.FREE, **config) -> None:
        self.law = Teleop(TeleopConfig(**config), rest)
        self.command, self.leader = command.copy(), leader.copy()
        self.followed = "policy"
        self.drive = rest
        self.now_ns = START_NS
        self.targets: list[np.ndarray] = []
        self.step = Step(None, rest)

    def start(self) -> None:
        self.law.start(self.now_ns)

    def tick(self, ticks: int = 1, until: State | None = None, leads: bool = True) -> Step:
        for _ in range(ticks):
            self.now_ns += T
            self.step = self.law.tick(
                self.now_ns, self.command, self.leader if leads else None, self.followed, self.drive, True
            )
            if self.step.target is not None:
                self.followed = "teleop"
                self.command = self.step.target.copy()
                self.targets.append(self.step.target)
            self.drive = self.step.drive
            if self.drive is Drive.DRIVEN and self.step.pose is not None:
                self.leader[ARMS_ONLY] = self.step.pose[ARMS_ONLY]
            if self.law.state is until:
                break
        return self.step


def following(command: np.ndarray = REST_POSE, **config) -> Cell:
    cell = Cell(command, command, **config)
    cell.start()
    cell.tick(500, until=State.FOLLOWING)
    assert cell.law.state is State.FOLLOWING
    return cell


def no_faster_than_allowed(targets: list[np.ndarray], part: float = 1.0) -> None:
    steps = np.abs(np.diff(targets, axis=0))
    assert (steps <= part * VELOCITY_LIMITS * T / 1e9 + 1e-12).all()
    assert ((np.array(targets) >= LOWER_LIMITS) & (np.array(targets) <= UPPER_LIMITS)).all()


@settings(max_examples=25)
@given(POSES, POSES, st.booleans())
def test_a_take_over_begins_at_the_command_and_ends_at_the_leaders_without_a_jump(command, leader, align):
    cell = Cell(command, leader, align=align)
    cell.start()
    cell.tick(2000, until=State.FOLLOWING)
    assert cell.law.state is State.FOLLOWING, cell.law.reason
    np.testing.assert_array_equal(cell.targets[0], command)
    no_faster_than_allowed(cell.targets)
    arms = np.array(cell.targets)[:, ARMS_ONLY]
    assert np.abs(np.diff(arms, axis=0)).max() <= 0.5 * T / 1e9 + 1e-12, "the approach is slow"
    assert np.abs(cell.targets[-1] - cell.leader)[ARMS_ONLY].max() <= 0.05
    if align:
        assert len(cell.targets) < 20, "leaders that came to the followers leave nothing to close"
        np.testing.assert_array_equal(arms[-1], command[ARMS_ONLY])


EVENTS = st.one_of(
    st.tuples(st.just("leader"), ANYWHERE),
    st.tuples(st.just("leader"), POSES),
    st.tuples(st.just("command"), POSES),
    st.tuples(st.sampled_from(["start", "stop", "silent", "dead", "late"]), st.none()),
    st.tuples(st.sampled_from(["teleop", "policy", "nobody"]), st.none()),
    st.tuples(st.just("drive"), st.sampled_from([None, *Drive])),
)


@given(POSES, st.lists(EVENTS, max_size=40), st.booleans())
def test_whatever_comes_in_the_targets_of_a_take_over_never_jump(command, events, align):
    """Each run of targets begins where the arms are told to be, and moves no faster than the limits."""
    law = Teleop(TeleopConfig(align=align, ramp_s=0.0, follow=1.0))
    leader, followed, drive, now_ns = command, "teleop", Drive.FREE, START_NS
    law.start(now_ns)
    last: np.ndarray | None = None
    for kind, value in events:
        elapsed_ns, told, settled = T, command, True
        if kind == "leader":
            leader = value
        elif kind == "command":
            told = command = value
        elif kind == "start":
            law.start(now_ns)
            last = None
        elif kind == "stop":
            law.stop()
        elif kind == "silent":
            leader = np.full(NUM_JOINTS, np.nan)
        elif kind == "dead":
            told = None
        elif kind == "late":
            elapsed_ns = 3_000_000_000
        elif kind == "drive":
            drive = value
        else:
            followed = kind
        for _ in range(2):
            now_ns += elapsed_ns
            taken_before = law._taken
            target = law.tick(now_ns, told, leader, followed, drive, settled).target
            if target is None:
                assert not law.active
                last = None
                continue
            assert law.active and np.isfinite(target).all()
            assert (target >= LOWER_LIMITS).all() and (target <= UPPER_LIMITS).all()
            if last is None or not taken_before:
                np.testing.assert_array_equal(target, command)
            else:
                bound = VELOCITY_LIMITS * min(elapsed_ns / 1e9, MAX_ELAPSED_S)
                assert (np.abs(target - last) <= bound + 1e-9).all()
            last = target


@settings(max_examples=25)
@given(POSES, st.floats(0.0, 6.0), st.floats(0.05, 0.4))
def test_following_keeps_up_with_a_hand_that_is_within_the_limits(command, phase, amplitude):
    center = np.clip(command, LOWER_LIMITS + amplitude, UPPER_LIMITS - amplitude)
    center[GRIPPERS] = 0.02
    cell = following(center)
    apart = 0.0
    for tick in range(200):
        swing = amplitude * np.sin(phase + 2.0 * tick * T / 1e9) - amplitude * np.sin(phase)
        cell.leader[ARMS_ONLY] = np.clip(center + swing, LOWER_LIMITS, UPPER_LIMITS)[ARMS_ONLY]
        cell.tick()
        if tick > 60:
            apart = max(apart, np.abs(cell.targets[-1] - cell.leader)[ARMS_ONLY].max())
    assert cell.law.state is State.FOLLOWING
    assert apart < 1e-9, "at full speed it is where the leader is"
    no_faster_than_allowed(cell.targets, part=0.9)


def test_what_is_sent_before_the_control_node_follows_is_what_the_arms_are_told_anyway():
    cell = Cell(REST_POSE, REST_POSE + 0.3)
    cell.start()
    for n in range(20):
        cell.followed, cell.command = "policy", REST_POSE + 0.001 * n
        cell.command[GRIPPERS] = 0.01
        told = cell.command.copy()
        np.testing.assert_array_equal(cell.tick().target, told)
    assert cell.law.state is State.APPROACHING
    cell.followed = "policy"
    for _ in range(100):
        cell.tick()
        cell.followed = "policy"
    assert cell.law.state is State.STOPPED
    assert "has not followed the targets within 2 s" in cell.law.reason
    assert cell.step.target is None


def test_leaders_are_driven_to_the_held_pose_then_let_go_of_before_anything_moves():
    cell = Cell(REST_POSE, REST_POSE + 0.2, rest=Drive.ASSIST)
    cell.start()
    cell.tick(3)
    assert cell.step.drive is Drive.DRIVEN
    pose = cell.step.pose
    assert pose is not None
    np.testing.assert_array_equal(pose, REST_POSE)
    cell.tick()
    assert cell.step.drive is Drive.ASSIST, "they have settled"
    assert cell.step.pose is pose, "one motion, one array"
    cell.tick(3)
    assert cell.law.state is State.FOLLOWING
    np.testing.assert_array_equal(cell.targets, np.tile(REST_POSE, (len(cell.targets), 1)))


def test_leaders_that_never_settle_are_waited_for_by_a_deadline_and_what_is_left_is_closed_slowly():
    law = Teleop(TeleopConfig(align_s=2.0))
    leader = REST_POSE.copy()
    leader[0] += 1.0
    now_ns, states = START_NS, []
    law.start(now_ns)
    targets = []
    for tick in range(400):
        now_ns += T
        step = law.tick(now_ns, targets[-1] if targets else REST_POSE, leader, "teleop", Drive.DRIVEN, False)
        targets.append(step.target)
        states.append(law.state)
        if tick < 100:
            np.testing.assert_array_equal(step.target, REST_POSE)
    assert states[-1] is State.FOLLOWING
    assert targets[-1][0] == pytest.approx(leader[0])


def test_a_gripper_stays_as_it_is_until_its_handle_passes_it():
    command = REST_POSE.copy()
    command[GRIPPERS] = 0.012  # holding something
    cell = Cell(command, command)
    cell.leader[GRIPPERS] = OPEN  # handles at rest, wide open
    cell.start()
    cell.tick(500, until=State.FOLLOWING)
    cell.tick(100)
    np.testing.assert_array_equal(cell.targets[-1][GRIPPERS], [0.012, 0.012])
    cell.leader[6] = 0.005  # squeezed in one move, past the gripper's position
    cell.tick(100)
    assert cell.targets[-1][6] == 0.005
    assert cell.targets[-1][13] == 0.012, "each handle for itself"
    cell.leader[6] = 0.03
    cell.tick(100)
    assert cell.targets[-1][6] == 0.03, "once caught, it follows"


def test_a_leader_that_runs_away_ends_it():
    cell = following()
    cell.leader[1] += 1.2
    cell.tick()
    assert cell.law.state is State.STOPPED
    assert cell.law.reason.startswith("left/shoulder is 1.20 rad from its leader, limit 1")
    assert cell.step.target is None


def test_what_the_gate_holds_back_is_not_wound_up():
    cell = following()
    held = cell.command.copy()
    for n in range(100):
        cell.leader[0] = held[0] + 0.008 * n
        cell.tick()
        cell.command = held.copy()  # something is in the way: the gate does not let it through
    assert np.abs(cell.targets[-1] - held).max() <= 0.3 + 1e-12


def test_a_leader_that_is_not_read_holds_and_then_ends_it():
    cell = following()
    cell.leader[0] += 0.1
    before = cell.targets[-1]
    cell.tick(25, leads=False)
    np.testing.assert_array_equal(cell.targets[-1], before)
    assert cell.law.state is State.FOLLOWING
    cell.tick(2, leads=False)
    assert cell.law.state is State.STOPPED
    assert "a leader has not been read for 0.5 s" in cell.law.reason


def test_no_commands_end_it():
    cell = following()
    step = cell.law.tick(cell.now_ns + T, None, cell.leader, "teleop")
    assert step.target is None
    assert cell.law.state is State.STOPPED
    assert "does control_node run" in cell.law.reason


@pytest.mark.parametrize(
    ("followed", "state", "says"),
    [("nobody", State.STOPPED, "stopped, or moved"), ("replay", State.IDLE, "told to follow replay")],
)
def test_it_ends_when_the_control_node_turns_away(followed, state, says):
    cell = following()
    step = cell.law.tick(cell.now_ns + T, cell.command, cell.leader, followed)
    assert step.target is None
    assert cell.law.state is state
    assert says in cell.law.reason


def test_after_a_stop_nothing_is_sent_and_the_next_start_begins_from_the_command():
    cell = following()
    cell.law.stop()
    assert cell.tick().target is None
    assert cell.law.state is State.IDLE
    moved = REST_POSE.copy()
    moved[0] += 0.7  # the policy has had the arms
    cell.command, cell.followed = moved, "policy"
    cell.start()
    np.testing.assert_array_equal(cell.tick().target, moved)


def test_time_that_stands_still_or_runs_back_moves_nothing():
    cell = following()
    cell.leader[0] += 0.3
    for now_ns in (cell.now_ns, cell.now_ns - T, 0):
        target = cell.law.tick(now_ns, cell.command, cell.leader, "teleop").target
        np.testing.assert_array_equal(target, cell.targets[-1])


def test_a_value_outside_its_range_is_named():
    with pytest.raises(ConfigError, match=r"approach_rad_s is 5\.0, expected 0\.01 to 1\.5 rad/s"):
        TeleopConfig(approach_rad_s=5.0)
