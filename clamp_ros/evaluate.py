"""Scores a policy over many unseen episodes: `clamp eval`.

Results go to one JSON file, rewritten after every episode, from which an interrupted run continues. Whatever goes wrong
in an episode is a failure of that episode, with its reason, and never of the run.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ClampError, ConfigError, RecordError
from clamp_ros.contract.robot import CONTROL_RATE_HZ
from clamp_ros.policy.artifact import Artifact
from clamp_ros.rollout import Rollout, RolloutConfig, artifact_cameras
from clamp_ros.sim.cameras import OVERVIEW_CAMERA
from clamp_ros.sim.film import Film
from clamp_ros.sim.tasks import TASKS

FIRST_SEED = 1_000_000
"""Where unseen seeds begin: far from those that demonstrations are made from."""
_FILM_TICKS = 2
_Z95 = 1.959963984540054

Row = dict[str, Any]
"""One episode: seed, success, seconds, stage, chunks and held_ticks (None through ROS), reason, wall_s."""


def wilson_interval(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Confidence interval of a success rate, by default of 95 % (Wilson 1927, JASA 22 (158), 209-212).

    Raises:
        ConfigError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ConfigError(f"{successes} successes of {trials} trials are impossible")
    if trials == 0:
        return 0.0, 1.0
    rate, spread = successes / trials, z * z / trials
    centre = rate + 0.5 * spread
    half = z * math.sqrt(rate * (1.0 - rate) / trials + spread / (4 * trials))
    low, high = (centre - half) / (1.0 + spread), (centre + half) / (1.0 + spread)
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


@dataclass(frozen=True)
class Settings:
    """What a results file is about; a file holds one such setting.

    Attributes:
        artifact: the policy's name.
        artifact_sha256: of its files, so that another version of it does not continue these results.
        task: what was played.
        way: `in process`, or `ros` through the whole stack.
        rollout: how the policy was run.
    """

    artifact: str
    artifact_sha256: dict[str, str]
    task: str
    way: str
    rollout: dict[str, Any]

    @classmethod
    def of(cls, artifact: Artifact, task: str, way: str, rollout: dict[str, Any]) -> Settings:
        """The settings of an evaluation of this artifact.

        Raises:
            ConfigError: the task is unknown.
        """
        if task not in TASKS:
            raise unknown_key(task, TASKS, "task")
        manifest = artifact.manifest
        hashes = {part: spec.sha256 for part, spec in manifest.files.items()}
        return cls(manifest.name, hashes, task, way, rollout)


class Results:
    """The rows of an evaluation, on disk after every change."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Opens the file, or begins it.

        Raises:
            ConfigError: the file holds results of other settings.
            RecordError: the file is damaged.
        """
        self.path = path
        self.settings = settings
        self.rows: dict[int, Row] = {}
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs, rows = found["settings"], {int(row["seed"]): row for row in found["episodes"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(
                f"{path} is not a results file ({error}); move it away or choose another --out"
            ) from error
        ours = json.loads(json.dumps(asdict(settings)))
        if theirs != ours:
            other = ", ".join(key for key in ours if theirs.get(key) != ours[key])
            raise ConfigError(f"{path} holds results of another {other}; choose another --out, or move it away")
        self.rows = rows

    def add(self, row: Row) -> None:
        """Takes an episode in and rewrites the file.

        Raises:
            RecordError: the disk refuses.
        """
        self.rows[row["seed"]] = row
        content = {"settings": asdict(self.settings), "summary": self.summary(), "episodes": self._sorted()}
        temporary = self.path.with_name(f".{self.path.name}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            raise RecordError(f"{self.path} cannot be written: {error}") from error

    def _sorted(self) -> list[Row]:
        return [self.rows[seed] for seed in sorted(self.rows)]

    def summary(self, seeds: Iterable[int] | None = None) -> dict[str, Any]:
        """Counts, rate, interval, stages reached and reasons of failures, over some seeds or all that were played."""
        rows = [self.rows[seed] for seed in (sorted(self.rows) if seeds is None else seeds) if seed in self.rows]
        successes = sum(row["success"] for row in rows)
        low, high = wilson_interval(successes, len(rows))
        stages: dict[str, int] = {}
        for row in rows:
            if not row["success"]:
                stages[row["stage"]] = stages.get(row["stage"], 0) + 1
        return {
            "episodes": len(rows),
            "successes": successes,
            "success_rate": round(successes / len(rows), 4) if rows else None,
            "wilson_95": [round(low, 4), round(high, 4)],
            "mean_success_seconds": round(sum(r["seconds"] for r in rows if r["success"]) / successes, 2)
            if successes else None,
            "failures_by_furthest_stage": stages,
            "errors": sum(bool(row["reason"]) and row["reason"] != TIMEOUT for row in rows),
        }  # fmt: skip

    def text(self, seeds: Sequence[int]) -> str:
        """The score in words, for a terminal."""
        s = self.summary(seeds)
        low, high = s["wilson_95"]
        lines = [
            f"{self.settings.artifact} on {self.settings.task} ({self.settings.way}): "
            f"{s['successes']}/{s['episodes']} = {100 * (s['success_rate'] or 0.0):.1f} % success, "
            f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        ]
        if s["failures_by_furthest_stage"]:
            words = ", ".join(f"{n} x {stage}" for stage, n in sorted(s["failures_by_furthest_stage"].items()))
            lines.append(f"  failures, by the furthest stage reached: {words}")
        if s["errors"]:
            lines.append(f"  {s['errors']} of the failures are errors; see `reason` in {self.path}")
        lines.append(f"  results: {self.path}")
        return "\n".join(lines)


TIMEOUT = "not done in time"


def evaluate(
    artifact: Path,
    task: str,
    seeds: Sequence[int],
    out: Path,
    *,
    rollout: RolloutConfig | None = None,
    workers: int = 1,
    video: Path | None = None,
    progress: bool = True,
) -> Results:
    """Plays the seeds that `out` does not hold yet, in process.

    Args:
        artifact: the policy's folder.
        task: a name of `sim.tasks.TASKS`.
        seeds: of the episodes.
        out: results file, JSON.
        rollout: how the policy is run.
        workers: processes, each with a policy and a world of its own.
        video: folder for a film of every episode.
        progress: show a bar.

    Raises:
        ArtifactError: the artifact is damaged or does not fit the simulation.
        ConfigError: the task is unknown, a number is out of range, or `out` holds results of other settings.
        RecordError: the disk refuses.
    """
    rollout = rollout or RolloutConfig()
    loaded = Artifact.load(artifact)
    artifact_cameras(loaded)  # refused here, once, and not in every worker
    results = Results(out, Settings.of(loaded, task, "in process", asdict(rollout)))
    missing = missing_seeds(results, seeds)
    if not missing:
        return results
    job = _Job(artifact, task, rollout, video, threads=max(1, (os.cpu_count() or 1) // workers))
    with closing(_rows(job, missing, workers)) as rows:
        collect(results, rows, seeds, progress)
    return results


def missing_seeds(results: Results, seeds: Sequence[int]) -> list[int]:
    """Seeds that are still to be played.

    Raises:
        ConfigError: there are no seeds, one is negative, or one is repeated.
    """
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds are {list(seeds)[:5]}..., expected one or more different ones, 0 or greater")
    return [seed for seed in seeds if seed not in results.rows]


def collect(results: Results, rows: Iterable[Row], seeds: Sequence[int], progress: bool = True) -> None:
    """Takes rows into the results as they come, behind a progress bar."""
    done = sum(seed in results.rows for seed in seeds)
    with tqdm(total=len(seeds), initial=done, unit="episode", disable=not progress, desc=results.settings.task) as bar:
        for row in rows:
            results.add(row)
            summary = results.summary(seeds)
            bar.set_postfix(success=f"{summary['successes']}/{summary['episodes']}")
            bar.update()


def failed_row(seed: int, reason: str, wall_s: float = 0.0) -> Row:
    """The row of an episode that could not be played to its end."""
    row = {"seed": seed, "success": False, "seconds": 0.0, "stage": "error", "chunks": 0, "held_ticks": 0}
    return {**row, "reason": reason, "wall_s": round(wall_s, 2)}


@dataclass(frozen=True)
class _Job:
    artifact: Path
    task: str
    rollout: RolloutConfig
    video: Path | None
    threads: int


def _rows(job: _Job, seeds: Sequence[int], workers: int) -> Generator[Row, None, None]:
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    if workers == 1:
        player = _Player(job)
        for seed in seeds:
            yield player.play(seed)
        return
    context = multiprocessing.get_context("spawn")  # a forked GL context does not render
    with ProcessPoolExecutor(min(workers, len(seeds)), context, _start_worker, (job,)) as pool:
        futures = {pool.submit(_play, seed): seed for seed in seeds}
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RecordError("a worker process died (out of memory?); run the same command again to go on") from error
        finally:
            for future in futures:
                future.cancel()


class _Player:
    """Plays seeds in one process, and makes a row of whatever happens."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._rollout = Rollout(Artifact.load(job.artifact), job.task, job.rollout, job.threads)

    def play(self, seed: int) -> Row:
        started = time.monotonic()
        try:
            with ExitStack() as stack:
                outcome = self._rollout.play(seed, self._film(seed, stack))
        except Exception as error:  # whatever the policy does is its failure in this episode
            reason = str(error) if isinstance(error, ClampError) else f"{type(error).__name__}: {error}"
            return failed_row(seed, reason, time.monotonic() - started)
        reason = "" if outcome.success else TIMEOUT
        return {"seed": seed, **asdict(outcome), "reason": reason, "wall_s": round(time.monotonic() - started, 2)}

    def _film(self, seed: int, stack: ExitStack) -> Callable[[Rollout], None] | None:
        if self._job.video is None:
            return None
        width, height = OVERVIEW_CAMERA.width, OVERVIEW_CAMERA.height
        path = self._job.video / f"{self._job.task}_{seed:07d}.mp4"
        film = stack.enter_context(Film(path, width, height, CONTROL_RATE_HZ // _FILM_TICKS))

        def on_tick(rollout: Rollout) -> None:
            world = rollout.world
            if round(1e-9 * world.time_ns * CONTROL_RATE_HZ) % _FILM_TICKS == 0:
                stage = world.task.stages[world.progress()]
                film.add(rollout.picture(), [f"{world.task.name}, seed {seed}: {1e-9 * world.time_ns:5.2f} s, {stage}"])

        return on_tick


_player: _Player


def _start_worker(job: _Job) -> None:
    global _player
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets the episodes in progress end
    _player = _Player(job)


def _play(seed: int) -> Row:
    return _player.play(seed)
