"""The policy node on a tiny closed-form artifact: when it infers, from what, and everything that it must refuse."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool
from tiny_artifact import TINY_CAMERA, TINY_CAMERAS, build_tiny_artifact, rest_target

from clamp_ros.contract.errors import ArtifactError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    CLOCK,
    CLOUD,
    JOINT_COMMANDS,
    JOINT_STATES,
    OBSERVATION,
    POLICY_ENABLE,
    VIEWS,
    camera_info_topic,
    color_topic,
    topic,
)
from clamp_ros.contract.observation import ActionChunk, Observation
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, JOINT_NAMES, REST_POSE
from clamp_ros.contract.views import TILED_SHAPE, WORLD_FRAME, FusionConfig
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.policy.artifact import Artifact, RgbSpec
from clamp_ros.policy.noise import episode_noise
from clamp_ros.policy.policy_node import PolicyNode
from clamp_ros.policy.runtime import PolicyRuntime
from clamp_ros.ros.convert import (
    camera_info_message,
    chunk_from_message,
    cloud_message,
    image_message,
    joint_state_message,
    stamp_ns,
    time_message,
)
from clamp_ros.ros.run import EXIT_USER_ERROR, advertise, subscribe

T = CONTROL_PERIOD_NS
LIVE = Pinhole(TINY_CAMERA.width, TINY_CAMERA.height, TINY_CAMERA.fx, TINY_CAMERA.fy, TINY_CAMERA.cx, TINY_CAMERA.cy)
RGB_CAMERAS = {name: replace(TINY_CAMERA, rgb=name == "front_left") for name in TINY_CAMERAS}


class Stack:
    """Cameras, fusion, robot and clock around the node, all driven by the test."""

    def __init__(self, ros: Any, folder: Path, *, cameras: Any = TINY_CAMERAS, **parameters: Any) -> None:
        self.ros = ros
        self.node = ros.node("stack")
        self.clock = advertise(self.node, CLOCK)
        self.views = advertise(self.node, VIEWS)
        self.joints = advertise(self.node, JOINT_STATES)
        self.commands = advertise(self.node, JOINT_COMMANDS)
        self.infos = {name: advertise(self.node, topic(camera_info_topic(name))) for name in cameras}
        self.colors = {n: advertise(self.node, topic(color_topic(n))) for n, c in cameras.items() if c.rgb}
        self.chunks: list[Any] = []
        subscribe(self.node, ACTION_CHUNK, lambda message: self.chunks.append(chunk_from_message(message)))
        values = {"use_sim_time": True, "artifact": str(folder), "threads": 1, **parameters}
        self.policy = ros.add(
            PolicyNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
        )
        self.now = 0

    def connect(self) -> None:
        publishers = [self.clock, self.views, self.joints, self.commands, *self.infos.values(), *self.colors.values()]
        self.ros.spin_until(lambda: all(p.get_subscription_count() for p in publishers), what="discovery")
        self.ros.spin_until(lambda: self.policy.count_subscribers(ACTION_CHUNK.name), what="discovery of chunks")

    def active(self) -> None:
        self.ros.spin_until(lambda: self.policy._active, what="the node to become active")
        self.connect()

    def calibrate(self, pinhole: Pinhole = LIVE, only: Any = None) -> None:
        for name in only or self.infos:
            before = self.policy._cameras[name]
            self.infos[name].publish(camera_info_message(pinhole, self.now * T, name))
            self.ros.spin_until(lambda b=before, n=name: self.policy._cameras[n] != b, what=f"camera_info of {name}")

    def advance(self, tick: int) -> None:
        self.now = tick
        self.clock.publish(Clock(clock=time_message(tick * T)))
        self.ros.spin_until(lambda: self.policy.get_clock().now().nanoseconds == tick * T, what="the clock")

    def observe(self, tick: int, value: float = 0.5) -> None:
        """One instant: clock, joint state, colour images, views; the node has taken them in when this returns."""
        self.advance(tick)
        self.joints.publish(joint_state_message(REST_POSE, tick * T))
        for name, publisher in self.colors.items():
            color = np.full((LIVE.height, LIVE.width, 3), 90, np.uint8)
            publisher.publish(image_message(color, "rgb8", tick * T, name))
        done = self.policy._assembler.sync.complete
        self.show(tick, value)
        self.ros.spin_until(lambda: self.policy._assembler.sync.complete > done, what="the images")
        self.ros.spin_until(lambda: self.policy._assembler._joints.newest_ns == tick * T, what="the joint state")

    def show(self, tick: int, value: float = 0.5) -> None:
        self.views.publish(image_message(np.full(TILED_SHAPE, value, np.float32), "32FC4", tick * T, WORLD_FRAME))

    def command(self, tick: int, pose: np.ndarray) -> None:
        self.commands.publish(joint_state_message(pose, tick * T))
        stamps = self.policy._assembler._history._commands
        self.ros.spin_until(lambda: stamps.newest_ns == tick * T, what="the command")

    def wait_for_chunks(self, count: int) -> Any:
        self.ros.spin_until(lambda: len(self.chunks) >= count, what=f"chunk {count}")
        assert len(self.chunks) == count
        return self.chunks[-1]

    def reported(self, key: str) -> bool:
        return key in {v.key for v in self.policy.health.status().values}


def test_a_chunk_bears_the_stamp_of_its_observation(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    stack.active()
    stack.calibrate()
    stack.observe(100)
    chunk = stack.wait_for_chunks(1)
    assert chunk.stamp_ns == 100 * T
    np.testing.assert_allclose(chunk.actions, rest_target(), atol=1e-4)
    assert {"encode_ms.median", "context_ms.median", "denoise_ms.median", "total_ms.median"} <= {
        v.key for v in stack.policy.health.status().values
    }


def test_without_a_fusion_node_it_says_that_nobody_makes_views(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    stack.active()
    stack.calibrate()
    stack.node.destroy_publisher(stack.views)
    ros.spin_until(lambda: "nobody publishes /fusion/views" in stack.policy.health.status().message, 30.0, "the word")


def test_it_names_the_topics_that_are_silent(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    stack.active()
    stack.calibrate()

    def told() -> bool:
        stack.joints.publish(joint_state_message(REST_POSE, 0))
        message = stack.policy.health.status().message
        return "nothing on /fusion/views for" in message and "/joint_states" not in message

    ros.spin_until(told, 30.0, "the word")


def test_the_next_chunk_is_inferred_after_the_steps_that_are_executed(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder, execute_steps=25)
    stack.active()
    stack.calibrate()
    for tick in range(100, 180, 5):
        stack.observe(tick)
        stack.wait_for_chunks(1 + (tick - 100) // 25)  # a worker that is still busy would skip one
    assert [c.stamp_ns // T for c in stack.chunks] == [100, 125, 150, 175]


def test_all_of_the_observation_reaches_the_network(ros: Any, tmp_path: Path) -> None:
    """The chunk equals that of the runtime on the same observation, whose history is the commands that were sent."""
    artifact = build_tiny_artifact(tmp_path / "tiny", gain=0.05, cameras=RGB_CAMERAS, rgb=RgbSpec(60, 80))
    stack = Stack(ros, artifact.folder, cameras=RGB_CAMERAS)
    stack.active()
    stack.calibrate()
    stack.observe(100)
    first = stack.wait_for_chunks(1)
    for tick in range(100, 125):
        stack.advance(tick)
        stack.command(tick, REST_POSE + 0.0005 * (tick - 99))
    stack.observe(125, value=0.7)
    second = stack.wait_for_chunks(2)
    history = np.zeros((50, 14), np.float32)
    runtime, rng = PolicyRuntime(artifact, threads=1), episode_noise(0)
    colors = {"front_left": np.full((LIVE.height, LIVE.width, 3), 90, np.uint8)}
    joints = REST_POSE.astype(np.float32)
    expected = runtime.infer(Observation(0, np.full(TILED_SHAPE, 0.5, np.float32), colors, joints, history), rng)
    np.testing.assert_array_equal(first.actions, expected.actions)
    history[:25] = [REST_POSE + 0.0005 * k for k in range(25, 0, -1)]
    expected = runtime.infer(Observation(0, np.full(TILED_SHAPE, 0.7, np.float32), colors, joints, history), rng)
    np.testing.assert_array_equal(second.actions, expected.actions)


@pytest.mark.parametrize(
    ("pinhole", "says"),
    [(replace(LIVE, width=848, height=480), "848x480"), (replace(LIVE, fx=400.0), "fx 400.0")],
    ids=["size", "lens"],
)
def test_other_cameras_are_refused_naming_both_sides(ros: Any, tmp_path: Path, pinhole: Pinhole, says: str) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    stack.active()
    stack.calibrate(only=["front_left"])
    stack.calibrate(pinhole, only=["back_right"])
    stack.observe(100)
    status = stack.policy.health.status()
    assert status.level == b"\x02"
    for part in (says, "back_right", "424x240" if "848" in says else "312.6"):
        assert part in status.message
    stack.calibrate(only=["back_right"])  # and accepted once it is right
    stack.observe(105)
    assert stack.wait_for_chunks(1).stamp_ns == 105 * T


def test_a_missing_camera_is_named(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    stack.active()
    stack.calibrate(only=["front_left"])
    stack.observe(100)
    stack.ros.spin_until(
        lambda: "'back_right' has sent no camera_info" in stack.policy.health.status().message, what="the report"
    )
    assert not stack.chunks


def test_a_colour_camera_that_stops_stops_the_policy(ros: Any, tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny", cameras=RGB_CAMERAS, rgb=RgbSpec(60, 80))
    stack = Stack(ros, artifact.folder, cameras=RGB_CAMERAS, match_timeout_s=0.05)
    stack.active()
    stack.calibrate()
    stack.observe(100)
    stack.wait_for_chunks(1)
    ticks = iter(range(125, 1000, 5))

    def given_up() -> bool:
        stack.show(next(ticks))
        return stack.policy._assembler.sync.missed["front_left"] > 0

    stack.advance(1000)
    stack.ros.spin_until(given_up, what="views to be given up")
    assert len(stack.chunks) == 1


def test_bad_input_is_skipped_and_counted(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    stack.active()
    stack.calibrate()
    stack.advance(100)
    wrong = joint_state_message(REST_POSE, 100 * T)
    wrong.name = ["hip", *JOINT_NAMES[1:]]
    stack.joints.publish(wrong)
    stack.ros.spin_until(lambda: stack.reported("bad_joint_state"), what="the joint state")
    stack.commands.publish(wrong)
    stack.ros.spin_until(lambda: stack.reported("bad_joint_command"), what="the command")
    stack.views.publish(image_message(np.zeros((5, 5), np.uint16), "16UC1", 100 * T, WORLD_FRAME))
    stack.ros.spin_until(lambda: stack.reported("bad_image"), what="the image")
    stack.show(500)
    stack.ros.spin_until(lambda: stack.reported("from_the_future"), what="the image from the future")
    stack.observe(101)
    assert stack.wait_for_chunks(1).stamp_ns == 101 * T


def test_an_old_observation_is_not_inferred(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder, max_age_s=0.2)
    stack.active()
    stack.calibrate()
    stack.advance(100)
    stack.joints.publish(joint_state_message(REST_POSE, 50 * T))
    stack.show(50)
    stack.ros.spin_until(lambda: stack.reported("stale_observation"), what="the refusal")
    stack.observe(101)
    assert stack.wait_for_chunks(1).stamp_ns == 101 * T


def test_a_network_gone_wrong_gives_no_chunk_and_is_reported(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny", gain=1e38).folder)
    stack.active()
    stack.calibrate()
    stack.observe(100, value=1e3)  # overflows
    stack.ros.spin_until(lambda: stack.reported("inference_failed"), what="the report")
    assert not stack.chunks


def test_a_reset_simulation_begins_an_episode(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny", gain=0.05).folder)
    stack.active()
    stack.calibrate()
    stack.observe(100)
    first = stack.wait_for_chunks(1)
    stack.command(101, REST_POSE + 0.001)
    stack.observe(3)
    again = stack.wait_for_chunks(2)
    assert again.stamp_ns == 3 * T
    np.testing.assert_allclose(again.actions, first.actions, atol=1e-5)  # no history


def test_episodes_draw_other_noise_and_a_seed_brings_the_same_again(ros: Any, tmp_path: Path) -> None:
    folder = build_tiny_artifact(tmp_path / "tiny").folder
    drawn: list[float] = []

    class Recording(PolicyRuntime):
        def infer(self, observation: Observation, rng: np.random.Generator, prefix: Any = None) -> ActionChunk:
            drawn.append(rng.standard_normal())
            return super().infer(observation, rng, prefix)

    stack = Stack(ros, folder, seed=7)
    stack.active()
    stack.calibrate()
    stack.policy._runtime = Recording(Artifact.load(folder), threads=1)
    for count, (tick, seed) in enumerate([(100, None), (3, None), (2, 7), (1, 8)], start=1):
        if seed is not None:
            assert stack.policy.set_parameters([Parameter("seed", value=seed)])[0].successful
        stack.observe(tick)  # time runs back: an episode of its own
        stack.wait_for_chunks(count)
    assert drawn[0] == drawn[2] == episode_noise(7).standard_normal()
    assert drawn[1] == episode_noise(7, 1).standard_normal()
    assert drawn[3] == episode_noise(8).standard_normal()
    assert len(set(drawn)) == 3


def test_an_observation_is_announced_before_its_chunk(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    said: list[int] = []
    subscribe(stack.node, OBSERVATION, lambda message: said.append(stamp_ns(message.stamp)))
    stack.active()
    ros.spin_until(lambda: stack.policy.count_subscribers(OBSERVATION.name), what="discovery")
    stack.calibrate()
    stack.observe(100)
    stack.wait_for_chunks(1)
    ros.spin_until(lambda: said == [100 * T], what="the announcement")
    stack.observe(3)  # time runs back: what was inferred before is void
    ros.spin_until(lambda: said == [100 * T, 0, 3 * T], what="the announcements")


class GatedRuntime(PolicyRuntime):
    """A real runtime that a test can hold up in the middle of an inference."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, threads=1)
        self.begun = threading.Event()
        self.go = threading.Event()

    def infer(self, observation: Observation, rng: np.random.Generator, prefix: Any = None) -> ActionChunk:
        self.begun.set()
        assert self.go.wait(10.0)
        return super().infer(observation, rng, prefix)


