"""Which action is due: by stamp, by count, at seams, and with chunks that come late, early, twice or never."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, NUM_JOINTS
from clamp_ros.control.chunks import ChunkExecutor

T = CONTROL_PERIOD_NS


def chunk(tick: int, base: float = 0.0) -> ActionChunk:
    """Observed at `tick`; row i holds base + i."""
    return ActionChunk(tick * T, np.tile(base + np.arange(float(CHUNK_SIZE))[:, None], (1, NUM_JOINTS)))


def value(executor: ChunkExecutor, tick: float) -> float | None:
    action = executor.action_at(round(tick * T)).action
    return None if action is None else float(action[0])


def test_rows_are_due_by_stamp() -> None:
    executor = ChunkExecutor()
    assert value(executor, 0) is None
    assert executor.action_at(0).reason == "no action chunk yet"
    assert executor.add(chunk(10)) is None
    # inference took 7 ticks: the rows that it cost are past
    assert [value(executor, t) for t in range(17, 60)] == [float(i) for i in range(7, 50)]
    due = executor.action_at(60 * T)
    assert due.action is None
    assert "run out" in due.reason
    assert "1.00 s old" in due.reason


@given(st.integers(-9_000_000, 9_000_000))
def test_a_phase_between_clocks_skips_and_repeats_nothing(phase_ns: int) -> None:
    executor = ChunkExecutor()
    executor.add(chunk(0))
    rows = [float(executor.action_at(t * T + phase_ns).action[0]) for t in range(50)]  # type: ignore[index]
    assert rows == [float(i) for i in range(50)]


def test_open_loop_switches_after_the_actions_it_counted() -> None:
    executor = ChunkExecutor(execute_steps=25)
    executor.add(chunk(0, 0.0))
    assert [value(executor, t) for t in range(3, 10)] == [3, 4, 5, 6, 7, 8, 9]
    executor.add(chunk(8, 100.0))  # comes early: 25 actions of the first are sent all the same
    got = [value(executor, t) for t in range(10, 35)]
    assert got[:18] == [float(t) for t in range(10, 28)]
    assert got[18:] == [100.0 + t - 8 for t in range(28, 35)]
    assert executor.consumed == 7


def test_open_loop_runs_on_while_the_next_chunk_is_late() -> None:
    executor = ChunkExecutor(execute_steps=25)
    executor.add(chunk(0, 0.0))
    assert [value(executor, t) for t in range(40)] == [float(t) for t in range(40)]
    executor.add(chunk(25, 100.0))
    assert value(executor, 40) == 115.0


def test_open_loop_takes_the_newest_of_those_that_wait() -> None:
    executor = ChunkExecutor(execute_steps=10)
    for tick, base in ((0, 0.0), (5, 100.0), (8, 200.0)):
        executor.add(chunk(tick, base))
    got = [value(executor, t) for t in range(8, 20)]
    assert got[:10] == [float(t) for t in range(8, 18)]
    assert got[10:] == [210.0, 211.0]


def test_in_step_inference_executes_every_row() -> None:
    """No latency, 25 of every 50."""
    executor = ChunkExecutor(execute_steps=25)
    for tick in range(100):
        if tick % 25 == 0:
            executor.add(chunk(tick, 1000.0 * tick))
        assert value(executor, tick) == 1000.0 * (tick - tick % 25) + tick % 25


def test_ensembling_by_hand() -> None:
    executor = ChunkExecutor("temporal_ensemble")
    executor.add(chunk(0, 0.0))
    executor.add(chunk(4, 100.0))
    w = [1.0, math.exp(-0.01), math.exp(-0.02)]  # the oldest first
    assert value(executor, 3) == pytest.approx(3.0)
    assert value(executor, 5) == pytest.approx((5 * w[0] + 101 * w[1]) / (w[0] + w[1]))
    executor.add(chunk(9, 500.0))
    assert value(executor, 9) == pytest.approx((9 * w[0] + 105 * w[1] + 500 * w[2]) / sum(w))
    assert value(executor, 52) == pytest.approx((148 * w[0] + 543 * w[1]) / (w[0] + w[1]))  # the first has run out


def test_ensembling_keeps_a_bounded_number() -> None:
    executor = ChunkExecutor("temporal_ensemble")
    for tick in range(500):
        executor.add(chunk(tick, float(tick)))
        value(executor, tick)
    assert len(executor._chunks) <= CHUNK_SIZE


@pytest.mark.parametrize("mode", ["open_loop", "temporal_ensemble"])
def test_chunks_that_are_refused(mode: str) -> None:
    executor = ChunkExecutor(mode)
    executor.add(chunk(100))
    for late in (chunk(100), chunk(90)):
        assert "older than the newest" in (executor.add(late) or "")
    assert value(executor, 100) == 0.0
    assert executor.refused == 2


def test_a_chunk_from_the_past_is_never_executed() -> None:
    executor = ChunkExecutor()
    executor.add(chunk(0))
    due = executor.action_at(51 * T)
    assert due.action is None
    assert "1.02 s old" in due.reason


def test_a_chunk_from_the_future_is_refused_with_the_likely_cause() -> None:
    executor = ChunkExecutor()
    executor.add(chunk(1000))
    due = executor.action_at(0)
    assert due.action is None
    assert "20.00 s in the future" in due.reason
    assert "clock" in due.reason
    assert executor.refused == 1
    executor.add(chunk(1))  # and does not stand in the way of a good one
    assert value(executor, 1) == 0.0


def test_a_chunk_a_little_ahead_waits() -> None:
    executor = ChunkExecutor(execute_steps=1)
    executor.add(chunk(0, 0.0))
    executor.add(chunk(3, 100.0))
    assert [value(executor, t) for t in range(5)] == [0.0, 1.0, 2.0, 100.0, 101.0]


def test_after_a_clear_older_observations_are_void() -> None:
    executor = ChunkExecutor()
    executor.add(chunk(0))
    executor.clear("emergency stop", void_before_ns=10 * T)
    assert executor.action_at(1 * T) == (None, "emergency stop")
    assert "before the reset" in (executor.add(chunk(9)) or "")
    assert executor.add(chunk(10)) is None
    assert value(executor, 11) == 1.0
    executor.clear()
    assert executor.add(chunk(0)) is None  # time ran back: nothing is older than the new episode


def test_actions_do_not_alias_the_chunk() -> None:
    executor, c = ChunkExecutor(), chunk(0)
    executor.add(c)
    due = executor.action_at(0)
    assert due.action is not None
    due.action[:] = 9.0
    assert c.actions[0, 0] == 0.0


@given(
    st.sampled_from(["open_loop", "temporal_ensemble"]),
    st.lists(st.tuples(st.booleans(), st.integers(-20, 200)), max_size=60),
)
def test_whatever_comes_the_answer_is_an_action_or_a_reason(mode: str, events: list[tuple[bool, int]]) -> None:
    executor = ChunkExecutor(mode, execute_steps=5)
    for is_chunk, tick in events:
        if is_chunk:
            executor.add(chunk(tick))
        else:
            due = executor.action_at(tick * T)
            assert (due.action is None) == bool(due.reason)
            assert due.action is None or 0.0 <= due.action[0] < CHUNK_SIZE


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="mode is 'rtc'"):
        ChunkExecutor("rtc")
    for bad in (0, 51):
        with pytest.raises(ConfigError, match=f"execute_steps is {bad}"):
            ChunkExecutor(execute_steps=bad)
