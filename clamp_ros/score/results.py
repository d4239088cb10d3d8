"""The results file of an evaluation: one artifact on one task, every episode, whole on disk after each of them.

An interrupted evaluation goes on from its file, and ends in the file of one never interrupted (but for `wall_s`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.files import write_whole
from clamp_ros.score.seeds import seeds_text, within
from clamp_ros.score.statistics import wilson_interval

SCHEMA = "clamp_ros/evaluation"
VERSION = 2
SUCCESS, TIMEOUT, ERROR, STALLED, DIED = "success", "timeout", "error", "stalled", "died"
OUTCOMES = (SUCCESS, TIMEOUT, ERROR, STALLED, DIED)
"""How an episode ends: done; not done in time; an exception; no sign of life; its process ended."""

Row = dict[str, Any]
"""One episode, as `row` makes it."""
Reached = dict[str, float]
"""Name of each stage that was a new furthest one, to the simulated seconds after which it was first seen."""


def row(
    seed: int,
    outcome: str,
    stages: Sequence[str],
    reached: Reached,
    *,
    partial_stage: str | None = None,
    seconds: float = 0.0,
    reason: str = "",
    chunks: int | None = None,
    held_ticks: int | None = None,
    picture: str = "",
    wall_s: float = 0.0,
) -> Row:
    """An episode's row.

    Args:
        seed: of the episode.
        outcome: one of OUTCOMES.
        stages: of the task, in order; the last one means success.
        reached: see Reached; success reaches the last stage.
        partial_stage: of the task, see Settings.
        seconds: simulated.
        reason: why it failed, in words; empty after success.
        chunks, held_ticks: inferred chunks, and ticks at which the gate held; None where nobody counts (through ROS).
        picture: file of a failure's picture, relative to the results file.
        wall_s: how long the episode took here.
    """
    furthest = max((stages.index(name) for name in reached), default=0)
    if outcome == SUCCESS:
        furthest = len(stages) - 1
    partial = furthest / (len(stages) - 1)
    if partial_stage is not None and partial < 1.0:
        partial = 0.5 if furthest >= stages.index(partial_stage) else 0.0
    return {
        "seed": seed,
        "outcome": outcome,
        "success": outcome == SUCCESS,
        "stage": stages[furthest],
        "partial": round(partial, 4),
        "reached": {name: round(second, 2) for name, second in reached.items()},
        "seconds": round(seconds, 2),
        "reason": reason,
        "chunks": chunks,
        "held_ticks": held_ticks,
        "picture": picture,
        "wall_s": round(wall_s, 2),
    }


@dataclass(frozen=True)
class Settings:
    """What a results file is about; a file holds one such setting.

    Attributes:
        artifact: the policy's name.
        artifact_sha256: of its files, so that another version of it does not continue these results.
        task: what was played.
        stages: of the task, in order.
        max_seconds: simulated, after which an episode has failed.
        way: `in process`, or `ros` through the whole stack.
        rollout: how the policy was run.
        software: version of clamp_ros.
        partial_stage: the stage from which on the paper awards partial success: such an episode counts as 0.5, one that
            does not come so far as 0. None where it awards none: then the share of the stages counts.
    """

    artifact: str
    artifact_sha256: Mapping[str, str]
    task: str
    stages: tuple[str, ...]
    max_seconds: float
    way: str
    rollout: Mapping[str, Any]
    software: str
    partial_stage: str | None = None


@dataclass(frozen=True)
class Training:
    """Where a policy comes from, as far as its manifest tells; it puts checkpoints on a curve and runs in a table.

    Attributes:
        method: the experiment's name, or the artifact's where that is not known.
        run: name of the run's folder.
        seed: of the training.
        step: training steps that the policy has seen.
        seeds: task to the ranges of demonstrations' seeds it was trained on; None if nobody wrote them down.
    """

    method: str
    run: str = ""
    seed: int | None = None
    step: int | None = None
    seeds: Mapping[str, Sequence[Sequence[int]]] | None = None

    @classmethod
    def of(cls, name: str, record: Mapping[str, Any]) -> Training:
        """From an artifact's name and its manifest's free-form record of the training."""
        experiment = _mapping(record.get("experiment"))
        seed = _mapping(experiment.get("training")).get("seed")
        step = _mapping(record.get("steps")).get("policy")
        return cls(
            method=str(experiment.get("name") or name),
            run=str(record.get("run") or ""),
            seed=seed if isinstance(seed, int) else None,
            step=step if isinstance(step, int) else None,
            seeds=record["seeds"] if isinstance(record.get("seeds"), dict) else None,
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


class Results:
    """The rows of an evaluation, on disk after every change.

    Attributes:
        path: the file.
        settings, training: what it is about.
        rows: by seed.
    """

    def __init__(self, path: Path, settings: Settings, training: Training) -> None:
        """Opens the file, or begins it; nothing is written before the first episode.

        Raises:
            ConfigError: the file holds results of other settings.
            RecordError: the file is damaged.
        """
        self.path = path
        self.settings = settings
        self.training = training
        self.rows: dict[int, Row] = {}
        self._seen = _signature(path)
        if self._seen is None:
            return
        found = Results.read(path)
        if differences := _differences(found.settings, settings):
            raise ConfigError(
                f"{path} holds results of another evaluation: {differences}; choose another --out, or move it away"
            )
        self.rows = found.rows

    @classmethod
    def read(cls, path: Path) -> Results:
        """Reads a finished or interrupted file.

        Raises:
            RecordError: it is missing or damaged, or not such a file.
        """
        results = cls.__new__(cls)
        results.path, results._seen = path, _signature(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if (kind := (found.get("schema"), found.get("version"))) != (SCHEMA, VERSION):
                raise ValueError(f"schema and version are {kind}, expected {(SCHEMA, VERSION)}")
            settings = {"partial_stage": None, **found["settings"]}  # older files have none
            settings = {f.name: settings[f.name] for f in fields(Settings)}
            results.settings = Settings(**{**settings, "stages": tuple(settings["stages"])})
            results.training = Training(**found["training"])
            results.rows = {int(r["seed"]): _checked(r, results.settings) for r in found["episodes"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(
                f"{path} is not a results file of `clamp eval` ({error}); give another, or move it away"
            ) from error
        return results

    def add(self, row: Row) -> None:
        """Takes an episode in and rewrites the file.

        Raises:
            RecordError: the disk refuses, or another process has written the file; what was in it is still there.
        """
        if _signature(self.path) != self._seen:
            raise RecordError(
                f"{self.path} was changed by another process; one evaluation writes to a file, choose another --out"
            )
        rows = {**self.rows, row["seed"]: row}
        episodes = [rows[seed] for seed in sorted(rows)]
        content = {
            "schema": SCHEMA,
            "version": VERSION,
            "settings": asdict(self.settings),
            "training": asdict(self.training),
            "summary": self._summarize(episodes),
            "episodes": episodes,
        }
        try:
            write_whole(self.path, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise RecordError(
                f"{self.path} cannot be written ({error.strerror}); its {len(self.rows)} episodes are safe: make room, "
                "and run the same command again"
            ) from error
        self.rows, self._seen = rows, _signature(self.path)

    def summary(self, seeds: Iterable[int] | None = None) -> dict[str, Any]:
        """Of `summarize`, over some seeds or all that were played; `partial_successes` where the paper awards them."""
        wanted = sorted(self.rows) if seeds is None else seeds
        return self._summarize([self.rows[seed] for seed in wanted if seed in self.rows])

    def _summarize(self, rows: Sequence[Row]) -> dict[str, Any]:
        if self.settings.partial_stage is None:
            return summarize(rows)
        return {**summarize(rows), "partial_successes": sum(row["partial"] >= 0.5 for row in rows)}

    def successes(self) -> dict[int, bool]:
        """Seed to success."""
        return {seed: bool(row["success"]) for seed, row in self.rows.items()}

    def text(self, seeds: Sequence[int] | None = None) -> str:
        """The score in words, for a terminal."""
        s = self.summary(seeds)
        low, high = s["wilson_95"]
        lines = [
            f"{self.settings.artifact} on {self.settings.task} ({self.settings.way}): "
            f"{s['successes']}/{s['episodes']} = {100 * (s['success_rate'] or 0.0):.1f} % success, "
            f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; partial {100 * (s['mean_partial'] or 0.0):.1f} %"
        ]
        if "partial_successes" in s:
            lines.append(
                f"  partial success, as the paper counts it ({self.settings.partial_stage!r} or farther): "
                f"{s['partial_successes']}/{s['episodes']}"
            )
        if s["failures_by_furthest_stage"]:
            words = ", ".join(f"{n} x {stage}" for stage, n in sorted(s["failures_by_furthest_stage"].items()))
            lines.append(f"  failures, by the furthest stage reached: {words}")
        if s["errors"]:
            lines.append(f"  {s['errors']} of the failures are errors; see `reason` in {self.path}")
        lines += [f"  {warning}" for warning in self.warnings(seeds)]
        lines.append(f"  results: {self.path}")
        return "\n".join(lines)

    def warnings(self, seeds: Iterable[int] | None = None) -> list[str]:
        """What speaks against citing the score: seeds, by default those played, that the policy was trained on.

        Or may have been: where its manifest names none, that is said, too.
        """
        known = self.training.seeds
        if known is None:
            return [f"training seeds unknown: no manifest of {self.training.method} names them, so these layouts may "
                    "not be unseen"]  # fmt: skip
        seen = within(sorted(self.rows) if seeds is None else seeds, known.get(self.settings.task, ()))
        if not seen:
            return []
        return [
            f"{self.settings.artifact} was trained on {len(seen)} of these seeds of {self.settings.task} "
            f"({seeds_text(seen)}): no score on unseen layouts; choose other --seeds"
        ]


def summarize(rows: Iterable[Row]) -> dict[str, Any]:
    """Counts, rate, interval, partial success, and how and where episodes failed."""
    rows = list(rows)
    good = [r for r in rows if r["success"]]
    low, high = wilson_interval(len(good), len(rows))
    outcomes = Counter(r["outcome"] for r in rows)
    return {
        "episodes": len(rows),
        "successes": len(good),
        "success_rate": round(len(good) / len(rows), 4) if rows else None,
        "wilson_95": [round(low, 4), round(high, 4)],
        "mean_partial": round(sum(r["partial"] for r in rows) / len(rows), 4) if rows else None,
        "mean_success_seconds": round(sum(r["seconds"] for r in good) / len(good), 2) if good else None,
        "failures_by_furthest_stage": dict(sorted(Counter(r["stage"] for r in rows if not r["success"]).items())),
        "errors": sum(outcomes[kind] for kind in (ERROR, STALLED, DIED)),
    }


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file is written."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _checked(row: Row, settings: Settings) -> Row:
    """A row read from a file.

    Raises:
        KeyError, ValueError: it is none.
    """
    if row["outcome"] not in OUTCOMES or row["success"] != (row["outcome"] == SUCCESS):
        raise ValueError(f"seed {row['seed']} has outcome {row['outcome']!r} and success {row['success']!r}")
    settings.stages.index(row["stage"])
    for key in ("partial", "seconds", "wall_s"):
        float(row[key])
    return {**row, "reached": dict(row["reached"]), "reason": str(row["reason"]), "picture": str(row["picture"])}


def _differences(theirs: Settings, ours: Settings) -> str:
    """What differs, naming both sides."""
    words = []
    for f in fields(Settings):
        old, new = (json.loads(json.dumps(getattr(s, f.name))) for s in (theirs, ours))
        if old == new:
            continue
        if f.name == "artifact_sha256":
            parts = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            old, new = ({key: str(side.get(key))[:12] for key in parts} for side in (old, new))
        words.append(f"{f.name} is {old!r} there and {new!r} here")
    return "; ".join(words)
