"""The action history's grid, padding and memory; joint states by stamp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, NUM_JOINTS
from clamp_ros.policy.history import ActionHistory, StampedVectors

MS = 1_000_000


def action(value: float) -> np.ndarray:
    return np.full(NUM_JOINTS, value)


def filled(count: int, start_ns: int = 0, offset_ns: int = 0) -> ActionHistory:
    """Command i, of value i + 1, due at tick i."""
    history = ActionHistory()
    for i in range(count):
        history.push(start_ns + i * CONTROL_PERIOD_NS + offset_ns, action(i + 1.0))
    return history


def test_rows_are_the_commands_before_the_stamp_newest_first() -> None:
    history = filled(10)
    rows = history.rows(4 * CONTROL_PERIOD_NS)  # ticks 3, 2, 1, 0; tick 4 itself is a_t and not in it
    assert rows.shape == (CHUNK_SIZE, NUM_JOINTS)
    assert rows.dtype == np.float32
    assert rows[:, 0].tolist() == [4.0, 3.0, 2.0, 1.0] + [0.0] * 46


def test_empty_is_all_zero() -> None:
    assert not ActionHistory().rows(10**9).any()


def test_a_full_history() -> None:
    rows = filled(120).rows(120 * CONTROL_PERIOD_NS)
    assert rows[:, 3].tolist() == [float(v) for v in range(120, 70, -1)]


@given(
    st.lists(st.integers(-9 * MS, 9 * MS), min_size=60, max_size=60),
)
def test_jitter_under_half_a_period_changes_nothing(jitter: list[int]) -> None:
    history = ActionHistory()
    for i, j in enumerate(jitter):
        history.push(10**12 + i * CONTROL_PERIOD_NS + j, action(i + 1.0))
    rows = history.rows(10**12 + 60 * CONTROL_PERIOD_NS)
    assert rows[:, 0].tolist() == [float(v) for v in range(60, 10, -1)]


@given(st.integers(-9 * MS, 9 * MS))
def test_any_phase_gives_one_command_a_row(offset_ns: int) -> None:
    rows = filled(80, 10**12, offset_ns).rows(10**12 + 80 * CONTROL_PERIOD_NS)
    assert np.diff(rows[:, 0]).tolist() == [-1.0] * 49


def test_the_last_command_stays_in_force_across_a_gap() -> None:
    history = ActionHistory()
    history.push(0, action(1.0))
    history.push(10 * CONTROL_PERIOD_NS, action(2.0))
    rows = history.rows(12 * CONTROL_PERIOD_NS)
    assert rows[:12, 0].tolist() == [2.0] * 2 + [1.0] * 10
    assert not rows[12:].any()


def test_an_episode_voids_what_came_before() -> None:
    history = filled(20)
    history.start(10 * CONTROL_PERIOD_NS)
    assert not history.rows(10 * CONTROL_PERIOD_NS).any()
    assert history.rows(12 * CONTROL_PERIOD_NS)[:, 0].tolist() == [12.0, 11.0] + [0.0] * 48
    history.start()
    assert len(history) == 0
    history.push(0, action(5.0))  # time ran back: a new episode
    assert history.rows(CONTROL_PERIOD_NS)[0, 0] == 5.0


def test_memory_is_bounded_and_late_observations_still_served() -> None:
    history = filled(10_000)
    assert len(history) <= 2 * CHUNK_SIZE + 2
    stamp = (10_000 - CHUNK_SIZE) * CONTROL_PERIOD_NS
    assert history.rows(stamp).all()


def test_commands_out_of_order_are_sorted_in() -> None:
    a, b = ActionHistory(), ActionHistory()
    order = list(np.random.default_rng(0).permutation(30))
    for i in range(30):
        a.push(i * CONTROL_PERIOD_NS, action(i + 1.0))
    for i in order:
        b.push(int(i) * CONTROL_PERIOD_NS, action(i + 1.0))
    np.testing.assert_array_equal(a.rows(30 * CONTROL_PERIOD_NS), b.rows(30 * CONTROL_PERIOD_NS))


@pytest.mark.parametrize("bad", [np.zeros(13), np.full(14, np.nan)])
def test_a_bad_command_never_enters(bad: np.ndarray) -> None:
    history = filled(3)
    with pytest.raises(ContractError):
        history.push(3 * CONTROL_PERIOD_NS, bad)
    assert len(history) == 3


def test_joint_states_at_a_stamp() -> None:
    joints = StampedVectors(10**9)
    joints.push(0, action(0.0))
    joints.push(20 * MS, action(1.0))
    joints.push(200 * MS, action(2.0))
    assert joints.interpolated(20 * MS, 40 * MS)[0] == 1.0
    assert joints.interpolated(5 * MS, 40 * MS)[0] == pytest.approx(0.25)
    for stamp, says in ((100 * MS, "180 ms apart"), (-1, "no joint state"), (201 * MS, "no joint state")):
        with pytest.raises(ContractError, match=says):
            joints.interpolated(stamp, 40 * MS)
    with pytest.raises(ContractError, match="none at all"):
        StampedVectors(1).interpolated(0, 1)


def test_equal_stamps_replace() -> None:
    joints = StampedVectors(10**9)
    joints.push(0, action(1.0))
    joints.push(0, action(2.0))
    assert len(joints) == 1
    assert joints.interpolated(0, 1)[0] == 2.0


def test_stored_vectors_do_not_alias() -> None:
    history, mutable = ActionHistory(), action(1.0)
    history.push(0, mutable)
    mutable[:] = 9.0
    assert history.rows(CONTROL_PERIOD_NS)[0, 0] == 1.0
