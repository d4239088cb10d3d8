"""The recorder without ROS: the ring, the live audit, the disk, and what it says and writes."""

from __future__ import annotations

import io
import json
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader
from sample_bag import CAMERA, PINHOLE, WORLD_FROM_CAMERA, image_at

import clamp_ros
from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.contract.interfaces import (
    CONTROL_STATUS,
    JOINT_COMMANDS,
    JOINT_STATES,
    TASK_STATE,
    TF_STATIC,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
    topic,
)
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.record import disk, messages, recording
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.record.live import LiveAudit
from clamp_ros.record.metadata import software_version
from clamp_ros.record.recording import Recorder
from clamp_ros.record.ring import Ring
from clamp_ros.record.settings import RecorderConfig
from clamp_ros.record.view import View, table
from clamp_ros.record.writer import EpisodeWriter

FRAME = optical_frame(CAMERA)


def joints(tick: int) -> bytes:
    return bytes(messages.encode_joints(CONTROL_PERIOD_NS * tick, REST_POSE))


def send(recorder: Recorder, ticks: range, skip=lambda name, tick: False) -> None:
    """A live system: 50 Hz joints, 10 Hz images."""

    def put(name: str, tick: int, cdr: bytes | memoryview) -> None:
        if not skip(name, tick):
            recorder.take(topic(name), CONTROL_PERIOD_NS * tick + 100_000, bytes(cdr))

    static = messages.encode_transforms(0, {FRAME: WORLD_FROM_CAMERA})
    for tick in ticks:
        stamp = CONTROL_PERIOD_NS * tick
        if tick == 0:
            put(TF_STATIC.name, tick, static)
        put(JOINT_STATES.name, tick, joints(tick))
        put(JOINT_COMMANDS.name, tick, joints(tick))
        if tick % 5 == 0:
            color, depth = image_at(tick)
            put(color_topic(CAMERA), tick, messages.encode_color(stamp, FRAME, color))
            put(depth_topic(CAMERA), tick, messages.encode_depth(stamp, FRAME, depth))
            put(camera_info_topic(CAMERA), tick, messages.encode_camera_info(stamp, FRAME, PINHOLE))
            put(TASK_STATE.name, tick, messages.encode_string(json.dumps({"task": "mug_on_plate", "seed": 7})))


@pytest.fixture
def make(tmp_path):
    """A recorder of one camera; it is closed at the end."""
    made: list[Recorder] = []

    def make(**values) -> Recorder:
        config = {"folder": str(tmp_path / "bags"), "cameras": (CAMERA,), "min_free_gb": 0.0, **values}
        made.append(Recorder(RecorderConfig(**config)))
        return made[-1]

    yield make
    for recorder in made:
        recorder.close()


class TestRing:
    @given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 5000)), max_size=60))
    def test_neither_time_nor_memory_is_ever_exceeded_and_nothing_younger_is_lost(self, sent):
        ring, now, kept = Ring(1.0, 20_000), 0, []
        for milliseconds, size in sent:
            now += milliseconds * 1_000_000
            ring.add("/t", "t", now, bytes(size))
            kept.append((now, size))
            assert ring.span_s <= 1.0
            assert ring.bytes <= 20_000
        taken = [(stamp, len(cdr)) for _, _, stamp, cdr in ring.take()]
        assert taken == kept[len(kept) - len(taken) :]
        older = kept[: len(kept) - len(taken)][-1:]
        held = sum(size + 250 for _, size in taken)
        assert all(now - stamp > 1e9 or held + size + 250 > 20_000 for stamp, size in older)
        assert (len(ring), ring.bytes, ring.span_s) == (0, 0, 0.0)

    def test_when_time_goes_back_what_was_before_is_void(self):
        ring = Ring(10.0, 1000)
        ring.add("/t", "t", 5_000_000_000, b"old")
        ring.add("/t", "t", 1_000_000_000, b"new")
        assert [cdr for _, _, _, cdr in ring.take()] == [b"new"]


