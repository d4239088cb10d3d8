"""Due times: regular under jitter and any phase, and following the clock when it jumps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.control.ticks import TickGrid

MS = 1_000_000
T = 20 * MS


@given(
    st.integers(0, 10**15), st.integers(0, T - 1),
    st.lists(st.integers(-2_400_000, 2_400_000), min_size=5, max_size=50),
)  # fmt: skip
def test_jitter_and_phase_neither_skip_nor_repeat(start: int, phase: int, jitter: list[int]) -> None:
    grid = TickGrid()
    dues = [grid.next(start * T + phase + i * T + j) for i, j in enumerate(jitter)]
    assert dues[0] is not None
    assert dues[0] % T == 0
    assert dues == [dues[0] + i * T for i in range(len(dues))]
    assert grid.skipped == 0


def test_exact_times_are_their_own_due_times() -> None:
    grid = TickGrid()
    assert [grid.next(i * T) for i in (3, 4, 5)] == [3 * T, 4 * T, 5 * T]


def test_a_tick_that_is_lost_is_counted() -> None:
    grid = TickGrid()
    assert [grid.next(i * T) for i in (0, 1, 4, 5)] == [0, T, 4 * T, 5 * T]
    assert grid.skipped == 2


def test_a_timer_that_catches_up_does_not_repeat_a_tick() -> None:
    grid = TickGrid()
    assert [grid.next(t * MS) for t in (0, 38, 40, 60)] == [0, 2 * T, None, 3 * T]


def test_time_may_run_back() -> None:
    grid = TickGrid()
    assert [grid.next(i * T) for i in (500, 501, 0, 1)] == [500 * T, 501 * T, 0, T]
