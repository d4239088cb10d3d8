"""Demonstrations by scripted experts, in process: `clamp demos`.

The bags hold the same topics, types and stamps as those of the live simulation. At each control tick t: joint states,
transforms and (every few ticks) images measured at t, then the command due at t, which holds until the next tick.
"""

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

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError, RecordError, SimulationError
from clamp_ros.contract.interfaces import (
    JOINT_COMMANDS,
    JOINT_STATES,
    TASK_STATE,
    TF,
    TF_STATIC,
    camera_info_topic,
    color_topic,
    depth_topic,
    gripper_frame,
    object_frame,
    optical_frame,
)
from clamp_ros.contract.robot import ARMS, CONTROL_RATE_HZ
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.record import messages
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import COMPRESSIONS, PARTIAL_SUFFIX, EpisodeWriter
from clamp_ros.sim.cameras import DEFAULT_CAMERAS, CameraConfig, select_cameras
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.render import Renderer
from clamp_ros.sim.simulation import START_NS
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.world import World

TASK_STATE_TICKS = round(CONTROL_RATE_HZ / (TASK_STATE.rate_hz or CONTROL_RATE_HZ))
_GIVE_UP_AFTER = 20
"""Failures in a row after which the task, not the luck, is to blame."""
_SETTINGS_FILE, _LOG_FILE, _SUMMARY_FILE = "demos.json", "demos.jsonl", "summary.json"


@dataclass(frozen=True)
class DemoConfig:
    """What every episode of a folder has in common; a folder holds one such configuration.

    Attributes:
        task: a name of `sim.tasks.TASKS`.
        cameras: physical cameras to render.
        image_rate_hz: a divisor of 50.
        look: of the robot: mesh, primitive or auto.
        compression: of the bags: none, lz4 or zstd.
    """

    task: str
    cameras: tuple[str, ...] = ("front_left", "back_right")
    image_rate_hz: int = 5
    look: str = "auto"
    compression: str = "zstd"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise unknown_key(self.task, TASKS, "task")
        select_cameras(self.cameras, DEFAULT_CAMERAS)
        if self.image_rate_hz < 1 or CONTROL_RATE_HZ % self.image_rate_hz:
            raise ConfigError(f"image rate is {self.image_rate_hz} Hz, expected a divisor of {CONTROL_RATE_HZ}")
        if self.compression not in COMPRESSIONS:
            raise unknown_key(self.compression, COMPRESSIONS, "compression")

    @property
    def image_ticks(self) -> int:
        """Control ticks between two images."""
        return CONTROL_RATE_HZ // self.image_rate_hz


def task_state(world: World) -> dict[str, Any]:
    """The row of /sim/task_state at this instant."""
    return {
        "task": world.task.name,
        "seed": world.seed,
        "time_s": 1e-9 * world.time_ns,
        "success": world.success(),
        "progress": world.progress(),
        "text": world.text(),
    }


