"""Plays an expert in a world and writes the episode to a bag, with the topics, types and stamps of the live simulation.

At each control tick t: joint states, transforms and (every few ticks) images measured at t, then the command due at t,
which holds until the next tick.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

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
from clamp_ros.demos.states import StateRecorder, load
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.record import messages
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import COMPRESSIONS, EpisodeWriter
from clamp_ros.sim.cameras import DEFAULT_CAMERAS, CameraConfig, select_cameras
from clamp_ros.sim.experts import Expert, make_expert
from clamp_ros.sim.randomise import Randomisation, Randomiser, set_appearance
from clamp_ros.sim.render import Renderer
from clamp_ros.sim.simulation import START_NS, tells_task_state
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.tasks.assets import check_assets
from clamp_ros.sim.world import World


@dataclass(frozen=True)
class DemoConfig:
    """What every episode of a folder has in common; a folder holds one such configuration.

    Attributes:
        task: a name of `sim.tasks.TASKS`.
        cameras: physical cameras to render.
        image_rate_hz: a divisor of 50.
        look: of the robot: mesh, primitive or auto.
        compression: of the bags: none, lz4 or zstd.
        randomise: how much looks, cameras, depth and latency vary from episode to episode.
        assets: folder of objects in place of our own, see `sim.tasks.assets`; empty for our own.
        states_only: store what the physics does, to be rendered later, instead of bags with pictures.
    """

    task: str
    cameras: tuple[str, ...] = ("front_left", "back_right")
    image_rate_hz: int = 5
    look: str = "auto"
    compression: str = "zstd"
    randomise: Randomisation = field(default_factory=Randomisation)
    states_only: bool = False
    assets: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise unknown_key(self.task, TASKS, "task")
        select_cameras(self.cameras, DEFAULT_CAMERAS)
        if self.image_rate_hz < 1 or CONTROL_RATE_HZ % self.image_rate_hz:
            raise ConfigError(f"image rate is {self.image_rate_hz} Hz, expected a divisor of {CONTROL_RATE_HZ}")
        if self.compression not in COMPRESSIONS:
            raise unknown_key(self.compression, COMPRESSIONS, "compression")
        check_assets(self.task, self.assets)

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
    """Writes what a world publishes, tick by tick, to an episode.

    Attributes:
        image_latency_ns, joint_latency_ns: how much later than its stamp a message comes, by the bag's time.
    """

    def __init__(self, world: World, renderer: Renderer, image_ticks: int) -> None:
        self.image_latency_ns = self.joint_latency_ns = 0
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
        writer.write(JOINT_STATES.name, JOINT_STATES.type, stamp + self.joint_latency_ns, cdr)
        poses = {gripper_frame(arm): world_from_gripper(arm, joints) for arm in ARMS}
        poses |= {object_frame(name): pose for name, pose in world.object_poses().items()}
        writer.write(TF.name, TF.type, stamp, messages.encode_transforms(stamp, poses))
        if self._tick % self._image_ticks == 0:
            for camera in self._renderer.cameras.values():
                self._write_images(camera, stamp)
        if tells_task_state(self._tick, self._image_ticks):
            self._write_task_state(stamp)
        self._tick += 1

    def command(self, action: NDArray[np.float64]) -> None:
        """Writes the (14,) command due at this tick."""
        stamp = self._stamp_ns
        self._writer.write(JOINT_COMMANDS.name, JOINT_COMMANDS.type, stamp, messages.encode_joints(stamp, action))

    def end(self) -> None:
        """Writes the final state, after the last command."""
        self.observe()
        if not tells_task_state(self._tick - 1, self._image_ticks):
            self._write_task_state(self._stamp_ns)

    def _write_task_state(self, stamp: int) -> None:
        row = json.dumps(task_state(self._world))
        self._writer.write(TASK_STATE.name, TASK_STATE.type, stamp, messages.encode_string(row))

    def _write_images(self, camera: CameraConfig, stamp: int) -> None:
        color, depth_mm = self._renderer.render(self._world.data, camera.name, self._tick)
        frame, write, told = optical_frame(camera.name), self._writer.write, stamp + self.image_latency_ns
        write(color_topic(camera.name), messages.IMAGE, told, messages.encode_color(stamp, frame, color))
        write(depth_topic(camera.name), messages.IMAGE, told, messages.encode_depth(stamp, frame, depth_mm))
        info = messages.encode_camera_info(stamp, frame, camera.pinhole)
        write(camera_info_topic(camera.name), messages.CAMERA_INFO, told, info)


class Demonstrator:
    """Makes one demonstration after another in one process; building the world and the renderer takes seconds.

    Attributes:
        config: of every episode.
    """

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self._world = World(config.task, look=config.look, assets=config.assets)
        self._cameras = select_cameras(config.cameras, DEFAULT_CAMERAS)
        self._randomiser = Randomiser(config.randomise, self._world.model, self._cameras)
        self._renderer: Renderer | None = None

    def demonstrate(self, seed: int, bag: Path) -> dict[str, Any]:
        """Plays the expert on one seed; the bag, or the states, are kept if the task succeeds.

        Returns:
            seed, success, ticks, reason (of a failure), bytes (of the bag).

        Raises:
            RecordError: the disk refuses.
        """
        world = self._world
        try:
            world.reset(seed)
            expert = make_expert(world, np.random.default_rng([seed, 1]))
        except SimulationError as error:
            return {"seed": seed, "success": False, "ticks": 0, "reason": str(error), "bytes": 0}
        if self.config.states_only:
            states = StateRecorder(world)
            ticks = self._play(expert, states)
            return self._row(expert, ticks, lambda: states.save(bag))
        recorder = self._recorder(seed)
        with self._writing(seed, bag) as writer:
            recorder.begin(writer)
            row = self._row(expert, self._play(expert, recorder), lambda: _finish(writer))
            if not row["success"]:
                writer.abandon()
        return row

    def render(self, episode: Path, bag: Path) -> dict[str, Any]:
        """Makes the bag, with pictures, of an episode that was stored as states; returns its row, as `demonstrate`.

        Raises:
            RecordError: the episode does not fit this version's task, or the disk refuses.
        """
        world = self._world
        states, actions, seed = load(episode)
        world.seed = seed
        recorder = self._recorder(seed)
        with self._writing(seed, bag) as writer:
            try:
                world.set_state(states[0])
                recorder.begin(writer)
                for state, action in zip(states, actions, strict=False):
                    world.set_state(state)
                    recorder.observe()
                    recorder.command(action)
                world.set_state(states[-1])
                recorder.end()
            except SimulationError as error:
                raise RecordError(f"{episode} does not fit: {error}") from error
            if not world.success():
                raise RecordError(f"{episode} ends without success: it was made by another version; make it anew")
            size = _finish(writer)
        return {"seed": seed, "success": True, "ticks": len(actions), "reason": "", "bytes": size}

    def _play(self, expert: Expert, recorder: WorldRecorder | StateRecorder) -> int:
        world, ticks = self._world, 0
        while not expert.done and ticks < world.task.max_seconds * CONTROL_RATE_HZ:
            recorder.observe()
            action = expert.act()
            recorder.command(action)
            world.step(action)
            ticks += 1
        recorder.end()
        return ticks

    def _row(self, expert: Expert, ticks: int, keep: Callable[[], int]) -> dict[str, Any]:
        world = self._world
        row = {"seed": world.seed, "success": expert.done and world.success(), "ticks": ticks, "reason": "", "bytes": 0}
        if row["success"]:
            return {**row, "bytes": keep()}
        return {**row, "reason": f"ended at stage {world.task.stages[world.progress()]!r}"}

    @contextmanager
    def _writing(self, seed: int, bag: Path) -> Iterator[EpisodeWriter]:
        """A bag that is whole, or not there: when anything fails, what was written of it is deleted.

        Raises:
            RecordError: the disk refuses.
        """
        writer = None
        try:
            writer = self._writer(seed, bag)
            yield writer
        except BaseException as error:
            if writer is not None:
                writer.abandon()
            if isinstance(error, RecordError) and isinstance(error.__cause__, OSError):
                raise RecordError(
                    f"{bag} cannot be written: {error.__cause__}; make room, then run the same command again"
                ) from error
            raise

    def _writer(self, seed: int, bag: Path) -> EpisodeWriter:
        extra: dict[str, Any] = {"simulated": True}
        if self._world.assets:
            extra["assets"] = self._world.assets
        if self.config.randomise.active:
            extra["randomised"] = self._randomiser.scene(seed).to_dict()
        metadata = EpisodeMetadata(
            task=self.config.task, seed=seed, cameras=self.config.cameras, operator="expert", extra=extra
        )
        return EpisodeWriter(bag, metadata, compression=self.config.compression, flush_s=None, wait=True)

    def _recorder(self, seed: int) -> WorldRecorder:
        """Of an episode, with its looks."""
        if self._renderer is None:
            self._renderer = Renderer(self._world.model, self._cameras.values())
        recorder = WorldRecorder(self._world, self._renderer, self.config.image_ticks)
        if self.config.randomise.active:
            scene = self._randomiser.scene(seed)
            set_appearance(self._world.model, scene.appearance)
            mujoco.mj_camlight(self._world.model, self._world.data)
            self._renderer.set_cameras(scene.cameras.values())
            self._world.cameras |= scene.cameras
            recorder.image_latency_ns = round(1e9 * scene.image_latency_s)
            recorder.joint_latency_ns = round(1e9 * scene.joint_latency_s)
        return recorder


def _finish(writer: EpisodeWriter) -> int:
    """Closes the bag of a success; returns its bytes."""
    return sum(f.stat().st_size for f in writer.close("success").iterdir())
