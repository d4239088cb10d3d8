"""Plays a policy in the simulated world without ROS, by the code that the nodes run and in simulated time.

One tick of 20 ms is what the live system does in that time: cameras and joints are read, the policy is asked about the
newest observation, its chunk arrives `latency_ticks` later, the control loop takes the action that is due, the safety
gate passes it, and the world moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.observation import ActionChunk, Observation, RgbdFrame
from clamp_ros.contract.robot import ARMS, CHUNK_SIZE, CONTROL_PERIOD_NS, CONTROL_RATE_HZ
from clamp_ros.control.chunks import MODES, ChunkExecutor
from clamp_ros.control.safety import SafetyGate, State
from clamp_ros.fusion.pipeline import Fusion
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.policy.artifact import Artifact
from clamp_ros.policy.assembly import CLOUD, VIEWS, ObservationAssembler
from clamp_ros.policy.committed import CommittedActions
from clamp_ros.policy.noise import episode_noise
from clamp_ros.policy.runtime import PolicyRuntime
from clamp_ros.sim.cameras import DEFAULT_CAMERAS, OVERVIEW_CAMERA, CameraConfig, select_cameras
from clamp_ros.sim.render import Renderer
from clamp_ros.sim.world import World

SUCCESS_TICKS = 10
"""The task must stay done for this long; then the episode ends."""

_STAGE_TICKS = 5


@dataclass(frozen=True)
class RolloutConfig:
    """How a policy is run; what it sees is fixed by its artifact."""

    mode: str = param("open_loop", "how chunks become commands", choices=MODES)
    execute_steps: int = param(25, "actions executed of each chunk (open loop)", minimum=1, maximum=CHUNK_SIZE)
    latency_ticks: int = param(
        3, "control ticks of 20 ms from an observation to its chunk; a live system takes 2 to 4",
        minimum=0, maximum=CHUNK_SIZE - 1,
    )  # fmt: skip
    look: str = param("auto", "of the simulated robot", choices=("auto", "mesh", "primitive"))
    assets: str = param("", "folder of objects in place of our own; empty: our own")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    Attributes:
        success: the task was done, and stayed so.
        seconds: simulated, to the end.
        stage: name of the furthest stage that the task reached.
        chunks: inferred.
        held_ticks: ticks at which the gate held after the first action.
    """

    success: bool
    seconds: float
    stage: str
    chunks: int
    held_ticks: int


def artifact_cameras(artifact: Artifact) -> dict[str, CameraConfig]:
    """The simulation's cameras that an artifact was trained with, at its image sizes.

    Raises:
        ConfigError: the simulation has no such camera.
        ArtifactError: the intrinsics are not those of training.
    """
    manifest = artifact.manifest
    cameras = {
        name: replace(camera, width=manifest.cameras[name].width, height=manifest.cameras[name].height)
        for name, camera in select_cameras(manifest.cameras, DEFAULT_CAMERAS).items()
    }
    for name, camera in cameras.items():
        manifest.check_camera(name, camera.pinhole)
    return cameras


