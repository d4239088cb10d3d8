"""The recorder in a running graph: what was published is in the bag; services, latched topics, limits."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rclpy.parameter import Parameter
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from clamp_ros import cli
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import (
    JOINT_COMMANDS,
    JOINT_STATES,
    RECORD_DISCARD,
    RECORD_KEEP,
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
from clamp_ros.record.view import table
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


def test_the_last_seconds_are_kept_by_a_service(ros, source, tmp_path):
    node = recorder(ros, tmp_path, task="demo", keep_s=60.0)
    ros.spin_until(connected(source))
    for i in range(3):
        publish_all(source, i)
    ros.spin_until(lambda: len(node.recorder._ring) >= 15)
    kept = ros.call(source, Trigger, RECORD_KEEP.name)
    assert kept.success, kept.message
    ros.spin_until((Path(kept.message) / "metadata.yaml").is_file)
    with Episode.open(kept.message) as episode:
        assert len(episode.joint_states) == len(episode.frames(CAMERA)) == 3
    assert ros.call(source, Trigger, RECORD_START.name).success
    refused = ros.call(source, Trigger, RECORD_KEEP.name)
    assert not refused.success
    assert "is being recorded" in refused.message


def listen(source) -> list[dict[str, str]]:
    """What the recorder says on /diagnostics, from now on: its values, and `level` and `message`."""
    said: list[dict[str, str]] = []

    def hear(array) -> None:
        for status in array.status:
            if status.name == "recorder_node":
                values = {value.key: value.value for value in status.values}
                said.append({**values, "level": str(status.level[0]), "message": status.message})

    array = interface_type("diagnostic_msgs/msg/DiagnosticArray")
    source.create_subscription(array, "/diagnostics", hear, 10)
    return said


def test_rates_gaps_and_a_slow_disk_are_told_on_diagnostics_and_shown(ros, source, tmp_path):
    shown: list[str] = []
    overrides = {"folder": str(tmp_path), "cameras": [CAMERA], "min_free_gb": 0.0, "disk_check_s": 0.01}
    node = ros.add(
        RecorderNode(
            lambda look: shown.append(table(look)),
            parameter_overrides=[Parameter(name, value=value) for name, value in overrides.items()],
        )
    )
    said = listen(source)
    ros.spin_until(connected(source))
    ros.spin_until(lambda: node.recorder.disk_bytes_s, what="the disk to be measured")
    node.recorder.disk_bytes_s = 1.0
    assert ros.call(source, Trigger, RECORD_START.name).success
    ticks = iter(range(100_000))

    def told() -> bool:
        publish_all(source, next(ticks))
        return any("messages will be dropped" in row["message"] for row in said)

    ros.spin_until(told, 20.0)
    assert any("Hz" in row.get(JOINT_STATES.name, "") for row in said)
    assert any("WARNING: the topics send" in text and JOINT_STATES.name in text for text in shown)


@contextlib.contextmanager
def start_process(folder, *more: str, **options) -> Iterator[subprocess.Popen]:
    """A recorder of its own that records at once; it is gone at the end, whatever happens."""
    command = [sys.executable, "-m", "clamp_ros.record.recorder_node", "--ros-args", "-p", "auto_start:=true"]
    values = {"folder": folder, "cameras": f"[{CAMERA}]", "min_free_gb": 0.0, "disk_check_s": 0.0}
    command += [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
    process = subprocess.Popen([*command, *more], env=os.environ, **options)
    try:
        yield process
    finally:
        process.kill()  # a stopped one, too
        process.wait()


def written(folder) -> int:
    """Bytes of the bag in progress on the disk."""
    return sum(file.stat().st_size for file in folder.glob("*.partial/*.mcap"))


def test_a_killed_recorder_leaves_a_bag_that_the_command_line_mends(ros, source, tmp_path, capsys):
    with start_process(tmp_path, "-p", "flush_s:=0.1") as process:
        ros.spin_until(connected(source), 30.0)
        for i in range(6):  # each reaches the disk without a stop: all but what the last tenth of a second brought
            before = written(tmp_path)
            publish_all(source, i)
            ros.spin_until(lambda size=before: written(tmp_path) > size + 305_000, 20.0, "an image on the disk")
        process.kill()
    assert cli.main(["bag", "recover", str(tmp_path)]) == 0
    (bag,) = tmp_path.iterdir()
    assert f"{bag}: " in capsys.readouterr().out
    with Episode.open(bag) as episode:
        assert episode.metadata.outcome == "interrupted"
        assert len(episode.frames(CAMERA)) >= 4


SENDER = """
import sys, time
import numpy as np, rclpy
from rclpy.duration import Duration
from clamp_ros.contract.interfaces import JOINT_COMMANDS, JOINT_STATES
from clamp_ros.ros import environment
from clamp_ros.ros.convert import joint_state_message
from clamp_ros.ros.run import advertise
rclpy.init()
with environment.participant(shared_memory=False):
    node = rclpy.create_node("control_node")
