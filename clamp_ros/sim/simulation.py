"""A world with its cameras on a clock: what is measured when, which pictures are due, and how fast time may run.

Everything happens on the 20 ms grid of control. Pictures of a tick are drawn in other processes while this one goes on,
and are handed out at the tick at which a camera with the configured latency would deliver them. Time never passes that
tick without them: if drawing is slow, simulated time is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import CAMERAS, TASK_STATE
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, CONTROL_RATE_HZ
from clamp_ros.sim.cameras import (
    CORNER_FOVY_DEG,
    CORNERS_M,
    WRIST_FOVY_DEG,
    CameraConfig,
    DepthFaults,
    fixed_camera,
    select_cameras,
    wrist_camera,
)
from clamp_ros.sim.randomise import Randomisation, Randomiser, Scene, set_appearance
from clamp_ros.sim.render_pool import RenderPool, usable_cores
from clamp_ros.sim.robot_model import LOOKS
from clamp_ros.sim.world import World

START_NS = 1_000_000_000
"""ROS time at which every episode starts; ROS takes a time of 0 for a clock that has not begun."""

_IMAGE_RATES_HZ = tuple(rate for rate in range(1, CONTROL_RATE_HZ + 1) if CONTROL_RATE_HZ % rate == 0)
_TASK_STATE_TICKS = round(CONTROL_RATE_HZ / (TASK_STATE.rate_hz or CONTROL_RATE_HZ))

Item = TypeVar("Item")


def tells_task_state(tick: int, image_ticks: int | None) -> bool:
    """Whether the task's state is told at a tick: at its own rate, and at every tick at which images are taken.

    Args:
        tick: control ticks since the reset.
        image_ticks: between two images; None without cameras.
    """
    return tick % _TASK_STATE_TICKS == 0 or (image_ticks is not None and tick % image_ticks == 0)


@dataclass(frozen=True)
class SimulationConfig:
    """Parameters of the simulation."""

    task: str = param("mug_on_plate", "what is laid out on the table")
    board: bool = param(False, "a calibration board lies on the table in place of the task's objects; seeds move it")
    seed: int = param(0, "layout of the next episode; /sim/reset reads it anew", minimum=0)
    look: str = param("auto", "of the robot: meshes of robosuite-models, or primitives", choices=LOOKS)
    robot_model: str = param("", "MuJoCo Menagerie `aloha` folder to take the robot from; empty: built in")
    assets: str = param("", "folder of MJCF objects in place of our own; empty: our own")
    cameras: tuple[str, ...] = param(CAMERAS, "cameras that are drawn", choices=CAMERAS)
    width: int = param(424, "of color and depth", unit="px", minimum=8, maximum=4096)
    height: int = param(240, "of color and depth", unit="px", minimum=8, maximum=4096)
    image_rate_hz: int = param(10, "frames a second of simulated time", unit="Hz", choices=_IMAGE_RATES_HZ)
    corner_fovy_deg: float = param(
        CORNER_FOVY_DEG, "vertical field of view, corner cameras", unit="deg", minimum=1.0, maximum=150.0
    )
    wrist_fovy_deg: float = param(
        WRIST_FOVY_DEG, "vertical field of view, wrist cameras", unit="deg", minimum=1.0, maximum=150.0
    )
    front_left_m: tuple[float, ...] = param(CORNERS_M["front_left"], "position of front_left, world frame", unit="m")
    back_right_m: tuple[float, ...] = param(CORNERS_M["back_right"], "position of back_right, world frame", unit="m")
    corner_target_m: tuple[float, ...] = param((0.0, 0.0, 0.0), "where the corner cameras look, world frame", unit="m")
    depth_noise_m: float = param(
        0.0, "standard deviation of depth at 1 m; grows with its square", unit="m", minimum=0.0, maximum=1.0
    )
    depth_holes: float = param(0.0, "share of the depth picture that is missing, in blobs", minimum=0.0, maximum=1.0)
    depth_min_m: float = param(0.0, "nearer than this there is no depth", unit="m", minimum=0.0, maximum=10.0)
    depth_edge_px: float = param(0.0, "raggedness of outlines in depth", unit="px", minimum=0.0, maximum=10.0)
    depth_baseline_m: float = param(
        0.0, "between the stereo imagers; what one alone sees has no depth", unit="m", minimum=0.0, maximum=1.0
    )
    randomise_light: float = param(
        0.0, "how much lights vary from episode to episode; 1: as usual, 0: not", minimum=0.0, maximum=3.0
    )
    randomise_colours: float = param(0.0, "the same of colours of table, floor and things", minimum=0.0, maximum=3.0)
    randomise_camera: float = param(0.0, "the same of cameras' poses and lenses", minimum=0.0, maximum=3.0)
    randomise_depth: float = param(
        0.0, "the same of depth's noise, holes and edges, instead of depth_*", minimum=0.0, maximum=3.0
    )
    randomise_latency: float = param(
        0.0, "the same of latencies, on top of image_latency_s and joint_latency_s", minimum=0.0, maximum=3.0
    )
    image_latency_s: float = param(
        0.0, "from exposure to publication, rounded to control periods", unit="s", minimum=0.0, maximum=2.0
    )
    joint_latency_s: float = param(
        0.0, "from measurement to publication, rounded to control periods", unit="s", minimum=0.0, maximum=2.0
    )
    real_time_factor: float = param(1.0, "how fast time may run; 0: as fast as it can", minimum=0.0, maximum=100.0)
    command_wait_s: float = param(
        0.2, "while commands flow, real time to wait for the one due now before moving on; 0: not at all",
        unit="s", minimum=0.0, maximum=10.0,
    )
    policy_latency_s: float = param(
        0.04, "simulated time goes no further past the images that views or an action chunk are being made of",
        unit="s", minimum=0.0, maximum=2.0,
    )
    policy_wait_s: float = param(
        5.0, "real time to wait for these views or this chunk before moving on; 0: not at all",
        unit="s", minimum=0.0, maximum=600.0,
    )
    render_workers: int = param(0, "processes that draw; 0: one for each core", minimum=0, maximum=64)
    paused: bool = param(False, "start with time stopped; /sim/pause lets it run")

    def __post_init__(self) -> None:
        check(self)
        for name in ("front_left_m", "back_right_m", "corner_target_m"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(f"{name} is {list(getattr(self, name))}, expected 3 numbers: x, y, z in metres")

    @property
    def randomisation(self) -> Randomisation:
        """What varies from episode to episode."""
        return Randomisation(**{f.name: getattr(self, f"randomise_{f.name}") for f in fields(Randomisation)})

    def camera_configs(self) -> dict[str, CameraConfig]:
        """The cameras, by name, in the order asked for.

        Raises:
            ConfigError: a camera is named twice, or stands where it looks.
        """
        faults = DepthFaults(self.depth_noise_m, self.depth_holes, self.depth_min_m, self.seed, self.depth_edge_px,
                             self.depth_baseline_m)
        optics: dict[str, Any] = {
            "width": self.width, "height": self.height, "rate_hz": float(self.image_rate_hz), "faults": faults,
        }
        target, fovy = self.corner_target_m, self.corner_fovy_deg
        cameras = {
            "front_left": fixed_camera("front_left", self.front_left_m, target, fovy, **optics),
            "back_right": fixed_camera("back_right", self.back_right_m, target, fovy, **optics),
            "wrist_left": wrist_camera("left", self.wrist_fovy_deg, **optics),
            "wrist_right": wrist_camera("right", self.wrist_fovy_deg, **optics),
        }
        return select_cameras(self.cameras, cameras)


@dataclass(frozen=True, eq=False)
class JointSample:
    """Measured joints: stamp in ROS time, (14,) positions and velocities in contract order."""

    stamp_ns: int
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Picture:
    """One camera's frame: stamp in ROS time, (H, W, 3) uint8 RGB, (H, W) uint16 mm."""

    camera: CameraConfig
    stamp_ns: int
    color: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16]