class Rollout:
    """A world and a policy, built once and played for many seeds. Bound to the thread that made it (OpenGL).

    Attributes:
        world: the simulated cell.
        reached: of the episode in progress, or the last: each stage that was a new furthest one, to the seconds after
            which it was first seen. The first stage is where every episode starts.
        seconds: simulated, of the same episode.
    """

    def __init__(self, artifact: Artifact, task: str, config: RolloutConfig | None = None, threads: int = 0) -> None:
        """Loads everything; seconds.

        Args:
            artifact: the policy.
            task: a name of `sim.tasks.TASKS`.
            config: how it is run.
            threads: of the fusion and of the policy's networks; 0 is one a core.

        Raises:
            ArtifactError: the artifact cannot run here, or is for other cameras.
            SimulationError: the task is unknown or the world cannot be built.
        """
        manifest = artifact.manifest
        self.config = config or RolloutConfig()
        self._cameras = artifact_cameras(artifact)
        self._image_ticks = round(CONTROL_RATE_HZ / manifest.image_rate_hz)
        self._rgb_cameras = manifest.rgb_cameras
        self._reads_cloud = manifest.scene == "cloud"
        self._prefix = manifest.prefix if self.config.mode == "open_loop" else 0
        self.world = World(task, look=self.config.look, assets=self.config.assets)
        self.reached: dict[str, float] = {}
        self.seconds = 0.0
        self._renderer = Renderer(self.world.model, (*self._cameras.values(), OVERVIEW_CAMERA))
        self._fusion = Fusion(manifest.fusion, threads or None)
        self._fusion.warm_up()
        self._runtime = PolicyRuntime(artifact, threads=threads)
        self._runtime.warm_up()

    def picture(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of the world now, from the overview camera."""
        return self._renderer.render(self.world.data, OVERVIEW_CAMERA.name)[0]

    def play(self, seed: int, on_tick: Callable[[Rollout], None] | None = None) -> Outcome:
        """Plays one episode.

        Args:
            seed: of the world and of the policy's noise.
            on_tick: called at every tick, before the world moves.

        Raises:
            ClampError: the policy or the world failed.
        """
        world, config = self.world, self.config
        self.reached, self.seconds = {}, 0.0
        world.reset(seed)
        rng = episode_noise(seed)
        executor, gate = ChunkExecutor(config.mode, config.execute_steps), SafetyGate()
        assembler = ObservationAssembler(self._rgb_cameras, CONTROL_PERIOD_NS, cloud=self._reads_cloud)
        committed = CommittedActions(self._prefix)
        pending: tuple[int, ActionChunk] | None = None
        observed_tick: int | None = None
        tick = done_ticks = chunks = held = stage = 0
        last_tick = round(world.task.max_seconds * CONTROL_RATE_HZ)
        while True:
            self.seconds = tick / CONTROL_RATE_HZ
            if on_tick is not None:
                on_tick(self)
            if tick % _STAGE_TICKS == 0:
                stage = self._furthest(stage)
            done_ticks = done_ticks + 1 if world.success() else 0
            if done_ticks == SUCCESS_TICKS or tick == last_tick:
                name = world.task.stages[self._furthest(stage)]
                return Outcome(done_ticks == SUCCESS_TICKS, self.seconds, name, chunks, held)
            now_ns, joints = world.time_ns, world.joint_positions
            assembler.add_joints(now_ns, joints)
            if pending is None and self._asks(tick, observed_tick):
                observation = self._observe(assembler)
                chunk = self._runtime.infer(observation, rng, committed.before(observation))
                pending = (tick + config.latency_ticks, chunk)
                observed_tick = tick
            if pending is not None and pending[0] <= tick:
                executor.add(pending[1])
                committed.add(pending[1], now_ns)
                chunks, pending = chunks + 1, None
            due = executor.action_at(now_ns)
            result = gate.check(due.action, now_ns, joints, reason=due.reason)
            if result.command is None:
                raise SimulationError(f"the safety gate gives no command: {result.reason}")
            held += result.state is not State.RUNNING and chunks > 0
            assembler.add_command(now_ns, result.command)
            world.step(result.command)
            tick += 1

    def _furthest(self, stage: int) -> int:
        """The furthest of a stage and the world's, which is noted when it is new."""
        now = self.world.progress()
        if now <= stage:
            return stage
        self.reached[self.world.task.stages[now]] = self.seconds
        return now

    def _asks(self, tick: int, observed_tick: int | None) -> bool:
        """Whether the policy takes this tick's observation, as the policy node does."""
        if tick % self._image_ticks:
            return False
        if observed_tick is None or self.config.mode == "temporal_ensemble":
            return True
        return tick - observed_tick >= self.config.execute_steps

    def _observe(self, assembler: ObservationAssembler) -> Observation:
        world, stamp_ns = self.world, self.world.time_ns
        frames = []
        for name, camera in self._cameras.items():
            color, depth_mm = self._renderer.render(world.data, name, stamp_ns // CONTROL_PERIOD_NS)
            pose = camera.world_from_camera(world.data)
            frames.append(RgbdFrame(name, stamp_ns, color, depth_mm, camera.pinhole, pose))
        grippers = {arm: world_from_gripper(arm, world.joint_positions) for arm in ARMS}
        if self._reads_cloud:
            views, cloud = self._fusion.views_and_cloud(frames, grippers)
            assembler.add_image(CLOUD, stamp_ns, cloud, stamp_ns)
        else:
            views = self._fusion.views(frames, grippers)
        assembler.add_image(VIEWS, stamp_ns, views, stamp_ns)
        for frame in frames:
            if frame.camera in self._rgb_cameras:
                assembler.add_image(frame.camera, stamp_ns, frame.color, stamp_ns)
        observation = assembler.take()
        if observation is None:
            raise SimulationError(f"no complete observation at {stamp_ns} ns")
        return observation