class TestLiveAudit:
    def watch(self, ticks, required=(JOINT_STATES.name,), **options) -> LiveAudit:
        live = LiveAudit([JOINT_STATES, JOINT_COMMANDS, topic(color_topic(CAMERA))], required, **options)
        for tick in ticks:
            live.take(JOINT_STATES.name, 10_000_000_000 + CONTROL_PERIOD_NS * tick, joints(tick))
        live.update(1.0)
        return live

    def test_a_steady_topic_is_good(self):
        live = self.watch(range(200))
        row = live.figures()[0]
        assert (row.count, row.gaps, row.lost, row.dropped) == (200, 0, 0, 0)
        assert row.rate_hz == pytest.approx(50.0)
        assert live.seconds == pytest.approx(199 * 0.02)
        assert live.bytes_per_s == row.bytes == 200 * len(joints(0))
        assert live.verdict()["verdict"] == "good"

    @pytest.mark.parametrize(
        ("missing", "gaps", "lost"), [({50}, 0, 1), ({50, 51}, 0, 2), (range(50, 55), 1, 5), ({3}, 0, 1)]
    )
    def test_what_never_arrived_is_counted(self, missing, gaps, lost):
        row = self.watch(tick for tick in range(200) if tick not in missing).figures()[0]
        assert (row.gaps, row.lost) == (gaps, lost)
        assert row.longest_gap_s == pytest.approx(0.02 * (lost + 1))

    def test_problems_are_named(self):
        problems = " | ".join(self.watch([*range(0, 400, 2), 398], (JOINT_STATES.name, JOINT_COMMANDS.name)).problems())
        assert "missing: /joint_commands" in problems
        assert "/joint_states: 25.0 Hz, expected at least 45.0" in problems
        assert "/joint_states: stamps repeat or go back 1 times" in problems
        live = self.watch(range(50))
        live.drop(JOINT_STATES.name)
        assert live.verdict()["problems"] == ["/joint_states: 1 messages were dropped, the disk is too slow"]

    def test_cameras_are_held_to_their_rate(self):
        live = LiveAudit([topic(color_topic(CAMERA))], (), image_rate_hz=30.0)
        for i in range(20):
            live.take(color_topic(CAMERA), 0, bytes(messages.encode_color(66_000_000 * i, FRAME, image_at(0)[0])))
        assert "15.2 Hz, expected at least 27.0" in live.problems()[0]

    def test_silence_is_told_by_the_clock_of_the_bag(self):
        live = self.watch(range(50))
        last = 10_000_000_000 + 49 * CONTROL_PERIOD_NS
        assert live.silent(last + 400_000_000) == ()
        assert live.silent(last + 600_000_000) == (JOINT_STATES.name,)


class TestDisk:
    def test_the_speed_is_that_of_bytes_that_were_written(self, tmp_path, monkeypatch):
        written = []
        fdatasync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda fd: (written.append(os.fstat(fd).st_size), fdatasync(fd)))
        speed = disk.write_speed(tmp_path / "new", 0.05)
        assert speed > 0
        assert written and written[0] > 0
        assert list((tmp_path / "new").iterdir()) == []
        (tmp_path / "file").touch()
        with pytest.raises(RecordError, match="cannot write to"):
            disk.write_speed(tmp_path / "file", 0.05)

    def test_a_shortage_is_a_plain_word(self, tmp_path):
        assert disk.shortage(tmp_path, 300e6, 244e6, 1.0, 512 << 20) is None
        assert disk.shortage(tmp_path, 150e6, 244e6, 0.6, 512 << 20) is None
        word = disk.shortage(tmp_path, 110e6, 244e6, 1.0, 536_000_000)
        assert word is not None
        assert "send 244 MB/s, and the disk" in word and "writes 110 MB/s" in word and "full after 4 s" in word

    def test_a_slow_disk_is_told_before_anything_is_recorded(self, make):
        recorder = make()
        recorder.disk_bytes_s = 10.0
        send(recorder, range(50))
        assert "messages will be dropped" in (recorder.look(0).warnings["disk"] or "")
        recorder.disk_bytes_s = 1e12
        assert recorder.look(0).warnings["disk"] is None