def test_a_reset_voids_the_chunk_in_progress(ros: Any, tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny")
    stack = Stack(ros, artifact.folder)
    stack.active()
    stack.calibrate()
    stack.policy._runtime = gated = GatedRuntime(artifact)
    stack.observe(100)
    stack.ros.spin_until(gated.begun.is_set, what="the inference to begin")
    stack.observe(3)  # inferred next
    gated.go.set()
    assert stack.wait_for_chunks(1).stamp_ns == 3 * T


def test_what_nobody_foresaw_ends_the_node(ros: Any, tmp_path: Path) -> None:
    """A dead inference thread behind a live node would be a policy that is silent for ever."""

    def fail(_observation: Observation, _rng: np.random.Generator, _prefix: Any) -> ActionChunk:
        raise ZeroDivisionError("a defect")

    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder)
    stack.active()
    stack.calibrate()
    stack.policy._runtime.infer = fail
    stack.observe(100)
    with pytest.raises(ZeroDivisionError):
        stack.ros.spin_until(lambda: False, what="the defect")


def test_enable_and_disable(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder, enabled=False)
    stack.active()
    stack.calibrate()
    stack.observe(100)
    ros.call(stack.node, SetBool, POLICY_ENABLE.name, SetBool.Request(data=True))
    stack.observe(105)
    assert stack.wait_for_chunks(1).stamp_ns == 105 * T
    ros.call(stack.node, SetBool, POLICY_ENABLE.name, SetBool.Request(data=False))
    stack.observe(200)
    assert stack.policy._inferred_ns is None
    assert len(stack.chunks) == 1


