"""A folder of demonstrations: one configuration (demos.json), one log of every seed played (demos.jsonl), the bags.

A seed is in the log once its bag is whole, so the log alone says what there is; a run that was killed goes on by it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.contract.robot import CONTROL_RATE_HZ
from clamp_ros.demos.recording import DemoConfig
from clamp_ros.files import write_whole
from clamp_ros.sim.randomise import Randomisation

Row = dict[str, Any]
"""Of the log: seed, success, ticks, reason (of a failure), bytes (of the bag)."""
_SETTINGS_FILE, _LOG_FILE, _SUMMARY_FILE = "demos.json", "demos.jsonl", "summary.json"


@dataclass
class Summary:
    """What a folder holds and what a run did; `rows` are in order of seed and include those of earlier runs."""

    config: DemoConfig
    rows: list[Row] = field(default_factory=list)
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

    def save(self, folder: Path) -> None:
        """Writes summary.json.

        Raises:
            OSError: the disk refuses; it is as it was.
        """
        _write(folder / _SUMMARY_FILE, self.to_dict())


def bag_path(folder: Path, task: str, seed: int) -> Path:
    """Where the demonstration of a seed is."""
    return folder / f"{task}_{seed:06d}"


@contextmanager
def locked(folder: Path) -> Iterator[TextIO]:
    """The folder's log, opened for reading and appending, held by this process alone.

    Raises:
        RecordError: another process holds it.
    """
    with (folder / _LOG_FILE).open("a+", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordError(f"another process is making demonstrations in {folder}; choose another folder") from error
        yield log


def _write(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The configuration of a folder, as plain JSON values; None where there is none yet.

    An empty file beside an empty log is what a full disk has left before there was anything.

    Raises:
        RecordError: it is damaged.
    """
    path, log = folder / _SETTINGS_FILE, folder / _LOG_FILE
    try:
        text = path.read_text(encoding="utf-8")
        if not text and not (log.exists() and log.stat().st_size):
            return None
        found = json.loads(text)
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{path} is damaged: {error}; put that of a folder made with the same settings in its place, or choose "
            "another folder"
        ) from error
    older = {"randomise": asdict(Randomisation()), "states_only": False, "assets": ""}  # folders do not name these
    return older | found


def config_of(folder: Path) -> DemoConfig:
    """The configuration of a folder of demonstrations.

    Raises:
        RecordError: the folder is none.
    """
    found = read_settings(folder)
    if found is None:
        raise RecordError(f"{folder} holds no demonstrations of `clamp demos`: it has no {_SETTINGS_FILE}")
    return DemoConfig(**{**found, "cameras": tuple(found["cameras"]), "randomise": Randomisation(**found["randomise"])})


def check_settings(folder: Path, config: DemoConfig) -> None:
    """Gives a new folder its configuration, or compares it with what is there.

    Raises:
        ConfigError: the folder has another configuration.
    """
    wanted = json.loads(json.dumps(asdict(config)))
    found = read_settings(folder)
    if found is None:
        _write(folder / _SETTINGS_FILE, wanted)
        return
    words = differences(found, wanted)
    if words:
        raise ConfigError(f"{folder} holds demonstrations of another configuration: {words}; choose another folder")


def differences(found: dict[str, Any], wanted: dict[str, Any], here: str = "here") -> str:
    """What differs between two configurations, in words; empty if nothing does."""
    differing = {key: (found.get(key), value) for key, value in wanted.items() if found.get(key) != value}
    return ", ".join(f"{key} {old!r} there and {new!r} {here}" for key, (old, new) in differing.items())


def append(log: TextIO, rows: Iterable[Row]) -> None:
    """Adds rows to a log, at once."""
    log.write("".join(json.dumps(row) + "\n" for row in rows))
    log.flush()


def finished(log: TextIO, folder: Path, task: str) -> dict[int, Row]:
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
