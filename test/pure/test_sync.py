"""Matching cameras by stamp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.camera.sync import FrameSynchronizer
from clamp_ros.contract.errors import ContractError

MS = 1_000_000
CAMERAS = ("a", "b", "c")


def make(tolerance_ms: int = 5, timeout_ms: int = 100) -> FrameSynchronizer[str]:
    return FrameSynchronizer(CAMERAS, tolerance_ms * MS, timeout_ms * MS)


def test_a_set_comes_when_its_last_image_does_in_the_order_of_the_cameras() -> None:
    sync = make()
    assert sync.add("c", 1000 * MS, "c0", 0) is None
    assert sync.add("a", 1002 * MS, "a0", 1) is None
    result = sync.add("b", 998 * MS, "b0", 2)
    assert result == {"a": "a0", "b": "b0", "c": "c0"}
    assert result is not None and list(result) == list(CAMERAS)
    assert sync.complete == 1
    assert set(sync.missed.values()) == {0}


def test_stamps_further_apart_than_the_tolerance_do_not_match() -> None:
    sync = make(tolerance_ms=5)
    sync.add("a", 100 * MS, "a", 0)
    sync.add("b", 106 * MS, "b", 0)
    assert sync.add("c", 100 * MS, "c", 0) is None
    assert sync.complete == 0


def test_a_set_is_given_up_after_the_timeout_and_the_missing_are_counted() -> None:
    sync = make(timeout_ms=100)
    sync.add("a", 0, "a", 0)
    sync.expire(100 * MS)
    assert sync.missed == {"a": 0, "b": 0, "c": 0}
    sync.expire(100 * MS + 1)
    assert sync.missed == {"a": 0, "b": 1, "c": 1}
    assert sync.add("b", 0, "b", 101 * MS) is None
    assert sync.late == {"a": 0, "b": 1, "c": 0}


def test_a_newer_complete_set_ends_older_ones() -> None:
    sync = make()
    sync.add("a", 100 * MS, "old", 0)
    for camera in CAMERAS:
        result = sync.add(camera, 200 * MS, camera, 0)
    assert result == {"a": "a", "b": "b", "c": "c"}
    assert sync.missed == {"a": 0, "b": 1, "c": 1}
    assert sync.add("b", 100 * MS, "late", 0) is None
    assert sync.late["b"] == 1


def test_a_stamp_that_stands_still_gives_one_set() -> None:
    sync = make()
    sets = [sync.add(camera, 50 * MS, camera, i * MS) for i in range(10) for camera in CAMERAS]
    assert sum(s is not None for s in sets) == 1
    assert sum(sync.late.values()) == 27


def test_a_second_image_of_a_camera_replaces_the_first() -> None:
    sync = make()
    sync.add("a", 0, "first", 0)
    sync.add("a", 1 * MS, "second", 0)
    sync.add("b", 0, "b", 0)
    result = sync.add("c", 0, "c", 0)
    assert result is not None and result["a"] == "second"


def test_reset_lets_time_begin_anew() -> None:
    sync = make()
    for camera in CAMERAS:
        sync.add(camera, 900 * MS, camera, 0)
    sync.reset()
    for camera in CAMERAS:
        result = sync.add(camera, 0, camera, 0)
    assert result is not None


def test_one_camera_is_a_set_by_itself() -> None:
    sync = FrameSynchronizer[int](["a"], 0, 1)
    assert sync.add("a", 5, 7, 0) == {"a": 7}


def test_bad_arguments_are_refused() -> None:
    for cameras, tolerance, timeout in (([], 0, 1), (["a", "a"], 0, 1), (["a"], -1, 1), (["a"], 0, 0)):
        with pytest.raises(ContractError):
            FrameSynchronizer(cameras, tolerance, timeout)
    with pytest.raises(ContractError, match="'d'"):
        make().add("d", 0, "x", 0)


events = st.lists(
    st.tuples(st.sampled_from(CAMERAS), st.integers(0, 20), st.integers(-4, 4), st.integers(0, 60)), max_size=200
)


@given(events)
def test_whatever_comes_sets_are_whole_ordered_within_tolerance_and_memory_is_bounded(
    arrivals: list[tuple[str, int, int, int]],
) -> None:
    sync = FrameSynchronizer[int](CAMERAS, 5 * MS, 100 * MS)
    now, given_out, newest = 0, 0, -1000 * MS
    for camera, tick, jitter_ms, wait_ms in arrivals:
        now += wait_ms * MS
        stamp = tick * 33 * MS + jitter_ms * MS
        result = sync.add(camera, stamp, stamp, now)
        assert len(sync._pending) <= FrameSynchronizer.MAX_PENDING
        assert all(now - s.arrived_ns <= 100 * MS for s in sync._pending)
        if result is not None:
            given_out += 1
            assert list(result) == list(CAMERAS)
            assert max(result.values()) - min(result.values()) <= 2 * 5 * MS
            assert min(result.values()) > newest
            newest = max(result.values())
    assert sync.complete == given_out


@given(st.integers(1, 30), st.permutations(CAMERAS), st.integers(0, 4))
def test_cameras_that_all_deliver_lose_nothing(count: int, order: list[str], jitter_ms: int) -> None:
    sync = make()
    for i in range(count):
        for j, camera in enumerate(order):
            sync.add(camera, i * 33 * MS + (j % 2) * jitter_ms * MS, "x", i * 33 * MS)
    assert sync.complete == count
    assert set(sync.missed.values()) | set(sync.late.values()) == {0}