class DelayLine(Generic[Item]):
    """Hands items out a fixed number of ticks after they went in, in order."""

    def __init__(self, delay_ticks: int) -> None:
        self._delay = delay_ticks
        self._items: deque[tuple[int, Item]] = deque()

    def push(self, tick: int, item: Item) -> None:
        """Puts an item of a tick in; ticks do not decrease."""
        self._items.append((tick + self._delay, item))

    def pop_due(self, tick: int) -> list[Item]:
        """Takes out what is due by a tick."""
        due = []
        while self._items and self._items[0][0] <= tick:
            due.append(self._items.popleft()[1])
        return due

    def clear(self) -> None:
        """Forgets everything."""
        self._items.clear()


class Pacer:
    """Keeps simulated time from running faster than `factor` times real time, and measures what it reaches.

    Time that was lost, to slow drawing say, is made up for only within `max_lag_s`: after a long stall the simulation
    goes on at its usual pace.
    """

    def __init__(self, factor: float, max_lag_s: float = 0.1, window_s: float = 2.0) -> None:
        self._period_s = CONTROL_PERIOD_NS / 1e9 / factor if factor > 0.0 else 0.0
        self._max_lag_s = max_lag_s
        self._window_s = window_s
        self._due_s: float | None = None
        self._ticks: deque[float] = deque()

    def wait_s(self, now_s: float) -> float:
        """Seconds from now to the next tick; 0 if it is due."""
        if self._due_s is None:
            self._due_s = now_s
        self._due_s = max(self._due_s, now_s - self._max_lag_s)
        return max(0.0, self._due_s - now_s) if self._period_s else 0.0

    def ticked(self, now_s: float) -> None:
        """A tick was made."""
        self._due_s = (now_s if self._due_s is None else self._due_s) + self._period_s
        self._ticks.append(now_s)
        while now_s - self._ticks[0] > self._window_s:
            self._ticks.popleft()

    @property
    def factor(self) -> float:
        """Simulated over real time, over the last seconds; 0 before there are two ticks."""
        if len(self._ticks) < 2 or self._ticks[-1] <= self._ticks[0]:
            return 0.0
        return (len(self._ticks) - 1) * CONTROL_PERIOD_NS / 1e9 / (self._ticks[-1] - self._ticks[0])

    def restart(self) -> None:
        """Time was stopped: nothing is owed, and the measurement begins anew."""
        self._due_s = None
        self._ticks.clear()


