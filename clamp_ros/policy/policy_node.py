"""The policy as a ROS 2 lifecycle node: views, colour images, joint states and commands in, action chunks out.

Configuring loads the artifact, which says what to subscribe to; activating lets it infer, in a thread of its own. The
next chunk is inferred while the last one runs: from the first complete observation `execute_steps` ticks after that of
the last. Cameras that are not those of the artifact are refused, and nothing is inferred while one is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rclpy.clock import Clock, JumpThreshold, TimeJump
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ClampError, ContractError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    CLOUD,
    JOINT_COMMANDS,
    JOINT_STATES,
    OBSERVATION,
    POLICY_ENABLE,
    VIEWS,
    Qos,
    camera_info_topic,
    color_topic,
    topic,
)
from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.policy import assembly
from clamp_ros.policy.artifact import Artifact, Manifest
from clamp_ros.policy.committed import CommittedActions
from clamp_ros.policy.diffusion import SAMPLERS
from clamp_ros.policy.noise import EpisodeNoise
from clamp_ros.policy.runtime import PolicyRuntime
from clamp_ros.ros.convert import (
    array_from_image,
    chunk_message,
    header_message,
    joints_from_message,
    pinhole_from_camera_info,
    points_from_cloud,
)
from clamp_ros.ros.convert import stamp_ns as stamp_of
from clamp_ros.ros.lifecycle import ManagedNode
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, advertise, qos_profile, run_node, sender_profile, serve, subscribe
from clamp_ros.ros.worker import NewestWorker

_FUTURE_TOLERANCE_NS = 5 * CONTROL_PERIOD_NS
_NOTHING_NS = 0
_SILENCE_S = 3.0
"""A policy that is to act but sees nothing for this long says so."""
_QUIET_S = 1.0
"""A topic that it waits for is silent after this; images come at 5 Hz or more."""


@dataclass(frozen=True)
class PolicyConfig:
    """Parameters of the policy node; what the policy was trained for is in its artifact."""

    artifact: str = param("", "folder of the policy artifact")
    enabled: bool = param(True, "infer from the start; else /policy/enable begins")
    autostart: bool = param(True, "configure and activate by itself; false leaves that to a lifecycle manager")
    execute_steps: int = param(
        25, "control ticks from one inferred observation to the next", unit="ticks", minimum=1, maximum=CHUNK_SIZE
    )
    threads: int = param(0, "threads of an inference; 0 takes every core", minimum=0, maximum=256)
    providers: tuple[str, ...] = param(("CPUExecutionProvider",), "onnxruntime execution providers, preferred first")
    sampler: str = param("", "in place of the artifact's; empty keeps it", choices=("", *SAMPLERS))
    inference_steps: int = param(0, "denoising steps in place of the artifact's; 0 keeps them", minimum=0, maximum=1000)
    continue_chunks: bool = param(
        True, "an artifact that can continues the actions sent meanwhile (real-time chunking); for open loop only"
    )
    seed: int = param(0, "of the sampler's noise; the episodes after it draw other noise each", minimum=0)
    match_tolerance_s: float = param(
        0.01, "stamps of views and colour images of one observation differ by no more", unit="s",
        minimum=0.0, maximum=1.0,
    )
    match_timeout_s: float = param(
        0.5, "how long views wait for colour images of their stamp", unit="s", minimum=0.01, maximum=5.0
    )
    max_age_s: float = param(
        0.8, "an observation older than this is not worth inferring", unit="s", minimum=0.05, maximum=10.0
    )

    def __post_init__(self) -> None:
        check(self)


class PolicyNode(ManagedNode):
    """Turns messages into observations, hands them to the worker, and publishes its chunks."""

    def __init__(self, **options: Any) -> None:
        super().__init__("policy_node", **options)
        self._config = declare(self, PolicyConfig, settable=("seed",))
        self.health = Health(self)
        qos = sender_profile(ACTION_CHUNK.qos)
        self._publisher = self.create_lifecycle_publisher(JointTrajectory, ACTION_CHUNK.name, qos)
        self._announcer = advertise(self, OBSERVATION)
        self._enabled = self._config.enabled
        self._active = False
        self._runtime: PolicyRuntime | None = None
        self._worker: NewestWorker[tuple[int, Observation]] | None = None
        self._assembler: assembly.ObservationAssembler | None = None
        self._episode = 0
        self._noise = EpisodeNoise(self._config.seed)
        self._committed = CommittedActions(0)
        self._committed_episode = -1
        self.add_post_set_parameters_callback(self._on_parameters)
        self._inputs: list[Subscription] = []
        self._cameras: dict[str, str | None] = {}
        self._inferred_ns: int | None = None
        self._observed_s = time.monotonic()
        self._heard_s: dict[str, float] = {}
        serve(self, POLICY_ENABLE, self._on_enable)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        self._jump = self.get_clock().create_jump_callback(threshold, post_callback=self._on_jump)
        self.create_timer(1.0, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self._config.autostart:
            self.start_by_itself()

    def load(self) -> None:
        """Loads and warms up the artifact, and subscribes to what it needs."""
        config = self._config
        artifact = Artifact.load(config.artifact)
        runtime = PolicyRuntime(
            artifact,
            threads=config.threads,
            providers=config.providers,
            sampler=config.sampler or None,
            inference_steps=config.inference_steps or None,
        )
        runtime.warm_up()
        manifest = artifact.manifest
        self._runtime = runtime
        self._committed = CommittedActions(manifest.prefix if config.continue_chunks else 0)
        self._worker = NewestWorker(self._work)
        self._assembler = assembly.ObservationAssembler(
            manifest.rgb_cameras,
            round(config.match_timeout_s * 1e9),
            round(config.match_tolerance_s * 1e9),
            cloud=manifest.scene == "cloud",
        )
        self._cameras = {name: f"camera {name!r} has sent no camera_info" for name in manifest.cameras}
        sources = self._assembler.sync.missed
        self._heard_s = dict.fromkeys((*map(_topic_of, sources), JOINT_STATES.name), time.monotonic())
        self._subscribe(manifest)
        self.get_logger().info(f"policy {manifest.name!r} for task {manifest.task!r} from {artifact.folder}")

    def _subscribe(self, manifest: Manifest) -> None:
        # A queue deeper than the table's: the history must miss no command while an image is being converted.
        commands = self.create_subscription(JointState, JOINT_COMMANDS.name, self._on_command, qos_profile(Qos.STATE))
        self._inputs = [
            subscribe(self, VIEWS, self._image_receiver(assembly.VIEWS, "32FC4")),
            subscribe(self, JOINT_STATES, self._on_joints),
            commands,
        ]
        if manifest.scene == "cloud":
            read = partial(points_from_cloud, what="cloud")
            self._inputs.append(subscribe(self, CLOUD, self._receiver(assembly.CLOUD, read)))
        for camera in manifest.cameras:
            info = topic(camera_info_topic(camera))
            self._inputs.append(subscribe(self, info, self._camera_checker(camera, manifest)))
        for camera in manifest.rgb_cameras:
            receiver = self._image_receiver(camera, "rgb8")
            self._inputs.append(subscribe(self, topic(color_topic(camera)), receiver))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins to infer, if enabled."""
        self._active = True
        self._begin_episode()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops inferring; a chunk in progress is dropped."""
        self._active = False
        self._begin_episode()
        return super().on_deactivate(state)

    def release(self) -> None:
        """Gives the artifact back."""
        self._active = False
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        if self._worker is not None:
            self._worker.close()
        self._worker = self._assembler = self._runtime = None

    def close(self) -> None:
        """Ends the worker's thread; `run_node` calls it before the node is destroyed."""
        self._jump.unregister()
        self.release()

    def _begin_episode(self) -> None:
        """Voids the history, the chunk in progress and what waits."""
        self._episode += 1
        if self._inferred_ns is not None:
            self._announce(_NOTHING_NS)
        self._inferred_ns = None
        self._observed_s = time.monotonic()
        if self._assembler is not None:
            self._assembler.begin_episode()

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        self._begin_episode()
        response.success = True
        response.message = f"policy {'enabled' if request.data else 'disabled'}"
        if request.data and not self._active:
            response.message += ", but the node is not active"
        self.get_logger().info(response.message)
        return response

    def _on_parameters(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name == "seed":
                self._noise.reseed(parameter.value)

    def _on_jump(self, _jump: TimeJump) -> None:
        self.get_logger().info("time ran back: a new episode; history and chunks before it are void")
        if self._assembler is not None:
            self._assembler.reset()
        self._begin_episode()

    def _timely(self, stamp_ns: int, what: str) -> bool:
        """Whether a stamp is not from the future, as those of the episode before a simulation's reset are."""
        now_ns = self.get_clock().now().nanoseconds
        if stamp_ns - now_ns <= _FUTURE_TOLERANCE_NS:
            return True
        if now_ns:  # simulated time is 0 until the first clock message
            self.health.fault("from_the_future", f"{what} is {(stamp_ns - now_ns) / 1e9:.2f} s ahead of the clock")
        return False

    def _image_receiver(self, source: str, encoding: str) -> Callable[[Any], None]:
        return self._receiver(source, lambda message: array_from_image(message, encoding, source))

    def _receiver(self, source: str, read: Callable[[Any], np.ndarray]) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            self._heard_s[_topic_of(source)] = time.monotonic()
            stamp_ns = stamp_of(message.header.stamp)
            if self._assembler is None or not self._timely(stamp_ns, source):
                return
            try:
                image = read(message)
            except ContractError as error:
                self.health.fault("bad_image", str(error))
                return
            # ROS time: where simulated time is slow, so is the patience with views that are still being made
            self._assembler.add_image(source, stamp_ns, image, self.get_clock().now().nanoseconds)
            self._infer()

        return receive

    def _on_joints(self, message: JointState) -> None:
        self._heard_s[JOINT_STATES.name] = time.monotonic()
        stamp_ns = stamp_of(message.header.stamp)
        if self._assembler is None or not self._timely(stamp_ns, "joint state"):
            return
        try:
            self._assembler.add_joints(stamp_ns, joints_from_message(message, "joint state"))
        except ContractError as error:
            self.health.fault("bad_joint_state", str(error))
            return
        self._infer()

    def _on_command(self, message: JointState) -> None:
        stamp_ns = stamp_of(message.header.stamp)
        if self._assembler is None or not self._timely(stamp_ns, "joint command"):
            return
        try:
            self._assembler.add_command(stamp_ns, joints_from_message(message, "joint command"))
        except ContractError as error:
            self.health.fault("bad_joint_command", str(error))

    def _camera_checker(self, camera: str, manifest: Manifest) -> Callable[[CameraInfo], None]:
        def check_camera(message: CameraInfo) -> None:
            try:
                manifest.check_camera(camera, pinhole_from_camera_info(message, f"camera_info of {camera}"))
                fault = None
            except ClampError as error:
                fault = str(error)
            if fault != self._cameras[camera]:
                self._cameras[camera] = fault
                self.health.hold(f"camera {camera}", fault, error=True)
                if fault is not None:
                    self.get_logger().error(f"{fault}; the policy does not act")

        return check_camera

    def _infer(self) -> None:
        """Hands the newest observation to the worker, if it is time for one."""
        if self._assembler is None or self._worker is None or not (self._active and self._enabled):
            return
        stamp_ns = self._assembler.waiting_ns()
        if stamp_ns is None or any(self._cameras.values()):
            return
        period_ns = self._config.execute_steps * CONTROL_PERIOD_NS
        if self._inferred_ns is not None and stamp_ns < self._inferred_ns + period_ns:
            return
        try:
            observation = self._assembler.take()
        except ContractError as error:
            self.health.fault("incomplete_observation", str(error))
            return
        age_s = (self.get_clock().now().nanoseconds - stamp_ns) / 1e9
        if age_s > self._config.max_age_s:
            limit_s = self._config.max_age_s
            self.health.fault("stale_observation", f"observation is {age_s:.2f} s old, limit {limit_s:.2f} s")
        elif observation is not None:
            self.health.sample("observation_age_ms", 1e3 * age_s)
            self._observed_s = time.monotonic()
            self._inferred_ns = stamp_ns
            self._announce(stamp_ns)
            self._worker.submit((self._episode, observation))

    def _announce(self, stamp_ns: int) -> None:
        self._announcer.publish(header_message(stamp_ns, WORLD_FRAME))

    def _work(self, job: tuple[int, Observation]) -> None:
        """Infers and publishes one chunk, in the worker's thread."""
        episode, observation = job
        runtime = self._runtime
        if runtime is None or episode != self._episode:
            return
        if episode != self._committed_episode:
            self._committed.start()
            self._committed_episode = episode
        try:
            chunk = runtime.infer(observation, self._noise.of(episode), self._committed.before(observation))
        except ContractError as error:
            self.health.fault("inference_failed", str(error))
            self._inferred_ns = None  # the next observation is tried at once
            self._announce(_NOTHING_NS)
            return
        if episode != self._episode:
            return
        # the control loop has it by its next tick
        self._committed.add(chunk, self.get_clock().now().nanoseconds + CONTROL_PERIOD_NS)
        self._publisher.publish(chunk_message(chunk))
        if self._committed.too_slow:
            ticks, longest = self._committed.delay_steps, runtime.artifact.manifest.prefix
            self.health.fault(
                "slow_for_prefix",
                f"chunks take {ticks} ticks, the artifact continues {longest} at most: motion may jump between chunks",
            )
        self.health.count("chunks")
        if (timings := runtime.timings) is not None:
            for stage, value in {**vars(timings), "total_ms": timings.total_ms}.items():
                self.health.sample(stage, value)

    def _watch(self) -> None:
        """Reports counters, and what keeps an enabled policy from acting."""
        if self._assembler is None or self._worker is None:
            return
        self._worker.check()
        sync = self._assembler.sync
        self.health.gauge("overtaken", self._worker.dropped)
        for source in sync.missed:
            self.health.gauge(f"missed {source}", sync.missed[source])
            self.health.gauge(f"late {source}", sync.late[source])
        silence_s = time.monotonic() - self._observed_s
        if self._active and self._enabled and silence_s > _SILENCE_S:
            causes = [fault for fault in self._cameras.values() if fault] or [self._missing()]
            self.health.fault("no_observation", f"no observation for {silence_s:.0f} s: {'; '.join(causes)}")

    def _missing(self) -> str:
        """What an observation waits for."""
        if self.count_publishers(VIEWS.name) == 0:
            return f"nobody publishes {VIEWS.name}: fusion_node does not run, or is still compiling its kernels"
        now_s = time.monotonic()
        silent = [f"{name} for {now_s - heard_s:.0f} s" for name, heard_s in self._heard_s.items()
                  if now_s - heard_s > _QUIET_S]
        if silent:
            return f"nothing on {', '.join(silent)}"
        return f"everything comes, but {VIEWS.name} and the images of its stamp not together and in time"


def _topic_of(source: str) -> str:
    """Of one of the assembler's sources."""
    return {assembly.VIEWS: VIEWS.name, assembly.CLOUD: CLOUD.name}.get(source) or color_topic(source)


def main() -> int:
    """The executable `policy_node`."""
    return run_node(PolicyNode)


if __name__ == "__main__":
    sys.exit(main())
