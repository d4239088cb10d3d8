"""Bags: written, read back by rosbags' own reader and by ours, crashed and recovered, damaged and audited."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rosbags.interfaces import ConnectionExtRosbag2
from rosbags.rosbag2 import Reader
from sample_bag import (
    CAMERA,
    METADATA,
    PINHOLE,
    TICKS,
    WORLD_FROM_CAMERA,
    image_at,
    joints_at,
    make_bag,
    write_episode,
)

from clamp_ros.contract.errors import ConfigError, FutureExtrapolationError, RecordError
from clamp_ros.contract.interfaces import (
    JOINT_COMMANDS,
    JOINT_STATES,
    TF,
    TF_STATIC,
    Qos,
    camera_info_topic,
    color_topic,
    optical_frame,
)
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.record import messages
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.record.metadata import qos_profiles
from clamp_ros.record.recover import recover, unfinished
from clamp_ros.record.writer import EpisodeWriter


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_rosbags_reads_what_was_written_byte_for_byte(tmp_path, compression):
    sent = []

    class Spy(EpisodeWriter):
        def write(self, topic, message_type, stamp_ns, cdr):
            sent.append((topic, message_type, stamp_ns, bytes(cdr)))
            return super().write(topic, message_type, stamp_ns, cdr)

    writer = Spy(tmp_path / "bag", METADATA, compression=compression, chunk_bytes=100_000)
    write_episode(writer)
    writer.close("success")
    with Reader(tmp_path / "bag") as reader:
        got = [(c.topic, c.msgtype, stamp, bytes(data)) for c, stamp, data in reader.messages()]
        assert reader.message_count == len(sent)
        assert reader.start_time == 0
        assert reader.duration == (TICKS - 1) * CONTROL_PERIOD_NS + 1
        for connection in reader.connections:
            text, digest = messages.definition(connection.msgtype)
            assert (connection.msgdef.data, connection.digest) == (text, digest)
        static = next(c for c in reader.connections if c.topic == TF_STATIC.name)
        assert isinstance(static.ext, ConnectionExtRosbag2)
        assert static.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"
    assert sorted(got) == sorted(sent)


def test_our_reader_returns_the_values(tmp_path):
    with Episode.open(make_bag(tmp_path / "bag")) as episode:
        assert episode.metadata == METADATA.with_outcome("success")
        ticks = np.arange(TICKS)
        for series, offset in ((episode.joint_states, 0.0), (episode.commands, 0.01)):
            assert np.array_equal(series.stamps_ns, ticks * CONTROL_PERIOD_NS)
            assert np.array_equal(series.positions, [joints_at(t) + offset for t in range(TICKS)])
        assert np.array_equal(episode.joint_states.velocities, np.zeros((TICKS, 14)))
        assert np.isnan(episode.commands.velocities).all()
        assert episode.cameras == (CAMERA,)
        frames = episode.frames(CAMERA)
        assert frames.pinhole == PINHOLE
        assert np.array_equal(frames.stamps_ns, ticks[::5] * CONTROL_PERIOD_NS)
        for i in (3, 0, 19, 7):  # in any order
            color, depth = image_at(5 * i)
            assert np.array_equal(frames.color(i), color)
            assert np.array_equal(frames.depth_mm(i), depth)
        pose = episode.tf.lookup("world", optical_frame(CAMERA), int(frames.stamps_ns[4]))
        assert np.allclose(pose, WORLD_FROM_CAMERA, atol=1e-15)
        half = episode.world_from_grippers(20 * CONTROL_PERIOD_NS + CONTROL_PERIOD_NS // 2)["left"]
        assert half[0, 3] == pytest.approx(0.0205)
        with pytest.raises(FutureExtrapolationError):
            episode.world_from_grippers(TICKS * CONTROL_PERIOD_NS)
        assert [row["time_s"] for _, row in episode.task_state] == pytest.approx(0.02 * ticks[::5])


def test_joints_are_reordered_by_name_and_other_robots_refused():
    types = messages.typestore().types
    stamp, positions, _ = messages.decode_joints(messages.encode_joints(5, np.arange(14.0)))
    assert stamp == 5
    message = messages.decode(messages.encode_joints(5, np.arange(14.0)), messages.JOINT_STATE)
    shuffled = types[messages.JOINT_STATE](
        header=message.header, name=message.name[::-1], position=message.position[::-1].copy(),
        velocity=message.velocity, effort=message.effort,
    )  # fmt: skip
    cdr = messages.typestore().serialize_cdr(shuffled, messages.JOINT_STATE)
    assert np.array_equal(messages.decode_joints(cdr)[1], positions)
    message.name[0] = "left/hip"
    with pytest.raises(RecordError, match="left/hip"):
        messages.decode_joints(messages.typestore().serialize_cdr(message, messages.JOINT_STATE))


def test_bgr_padding_and_bad_encodings():
    color, _ = image_at(1)
    message = messages.decode(messages.encode_color(0, "f", color), messages.IMAGE)
    padded = np.zeros((48, 200), np.uint8)
    padded[:, :192] = color[..., ::-1].reshape(48, 192)
    message.encoding, message.step, message.data = "bgr8", 200, padded.ravel()
    assert np.array_equal(messages.decode_image(messages.typestore().serialize_cdr(message, messages.IMAGE)), color)
    message.encoding = "yuv422"
    with pytest.raises(RecordError, match="yuv422"):
        messages.decode_image(messages.typestore().serialize_cdr(message, messages.IMAGE))
    message.encoding, message.data = "rgb8", padded.ravel()[:100]
    with pytest.raises(RecordError, match="100 bytes"):
        messages.decode_image(messages.typestore().serialize_cdr(message, messages.IMAGE))


@pytest.mark.parametrize("qos", list(Qos))
def test_every_profile_of_the_contract_has_rosbag2_words(qos):
    from clamp_ros.contract.interfaces import TOPICS

    for topic in (t for t in TOPICS if t.qos is qos):
        (profile,) = qos_profiles(topic.name)
        assert profile["reliability"] in ("reliable", "best_effort")
        assert profile["durability"] in ("volatile", "transient_local")
        assert profile["depth"] >= 1


def test_the_name_appears_only_when_the_bag_is_whole(tmp_path):
    writer = EpisodeWriter(tmp_path / "bag", METADATA)
    write_episode(writer)
    assert not (tmp_path / "bag").exists()
    with pytest.raises(RecordError, match="exists"):
        EpisodeWriter(tmp_path / "bag", METADATA)
    writer.close("failure")
    assert [p.name for p in tmp_path.iterdir()] == ["bag"]
    assert sorted(p.name for p in (tmp_path / "bag").iterdir()) == ["bag_0.mcap", "metadata.yaml"]
    with pytest.raises(RecordError, match="closed"):
        writer.write(TF.name, TF.type, 0, b"")


def test_discard_keeps_the_bag_aside_and_abandon_leaves_nothing(tmp_path):
    for expected in ("bag", "bag_2"):
        writer = EpisodeWriter(tmp_path / "bag", METADATA)
        write_episode(writer)
        target = writer.discard()
        assert target == tmp_path / "discarded" / expected
        with Reader(target) as reader:
            assert reader.message_count
    writer = EpisodeWriter(tmp_path / "bag", METADATA)
    write_episode(writer)
    writer.abandon()
    assert [p.name for p in tmp_path.iterdir()] == ["discarded"]


def test_unknown_types_and_changed_types_are_refused(tmp_path):
    writer = EpisodeWriter(tmp_path / "bag", METADATA)
    with pytest.raises(RecordError, match="my_msgs/msg/Thing"):
        writer.write("/thing", "my_msgs/msg/Thing", 0, b"")
    writer.write("/text", messages.STRING, 0, messages.encode_string("a"))
    with pytest.raises(RecordError, match="/text is a std_msgs/msg/String"):
        writer.write("/text", messages.IMAGE, 0, b"")
    writer.abandon()
    with pytest.raises(ConfigError, match="gzip"):
        EpisodeWriter(tmp_path / "bag", METADATA, compression="gzip")


def test_a_full_queue_drops_and_counts(tmp_path):
    writer = EpisodeWriter(tmp_path / "bag", METADATA, queue_bytes=10_000)
    text = messages.encode_string("x" * 6_000)
    with writer._state:  # the writer thread cannot take anything now
        # the condition's lock is reentrant: this thread may write
        assert [writer.write("/text", messages.STRING, i, text) for i in range(3)] == [True, False, False]
    assert writer.dropped == 2
    with Reader(writer.close("success")) as reader:
        assert reader.message_count == 1


CRASHING_WRITER = """
import sys
sys.path.insert(0, {here!r})
from sample_bag import METADATA, write_episode
from clamp_ros.record.writer import EpisodeWriter
writer = EpisodeWriter({path!r}, METADATA, chunk_bytes=100_000, flush_s=None)
write_episode(writer)
while writer.queued_bytes:
    pass
