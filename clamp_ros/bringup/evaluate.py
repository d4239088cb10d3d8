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
from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.interfaces import JOINT_STATES, VIEWS
from clamp_ros.evaluate import TIMEOUT, Results, Row, Settings, collect, failed_row, missing_seeds
from clamp_ros.policy.artifact import Artifact
from clamp_ros.record.metadata import dump_yaml
from clamp_ros.rollout import RolloutConfig, artifact_cameras
from clamp_ros.ros.run import subscribe
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
        rollout: mode and execute_steps are used; latency is what it is.
        progress: show a bar.

    Raises:
        ArtifactError: the artifact is damaged or does not fit the simulation.
        ConfigError: the task is unknown, or `out` holds results of other settings.
        ClampError: the system does not start.
        RecordError: the disk refuses.
    """
    loaded = Artifact.load(artifact)
    artifact_cameras(loaded)
    how = {"mode": rollout.mode, "execute_steps": rollout.execute_steps}
    results = Results(out, Settings.of(loaded, task, "ros", how))
    missing = missing_seeds(results, seeds)
    if not missing:
        return results
    out.parent.mkdir(parents=True, exist_ok=True)
    parameters = out.with_suffix(".parameters.yaml")
    steps = {"ros__parameters": {"execute_steps": rollout.execute_steps}}
    parameters.write_text(dump_yaml({"control_node": steps, "policy_node": steps}), encoding="utf-8")
    words = [
        "sim:=true", "enabled:=false", f"task:={task}", f"policy:={loaded.folder}", f"control:={rollout.mode}",
        f"config:={parameters}",
    ]  # fmt: skip
    with own_domain(), closing(_rows(words, task, missing, out.with_suffix(".log"))) as rows:
        collect(results, rows, seeds, progress)
    parameters.unlink()
    return results


def _rows(words: Sequence[str], task: str, seeds: Sequence[int], log: Path) -> Generator[Row, None, None]:
    queue, starts = list(seeds), 0
    while queue:
        playing = False
        try:
            with Session([*words, f"seed:={queue[0]}"], log, "evaluate") as session:
                _wait_until_up(session)
                starts = 0
                while queue:
                    playing = True
                    row = _play(session, task, queue[0])
                    queue.pop(0)
                    yield row
        except SystemDiedError as error:
            if playing:
                yield failed_row(queue.pop(0), str(error).splitlines()[0])
                continue
            starts += 1
            if starts == _STARTS:  # no fault of an episode's
                raise ClampError(f"the system does not start: {error}") from error


def _wait_until_up(session: Session) -> None:
    """Returns once the simulation moves and the fusion sees."""
    seen: set[str] = set()

    def notes(name: str) -> Any:
        return lambda _message: seen.add(name)

    subscriptions = [subscribe(session.node, topic, notes(topic.name)) for topic in (JOINT_STATES, VIEWS)]
    session.spin_until(lambda: len(seen) == len(subscriptions), START_TIMEOUT_S, "joint states and views of the scene")
    for subscription in subscriptions:
        session.node.destroy_subscription(subscription)


def _play(session: Session, task: str, seed: int) -> Row:
    started = time.monotonic()
    try:
        session.reset(seed)
        played = session.play(TASKS[task].max_seconds)
    except SystemDiedError:
        raise
    except ClampError as error:
        return failed_row(seed, str(error), time.monotonic() - started)
    return {
        "seed": seed,
        "success": played.success,
        "seconds": round(played.seconds, 2),
        "stage": TASKS[task].stages[played.progress],
        "chunks": None,
        "held_ticks": None,
        "reason": "" if played.success else TIMEOUT,
        "wall_s": round(time.monotonic() - started, 2),
    }
