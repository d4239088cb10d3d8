"""Makes a folder of demonstrations by many processes: seeds in order, successes only, goes on where it was stopped."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import shutil
import signal
import time
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from clamp_ros.contract.errors import ConfigError, RecordError, SimulationError
from clamp_ros.contract.robot import CONTROL_RATE_HZ
from clamp_ros.demos.recording import DemoConfig, Demonstrator
from clamp_ros.record.writer import PARTIAL_SUFFIX
from clamp_ros.sim.randomise import Randomisation

_GIVE_UP_AFTER = 20
"""Failures in a row after which the task, not the luck, is to blame."""
_SETTINGS_FILE, _LOG_FILE, _SUMMARY_FILE = "demos.json", "demos.jsonl", "summary.json"


@dataclass
class Summary:
    """What a run of `make_demos` did; `rows` are in order of seed and include those of earlier runs."""

    config: DemoConfig
    rows: list[dict[str, Any]] = field(default_factory=list)
    made: int = 0
    wall_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        good = [row for row in self.rows if row["success"]]
        return {
            **asdict(self.config),
            "episodes": len(good),
            "attempts": len(self.rows),
            "failed_seeds": [row["seed"] for row in self.rows if not row["success"]],
            "mean_seconds": round(sum(r["ticks"] for r in good) / CONTROL_RATE_HZ / len(good), 2) if good else 0.0,
            "megabytes": round(1e-6 * sum(row["bytes"] for row in good), 1),
            "made_in_this_run": self.made,
            "episodes_per_minute": round(60.0 * self.made / self.wall_s, 1) if self.wall_s else 0.0,
        }


def bag_path(folder: Path, task: str, seed: int) -> Path:
    """Where the demonstration of a seed is."""
    return folder / f"{task}_{seed:06d}"


def make_demos(
    config: DemoConfig, episodes: int, folder: Path, *, seed: int = 0, workers: int = 2, progress: bool = True
) -> Summary:
    """Fills a folder with the first `episodes` successful demonstrations from a seed on.

    Seeds already in the folder's log are not played again, so an interrupted run continues, and its result is that of
    a run never interrupted: seeds are started in order, and never more than can still be needed.

    Raises:
        ConfigError: a number is out of range, or the folder holds demonstrations of another configuration.
        RecordError: another run works in the folder, a disk refuses, or a worker dies.
        SimulationError: the expert fails on 20 seeds in a row.
    """
    if episodes < 1 or workers < 1 or seed < 0:
        raise ConfigError(f"episodes {episodes} and workers {workers} must be at least 1, seed {seed} at least 0")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as log:
        _check_settings(folder, config)
        done = _finished(log, folder, config.task)
        summary = Summary(config)
        started = time.monotonic()
        failures = 0
        bar = tqdm(total=episodes, unit="episode", disable=not progress, desc=config.task)
        rows = _play(config, folder, seed, episodes, workers, done)
        try:
            for row in rows:
                summary.rows.append(row)
                if row["seed"] not in done:
                    summary.made += row["success"]
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                bar.update(row["success"])
                bar.set_postfix(failed=sum(not r["success"] for r in summary.rows))
                failures = 0 if row["success"] else failures + 1
                if failures == _GIVE_UP_AFTER:
                    raise SimulationError(
                        f"the expert of {config.task} failed {failures} times in a row; the last time: {row['reason']}"
                    )
        finally:
            rows.close()
            bar.close()
            summary.rows.sort(key=lambda row: row["seed"])
            summary.wall_s = time.monotonic() - started
            (folder / _SUMMARY_FILE).write_text(json.dumps(summary.to_dict(), indent=2) + "\n", encoding="utf-8")
    return summary


def _play(
    config: DemoConfig, folder: Path, seed: int, episodes: int, workers: int, done: dict[int, dict[str, Any]]
) -> Generator[dict[str, Any], None, None]:
    """Yields a row a seed as they finish, until `episodes` have succeeded."""
    succeeded = 0
    running: set[Future[dict[str, Any]]] = set()
    context = multiprocessing.get_context("spawn")  # a forked GL context does not render
    with ProcessPoolExecutor(workers, context, _start_worker, (config, folder)) as pool:
        try:
            while True:
                while succeeded + len(running) < episodes and len(running) < 2 * workers:
                    if seed in done:
                        succeeded += done[seed]["success"]
                        yield done[seed]
                    else:
                        running.add(pool.submit(_demonstrate, seed))
                    seed += 1
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    row = future.result()
                    succeeded += row["success"]
                    yield row
        except BrokenProcessPool as error:
            raise RecordError("a worker process died (out of memory?); run the same command again to go on") from error
        finally:
            for future in running:
                future.cancel()


_demonstrator: Demonstrator
_folder: Path


def _start_worker(config: DemoConfig, folder: Path) -> None:
    global _demonstrator, _folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets the episodes in progress end
    _demonstrator, _folder = Demonstrator(config), folder


def _demonstrate(seed: int) -> dict[str, Any]:
    bag = bag_path(_folder, _demonstrator._config.task, seed)
    for leftover in (bag, bag.with_name(bag.name + PARTIAL_SUFFIX)):
        shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed before it could log the seed
    return _demonstrator.demonstrate(seed, bag)


@contextmanager
def _locked(folder: Path) -> Iterator[TextIO]:
    """The folder's log, opened for reading and appending, held by this process alone."""
    with (folder / _LOG_FILE).open("a+", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordError(f"another process is making demonstrations in {folder}; choose another folder") from error
        yield log


def _check_settings(folder: Path, config: DemoConfig) -> None:
    path, wanted = folder / _SETTINGS_FILE, json.loads(json.dumps(asdict(config)))
    if not path.exists():
        path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    plain = {"randomise": asdict(Randomisation())}  # folders older than it do not name it
    found = plain | json.loads(path.read_text(encoding="utf-8"))
    differing = {key: (found.get(key), value) for key, value in wanted.items() if found.get(key) != value}
    if differing:
        words = ", ".join(f"{key} {old!r} there and {new!r} here" for key, (old, new) in differing.items())
        raise ConfigError(f"{folder} holds demonstrations of another configuration: {words}; choose another folder")


def _finished(log: TextIO, folder: Path, task: str) -> dict[int, dict[str, Any]]:
    """Rows of the log by seed; a success whose bag is gone is played again, and so is a line cut short by a kill."""
    log.seek(0)
    lines = log.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        log.write("\n")
    rows = {}
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not row["success"] or bag_path(folder, task, row["seed"]).is_dir():
            rows[row["seed"]] = row
    return rows
