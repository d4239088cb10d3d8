"""Scores a policy over many unseen episodes: `clamp eval`.

Results go to one JSON file an artifact and task, rewritten after every episode, from which an interrupted run goes on.
Whatever the policy does, in a process apart, is a failure of its episode, with its reason, and never of the run; what
is not the policy's fault, such as a full disk, ends the run and counts for nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import clamp_ros
from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ClampError, ConfigError, RecordError, SimulationError
from clamp_ros.contract.robot import CONTROL_RATE_HZ
from clamp_ros.policy.artifact import Artifact
from clamp_ros.rollout import Rollout, RolloutConfig, artifact_cameras
from clamp_ros.score.results import ERROR, SUCCESS, TIMEOUT, Reached, Results, Row, Settings, Training, row
from clamp_ros.score.strip import Strip, failures_folder
from clamp_ros.score.workers import Beat, play_in_workers
from clamp_ros.sim.cameras import OVERVIEW_CAMERA
from clamp_ros.sim.film import Film
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.tasks.assets import check_assets

IN_PROCESS, ROS = "in process", "ros"
"""Ways of playing: with the code of the nodes, without ROS; or through the whole running system."""
NOT_DONE = "not done in time"
FILMS = ("all", "failures")
_FILM_TICKS = 2


def open_results(artifact: Artifact, task: str, way: str, rollout: Mapping[str, Any], out: Path) -> Results:
    """The results file of an artifact on a task, begun or gone on with.

    Raises:
        ArtifactError: the artifact does not fit the simulation's cameras.
        ConfigError: the task is unknown, or `out` holds results of other settings.
        SimulationError: the assets do not fit the task.
        RecordError: `out` is damaged.
    """
    if task not in TASKS:
        raise unknown_key(task, TASKS, "task")
    check_assets(task, rollout.get("assets", ""))
    artifact_cameras(artifact)  # refused here, once, and not in every worker
    manifest = artifact.manifest
    hashes = {part: spec.sha256 for part, spec in manifest.files.items()}
    told = {key: v for key, v in manifest.to_dict().items() if key not in ("name", "files", "training", "score")}
    hashes["manifest"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    settings = Settings(
        artifact=manifest.name, artifact_sha256=hashes, task=task, stages=TASKS[task].stages,
        max_seconds=TASKS[task].max_seconds, way=way, rollout=rollout, software=clamp_ros.__version__,
        partial_stage=TASKS[task].partial_stage,
    )  # fmt: skip
    return Results(out, settings, Training.of(manifest.name, manifest.training))


def plan(folders: Sequence[Path], task: str, way: str, rollout: RolloutConfig, out: Path) -> list[tuple[Path, Results]]:
    """Artifacts with the results of each so far, all of them looked at before hours are spent on the first.

    Args:
        folders: of the artifacts.
        task, way, rollout: of the evaluation.
        out: a file that ends in .json, for one artifact; or a folder.

    Raises:
        ConfigError: two artifacts would share a file; or see `open_results`, whose errors these are.
    """
    suffix = "_ros" if way == ROS else ""
    one = out.suffix == ".json"
    if one and len(folders) > 1:
        raise ConfigError(f"--out {out} is one file, and there are {len(folders)} artifacts; name a folder for theirs")
    planned: dict[Path, tuple[Path, Results]] = {}
    for folder in folders:
        file = out if one else out / f"{folder.name}_{task}{suffix}.json"
        if file in planned:
            raise ConfigError(f"{planned[file][0]} and {folder} would both be scored into {file}; rename one of them")
        planned[file] = folder, open_results(Artifact.load(folder), task, way, settings_of(rollout, way), file)
    return list(planned.values())


def settings_of(rollout: RolloutConfig, way: str) -> dict[str, Any]:
    """What of a rollout's configuration matters: through ROS latency is what it is, and the look the stack's."""
    values = asdict(rollout)
    if not values["assets"]:
        del values["assets"]  # so that results from before there were any are gone on with
    return {key: values[key] for key in ("mode", "execute_steps", "assets") if key in values} if way == ROS else values


@dataclass(frozen=True)
class Watching:
    """What an evaluation in process leaves to look at.

    Attributes:
        video: folder for films, if any are wanted.
        films: which episodes' films are kept: all, or those of failures.
        pictures: keep a picture of every failure, beside the results.
    """

    video: Path | None = None
    films: str = "all"
    pictures: bool = True

    def __post_init__(self) -> None:
        if self.films not in FILMS:
            raise ConfigError(f"films is {self.films!r}, expected one of {', '.join(FILMS)}")


def evaluate(
    artifact: Path,
    task: str,
    seeds: Sequence[int],
    out: Path,
    *,
    rollout: RolloutConfig | None = None,
    watching: Watching | None = None,
    workers: int = 1,
    stall_s: float = 300.0,
    progress: bool = True,
) -> Results:
    """Plays the seeds that `out` does not hold yet, without ROS, each in a process that may crash or stall.

    Args:
        artifact: the policy's folder.
        task: a name of `sim.tasks.TASKS`.
        seeds: of the episodes.
        out: results file, JSON; pictures of failures go to a folder beside it.
        rollout: how the policy is run.
        watching: films and pictures.
        workers: processes, each with a policy and a world of its own.
        stall_s: wall time without a control tick after which an episode has failed.
        progress: show a bar.

    Raises:
        ArtifactError: the artifact is damaged or does not fit the simulation.
        ConfigError: the task is unknown, a number is out of range, or `out` holds results of other settings.
        RecordError: the disk refuses.
        ClampError: a process cannot start.
    """
    rollout, watching = rollout or RolloutConfig(), watching or Watching()
    results = open_results(Artifact.load(artifact), task, IN_PROCESS, settings_of(rollout, IN_PROCESS), out)
    missing = missing_seeds(results, seeds)
    if not missing:
        return results
    threads = max(1, (os.cpu_count() or 1) // max(1, workers))
    job = _Job(artifact, task, rollout, watching, failures_folder(out), threads)
    make, lost = functools.partial(_player, job), functools.partial(lost_row, task)
    with closing(play_in_workers(make, missing, lost, workers=workers, stall_s=stall_s)) as rows:
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
    name = f"{results.settings.artifact} on {results.settings.task}"
    with tqdm(total=len(seeds), initial=done, unit="episode", disable=not progress, desc=name) as bar:
        for found in rows:
            results.add(found)
            summary = results.summary(seeds)
            bar.set_postfix(success=f"{summary['successes']}/{summary['episodes']}")
            bar.update()


def lost_row(task: str, seed: int, outcome: str, reason: str, seconds: float, reached: Reached, wall_s: float) -> Row:
    """The row of an episode that did not come to its end."""
    stages, partial = TASKS[task].stages, TASKS[task].partial_stage
    return row(seed, outcome, stages, reached, partial_stage=partial, seconds=seconds, reason=reason, wall_s=wall_s)


@dataclass(frozen=True)
class _Job:
    artifact: Path
    task: str
    rollout: RolloutConfig
    watching: Watching
    pictures: Path
    threads: int

    def film(self, seed: int) -> Path | None:
        """Where an episode's film is to be."""
        folder = self.watching.video
        return None if folder is None else folder / f"{self.task}_{seed:07d}.mp4"