class WorldRecorder:
    """Writes what a world publishes, tick by tick, to an episode."""

    def __init__(self, world: World, renderer: Renderer, image_ticks: int) -> None:
        self._world = world
        self._renderer = renderer
        self._image_ticks = image_ticks
        self._tick = 0

    @property
    def _stamp_ns(self) -> int:
        """Now, on the clock of the live simulation."""
        return START_NS + self._world.time_ns

    def begin(self, writer: EpisodeWriter) -> None:
        """Starts an episode at the world's present state, which is its time zero."""
        self._tick = 0
        self._writer = writer
        stamp = self._stamp_ns
        for name, camera in self._renderer.cameras.items():
            cdr = messages.encode_transforms(stamp, {optical_frame(name): camera.frame_from_camera}, camera.frame)
            writer.write(TF_STATIC.name, TF_STATIC.type, stamp, cdr)

    def observe(self) -> None:
        """Writes this tick's joint states and transforms, and its images and task state where they are due."""
        world, stamp, writer = self._world, self._stamp_ns, self._writer
        joints = world.joint_positions
        cdr = messages.encode_joints(stamp, joints, world.joint_velocities)
        writer.write(JOINT_STATES.name, JOINT_STATES.type, stamp, cdr)
        poses = {gripper_frame(arm): world_from_gripper(arm, joints) for arm in ARMS}
        poses |= {object_frame(name): pose for name, pose in world.object_poses().items()}
        writer.write(TF.name, TF.type, stamp, messages.encode_transforms(stamp, poses))
        if self._tick % self._image_ticks == 0:
            for camera in self._renderer.cameras.values():
                self._write_images(camera, stamp)
        if self._tick % TASK_STATE_TICKS == 0:
            self._write_task_state(stamp)
        self._tick += 1

    def command(self, action: NDArray[np.float64]) -> None:
        """Writes the (14,) command due at this tick."""
        stamp = self._stamp_ns
        self._writer.write(JOINT_COMMANDS.name, JOINT_COMMANDS.type, stamp, messages.encode_joints(stamp, action))

    def end(self) -> None:
        """Writes the final state, after the last command."""
        self.observe()
        if (self._tick - 1) % TASK_STATE_TICKS:
            self._write_task_state(self._stamp_ns)

    def _write_task_state(self, stamp: int) -> None:
        row = json.dumps(task_state(self._world))
        self._writer.write(TASK_STATE.name, TASK_STATE.type, stamp, messages.encode_string(row))

    def _write_images(self, camera: CameraConfig, stamp: int) -> None:
        color, depth_mm = self._renderer.render(self._world.data, camera.name, self._tick)
        frame, write = optical_frame(camera.name), self._writer.write
        write(color_topic(camera.name), messages.IMAGE, stamp, messages.encode_color(stamp, frame, color))
        write(depth_topic(camera.name), messages.IMAGE, stamp, messages.encode_depth(stamp, frame, depth_mm))
        info = messages.encode_camera_info(stamp, frame, camera.pinhole)
        write(camera_info_topic(camera.name), messages.CAMERA_INFO, stamp, info)


class Demonstrator:
    """Makes one demonstration after another in one process; building the world and the renderer takes seconds."""

    def __init__(self, config: DemoConfig) -> None:
        self._config = config
        self._world = World(config.task, look=config.look)
        cameras = select_cameras(config.cameras, DEFAULT_CAMERAS)
        self._recorder = WorldRecorder(self._world, Renderer(self._world.model, cameras.values()), config.image_ticks)

    def demonstrate(self, seed: int, bag: Path) -> dict[str, Any]:
        """Plays the expert on one seed; the bag is kept if the task succeeds.

        Returns:
            seed, success, ticks, reason (of a failure), bytes (of the bag).

        Raises:
            RecordError: the disk refuses.
        """
        world = self._world
        metadata = EpisodeMetadata(
            task=self._config.task,
            seed=seed,
            cameras=self._config.cameras,
            operator="expert",
            extra={"simulated": True},
        )
        world.reset(seed)
        try:
            expert = make_expert(world, np.random.default_rng([seed, 1]))
        except SimulationError as error:
            return {"seed": seed, "success": False, "ticks": 0, "reason": str(error), "bytes": 0}
        writer = EpisodeWriter(bag, metadata, compression=self._config.compression, flush_s=None, wait=True)
        try:
            self._recorder.begin(writer)
            ticks = 0
            while not expert.done and ticks < world.task.max_seconds * CONTROL_RATE_HZ:
                self._recorder.observe()
                action = expert.act()
                self._recorder.command(action)
                world.step(action)
                ticks += 1
            self._recorder.end()
            success = expert.done and world.success()
        except BaseException:
            writer.abandon()
            raise
        if not success:
            writer.abandon()
            reason = f"ended at stage {world.task.stages[world.progress()]!r}"
            return {"seed": seed, "success": False, "ticks": ticks, "reason": reason, "bytes": 0}
        path = writer.close("success")
        size = sum(f.stat().st_size for f in path.iterdir())
        return {"seed": seed, "success": True, "ticks": ticks, "reason": "", "bytes": size}


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
    found = json.loads(path.read_text(encoding="utf-8"))
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
