"""`clamp eval --ros`: scores a policy through the whole running system, by the rules of `clamp_ros.evaluate`.

One system plays all episodes; if it or any of its nodes dies, that episode has failed, and a new one plays the rest.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from clamp_ros.bringup.session import START_TIMEOUT_S, Session, SystemDiedError, own_domain
from clamp_ros.contract.errors import ClampError, RecordError
from clamp_ros.contract.interfaces import JOINT_STATES, VIEWS, color_topic, topic
from clamp_ros.evaluate import NOT_DONE, ROS, collect, missing_seeds, open_results, settings_of
from clamp_ros.files import write_whole
from clamp_ros.policy.artifact import Artifact
from clamp_ros.record.metadata import dump_yaml
from clamp_ros.rollout import RolloutConfig
from clamp_ros.ros.convert import array_from_image, stamp_ns
from clamp_ros.ros.run import subscribe
from clamp_ros.score.results import DIED, ERROR, SUCCESS, TIMEOUT, Reached, Results, Row, row
from clamp_ros.score.strip import Strip, failures_folder
from clamp_ros.sim.simulation import START_NS
from clamp_ros.sim.tasks import TASKS

_STARTS = 2
"""Attempts to start the system."""
_AHEAD_S = 1.0
"""A picture further ahead of the task's state than this is left over from before the reset."""


def evaluate_ros(
    artifact: Path, task: str, seeds: Sequence[int], out: Path, *, rollout: RolloutConfig, pictures: bool = True,
    progress: bool = True,
) -> Results:  # fmt: skip
    """Plays the seeds that `out` does not hold yet, through ROS.

    Args:
        artifact: the policy's folder.
        task: a name of `sim.tasks.TASKS`.
        seeds: of the episodes.
        out: results file, JSON; the system's log lies beside it, and a folder of pictures of failures.
        rollout: mode, execute_steps and assets are used; latency is what it is.
        pictures: keep one of every failure, of what the first of the policy's cameras sees.
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
    watch = _Watch(task, next(iter(loaded.manifest.cameras)) if pictures else None, failures_folder(out))
    with own_domain(), closing(_rows(words, watch, missing, out.with_suffix(".log"))) as rows:
        collect(results, rows, seeds, progress)
    parameters.unlink()
    return results


def _rows(words: Sequence[str], watch: _Watch, seeds: Sequence[int], log: Path) -> Generator[Row, None, None]:
    queue, starts = list(seeds), 0
    while queue:
        watch.playing = False
        try:
            with Session([*words, f"seed:={queue[0]}"], log, "evaluate") as session:
                watch.look_through(session)
                _wait_until_up(session)
                starts = 0
                while queue:
                    watch.begin(queue[0], session)
                    played = _play(session, watch)
                    queue.pop(0)
                    yield played
        except SystemDiedError as error:
            if watch.playing:
                queue.pop(0)
                yield watch.lost(DIED, str(error).splitlines()[0])
                continue
            starts += 1
            if starts == _STARTS:  # no fault of an episode's
                raise ClampError(f"the system does not start: {error}") from error


class _Watch:
    """What is known of the episode that is being played.

    Attributes:
        task, seed: of the episode.
        playing: whether there is one.
        reached: see `score.results.Reached`.
    """

    def __init__(self, task: str, camera: str | None, pictures: Path) -> None:
        self.task = TASKS[task]
        self.seed = 0
        self.playing = False
        self._camera, self._pictures = camera, pictures

    def look_through(self, session: Session) -> None:
        """Hears of the camera's pictures, if one is watched."""
        if self._camera is not None:
            subscribe(session.node, topic(color_topic(self._camera)), self._on_image)

    def begin(self, seed: int, session: Session) -> None:
        """An episode starts."""
        self._started, self.seed, self.playing = time.monotonic(), seed, True
        self._stage, self._seconds = 0, 0.0
        self.reached: Reached = {}
        self._session, self._died_before = session, len(session.deaths())
        self._strip, self._newest = Strip(self.task.max_seconds), None

    def on_state(self, state: dict[str, Any]) -> None:
        """Notes the task's progress.

        Raises:
            SystemDiedError: a node died; the new one in its place knows nothing of the episode.
        """
        if self._died():
            raise SystemDiedError("the episode ends with it")
        self._seconds = state["time_s"]
        if state["progress"] > self._stage:
            self._stage = state["progress"]
            self.reached[self.task.stages[self._stage]] = self._seconds

    def _on_image(self, message: Any) -> None:
        seconds = (stamp_ns(message.header.stamp) - START_NS) / 1e9
        if not self.playing or seconds > self._seconds + _AHEAD_S:  # of the episode before
            return
        self._newest = array_from_image(message, "rgb8"), seconds
        if self._strip.due(seconds):
            self._strip.add(*self._newest)

    def _died(self) -> list[str]:
        """The nodes that died in this episode and were started again, in words."""
        return self._session.deaths()[self._died_before :]

    @property
    def wall_s(self) -> float:
        """Since the episode's start."""
        return time.monotonic() - self._started

    def lost(self, outcome: str, reason: str, seconds: float | None = None) -> Row:
        """The row of an episode that failed, with its picture; the reason names the nodes that died in it.

        Raises:
            RecordError: the disk refuses the picture.
        """
        if died := self._died():
            outcome, reason = DIED, "; ".join([*died, reason])
        picture = ""
        if self._newest is not None:
            picture = self._strip.save(self._pictures, self.seed, *self._newest)
        return row(
            self.seed, outcome, self.task.stages, self.reached, partial_stage=self.task.partial_stage,
            seconds=self._seconds if seconds is None else seconds, reason=reason, picture=picture, wall_s=self.wall_s,
        )  # fmt: skip


def _wait_until_up(session: Session) -> None:
    """Returns once the simulation moves and the fusion sees."""
    seen: set[str] = set()

    def notes(name: str) -> Any:
        return lambda _message: seen.add(name)

    subscriptions = [subscribe(session.node, topic, notes(topic.name)) for topic in (JOINT_STATES, VIEWS)]
    session.spin_until(lambda: len(seen) == len(subscriptions), START_TIMEOUT_S, "joint states and views of the scene")
    for subscription in subscriptions:
        session.node.destroy_subscription(subscription)


def _play(session: Session, watch: _Watch) -> Row:
    task = watch.task
    try:
        session.reset(watch.seed)
        played = session.play(task.max_seconds, watch.on_state)
    except SystemDiedError:
        raise
    except ClampError as error:
        return watch.lost(ERROR, str(error))
    if not played.success:
        return watch.lost(TIMEOUT, NOT_DONE, played.seconds)
    return row(watch.seed, SUCCESS, task.stages, watch.reached, partial_stage=task.partial_stage,
               seconds=played.seconds, wall_s=watch.wall_s)  # fmt: skip
