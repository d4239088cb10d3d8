"""Which source is followed: only the selected one, only what was sent since, only while it is fresh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, NUM_JOINTS
from clamp_ros.control.chunks import ChunkExecutor
from clamp_ros.control.sources import SOURCES, STREAMS, Sources

T = CONTROL_PERIOD_NS


def sources(selected: str) -> Sources:
    return Sources(ChunkExecutor(), selected, stale_after_s=0.1)


def target(value: float) -> np.ndarray:
    return np.full(NUM_JOINTS, value)


def chunk(tick: int, value: float) -> ActionChunk:
    return ActionChunk(tick * T, np.full((CHUNK_SIZE, NUM_JOINTS), value))


def due(found: Sources, tick: int) -> float | None:
    action = found.at(tick * T).action
    return None if action is None else float(action[0])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_followed_for_as_long_as_its_newest_target_is_fresh(name: str) -> None:
    found = sources(name)
    assert found.at(0) == (None, f"no {name} target yet")
    assert found.add_target(name, target(0.5), 10 * T, 10 * T) is None
    assert [due(found, tick) for tick in range(10, 17)] == [0.5] * 6 + [None]  # 0.1 s is five ticks
    assert found.at(16 * T).reason == f"the newest {name} target is 0.12 s old, limit 0.10 s"
    assert found.add_target(name, target(0.6), 17 * T, 17 * T) is None
    assert due(found, 17) == 0.6


@pytest.mark.parametrize("selected", SOURCES)
def test_only_the_selected_source_is_listened_to(selected: str) -> None:
    found = sources(selected)
    assert found.add_chunk(chunk(5, 1.0)) is None
    for value, name in enumerate(STREAMS, 2):
        assert found.add_target(name, target(value), 5 * T, 5 * T) is None
    assert due(found, 5) == 1.0 + SOURCES.index(selected)


def test_selecting_voids_what_was_sent_before() -> None:
    found = sources("policy")
    found.add_chunk(chunk(5, 1.0))
    found.select("teleop", 10 * T)
    assert due(found, 10) is None
    assert "older than the newest, or than the selection" in str(found.add_target("teleop", target(2.0), 9 * T, 10 * T))
    found.add_target("teleop", target(2.0), 10 * T, 10 * T)
    assert due(found, 10) == 2.0
    found.add_chunk(chunk(11, 1.5))
    found.select("policy", 20 * T)
    assert due(found, 20) is None
    assert "before the reset" in str(found.add_chunk(chunk(19, 1.5)))  # seen while a person moved the arms
    found.add_chunk(chunk(20, 3.0))
    assert due(found, 20) == 3.0


def test_an_interrupted_stream_stays_shut_until_it_is_selected_again() -> None:
    found = sources("teleop")
    found.add_target("teleop", target(1.0), 5 * T, 5 * T)
    assert found.followed == "teleop"
    found.void("emergency stop", 6 * T)
    assert found.followed == "nobody"
    assert found.at(6 * T) == (None, "emergency stop; select teleop again")
    assert "select teleop again" in str(found.add_target("teleop", target(1.0), 7 * T, 7 * T))
    assert due(found, 7) is None
    found.select("teleop", 8 * T)
    found.add_target("teleop", target(1.0), 8 * T, 8 * T)
    assert due(found, 8) == 1.0


def test_an_interrupted_policy_goes_on_with_what_it_sees_afterwards() -> None:
    found = sources("policy")
    found.add_chunk(chunk(5, 1.0))
    found.void("no action chunk yet", 10 * T)
    assert found.at(10 * T) == (None, "no action chunk yet")
    assert found.followed == "policy"
    found.add_chunk(chunk(10, 2.0))
    assert due(found, 10) == 2.0


def test_targets_out_of_order_or_from_another_clock_are_refused() -> None:
    found = sources("replay")
    assert "share one clock" in str(found.add_target("replay", target(1.0), 100 * T, 10 * T))
    assert found.add_target("replay", target(1.0), 12 * T, 10 * T) is None  # two processes' jitter
    assert "older than the newest" in str(found.add_target("replay", target(2.0), 11 * T, 11 * T))
    assert due(found, 12) == 1.0


def test_an_unknown_source_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'teleop'"):
        sources("telop")


EVENTS = st.one_of(
    st.tuples(st.sampled_from(["select"]), st.sampled_from(SOURCES)),
    st.tuples(st.sampled_from(["send"]), st.sampled_from(SOURCES)),
    st.tuples(st.sampled_from(["void"]), st.just("")),
)


@given(st.lists(EVENTS, max_size=40))
def test_no_target_outlives_a_selection_or_an_interruption(events: list[tuple[str, str]]) -> None:
    """Each target's value is the tick at which it was sent, so that what comes out tells its age and its sender."""
    found, since = sources("policy"), 0
    for tick, (kind, name) in enumerate(events, 1):
        if kind == "select":
            found.select(name, tick * T)
            since = tick
        elif kind == "void":
            found.void("interrupted", tick * T)
            since = tick
        elif name == "policy":
            found.add_chunk(chunk(tick, tick + 0.1))
        else:
            found.add_target(name, target(tick + 0.1 * (1 + SOURCES.index(name))), tick * T, tick * T)
        value = due(found, tick)
        if value is not None:
            assert int(value) >= since
            assert SOURCES[round(10 * (value % 1)) - 1] == found.selected
            assert found.selected == "policy" or tick - int(value) <= 5
