"""Joins folders of demonstrations that independent jobs made into one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.demos.folder import (
    Row,
    Summary,
    append,
    bag_path,
    check_settings,
    config_of,
    differences,
    finished,
    locked,
    read_settings,
)
from clamp_ros.record.writer import PARTIAL_SUFFIX


def merge(sources: Sequence[Path], out: Path) -> Summary:
    """Fills a folder with the bags of others, which stay as they are; the same call goes on where it was stopped.

    Bags are linked where both folders are on one file system, else copied.

    Raises:
        ConfigError: folders differ in task or settings, or have played the same seed, or `out` is one of them.
        RecordError: a folder holds no demonstrations, or is being worked in, or the disk refuses.
    """
    if len(sources) < 2 or len({path.resolve() for path in (*sources, out)}) != len(sources) + 1:
        raise ConfigError(f"merging {', '.join(map(str, sources))} into {out}: expected two or more different folders,"
                          " and another one for the result")  # fmt: skip
    configs = [config_of(source) for source in sources]
    for source in sources[1:]:
        words = differences(read_settings(sources[0]) or {}, read_settings(source) or {}, f"in {source}")
        if words:
            raise ConfigError(f"{sources[0]} and {source} cannot be merged: {words}".replace("there", "in the first"))
    task = configs[0].task
    try:
        with ExitStack() as stack:
            rows: dict[Path, dict[int, Row]] = {}
            for source in sources:
                rows[source] = finished(stack.enter_context(locked(source)), source, task)
            for a, b in combinations(sources, 2):
                _refuse_overlap(a, rows[a], b, rows[b])
            everything = {seed: (row, source) for source in sources for seed, row in rows[source].items()}
            out.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(locked(out))
            check_settings(out, configs[0])
            there = finished(log, out, task)
            for source in sources:
                other = {seed: row for seed, row in there.items() if rows[source].get(seed, row) != row}
                _refuse_overlap(source, rows[source], out, other)
            for seed in sorted(everything.keys() - there.keys()):
                row, source = everything[seed]
                if row["success"]:
                    _bring(bag_path(source, task, seed), bag_path(out, task, seed))
                append(log, [row])
            merged = finished(log, out, task)
            summary = Summary(configs[0], [merged[seed] for seed in sorted(merged)])
            summary.save(out)
    except OSError as error:
        raise RecordError(f"merging into {out} failed: {error}; make room, and run the same command again") from error
    return summary


def _refuse_overlap(a: Path, rows_a: dict[int, Row], b: Path, rows_b: dict[int, Row]) -> None:
    both = sorted(rows_a.keys() & rows_b.keys())
    if both:
        which = ", ".join(map(str, both[:5])) + (", ..." if len(both) > 5 else "")
        raise ConfigError(f"{a} and {b} have both played {len(both)} seeds: {which}; make one of them from another "
                          "--seed, or by --shard")  # fmt: skip


def _bring(bag: Path, to: Path) -> None:
    partial = to.with_name(to.name + PARTIAL_SUFFIX)
    for leftover in (to, partial):
        shutil.rmtree(leftover, ignore_errors=True)  # of a merge that was killed before it could log the seed
    shutil.copytree(bag, partial, copy_function=_link)
    partial.rename(to)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target
