"""`clamp eval --ros`: scores a policy through the whole running system, by the rules of `clamp_ros.evaluate`.

One system plays all episodes; if it dies, that episode has failed, and a new one plays the rest.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from clamp_ros.bringup.session import START_TIMEOUT_S, Session, SystemDiedError, own_domain
from clamp_ros.contract.errors import ClampError, RecordError
from clamp_ros.contract.interfaces import JOINT_STATES, VIEWS
from clamp_ros.evaluate import NOT_DONE, ROS, collect, lost_row, missing_seeds, open_results, settings_of
from clamp_ros.files import write_whole
from clamp_ros.policy.artifact import Artifact
from clamp_ros.record.metadata import dump_yaml
from clamp_ros.rollout import RolloutConfig
from clamp_ros.ros.run import subscribe
from clamp_ros.score.results import DIED, ERROR, SUCCESS, TIMEOUT, Reached, Results, Row, row
from clamp_ros.sim.tasks import TASKS

_STARTS = 2
"""Attempts to start the system."""


def evaluate_ros(
    artifact: Path, task: str, seeds: Sequence[int], out: Path, *, rollout: RolloutConfig, progress: bool = True
) -> Results:
    """Plays the seeds that `out` does not hold yet, through ROS.

    Args:
        artifact: the policy's folder.
        task: a name of `sim.tasks.TASKS`.
        seeds: of the episodes.
        out: results file, JSON; the system's log lies beside it.
        rollout: mode, execute_steps and assets are used; latency is what it is.
        progress: show a bar.

    Raises:
        ArtifactError: the artifact is damaged or does not fit the simulation.
        ConfigError: the task is unknown, or `out` holds results of other settings.
        ClampError: the system does not start.
        RecordError: the disk refuses.
    """
    loaded = Artifact.load(artifact)
    results = open_results(loaded, task, ROS, settings_of(rollout, ROS), out)
    missing = missing_seeds(results, seeds)
    if not missing:
        return results
    parameters = out.with_suffix(".parameters.yaml")
    steps = {"ros__parameters": {"execute_steps": rollout.execute_steps}}
    try:
        write_whole(parameters, dump_yaml({"control_node": steps, "policy_node": steps}).encode())
    except OSError as error:
        raise RecordError(f"{parameters} cannot be written: {error.strerror}; make room, and run it again") from error
    words = [
        "sim:=true", "enabled:=false", f"task:={task}", f"policy:={loaded.folder}", f"control:={rollout.mode}",
        f"config:={parameters}", f"assets:={rollout.assets}",
    ]  # fmt: skip
    with own_domain(), closing(_rows(words, task, missing, out.with_suffix(".log"))) as rows:
        collect(results, rows, seeds, progress)
    parameters.unlink()
    return results


def _rows(words: Sequence[str], task: str, seeds: Sequence[int], log: Path) -> Generator[Row, None, None]:
    queue, starts = list(seeds), 0
    while queue:
        watch = _Watch(task)
        try:
            with Session([*words, f"seed:={queue[0]}"], log, "evaluate") as session:
                _wait_until_up(session)
                starts = 0
                while queue:
                    watch.begin()
                    played = _play(session, task, queue[0], watch)
                    queue.pop(0)
                    yield played
        except SystemDiedError as error:
            if watch.playing:
                yield watch.lost(queue.pop(0), DIED, str(error).splitlines()[0])
                continue
            starts += 1
            if starts == _STARTS:  # no fault of an episode's
                raise ClampError(f"the system does not start: {error}") from error


class _Watch:
    """What is known of the episode that is being played."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._started = 0.0
        self.playing = False

    def begin(self) -> None:
        """An episode starts."""
        self._started, self.playing = time.monotonic(), True
        self._stage, self._seconds = 0, 0.0
        self.reached: Reached = {}

    def on_state(self, state: dict[str, Any]) -> None:
        """Notes the task's progress."""
        self._seconds = state["time_s"]
        if state["progress"] > self._stage:
            self._stage = state["progress"]
            self.reached[TASKS[self._task].stages[self._stage]] = self._seconds

    @property
    def wall_s(self) -> float:
        """Since the episode's start."""
        return time.monotonic() - self._started

    def lost(self, seed: int, outcome: str, reason: str) -> Row:
        """The row of an episode that did not come to its end."""
        return lost_row(self._task, seed, outcome, reason, self._seconds, self.reached, self.wall_s)


def _wait_until_up(session: Session) -> None:
    """Returns once the simulation moves and the fusion sees."""
    seen: set[str] = set()

    def notes(name: str) -> Any:
        return lambda _message: seen.add(name)

    subscriptions = [subscribe(session.node, topic, notes(topic.name)) for topic in (JOINT_STATES, VIEWS)]
    session.spin_until(lambda: len(seen) == len(subscriptions), START_TIMEOUT_S, "joint states and views of the scene")
    for subscription in subscriptions:
        session.node.destroy_subscription(subscription)


def _play(session: Session, task: str, seed: int, watch: _Watch) -> Row:
    try:
        session.reset(seed)
        played = session.play(TASKS[task].max_seconds, watch.on_state)
    except SystemDiedError:
        raise
    except ClampError as error:
        return watch.lost(seed, ERROR, str(error))
    outcome, reason = (SUCCESS, "") if played.success else (TIMEOUT, NOT_DONE)
    stages, partial = TASKS[task].stages, TASKS[task].partial_stage
    return row(seed, outcome, stages, watch.reached, partial_stage=partial, seconds=played.seconds, reason=reason,
               wall_s=watch.wall_s)  # fmt: skip
