"""How good the scripted experts are: successes over many seeds, beside a control that cannot succeed.

The control is the same expert with its grippers held open: what it scores, a task gives away. Where shut or open
fingers do as well (`Task.blind_control`) it is the expert of another layout. Physics only, without pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError, RecordError, SimulationError
from clamp_ros.contract.robot import CONTROL_RATE_HZ, GRIPPER_INDICES
from clamp_ros.contract.tasks import TASK_NAMES
from clamp_ros.record.metadata import UNCOMMITTED, software_version
from clamp_ros.score.statistics import wilson_interval
from clamp_ros.sim.experts import Expert, make_expert
from clamp_ros.sim.experts.gripping import OPEN_M
from clamp_ros.sim.experts.persistent import Persistent
from clamp_ros.sim.world import World

FIRST_SEED = 100_000
"""Experts were tuned on seeds below it."""
_BLOCK = 10
"""Seeds of one task before it is another's turn: a run that is stopped early has scored all of them."""


@dataclass(frozen=True)
class Attempt:
    """One episode: what was tried, how it ended, and what it cost.

    Attributes:
        task: its name.
        seed: of the layout.
        control: whether the grippers were held open, or the plan was another layout's.
        success: the task was done at the expert's end.
        attempts: plans it took; 0 if there was none.
        seconds: simulated.
        cpu_s: of this process, planning included.
        reason: of a failure.
        assets: folder of the objects in place of our own; empty for our own.
        software: version of clamp_ros, with the commit where it is known.
    """

    task: str
    seed: int
    control: bool
    success: bool
    attempts: int
    seconds: float
    cpu_s: float
    reason: str
    assets: str = ""
    software: str = ""


def attempt(world: World, seed: int, control: bool = False) -> Attempt:
    """Plays the expert once."""
    started, ticks, plans, success = time.process_time(), 0, 0, False
    try:
        blind = control and world.task.blind_control
        world.reset(seed + 1 if blind else seed)
        expert: Expert = make_expert(world, np.random.default_rng([seed, 1]))
        if blind:
            world.reset(seed)
            expert = Expert(world, expert.plan)
        while not expert.done and ticks < world.task.max_seconds * CONTROL_RATE_HZ:
            action = expert.act()
            if control and not blind:
                action[list(GRIPPER_INDICES)] = OPEN_M
            world.step(action)
            ticks += 1
        plans = expert.attempts if isinstance(expert, Persistent) else 1
        success = expert.done and world.success()
        reason = "" if success else f"ended at stage {world.task.stages[world.progress()]!r}"
    except SimulationError as error:
        reason = str(error)
    cpu_s = round(time.process_time() - started, 3)
    assets = world.assets.get("folder", "")
    seconds = ticks / CONTROL_RATE_HZ
    return Attempt(world.task.name, seed, control, success, plans, seconds, cpu_s, reason, assets, software_version())


def score(
    tasks: Sequence[str], seeds: range, controls: int, results: Path, look: str = "auto", assets: Path | None = None
) -> Iterator[list[Attempt]]:
    """Plays what is not in the results file yet, and yields all that was asked for, after every few episodes.

    What another version of clamp_ros played is played again, and so is all that uncommitted code did.

    Args:
        tasks: names.
        seeds: of the expert.
        controls: how many of these seeds the control plays, from the first on.
        results: JSON lines, one an episode; made, or gone on with.
        look: of the robot.
        assets: folder of objects in place of our own.

    Raises:
        ConfigError: a task is unknown, or a number is out of range.
        RecordError: the results cannot be read or written.
    """
    for task in tasks:
        if task not in TASK_NAMES:
            raise unknown_key(task, TASK_NAMES, "task")
    if not seeds or not 0 <= controls <= len(seeds):
        raise ConfigError(f"{len(seeds)} seeds and {controls} controls, expected at least one, and no more controls")
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        folder = "" if assets is None else str(assets.resolve())
        version = software_version()
        rows = [] if version.endswith(UNCOMMITTED) or not results.exists() else [
            row for row in read(results)
            if row.task in tasks and row.seed in seeds and (row.assets, row.software) == (folder, version)
        ]  # fmt: skip
        done = {(row.task, row.seed, row.control) for row in rows}
        worlds: dict[str, World] = {}
        with results.open("a", encoding="utf-8") as file:
            for first in range(0, len(seeds), _BLOCK):
                for task in tasks:
                    for i, seed in enumerate(seeds[first : first + _BLOCK], first):
                        for control in (False, True) if i < controls else (False,):
                            if (task, seed, control) in done:
                                continue
                            if task not in worlds:
                                worlds[task] = World(task, cameras={}, look=look, assets=assets)
                            rows.append(attempt(worlds[task], seed, control))
                            file.write(json.dumps(asdict(rows[-1])) + "\n")
                            file.flush()
                    yield rows
    except OSError as error:
        raise RecordError(f"the results in {results} cannot be kept: {error}") from error


def read(results: Path) -> list[Attempt]:
    """The episodes of a results file; a last line cut short by a kill is left out.

    Raises:
        RecordError: another line is not what it should be.
    """
    lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            with results.open("w", encoding="utf-8") as file:
                file.writelines(lines[:-1])
            break
        try:
            rows.append(Attempt(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise RecordError(f"line {number} of {results} is no result: {error}; move the file away") from error
    return rows


def table(rows: Iterable[Attempt]) -> str:
    """A Markdown table, a line a task."""
    lines = [
        "| task | expert | 95 % interval | after a second or third try | control | CPU s an episode |",
        "|---|---|---|---|---|---|",
    ]
    rows = list(rows)
    for task in dict.fromkeys(row.task for row in rows):
        tried = [row for row in rows if row.task == task and not row.control]
        held = [row for row in rows if row.task == task and row.control]
        good = sum(row.success for row in tried)
        low, high = wilson_interval(good, len(tried))
        again = sum(row.success and row.attempts > 1 for row in tried)
        control = f"{sum(row.success for row in held)} of {len(held)}" if held else "not run"
        cpu_s = f"{sum(row.cpu_s for row in tried) / len(tried):.1f}" if tried else ""
        lines.append(
            f"| {task} | {good} of {len(tried)} = {good / max(len(tried), 1):.1%} | {low:.0%} to {high:.0%} | {again}"
            f" | {control} | {cpu_s} |"
        )
    return "\n".join(lines)