print("written", flush=True)
sys.stdin.read()
"""


def test_a_killed_writer_leaves_a_bag_that_can_be_recovered(tmp_path):
    code = CRASHING_WRITER.format(here=str(Path(__file__).parents[1]), path=str(tmp_path / "bag"))
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert [p.name for p in tmp_path.iterdir()] == ["bag.partial"]
    with pytest.raises(RecordError, match="clamp bag recover"):
        Episode.open(tmp_path / "bag.partial")
    recovery = recover(tmp_path / "bag.partial")
    assert recovery.truncated
    assert [p.name for p in tmp_path.iterdir()] == ["bag"]
    with Episode.open(tmp_path / "bag") as episode, Reader(tmp_path / "bag") as reader:
        assert reader.message_count == recovery.message_count
        assert episode.metadata == METADATA.with_outcome("interrupted")
        got = episode.joint_states
        assert len(got) > TICKS // 2  # all but the chunk in progress and what Python had not handed to the kernel
        assert np.array_equal(got.positions, [joints_at(t) for t in range(len(got))])


def test_the_first_message_reaches_the_disk_without_waiting_for_the_next_chunk(tmp_path):
    writer = EpisodeWriter(tmp_path / "bag", METADATA, flush_s=60.0)
    try:
        (file,) = (tmp_path / "bag.partial").glob("*.mcap*")
        deadline = time.monotonic() + 20.0
        while not (head := file.stat().st_size):
            assert time.monotonic() < deadline, "the bag's head does not come"
            time.sleep(0.005)
        writer.write("/joint_states", "sensor_msgs/msg/JointState", 1, b"\0" * 4000)
        while file.stat().st_size <= head:
            assert time.monotonic() < deadline, "the first message does not come"
            time.sleep(0.005)
        shutil.copytree(tmp_path / "bag.partial", tmp_path / "killed.partial")
    finally:
        writer.close("unknown")
    assert recover(tmp_path / "killed.partial").message_count == 1


def test_a_bag_that_is_being_written_is_left_alone(tmp_path):
    writer = EpisodeWriter(tmp_path / "bag", METADATA)
    write_episode(writer)
    with pytest.raises(RecordError, match="is still being written"):
        recover(tmp_path / "bag.partial")
    assert [p.name for p in tmp_path.iterdir()] == ["bag.partial"]
    with Reader(writer.close("success")) as reader:
        assert reader.message_count


def test_a_folder_stands_for_every_unfinished_bag_in_it(tmp_path):
    for name in ("a", "b", "c"):
        make_bag(tmp_path / name)
    (tmp_path / "a").rename(tmp_path / "a.partial")
    (tmp_path / "b").rename(tmp_path / "b.crashed")
    assert unfinished([tmp_path, tmp_path / "x.partial"]) == [tmp_path / f"{n}.partial" for n in ("a", "b", "x")]
    with pytest.raises(RecordError, match="holds no unfinished bag"):
        unfinished([Path(__file__).parent])


def test_a_bag_that_was_killed_before_its_first_message_reached_the_disk_is_audited(tmp_path):
    EpisodeWriter(tmp_path / "bag", METADATA).close("unknown")
    report = audit(tmp_path / "bag")
    assert not report.ok and report.duration_s == 0.0
    assert "/joint_states is missing" in report.problems


def test_an_interrupted_recovery_can_be_repeated(tmp_path):
    make_bag(tmp_path / "bag")
    (tmp_path / "bag").rename(tmp_path / "bag.crashed")
    (tmp_path / "bag.crashed" / "metadata.yaml").unlink()
    (tmp_path / "bag.partial").mkdir()
    (tmp_path / "bag.partial" / "bag_0.mcap").write_bytes(b"half")
    recovery = recover(tmp_path / "bag.partial")
    assert not recovery.truncated
    assert [p.name for p in tmp_path.iterdir()] == ["bag"]
    with pytest.raises(RecordError, match="not an unfinished bag"):
        recover(tmp_path / "bag")


def test_a_full_disk_is_reported_and_what_was_written_recovered(tmp_path):
    """RLIMIT_FSIZE stands for the full disk: write() fails in the kernel with an OSError, as it does with ENOSPC."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from sample_bag import METADATA, write_episode
