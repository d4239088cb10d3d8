"""Results of many files as what they are about: training runs with their checkpoints, methods, and comparisons.

The paper's protocol (Section IV, Table I): 50 episodes a checkpoint, the maximum over a run's checkpoints, the mean of
that over training runs that differ in their seed.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clamp_ros.contract.errors import ConfigError
from clamp_ros.score.results import Results, Row
from clamp_ros.score.statistics import Paired


@dataclass(frozen=True)
class Run:
    """A training run on a task: one or more checkpoints, by training step.

    Attributes:
        label: tells it from the other runs of the page.
        method: tells it from other methods; runs of one method differ in their training seed.
        points: the checkpoints' results.
    """

    label: str
    method: str
    points: tuple[Results, ...]

    @property
    def task(self) -> str:
        """What was played."""
        return self.points[0].settings.task

    @property
    def best(self) -> Results:
        """The checkpoint of the highest success rate; of equals the earliest."""
        return max(self.points, key=lambda point: point.summary()["success_rate"])

    @property
    def last(self) -> Results:
        """The newest checkpoint, which nobody chose by its score."""
        return self.points[-1]


def merged(results: Sequence[Results]) -> list[Results]:
    """Files about the same artifact, task and settings put together, in order of the first.

    Raises:
        ConfigError: a file is empty, or two tell differently how a seed ended.
    """
    out: dict[str, Results] = {}
    for found in results:
        if not found.rows:
            raise ConfigError(f"{found.path} holds no episode; run its evaluation first")
        key = _key(vars(found.settings))
        if key not in out:
            out[key] = found
            continue
        first = out[key]
        for seed in sorted(first.rows.keys() & found.rows.keys()):
            if _without_wall(first.rows[seed]) != _without_wall(found.rows[seed]):
                raise ConfigError(
                    f"{first.path} and {found.path} are about the same artifact and settings, and tell differently how "
                    f"seed {seed} ended; give one of them"
                )
        joint = Results.__new__(Results)
        vars(joint).update(vars(first), rows={**_moved(found, first.path.parent), **first.rows})
        out[key] = joint
    return list(out.values())


def _moved(results: Results, folder: Path) -> dict[int, Row]:
    """Its rows, with pictures relative to another folder."""
    here = results.path.parent
    return {
        seed: {**row, "picture": os.path.relpath(here / row["picture"], folder) if row["picture"] else ""}
        for seed, row in results.rows.items()
    }


def _without_wall(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("wall_s", "picture")}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def group(results: Sequence[Results]) -> list[Run]:
    """Results as runs, by task, in the order in which their first file was given.

    Raises:
        ConfigError: two artifacts are the same checkpoint of the same run, and yet different; or see `merged`.
    """
    found: dict[tuple[str, ...], list[Results]] = {}
    for point in merged(results):
        found.setdefault((point.settings.task, *_identity(point)), []).append(point)
    runs = []
    for (task, *identity), points in found.items():
        points.sort(key=lambda p: (p.training.step is not None, p.training.step or 0))
        for a, b in itertools.pairwise(points):
            if a.training.step == b.training.step:
                at = "an unknown step" if a.training.step is None else f"step {a.training.step}"
                raise ConfigError(
                    f"{a.path} and {b.path} are of different policies that both say they are {a.training.method!r} at "
                    f"{at}; rename an artifact, or export one from a run folder of another name"
                )
        same_method = {other[1:] for other in found if other[:2] == (task, identity[0])}
        varying = [len({other[i] for other in same_method}) > 1 for i in range(len(identity))]
        # folders of the same seed hold different things, which no mean is to be taken of
        repeats = len({other[2] for other in same_method}) < len({other[1:3] for other in same_method})
        method = _label(identity, [False, repeats, False, *varying[3:]])
        runs.append(Run(_label(identity, varying), method, tuple(points)))
    tasks = [run.task for run in runs]
    return sorted(runs, key=lambda run: tasks.index(run.task))


def _identity(point: Results) -> tuple[str, ...]:
    """What makes a run: method, folder, training seed, way, and how it was run."""
    t, s = point.training, point.settings
    seed = "" if t.seed is None else f"seed {t.seed}"
    how = ", ".join(f"{key} {value}" for key, value in s.rollout.items())
    return t.method, t.run, seed, s.way, how


def _label(identity: Sequence[str], varying: Sequence[bool]) -> str:
    parts = [text for text, varies in zip(identity[1:], varying[1:], strict=True) if varies and text]
    return f"{identity[0]} ({', '.join(parts)})" if parts else identity[0]


@dataclass(frozen=True)
class MethodScore:
    """A method on a task, as Table I reports it.

    Attributes:
        runs: its training runs.
        mean: over the runs, of the maximum over checkpoints.
        deviation: sample standard deviation of those; None of one run.
        partial: mean over the runs, of the partial success of the same checkpoints.
    """

    runs: tuple[Run, ...]
    mean: float
    deviation: float | None
    partial: float


def methods(runs: Sequence[Run]) -> dict[str, dict[str, MethodScore]]:
    """Method to task to score."""
    out: dict[str, dict[str, MethodScore]] = {}
    for method, task in dict.fromkeys((run.method, run.task) for run in runs):
        mine = tuple(run for run in runs if (run.method, run.task) == (method, task))
        rates = [run.best.summary()["success_rate"] for run in mine]
        mean = sum(rates) / len(rates)
        deviation = None
        if len(rates) > 1:
            deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1))
        partial = sum(run.best.summary()["mean_partial"] for run in mine) / len(mine)
        out.setdefault(method, {})[task] = MethodScore(mine, mean, deviation, partial)
    return out


def comparisons(runs: Sequence[Run]) -> list[tuple[Run, Run, Paired]]:
    """Every two runs of a task, by their best checkpoints, on the seeds that both have played."""
    pairs = [(a, b) for a, b in itertools.combinations(runs, 2) if a.task == b.task]
    return [(a, b, Paired.of(a.best.successes(), b.best.successes())) for a, b in pairs]


def funnel(results: Results) -> list[tuple[str, int]]:
    """Each of the task's stages but the first, and how many episodes came so far or farther."""
    stages = results.settings.stages
    furthest = [stages.index(row["stage"]) for row in results.rows.values()]
    return [(name, sum(f >= i for f in furthest)) for i, name in enumerate(stages)][1:]


def words(runs: Sequence[Run]) -> str:
    """Maxima over checkpoints and comparisons, for a terminal; empty where there is neither."""
    lines = []
    for run in runs:
        if len(run.points) > 1:
            s, step = run.best.summary(), run.best.training.step
            lines.append(
                f"maximum over {len(run.points)} checkpoints of {run.label} on {run.task}: {s['successes']}/"
                f"{s['episodes']} = {100 * s['success_rate']:.1f} %, at step {step}"
            )
    for a, b, pair in comparisons(runs):
        low, high = pair.interval()
        lines.append(
            f"{b.label} against {a.label} on {pair.seeds} common seeds of {a.task}: {100 * pair.difference:+.1f} points"
            f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f}; seeds on which it alone succeeds "
            f"{pair.only_second} to {pair.only_first}, McNemar p = {pair.p_value:.4f}"
        )
    return "\n".join(lines)