class TestRecorder:
    def test_metadata_say_what_when_by_whom_and_how_good(self, make, tmp_path):
        (tmp_path / "cameras.yaml").write_text("camera_node: {}\n")
        recorder = make(operator="Ada", calibration=(str(tmp_path / "cameras.yaml"),))
        send(recorder, range(10))  # before the episode
        bag = recorder.start(CONTROL_PERIOD_NS * 10)
        send(recorder, range(10, 110))
        assert recorder.stop("success") == bag
        assert audit(bag).ok, audit(bag).text()
        with Episode.open(bag) as episode:
            data = episode.metadata
            assert (data.task, data.seed, data.operator, data.outcome) == ("mug_on_plate", 7, "Ada", "success")
            assert data.software_version == software_version()
            assert data.software_version.startswith(clamp_ros.__version__)
            assert data.calibration["cameras.yaml"]["content"] == "camera_node: {}\n"
            assert len(data.calibration["cameras.yaml"]["sha256"]) == 64
            assert (data.audit["verdict"], data.audit["problems"]) == ("good", [])
            assert data.audit["topics"][JOINT_STATES.name]["count"] == 100
            assert len(episode.joint_states) == 100
            assert len(episode.stamps_ns(TF_STATIC.name)) == 1, "what was latched before belongs to it"

    def test_objects_that_are_not_our_own_are_told(self, make):
        recorder = make()
        bag = recorder.start(0)
        send(recorder, range(20))
        assets = {"folder": "/assets", "sha256": {"mug": "ab"}}
        state = json.dumps({"task": "mug_on_plate", "seed": 7, "assets": assets})
        recorder.take(TASK_STATE, CONTROL_PERIOD_NS * 20, bytes(messages.encode_string(state)))
        recorder.stop("success")
        with Episode.open(bag) as episode:
            assert episode.metadata.extra == {"assets": assets}

    def test_a_poor_episode_says_so_in_its_bag(self, make):
        recorder = make()
        bag = recorder.start(0)
        send(recorder, range(100), skip=lambda name, tick: name == color_topic(CAMERA) or tick == 30)
        recorder.stop("success")
        with Episode.open(bag) as episode:
            assert episode.metadata.audit["verdict"] == "poor"
            assert f"missing: {color_topic(CAMERA)}" in episode.metadata.audit["problems"]
        assert any("said while recording" in note for note in audit(bag).notes)

    def test_the_file_is_what_mcap_readers_and_foxglove_expect(self, make):
        recorder = make(compression="zstd")
        bag = recorder.start(0)
        send(recorder, range(50))
        recorder.stop("success")
        with (bag / f"{bag.name}_0.mcap").open("rb") as file:
            reader = make_reader(file)
            assert reader.get_header().profile == "ros2"
            summary = reader.get_summary()
            assert summary is not None and summary.statistics is not None
            assert {index.compression for index in summary.chunk_indexes} == {"zstd"}
            assert {c.message_encoding for c in summary.channels.values()} == {"cdr"}
            assert {s.encoding for s in summary.schemas.values()} == {"ros2msg"}
            times = [message.log_time for _, _, message in reader.iter_messages()]
            assert len(times) == summary.statistics.message_count
            assert times == sorted(times)
            assert {record.name for record in reader.iter_metadata()} == {"clamp_episode", "rosbag2"}

    def test_the_last_seconds_are_kept_and_recording_goes_on(self, make):
        recorder = make(keep_s=1.0)
        status = messages.typestore().types["diagnostic_msgs/msg/DiagnosticStatus"]
        told = messages.typestore().serialize_cdr(
            status(level=0, name="control", message="running", hardware_id="", values=[]), CONTROL_STATUS.type
        )
        recorder.take(CONTROL_STATUS, 0, bytes(told))
        send(recorder, range(200))
        kept = recorder.keep()
        bag = recorder.start(CONTROL_PERIOD_NS * 200)  # while the ring is being written
        send(recorder, range(200, 260))
        recorder.stop("failure")
        recorder.close()
        with Episode.open(kept) as episode, Reader(kept) as reader:
            stamps = episode.joint_states.stamps_ns
            assert np.array_equal(stamps, CONTROL_PERIOD_NS * np.arange(149, 200)), "a second up to the last message"
            assert len(episode.frames(CAMERA)) == 10
            assert len(episode.stamps_ns(TF_STATIC.name)) == len(episode.stamps_ns(CONTROL_STATUS.name)) == 1
            assert episode.metadata.outcome == "unknown"
            assert episode.metadata.extra["kept_s"] == pytest.approx(1.0)
            assert reader.message_count == episode.metadata.audit["topics"][JOINT_STATES.name]["count"] * 2 + 42
        with Episode.open(bag) as episode:
            assert len(episode.joint_states) == 60
        assert recorder.episodes == 2

    def test_what_cannot_be_kept_is_refused_with_a_reason(self, make):
        with pytest.raises(RecordError, match="keep_s"):
            make().keep()
        recorder = make(keep_s=1.0)
        with pytest.raises(RecordError, match="no message has come"):
            recorder.keep()
        bag = recorder.start(0)
        with pytest.raises(RecordError, match=f"{bag.name} is being recorded"):
            recorder.keep()

    def test_a_ring_is_bounded_by_memory_too(self, make):
        recorder = make(keep_s=100.0, keep_mb=16)
        image = bytes(messages.encode_color(0, FRAME, np.zeros((480, 848, 3), np.uint8)))
        for tick in range(60):
            recorder.take(topic(color_topic(CAMERA)), CONTROL_PERIOD_NS * tick, image)
        gauges = recorder.look(0).gauges
        assert 14 < gauges["kept_mb"] <= 16
        assert gauges["kept_s"] == pytest.approx(12 * 0.02)

    def test_a_failing_disk_ends_the_episode_and_is_told_until_the_next(self, make, monkeypatch):
        recorder = make()
        bag = recorder.start(0)
        send(recorder, range(50))
        broken = threading.Event()

        def refuse(self, *message):
            broken.set()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(EpisodeWriter, "_write", refuse)
        with pytest.raises(RecordError, match="No space left on device"):
            for tick in range(50, 100_000):
                send(recorder, range(tick, tick + 1))
        assert broken.is_set()
        assert recorder.recording is None
        look = recorder.look(0)
        assert "clamp bag recover" in (look.warnings["recording"] or "")
        send(recorder, range(100_001, 100_010))  # and it goes on listening
        monkeypatch.undo()
        assert recorder.start(0) != bag
        assert recorder.look(0).warnings["recording"] is None

    def test_too_little_space_left_ends_the_episode_with_a_whole_bag(self, make, monkeypatch):
        recorder = make(min_free_gb=2.0)
        disk_usage = SimpleNamespace(free=3e9)
        monkeypatch.setattr(recording.shutil, "disk_usage", lambda path: disk_usage)
        bag = recorder.start(0)
        send(recorder, range(50))
        disk_usage.free = 1.5e9
        assert "min_free_gb reached" in (recorder.look(0).warnings["recording"] or "")
        with Episode.open(bag) as episode:
            assert episode.metadata.outcome == "interrupted"
        with pytest.raises(RecordError, match=r"1\.5 GB free"):
            recorder.start(0)

    def test_calibration_that_cannot_be_read_and_states_that_are_none_are_errors(self, make):
        with pytest.raises(RecordError, match=r"the calibration /nowhere\.yaml cannot be read"):
            make(calibration=("/nowhere.yaml",)).start(0)
        with pytest.raises(RecordError, match="is not a JSON object"):
            make().take(TASK_STATE, 0, bytes(messages.encode_string("[]x")))
        with pytest.raises(ConfigError, match="'rawest'"):
            make(images="rawest")


class TestView:
    def test_the_table_names_figures_and_troubles(self, make):
        recorder = make()
        recorder.start(0)
        send(recorder, range(100), skip=lambda name, tick: tick in (50, 51) and name == JOINT_STATES.name)
        text = table(recorder.look(CONTROL_PERIOD_NS * 200))
        assert "recording mug" not in text and "recording episode_" in text
        assert f"{JOINT_STATES.name} " in text
        assert "WARNING: no messages any more on" in text
        assert f"problem: {JOINT_STATES.name}: 2 of 100 messages never arrived" in text
        assert "nothing yet on /policy/action_chunk" in text

    def test_a_terminal_is_drawn_again_and_a_file_gets_a_line_when_something_changes(self, make):
        recorder = make()
        send(recorder, range(50))
        look = recorder.look(0)

        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        terminal, file = Terminal(), io.StringIO()
        for output in (terminal, file):
            view = View(output)
            for _ in range(3):
                view.show(look)
        lines = table(look).count("\n") + 1
        assert terminal.getvalue().count(f"\033[{lines}F\033[J") == 2
        assert file.getvalue().count("\n") == 1