from clamp_ros.contract.errors import RecordError
from clamp_ros.record.writer import EpisodeWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
writer = EpisodeWriter({str(tmp_path / "bag")!r}, METADATA, chunk_bytes=50_000, compression="none")
try:
    write_episode(writer)
    writer.close("success")
except RecordError as error:
    print("REFUSED", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "REFUSED recording of bag failed: [Errno 27]" in done.stdout
    assert done.stderr == ""
    assert recover(tmp_path / "bag.partial").message_count > 10


def test_a_damaged_chunk_is_an_error_that_names_it(tmp_path):
    bag = make_bag(tmp_path / "bag")
    file = bag / "bag_0.mcap"
    data = bytearray(file.read_bytes())
    data[5000] ^= 0xFF
    file.write_bytes(data)
    with Episode.open(bag) as episode, pytest.raises(RecordError, match=r"chunk .* is damaged"):
        _ = episode.joint_states
    file.write_bytes(data[:-100])
    with pytest.raises(RecordError, match="damaged or was not finished"):
        Episode.open(bag)


def test_what_is_no_bag_is_refused(tmp_path):
    with pytest.raises(RecordError, match="is not a bag"):
        Episode.open(tmp_path)
    bag = make_bag(tmp_path / "bag")
    (bag / "metadata.yaml").write_text("a: [")
    with pytest.raises(RecordError, match="damaged"):
        Episode.open(bag)


def test_bags_of_others_can_be_opened(tmp_path):
    """A bag without our custom data, as `ros2 bag record` writes it."""
    bag = make_bag(tmp_path / "bag")
    metadata = yaml.safe_load((bag / "metadata.yaml").read_text())
    metadata["rosbag2_bagfile_information"]["custom_data"] = None
    (bag / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    with Episode.open(bag) as episode:
        assert episode.metadata.outcome == "unknown"
        assert len(episode.commands) == TICKS


class TestAudit:
    def test_a_good_bag_passes(self, tmp_path):
        report = audit(make_bag(tmp_path / "bag"))
        assert report.ok, report.text()
        rates = {t.name: t.rate_hz for t in report.topics}
        assert rates[JOINT_STATES.name] == pytest.approx(50.0)
        assert rates[color_topic(CAMERA)] == pytest.approx(10.0)
        assert "verdict: good" in report.text()

    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            ({"skip": lambda topic, tick: topic == JOINT_STATES.name and 40 <= tick < 50}, "/joint_states has 1 gaps"),
            ({"skip": lambda topic, tick: topic == color_topic(CAMERA) and tick == 10}, "no partner"),
            ({"skip": lambda topic, tick: topic == JOINT_COMMANDS.name}, "/joint_commands is missing"),
            ({"skip": lambda topic, tick: topic == TF_STATIC.name}, "has no pose"),
            ({"skip": lambda topic, tick: topic == camera_info_topic(CAMERA)}, "no /front_left/color/camera_info"),
            ({"skip": lambda topic, tick: CAMERA in topic}, "images of front_left are missing"),
            ({"joints": lambda tick: joints_at(tick) * (np.nan if tick == 9 else 1.0)}, "not finite at: left/waist"),
            ({"joints": lambda tick: 57.3 * joints_at(tick)}, "outside the joints' limits"),
        ],
    )
    def test_planted_faults_are_found(self, tmp_path, fault, expected):
        report = audit(make_bag(tmp_path / "bag", **fault))
        assert not report.ok
        assert any(expected in f for f in report.problems), report.text()

    def test_a_recorder_that_was_late_has_lost_nothing(self, tmp_path, monkeypatch):
        """Messages that came in bursts of 100 ms: their own stamps tell that all are there."""
        writer = EpisodeWriter(tmp_path / "bag", METADATA)
        write, burst_ns = writer.write, 5 * CONTROL_PERIOD_NS

        def late(topic: str, message_type: str, stamp_ns: int, cdr: memoryview) -> bool:
            return write(topic, message_type, -(-stamp_ns // burst_ns) * burst_ns, cdr)

        monkeypatch.setattr(writer, "write", late)
        write_episode(writer)
        report = audit(writer.close("success"))
        assert report.ok, report.text()
        rates = {t.name: (t.rate_hz, t.gaps) for t in report.topics}
        assert rates[JOINT_COMMANDS.name] == (pytest.approx(50.0), 0)

    def test_wrong_joint_names_are_found(self, tmp_path):
        writer = EpisodeWriter(tmp_path / "bag", METADATA)
        write_episode(writer)
        message = messages.decode(messages.encode_joints(TICKS * CONTROL_PERIOD_NS, REST_POSE), messages.JOINT_STATE)
        message.name[3] = "left/hip"
        cdr = messages.typestore().serialize_cdr(message, messages.JOINT_STATE)
        writer.write(JOINT_STATES.name, JOINT_STATES.type, TICKS * CONTROL_PERIOD_NS, cdr)
        report = audit(writer.close("success"))
        assert any("left/hip" in f for f in report.problems), report.text()

    def test_a_wrong_type_is_found(self, tmp_path):
        def no_commands(topic, tick):
            return topic == JOINT_COMMANDS.name

        writer = EpisodeWriter(tmp_path / "bag", METADATA)
        write_episode(writer, skip=no_commands)
        writer.write(JOINT_COMMANDS.name, messages.STRING, 0, messages.encode_string("left"))
        report = audit(writer.close("success"))
        assert any("expected sensor_msgs/msg/JointState" in f for f in report.problems), report.text()
        shutil.rmtree(report.path)