def _player(job: _Job) -> Player:
    return Player(job, Rollout(Artifact.load(job.artifact), job.task, job.rollout, job.threads))


class Player:
    """Plays seeds in one process, and makes a row of whatever the policy does."""

    def __init__(self, job: _Job, rollout: Rollout) -> None:
        self._job = job
        self._rollout = rollout

    def __call__(self, seed: int, beat: Beat) -> Row:
        """Plays an episode.

        Raises:
            RecordError: a film or a picture cannot be written.
        """
        rollout, job, started = self._rollout, self._job, time.monotonic()
        ended, reason, chunks, held, picture = TIMEOUT, NOT_DONE, None, None, ""
        film_path = job.film(seed)
        with _film(film_path) as film:
            scribe = _Scribe(rollout, film, beat, job.watching.pictures)
            try:
                outcome = rollout.play(seed, lambda _rollout: scribe.watch())
                chunks, held = outcome.chunks, outcome.held_ticks
                if outcome.success:
                    ended, reason = SUCCESS, ""
            except RecordError:  # of the scribe's, and no fault of the policy's
                raise
            except Exception as error:  # whatever the policy does is its failure in this episode
                ended = ERROR
                reason = str(error) if isinstance(error, ClampError) else f"{type(error).__name__}: {error}"
        if ended == SUCCESS and film_path is not None and job.watching.films == "failures":
            film_path.unlink()
        if ended != SUCCESS and scribe.strip is not None:
            picture = scribe.strip.save(job.pictures, seed, rollout.picture(), rollout.seconds)
        return row(
            seed, ended, rollout.world.task.stages, rollout.reached, partial_stage=rollout.world.task.partial_stage,
            seconds=rollout.seconds, reason=reason, chunks=chunks, held_ticks=held, picture=picture,
            wall_s=time.monotonic() - started,
        )  # fmt: skip


@contextmanager
def _disk(what: str) -> Iterator[None]:
    """Makes of a disk's refusal an error that no policy can be blamed for."""
    try:
        yield
    except (OSError, SimulationError) as error:
        raise RecordError(f"{what}: {error}; make room, and run the same command again") from error


@contextmanager
def _film(path: Path | None) -> Iterator[Film | None]:
    if path is None:
        yield None
        return
    size = OVERVIEW_CAMERA.width, OVERVIEW_CAMERA.height
    with _disk("filming"), Film(path, *size, CONTROL_RATE_HZ // _FILM_TICKS) as film:
        yield film


class _Scribe:
    """Watches an episode: gives signs of life, films, and takes pictures for the case that it fails.

    Attributes:
        strip: of these pictures; None where none are wanted.
    """

    def __init__(self, rollout: Rollout, film: Film | None, beat: Beat, pictures: bool) -> None:
        self._rollout = rollout
        self._film = film
        self._beat = beat
        self.strip = Strip(rollout.world.task.max_seconds) if pictures else None

    def watch(self) -> None:
        """At every tick.

        Raises:
            RecordError: the film cannot be written.
        """
        rollout = self._rollout
        world, tick = rollout.world, round(rollout.seconds * CONTROL_RATE_HZ)
        self._beat(rollout.seconds, rollout.reached)
        if self._film is not None and tick % _FILM_TICKS == 0:
            picture, stage = rollout.picture(), world.task.stages[world.progress()]
            with _disk("filming"):
                self._film.add(picture, [f"{world.task.name}, seed {world.seed}: {rollout.seconds:5.2f} s, {stage}"])
        if self.strip is not None and self.strip.due(rollout.seconds):
            self.strip.add(rollout.picture(), rollout.seconds)