def test_the_lifecycle_is_a_managers_where_wanted(ros: Any, tmp_path: Path) -> None:
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny").folder, autostart=False)

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return ros.call(stack.node, ChangeState, "/policy_node/change_state", request).success

    def state() -> int:
        return ros.call(stack.node, GetState, "/policy_node/get_state").current_state.id

    assert state() == State.PRIMARY_STATE_UNCONFIGURED
    assert change(Transition.TRANSITION_CONFIGURE)
    stack.connect()
    stack.calibrate()
    stack.observe(100)
    assert change(Transition.TRANSITION_ACTIVATE)
    stack.observe(105)
    assert stack.wait_for_chunks(1).stamp_ns == 105 * T
    assert change(Transition.TRANSITION_DEACTIVATE)
    stack.observe(200)
    assert change(Transition.TRANSITION_CLEANUP)
    assert stack.policy._worker is None
    assert state() == State.PRIMARY_STATE_UNCONFIGURED
    assert change(Transition.TRANSITION_CONFIGURE)
    assert change(Transition.TRANSITION_ACTIVATE)
    stack.connect()
    stack.calibrate()
    stack.observe(300)
    assert stack.wait_for_chunks(2).stamp_ns == 300 * T


def test_a_manager_may_repair_an_artifact_and_try_again(ros: Any, tmp_path: Path) -> None:
    folder = tmp_path / "late"
    stack = Stack(ros, folder, autostart=False)
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    assert not ros.call(stack.node, ChangeState, "/policy_node/change_state", request).success
    assert "late" in stack.policy.health.status().message
    build_tiny_artifact(folder)
    assert ros.call(stack.node, ChangeState, "/policy_node/change_state", request).success


