"""What is committed while a chunk is inferred: the plan that the robot really follows, as long as the slowest took."""

from __future__ import annotations

import numpy as np
import pytest

from clamp_ros.contract.observation import ActionChunk, Observation
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, NUM_JOINTS
from clamp_ros.contract.views import TILED_SHAPE
from clamp_ros.control.chunks import ChunkExecutor
from clamp_ros.policy.committed import CommittedActions

T = CONTROL_PERIOD_NS


def plan(tick: int, base: float = 0.0) -> ActionChunk:
    """Row i is `base + (tick + i) / 100` in every joint: on the absolute ramp where base is 0."""
    rows = base + (tick + np.arange(CHUNK_SIZE)) / 100.0
    return ActionChunk(tick * T, np.tile(rows[:, None], (1, NUM_JOINTS)))


def seen(tick: int, command: float) -> Observation:
    history = np.full((CHUNK_SIZE, NUM_JOINTS), command, np.float32)
    return Observation(tick * T, np.zeros(TILED_SHAPE, np.float32), {}, np.zeros(NUM_JOINTS, np.float32), history)


def test_the_rows_sent_meanwhile_are_committed() -> None:
    committed = CommittedActions(longest=10)
    assert committed.before(seen(0, 0.0)).shape == (0, NUM_JOINTS)
    committed.add(plan(0), now_ns=3 * T)
    rows = committed.before(seen(25, command=0.24))
    np.testing.assert_allclose(rows[:, 0], [0.25, 0.26, 0.27])
    committed.add(plan(25), now_ns=25 * T + 4 * T + 1)  # counted up: the tick that it reaches is the fifth
    assert len(committed.before(seen(50, command=0.49))) == 5
    committed.add(plan(50), now_ns=52 * T)  # a quick one: the chunk before it still is counted to its end
    assert len(committed.before(seen(75, command=0.74))) == 5


def test_no_more_than_the_policy_can_continue_and_no_more_than_there_is() -> None:
    committed = CommittedActions(longest=10)
    committed.add(plan(0), now_ns=14 * T)
    assert committed.too_slow
    assert len(committed.before(seen(25, command=0.24))) == 10
    assert len(committed.before(seen(46, command=0.45))) == 4  # the plan ends at tick 49
    assert len(committed.before(seen(50, command=0.49))) == 0
    unable = CommittedActions(longest=0)
    unable.add(plan(0), now_ns=3 * T)
    assert len(unable.before(seen(25, command=0.24))) == 0 and not unable.too_slow


@pytest.mark.parametrize("command", [0.20, 0.0, -1.0])
def test_a_plan_that_is_not_followed_commits_to_nothing(command: float) -> None:
    """After an emergency stop, or where the gate holds back, the robot is not where the plan would have it."""
    committed = CommittedActions(longest=10)
    committed.add(plan(0), now_ns=3 * T)
    assert len(committed.before(seen(25, command))) == 0
    assert len(committed.before(seen(25, 0.24))) == 3


def test_an_episode_begins_with_nothing() -> None:
    committed = CommittedActions(longest=10)
    committed.add(plan(0), now_ns=9 * T)
    committed.start()
    assert committed.delay_steps == 0
    assert len(committed.before(seen(25, command=0.24))) == 0


@pytest.mark.parametrize("delays", [[3], [2, 6, 2, 2], [4, 1, 7, 3, 2]])
def test_chunks_that_keep_their_prefix_join_without_a_jump(delays: list[int]) -> None:
    """Every new plan goes its own way after its prefix; the robot, whatever the delays, never jumps to it."""
    rng = np.random.default_rng(0)
    executor, committed = ChunkExecutor(execute_steps=25), CommittedActions(longest=12)
    pending: tuple[int, ActionChunk] | None = None
    sent: list[float] = []
    observed, count, known = -25, 0, 0
    for tick in range(200):
        if pending is None and tick - observed >= 25:
            rows = committed.before(seen(tick, sent[-1] if sent else 0.0))[:, 0]
            start = rows[-1] if len(rows) else sent[-1] if sent else 0.0
            steps = np.cumsum(rng.uniform(-0.01, 0.01, CHUNK_SIZE - len(rows)))
            actions = np.tile(np.concatenate([rows, start + steps])[:, None], (1, NUM_JOINTS))
            # a delay not met before may jump; from then on it is known
            delay = delays[min(count, len(delays) - 1)]
            pending, observed, count = (tick + delay, ActionChunk(tick * T, actions)), tick, count + 1
        if pending is not None and pending[0] <= tick:
            executor.add(pending[1])
            committed.add(pending[1], tick * T)
            known, pending = max(known, tick - observed), None
        due = executor.action_at(tick * T)
        if due.action is not None:
            sent.append(float(due.action[0]))
    steps = np.abs(np.diff(sent))
    slower_than_before = sum(d > max(delays[:i], default=0) for i, d in enumerate(delays))
    assert (steps > 0.0101).sum() <= slower_than_before - 1
    assert len(sent) > 150
