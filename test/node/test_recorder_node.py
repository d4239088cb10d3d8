"""The recorder in a running graph: what was published is in the bag; services, latched topics, limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from rclpy.parameter import Parameter
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import (
    JOINT_STATES,
    RECORD_DISCARD,
    RECORD_START,
    RECORD_STOP,
    TASK_STATE,
    TF_STATIC,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
)
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.record.episode import Episode
from clamp_ros.record.recorder_node import RecorderNode
from clamp_ros.ros.convert import camera_info_message, image_message, joint_state_message, transform_message
from clamp_ros.ros.run import interface_type, qos_profile, subscribe

CAMERA = "front_left"
PINHOLE = Pinhole(424, 240, 300.0, 300.0, 211.5, 119.5)


def recorder(ros, folder, **parameters):
    values = {"folder": str(folder), "cameras": [CAMERA], "min_free_gb": 0.0, "disk_check_s": 0.0, **parameters}
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return ros.add(RecorderNode(parameter_overrides=overrides))


@pytest.fixture
def source(ros):
    """A node with publishers of a few topics."""
    node = ros.node("source")
    node.send = {
        JOINT_STATES.name: node.create_publisher(JointState, JOINT_STATES.name, qos_profile(JOINT_STATES.qos)),
        TASK_STATE.name: node.create_publisher(String, TASK_STATE.name, qos_profile(TASK_STATE.qos)),
        TF_STATIC.name: node.create_publisher(
            interface_type(TF_STATIC.type), TF_STATIC.name, qos_profile(TF_STATIC.qos)
        ),
    }
    for name, kind in ((color_topic, "Image"), (depth_topic, "Image"), (camera_info_topic, "CameraInfo")):
        node.send[name(CAMERA)] = node.create_publisher(interface_type(f"sensor_msgs/msg/{kind}"), name(CAMERA), 10)
    return node


def connected(source):
    return lambda: all(publisher.get_subscription_count() for publisher in source.send.values())


def publish_all(source, i: int) -> None:
    """One message a topic."""
    frame, stamp = optical_frame(CAMERA), 20_000_000 * i
    rng = np.random.default_rng(i)
    sent = {
        JOINT_STATES.name: joint_state_message(0.01 * rng.random(14), stamp),
        TASK_STATE.name: String(data=json.dumps({"task": "mug_on_plate", "seed": 42, "i": i})),
        color_topic(CAMERA): image_message(rng.integers(0, 256, (240, 424, 3), np.uint8), "rgb8", stamp, frame),
        depth_topic(CAMERA): image_message(rng.integers(0, 999, (240, 424), np.uint16), "16UC1", stamp, frame),
        camera_info_topic(CAMERA): camera_info_message(PINHOLE, stamp, frame),
    }
    for topic, message in sent.items():
        source.send[topic].publish(message)


def test_a_bag_holds_what_was_published_byte_for_byte(ros, source, tmp_path):
    node = recorder(ros, tmp_path, operator="Ada")
    heard: dict[str, list[bytes]] = {}  # by another subscriber: serialising again would differ in the padding
    for topic in node.recorder.topics:
        if topic.name in source.send:
            subscribe(source, topic, heard.setdefault(topic.name, []).append, raw=True)
    static = interface_type(TF_STATIC.type)(
        transforms=[transform_message("world", optical_frame(CAMERA), np.eye(4), 0)]
    )
    source.send[TF_STATIC.name].publish(static)  # before the episode: a latched topic
    ros.spin_until(connected(source))
    ros.spin_until(lambda: node.recorder._kept[TF_STATIC.name])
    publish_all(source, -1 % 1000)  # before the episode: not in the bag
    ros.spin_until(lambda: node.recorder.task_state.get("i") == 999)
    started = ros.call(source, Trigger, RECORD_START.name)
    assert started.success
    assert started.message.startswith(str(tmp_path / "mug_on_plate_"))
    for i in range(10):
        publish_all(source, i)
        ros.spin_until(lambda i=i: node.recorder.messages >= 1 + 5 * (i + 1))
    stopped = ros.call(source, SetBool, RECORD_STOP.name, SetBool.Request(data=True))
    assert (stopped.success, stopped.message) == (True, started.message)
    with Reader(stopped.message) as reader:
        got: dict[str, list[bytes]] = {}
        for connection, _, data in reader.messages():
            got.setdefault(connection.topic, []).append(bytes(data))
    got.pop("/diagnostics", None)
    assert set(got) == set(heard)
    ros.spin_until(lambda: sum(map(len, heard.values())) == 5 * 11 + 1)
    for topic, messages in got.items():
        assert messages == heard[topic][0 if topic == TF_STATIC.name else 1 :]
    with Episode.open(stopped.message) as episode:
        metadata = episode.metadata
        assert (metadata.task, metadata.seed, metadata.outcome) == ("mug_on_plate", 42, "success")
        assert metadata.operator == "Ada"
        assert episode.frames(CAMERA).pinhole == PINHOLE


def test_services_out_of_order_answer_with_a_reason(ros, source, tmp_path):
    recorder(ros, tmp_path, task="demo")
    stop = ros.call(source, SetBool, RECORD_STOP.name, SetBool.Request(data=True))
    assert not stop.success
    assert "/record/start" in stop.message
    assert ros.call(source, Trigger, RECORD_START.name).success
    again = ros.call(source, Trigger, RECORD_START.name)
    assert not again.success
    assert "already recording" in again.message
    discarded = ros.call(source, Trigger, RECORD_DISCARD.name)
    assert discarded.success
    assert "/discarded/demo_" in discarded.message
    assert [p.name for p in tmp_path.iterdir()] == ["discarded"]


def test_too_little_disk_space_is_refused(ros, source, tmp_path):
    recorder(ros, tmp_path, min_free_gb=1e9)
    answer = ros.call(source, Trigger, RECORD_START.name)
    assert not answer.success
    assert "GB free" in answer.message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("cameras", ["front_lft"], "front_left"), ("extra_topics", ["/fusion/view"], "/fusion/views"),
     ("compression", "gzip", "zstd"), ("compresion", "lz4", "compression")],
)  # fmt: skip
def test_bad_parameters_name_the_nearest_good_one(ros, tmp_path, name, value, expected):
    with pytest.raises(ConfigError, match=expected):
        recorder(ros, tmp_path, **{name: value})


def test_a_stopped_recorder_finishes_its_bag(ros, source, tmp_path):
    command = [sys.executable, "-m", "clamp_ros.record.recorder_node", "--ros-args", "-p", "auto_start:=true"]
    command += ["-p", f"folder:={tmp_path}", "-p", f"cameras:=[{CAMERA}]", "-p", "min_free_gb:=0.0"]
    with subprocess.Popen(command, env=os.environ) as process:
        ros.spin_until(connected(source), 30.0)
        publish_all(source, 1)
        ros.spin_until(lambda: list(tmp_path.glob("*.partial/*.mcap")))
        # the diagnostics of a second report that the messages have been taken
        reports = []
        array = interface_type("diagnostic_msgs/msg/DiagnosticArray")
        source.create_subscription(array, "/diagnostics", lambda m: reports.extend(m.status), 10)

        def taken() -> bool:
            values = [{v.key: v.value for v in s.values} for s in reports if s.name == "recorder_node"]
            return any(int(v["messages"]) >= 5 for v in values)

        ros.spin_until(taken)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    (bag,) = tmp_path.iterdir()
    with Episode.open(bag) as episode:
        assert episode.metadata.outcome == "unknown"
        assert len(episode.joint_states) == 1