def test_a_corrupt_artifact_ends_the_node_with_the_reason(ros: Any, tmp_path: Path) -> None:
    folder = build_tiny_artifact(tmp_path / "tiny").folder
    (folder / "denoise.onnx").write_bytes(b"cut short")
    with pytest.raises(ArtifactError, match=r"denoise\.onnx is corrupt"):
        Stack(ros, folder).active()


def test_the_executable_says_it_in_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "clamp_ros.policy.policy_node", "--ros-args", "-p", f"artifact:={tmp_path}/none"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == EXIT_USER_ERROR
    assert "there is no manifest.json" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("follows", [True, False])
def test_a_chunk_continues_the_commands_that_go_on_meanwhile(ros: Any, tmp_path: Path, follows: bool) -> None:
    """The artifact's own chunks are all one ramp; a chunk that continues another begins with the other's rows."""
    target = rest_target() + 0.0005 * np.arange(50)[:, None]
    stack = Stack(ros, build_tiny_artifact(tmp_path / "tiny", target=target, prefix=8).folder)
    stack.active()
    stack.calibrate()
    stack.observe(100)
    first = stack.wait_for_chunks(1)
    stack.advance(124)
    stack.command(124, first.actions[24 if follows else 0])
    stack.observe(125)
    second = stack.wait_for_chunks(2)
    count = stack.policy._committed.delay_steps
    assert 1 <= count <= 8
    expected = target.copy()
    if follows:
        expected[:count] = first.actions[25 : 25 + count]
    np.testing.assert_allclose(second.actions, expected, atol=1e-4)


def test_an_artifact_that_reads_the_cloud_gets_it(ros: Any, tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny", gain=0.05, scene="cloud", fusion=FusionConfig(max_points=100))
    stack = Stack(ros, artifact.folder)
    stack.active()
    stack.calibrate()
    publisher = advertise(stack.node, CLOUD)
    ros.spin_until(lambda: publisher.get_subscription_count(), what="discovery")
    points = np.full((60, 3), 0.5, np.float32)
    stack.advance(100)
    stack.joints.publish(joint_state_message(REST_POSE, 100 * T))
    publisher.publish(cloud_message(points, 100 * T, WORLD_FRAME))
    stack.show(100)
    chunk = stack.wait_for_chunks(1)
    history, joints = np.zeros((50, 14), np.float32), REST_POSE.astype(np.float32)
    seen = Observation(0, np.full(TILED_SHAPE, 0.9, np.float32), {}, joints, history, points)
    expected = PolicyRuntime(artifact, threads=1).infer(seen, episode_noise(0))
    np.testing.assert_array_equal(chunk.actions, expected.actions)
    other = PolicyRuntime(artifact, threads=1).infer(replace(seen, cloud=2 * points), episode_noise(0))
    assert np.abs(other.actions - expected.actions).max() > 1e-3
