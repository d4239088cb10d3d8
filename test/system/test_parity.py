"""The policy's inputs, computed by the live nodes from a bag, equal the rows of the training store made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clamp_training.store import Store, convert, new_fusion
from rclpy.parameter import Parameter
from rosbags.rosbag2 import Reader
from rosgraph_msgs.msg import Clock
from tiny_artifact import TINY_CAMERA, build_tiny_artifact

from clamp_ros.contract.interfaces import CLOCK, JOINT_STATES, topic
from clamp_ros.contract.observation import ActionChunk, Observation
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.demos import DemoConfig, Demonstrator
from clamp_ros.fusion.fusion_node import FusionNode
from clamp_ros.policy.artifact import CameraSpec, RgbSpec
from clamp_ros.policy.policy_node import PolicyNode
from clamp_ros.policy.preprocess import preprocess_rgb
from clamp_ros.ros.convert import time_message
from clamp_ros.ros.run import advertise

pytestmark = [pytest.mark.slow, pytest.mark.training]

CAMERAS = ("front_left", "back_right")
RGB = RgbSpec(60, 106)
OBSERVATIONS = 8


class Listener:
    """In place of the runtime: keeps the observations it is asked about."""

    timings = None

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def infer(self, observation: Observation, _rng: np.random.Generator, _prefix: Any) -> ActionChunk:
        self.seen.append(observation)
        return ActionChunk(observation.stamp_ns, np.zeros((50, 14)))


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "episode"
    row = Demonstrator(DemoConfig("mug_on_plate_easy", CAMERAS, image_rate_hz=5, look="primitive")).demonstrate(3, path)
    assert row["success"], row
    return path


@pytest.fixture(scope="module")
def store(bag: Path, tmp_path_factory) -> Store:
    return convert([bag.parent], tmp_path_factory.mktemp("store"), CAMERAS, (RGB.height, RGB.width), workers=1)


def parameters(**values: Any) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in values.items()]


def live_observations(ros: Any, bag: Path, artifact: Path) -> list[Observation]:
    """Plays the bag's first second and a half, tick by tick, through the real fusion and policy nodes."""
    common = {"artifact": str(artifact), "use_sim_time": True}
    ros.add(FusionNode(parameter_overrides=parameters(**common, cameras=list(CAMERAS))))
    policy = ros.add(PolicyNode(parameter_overrides=parameters(**common, execute_steps=1, match_timeout_s=5.0)))
    ros.spin_until(lambda: policy._runtime is not None, 30.0, "the artifact")
    listener = policy._runtime = Listener()
    player = ros.node("player")
    with Reader(bag) as reader:
        messages = sorted(((stamp, c.topic, bytes(data)) for c, stamp, data in reader.messages()), key=lambda m: m[0])
    names = sorted({name for _, name, _ in messages if name != "/sim/task_state"})
    publishers = {name: advertise(player, topic(name)) for name in names}
    clock = player.create_publisher(Clock, CLOCK.name, 10)
    listened = [*publishers.values(), clock]
    ros.spin_until(lambda: all(p.get_subscription_count() for p in listened), 20.0, "the nodes to listen")
    stamps = sorted({stamp for stamp, name, _ in messages if "color/image" in name})[:OBSERVATIONS]
    for tick in range(stamps[-1] // CONTROL_PERIOD_NS + 2):
        now = tick * CONTROL_PERIOD_NS
        clock.publish(Clock(clock=time_message(now)))
        for stamp, name, data in messages:
            if stamp == now and name in publishers:
                publishers[name].publish(data)
        due = sum(
            stamp < now for stamp in stamps
        )  # the tick after an image brings the joint state that closes its span
        ros.spin_until(lambda due=due: len(listener.seen) >= due, 30.0, f"observation {due} of {len(stamps)}")
    return listener.seen


def test_live_inputs_equal_the_stores_rows(ros: Any, bag: Path, store: Store, tmp_path: Path) -> None:
    camera = CameraSpec(**{**vars(TINY_CAMERA), "rgb": True})
    artifact = build_tiny_artifact(
        tmp_path / "tiny", cameras=dict.fromkeys(CAMERAS, camera), rgb=RGB, image_rate_hz=5.0
    )
    seen = live_observations(ros, bag, artifact.folder)
    fusion = new_fusion(artifact.manifest.fusion)
    history, joints = store.stacked("history"), store.stacked("joint_positions")
    stamps = store.episodes[0].tensors["stamps_ns"]
    assert [o.stamp_ns for o in seen[:OBSERVATIONS]] == stamps[:OBSERVATIONS].tolist()
    for row, observation in enumerate(seen[:OBSERVATIONS]):
        np.testing.assert_array_equal(observation.views, store.views(row, fusion))
        np.testing.assert_array_equal(observation.joint_positions, joints[row])
        np.testing.assert_array_equal(observation.action_history, history[row])
        for name in CAMERAS:
            stored = store.colors(name, [row])[0].transpose(2, 0, 1).astype(np.float32) / np.float32(255.0)
            np.testing.assert_array_equal(preprocess_rgb(observation.colors[name], RGB.height, RGB.width), stored)
    assert np.count_nonzero(seen[3].views) > 10_000
    assert seen[3].action_history.any(axis=1).sum() == 30


def test_actions_are_the_commands_due(bag: Path, store: Store) -> None:
    from clamp_ros.record.episode import Episode

    with Episode.open(bag) as episode:
        commands = episode.commands.positions
        assert JOINT_STATES.name in episode.topics
    actions = store.stacked("actions")
    np.testing.assert_array_equal(actions[0], commands[:50].astype(np.float32))
    np.testing.assert_array_equal(actions[2], commands[20:70].astype(np.float32))
    np.testing.assert_array_equal(actions[-1], np.repeat(commands[-1:], 50, axis=0).astype(np.float32))