publishers = [advertise(node, topic) for topic in (JOINT_COMMANDS, JOINT_STATES)]
for line in sys.stdin:
    for i in range(*map(int, line.split())):
        for publisher in publishers:
            publisher.publish(joint_state_message(np.zeros(14), 20_000_000 * i))
        time.sleep(0.01)
    print("sent", flush=True)
    print(all(publisher.wait_for_all_acked(Duration(seconds=30.0)) for publisher in publishers), flush=True)
"""


def test_a_recorder_that_is_kept_from_running_loses_no_small_message(ros, tmp_path):
    """As a starved process is, for longer than a second of the fastest topic. Their sender is as control_node is."""
    with start_process(tmp_path) as process, subprocess.Popen(
        [sys.executable, "-c", SENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sender:
        asks, answers = sender.stdin, sender.stdout
        assert asks is not None and answers is not None

        def send(start: int, end: int) -> None:
            print(start, end, file=asks, flush=True)
            assert answers.readline() == "sent\n"

        said = listen(ros.node())

        def heard() -> bool:
            send(0, 1)
            assert answers.readline() == "True\n"
            return any(JOINT_COMMANDS.name in row and JOINT_STATES.name in row for row in said)

        ros.spin_until(heard, 30.0, "the recorder to hear both")
        process.send_signal(signal.SIGSTOP)
        send(1, 151)
        process.send_signal(signal.SIGCONT)
        # what the transport had no room for is sent again
        assert answers.readline() == "True\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        asks.close()
    (bag,) = tmp_path.iterdir()
    with Episode.open(bag) as episode:
        for series in (episode.commands, episode.joint_states):
            assert set(range(1, 151)) <= set(series.stamps_ns // 20_000_000)


def test_a_full_disk_is_told_and_loses_the_last_chunk_only(ros, source, tmp_path, capsys):
    """A limit on the file's size stands for the disk's: the kernel refuses to write on, in the middle of a chunk."""
    limit = 3_000_000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with start_process(tmp_path, "-p", "flush_s:=0.1", preexec_fn=limited) as process:
        said = listen(source)
        ros.spin_until(connected(source), 30.0)

        def full() -> bool:
            return any(row["level"] == "2" and "clamp bag recover" in row["message"] for row in said)

        for i in range(40):  # each a chunk of its own: a chunk of 4 MB alone would be more than the disk has
            before = written(tmp_path)
            publish_all(source, i)
            ros.spin_until(lambda size=before: full() or written(tmp_path) > size, 20.0, "a chunk")
            if full():
                break
        assert full()
        assert process.poll() is None, "the node lives, and says what is wrong"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    (partial,) = tmp_path.glob("*.partial")
    (tmp_path / "other").mkdir()
    assert cli.main(["bag", "recover", str(partial), "--to", str(tmp_path / "other")]) == 0
    assert "its end is missing" in capsys.readouterr().out
    (bag,) = (tmp_path / "other").iterdir()
    with Episode.open(bag) as episode:
        frames = episode.frames(CAMERA)
        # a chunk is a tenth of a second or 4 MB: nearly all of the 3 MB are there, and no frame is torn
        assert 1 <= len(frames) <= limit / 500_000
        assert frames.color(len(frames) - 1).shape == (240, 424, 3)


def test_a_stopped_recorder_finishes_its_bag(ros, source, tmp_path):
    with start_process(tmp_path) as process:
        ros.spin_until(connected(source), 30.0)
        publish_all(source, 1)
        ros.spin_until(lambda: list(tmp_path.glob("*.partial/*.mcap")))
        # the diagnostics of a second report that the messages have been taken
        said = listen(source)
        ros.spin_until(lambda: any(int(row["messages"]) >= 5 for row in said))
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    (bag,) = tmp_path.iterdir()
    with Episode.open(bag) as episode:
        assert episode.metadata.outcome == "unknown"
        assert len(episode.joint_states) == 1