class Simulation:
    """The world, its cameras and their clock. Use it from one thread, and close it.

    Args:
        config: the parameters.
        clock: seconds of real time.

    Attributes:
        cameras: by name, as they are in this episode.
        world: the world.
        pacer: of simulated time; the caller asks it how long to wait and tells it of ticks.
        draw_wait_ms: how long the last pictures were waited for.

    Raises:
        SimulationError: the task is unknown, the robot or the pictures cannot be made.
        ConfigError: the cameras contradict each other.
    """

    def __init__(self, config: SimulationConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self.cameras = config.camera_configs()
        self.world = World(config.task, cameras=self.cameras, look=config.look,
                           robot_model=Path(config.robot_model) if config.robot_model else None,
                           assets=config.assets, board=config.board)
        workers = config.render_workers or usable_cores()
        self._pool = RenderPool(self.world.model, self.cameras.values(), workers) if self.cameras else None
        self._image_ticks = CONTROL_RATE_HZ // config.image_rate_hz
        self._clock = clock
        self._randomiser: Randomiser | None = None
        if config.randomisation.active:
            self._randomiser = Randomiser(config.randomisation, self.world.model, self.cameras)
        self.pacer = Pacer(config.real_time_factor)
        self._joints: DelayLine[JointSample] = DelayLine(_ticks(config.joint_latency_s))
        self._pictures: DelayLine[list[Picture]] = DelayLine(_ticks(config.image_latency_s))
        self._drawing: tuple[int, list[Picture]] | None = None  # their stamp, and where they go when they are drawn
        self._tick = 0
        self.draw_wait_ms = 0.0

    @property
    def stamp_ns(self) -> int:
        """ROS time of the state."""
        return START_NS + self._tick * CONTROL_PERIOD_NS

    def reset(self, seed: int) -> None:
        """Starts an episode at `START_NS`; what was measured before it is dropped.

        Raises:
            SimulationError: see `World.reset`.
        """
        self._finish_drawing()
        self._joints.clear()
        self._pictures.clear()
        if self._randomiser is not None:
            self._show(self._randomiser.scene(seed))
        self.world.reset(seed)
        self._tick = 0
        self.pacer.restart()
        self._measure()

    def _show(self, scene: Scene) -> None:
        set_appearance(self.world.model, scene.appearance)
        self.cameras, self.world.cameras = scene.cameras, dict(scene.cameras)
        if self._pool is not None:
            self._pool.set_scene(scene.appearance, scene.cameras)
        config = self._config
        self._joints = DelayLine(_ticks(config.joint_latency_s + scene.joint_latency_s))
        self._pictures = DelayLine(_ticks(config.image_latency_s + scene.image_latency_s))

    def step(self, target: ArrayLike) -> None:
        """One control period under a (14,) target, and what is measured at its end.

        Raises:
            ContractError, SimulationError: see `World.step`; nothing has moved then.
        """
        self.world.step(target)
        self._tick += 1
        self._measure()

    def _measure(self) -> None:
        world = self.world
        self._joints.push(self._tick, JointSample(self.stamp_ns, world.joint_positions, world.joint_velocities))
        if self._pool is not None and self._tick % self._image_ticks == 0:
            self._finish_drawing()
            self._pool.submit(world.data, frame=self._tick // self._image_ticks)
            self._drawing = self.stamp_ns, []
            self._pictures.push(self._tick, self._drawing[1])

    def _finish_drawing(self) -> None:
        if self._pool is None or self._drawing is None:
            return
        started = self._clock()
        (stamp_ns, pictures), self._drawing = self._drawing, None
        drawn = self._pool.collect()
        self.draw_wait_ms = 1e3 * (self._clock() - started)
        pictures += [Picture(self.cameras[name], stamp_ns, *picture) for name, picture in drawn.items()]

    def joint_samples(self) -> list[JointSample]:
        """Those that are due to be told by now; each once."""
        return self._joints.pop_due(self._tick)

    def pictures(self) -> list[Picture]:
        """Those that are due to be told by now; each once. Waits until they are drawn.

        Raises:
            SimulationError: a drawing process has died or is stuck.
        """
        due = []
        for pictures in self._pictures.pop_due(self._tick):
            if not pictures:
                self._finish_drawing()
            due += pictures
        return due

    def task_state(self) -> dict[str, Any] | None:
        """The task's state, privileged, as plain JSON values, at the ticks at which it is told."""
        if not tells_task_state(self._tick, self._image_ticks if self.cameras else None):
            return None
        world = self.world
        told: dict[str, Any] = {} if self._randomiser is None else {"randomised": asdict(self._config.randomisation)}
        if world.assets:
            told["assets"] = world.assets
        return told | {
            "task": world.task.name, "seed": world.seed, "time_s": world.time_ns / 1e9, "success": world.success(),
            "progress": world.progress(), "text": world.text(), "real_time_factor": round(self.pacer.factor, 3),
        }

    def close(self) -> None:
        """Ends the drawing processes. Calling it twice is harmless."""
        if self._pool is not None:
            self._pool.close()


def _ticks(seconds: float) -> int:
    return round(seconds * CONTROL_RATE_HZ)
