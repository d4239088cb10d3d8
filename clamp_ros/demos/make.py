"""Makes a folder of demonstrations by many processes: seeds in order, successes only, goes on where it was stopped.

A folder of states (`states_only`) holds what the physics did, without pictures; `render_demos` makes bags of it later.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from pathlib import Path

from tqdm import tqdm

from clamp_ros.contract.errors import ConfigError, RecordError, SimulationError
from clamp_ros.demos.folder import Row, Summary, append, bag_path, check_settings, config_of, finished, locked
from clamp_ros.demos.recording import DemoConfig, Demonstrator
from clamp_ros.record.writer import PARTIAL_SUFFIX

_GIVE_UP_AFTER = 20
"""Failures in a row after which the task, not the luck, is to blame."""
_SPARE_SEEDS = 20


def shard_of(episodes: int, seed: int, index: int, shards: int) -> tuple[int, range]:
    """The share of one of many independent jobs: how many episodes, and which seeds it may use, disjoint from others'.

    Args:
        episodes: of all shards together.
        seed: first of all.
        index: 1 to `shards`.
        shards: how many there are.

    Raises:
        ConfigError: the shard is not one of them, or there are more shards than episodes.
    """
    if not 1 <= index <= shards or shards > episodes:
        raise ConfigError(f"shard is {index}/{shards} of {episodes} episodes, expected 1/{shards} to {shards}/{shards},"
                          " and no more shards than episodes")  # fmt: skip
    most = -(-episodes // shards)
    span = 2 * most + _SPARE_SEEDS
    first = seed + (index - 1) * span
    return episodes // shards + (index <= episodes % shards), range(first, first + span)


def make_demos(
    config: DemoConfig,
    episodes: int,
    folder: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
    shard: tuple[int, int] = (1, 1),
) -> Summary:
    """Fills a folder with the first `episodes` successful demonstrations from a seed on.

    Seeds already in the folder's log are not played again, so an interrupted run continues, and its result is that of
    a run never interrupted: seeds are started in order, and never more than can still be needed.

    Args:
        config: of every episode.
        episodes: how many, of all shards together.
        folder: of the bags; one for each shard, merged later by `merge`.
        seed: the first.
        workers: processes.
        progress: show a bar.
        shard: which of how many independent jobs this is; each has a range of seeds of its own.

    Raises:
        ConfigError: a number is out of range, or the folder holds demonstrations of another configuration.
        RecordError: another run works in the folder, a disk refuses, or a worker dies.
        SimulationError: the expert fails on 20 seeds in a row, or on too many of the shard's.
    """
    if episodes < 1 or workers < 1 or seed < 0:
        raise ConfigError(f"episodes {episodes} and workers {workers} must be at least 1, seed {seed} at least 0")
    share, seeds = shard_of(episodes, seed, *shard)
    everything: Iterable[int] = count(seed) if shard[1] == 1 else seeds
    summary = _fill(folder, config, everything, share, workers, progress)
    made = sum(row["success"] for row in summary.rows)
    if made < share:
        raise SimulationError(
            f"seeds {seeds.start} to {seeds.stop - 1} of shard {shard[0]}/{shard[1]} gave {made} of {share} episodes:"
            f" the expert of {config.task} fails too often"
        )
    return summary


def render_demos(source: Path, config: DemoConfig, folder: Path, *, workers: int = 2, progress: bool = True) -> Summary:
    """Makes bags with pictures of a folder of states; each equals, to the bit, the bag made with pictures at once.

    Raises:
        ConfigError: the source has pictures already, or is of another task or look; or as for `make_demos`.
        RecordError: the source holds no demonstrations; or as for `make_demos`.
    """
    stored = config_of(source)
    if not stored.states_only:
        raise ConfigError(f"{source} holds bags with pictures; only folders made with --states-only can be rendered")
    if (stored.task, stored.look, stored.assets) != (config.task, config.look, config.assets):
        raise ConfigError(
            f"{source} is of task {stored.task}, look {stored.look} and assets {stored.assets!r}, not {config.task},"
            f" {config.look}, {config.assets!r}"
        )
    with locked(source) as log:
        rows = finished(log, source, stored.task)
    seeds = sorted(seed for seed, row in rows.items() if row["success"])
    return _fill(folder, config, seeds, len(seeds), workers, progress, source)


def _fill(
    folder: Path, config: DemoConfig, seeds: Iterable[int], episodes: int, workers: int, progress: bool,
    source: Path | None = None,
) -> Summary:  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as log:
            check_settings(folder, config)
            done = finished(log, folder, config.task)
            summary, started, failures = Summary(config), time.monotonic(), 0
            bar = tqdm(total=episodes, unit="episode", disable=not progress, desc=config.task)
            rows = _play(config, folder, seeds, episodes, workers, done, source)
            try:
                for row in rows:
                    summary.rows.append(row)
                    if row["seed"] not in done:
                        summary.made += row["success"]
                        append(log, [row])
                    bar.update(row["success"])
                    bar.set_postfix(failed=sum(not r["success"] for r in summary.rows))
                    failures = 0 if row["success"] else failures + 1
                    if failures == _GIVE_UP_AFTER:
                        raise SimulationError(
                            f"the expert of {config.task} failed {failures} times in a row; the last time: "
                            f"{row['reason']}"
                        )
            finally:
                rows.close()
                bar.close()
                summary.rows.sort(key=lambda row: row["seed"])
                summary.wall_s = time.monotonic() - started
                summary.save(folder)
    except OSError as error:
        raise RecordError(
            f"demonstrations cannot be kept in {folder}: {error}; make room, then run the same command again to go on"
        ) from error
    return summary


def _play(
    config: DemoConfig, folder: Path, seeds: Iterable[int], episodes: int, workers: int, done: dict[int, Row],
    source: Path | None,
) -> Generator[Row, None, None]:  # fmt: skip
    """Yields a row a seed as they finish, until `episodes` have succeeded or there are no more seeds."""
    succeeded = 0
    ahead = iter(seeds)
    running: set[Future[Row]] = set()
    context = multiprocessing.get_context("spawn")  # a forked GL context does not render
    with ProcessPoolExecutor(workers, context, _start_worker, (config, folder, source)) as pool:
        try:
            while True:
                while succeeded + len(running) < episodes and len(running) < 2 * workers:
                    seed = next(ahead, None)
                    if seed is None:
                        break
                    if seed in done:
                        succeeded += done[seed]["success"]
                        yield done[seed]
                    else:
                        running.add(pool.submit(_demonstrate, seed))
                if not running:
                    return
                finished_now, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished_now:
                    row = future.result()
                    succeeded += row["success"]
                    yield row
        except BrokenProcessPool as error:
            raise RecordError("a worker process died (out of memory?); run the same command again to go on") from error
        finally:
            for future in running:
                future.cancel()


_demonstrator: Demonstrator
_folders: tuple[Path, Path | None]


def _start_worker(config: DemoConfig, folder: Path, source: Path | None) -> None:
    global _demonstrator, _folders
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets the episodes in progress end
    _demonstrator, _folders = Demonstrator(config), (folder, source)


def _demonstrate(seed: int) -> Row:
    (folder, source), task = _folders, _demonstrator.config.task
    bag = bag_path(folder, task, seed)
    for leftover in (bag, bag.with_name(bag.name + PARTIAL_SUFFIX)):
        shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed before it could log the seed
    if source is not None:
        return _demonstrator.render(bag_path(source, task, seed), bag)
    return _demonstrator.demonstrate(seed, bag)
