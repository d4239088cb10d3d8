"""Results of evaluations written by hand, for the tests of files, runs and pages."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clamp_ros.score.results import SUCCESS, TIMEOUT, Results, Row, Settings, Training, row

STAGES = ("idle", "reaching", "grasped", "done")
SETTINGS = Settings(
    artifact="tiny", artifact_sha256={"encoders": "ab", "manifest": "cd"}, task="mug_on_plate", stages=STAGES,
    max_seconds=12.0, way="in process", rollout={"mode": "open_loop"}, software="0.1.0",
)  # fmt: skip


def settings(**changes: Any) -> Settings:
    return replace(SETTINGS, **changes)


def episode(seed: int, success: bool, stage: str = "reaching", **changes: Any) -> Row:
    if success:
        return row(
            seed, SUCCESS, STAGES, {"reaching": 1.0, "done": 6.0}, seconds=6.0, chunks=9, held_ticks=0, wall_s=1.0
        )
    reached = {name: float(i) for i, name in enumerate(STAGES) if 0 < i <= STAGES.index(stage)}
    return row(seed, **{"outcome": TIMEOUT, "reason": "not done in time", "seconds": 12.0, **changes}, stages=STAGES,
               reached=reached)  # fmt: skip


def write(
    path: Path, successes: Iterable[int], seeds: Iterable[int], training: Mapping[str, Any], **changes: Any
) -> Path:
    """A results file in which those of the seeds succeed that are in `successes`."""
    results = Results(path, settings(**changes), Training(**training))
    good = set(successes)
    for seed in seeds:
        results.add(episode(seed, seed in good))
    return path


@contextmanager
def disk_that_is_full_after(size: int) -> Iterator[None]:
    """The kernel lets no file of this process and its children grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
