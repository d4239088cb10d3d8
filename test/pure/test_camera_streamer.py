"""The thread that keeps a camera open, with a camera whose faults are scripted."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clamp_ros.camera.streamer import Streamer
from clamp_ros.contract.errors import CameraError, ConfigError

FRAME: Any = object()
"""A streamer hands frames on without looking at them."""


class ScriptedCamera:
    """Does what the test puts into `acts`: a frame, an error to raise, or nothing for a read."""

    name = "wrist_left"

    def __init__(self) -> None:
        self.opens: list[Exception | None] = []
        self.acts: queue.Queue[Any] = queue.Queue()
        self.calls: list[str] = []
        self.reads = 0
        self.forever = False
        self.hang = threading.Event()

    def open(self) -> None:
        self.calls.append("open")
        fault = self.opens.pop(0) if self.opens else None
        if fault is not None:
            raise fault

    def read(self, wait_s: float) -> Any:
        self.reads += 1
        if self.forever:
            self.hang.wait(10.0)
        try:
            act = self.acts.get(timeout=min(wait_s, 0.01))
        except queue.Empty:
            return None
        if isinstance(act, Exception):
            raise act
        return act

    def close(self) -> None:
        self.calls.append("close")


class Rig:
    def __init__(self) -> None:
        self.camera = ScriptedCamera()
        self.frames: list[Any] = []
        self.states: list[tuple[str | None, bool]] = []
        self.streamer: Streamer | None = None

    def begin(self, **times: float) -> Streamer:
        values = {"settle_s": 0.0, "timeout_s": 0.2, "retry_s": 0.01, "deadline_s": 60.0, **times}
        self.streamer = Streamer(
            self.camera, self.frames.append, lambda message, overdue: self.states.append((message, overdue)), **values
        )
        self.streamer.start()
        return self.streamer

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < deadline, (self.states, self.camera.calls)
            time.sleep(0.002)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.camera.hang.set()
    if made.streamer is not None:
        assert made.streamer.close(10.0)


def test_frames_are_handed_on_and_the_state_is_told_once(rig: Rig):
    for _ in range(5):
        rig.camera.acts.put(FRAME)
    rig.begin()
    rig.until(lambda: len(rig.frames) == 5)
    assert rig.states == [(None, False)]


def test_nothing_is_opened_before_it_is_started():
    camera = ScriptedCamera()
    streamer = Streamer(camera, print, print, settle_s=0.0, timeout_s=0.2, retry_s=0.01, deadline_s=1.0)
    assert streamer.close(10.0) and camera.calls == []


def test_a_camera_that_falls_silent_is_opened_again(rig: Rig):
    rig.camera.acts.put(FRAME)
    rig.begin(timeout_s=0.05)
    rig.until(lambda: rig.camera.calls.count("open") == 3)
    assert rig.states[1] == ("wrist_left sent nothing new for 0.05 s: unplugged or stuck", False)
    rig.camera.acts.put(FRAME)
    rig.until(lambda: len(rig.frames) == 2)
    assert rig.states[-1] == (None, False)
    assert rig.camera.calls[:4] == ["open", "close", "open", "close"]


def test_a_camera_that_fails_is_closed_and_opened_again(rig: Rig):
    rig.camera.opens = [CameraError("no RealSense"), CameraError("busy"), None]
    rig.camera.acts.put(CameraError("wrist_left has failed: device disconnected"))
    streamer = rig.begin()
    rig.until(lambda: streamer.opened == 2)
    assert [message for message, _ in rig.states] == [
        "no RealSense", "busy", "wrist_left has failed: device disconnected",
    ]  # fmt: skip


def test_a_fault_that_lasts_becomes_an_error_and_attempts_go_on(rig: Rig):
    rig.camera.opens = [CameraError("gone")] * 10_000
    rig.begin(deadline_s=0.05)
    rig.until(lambda: any(overdue for _, overdue in rig.states))
    assert rig.states[0] == ("gone", False)
    first = next(i for i, (_, overdue) in enumerate(rig.states) if overdue)
    assert "no frame for" in str(rig.states[first][0])
    tried = len(rig.camera.calls)
    rig.until(lambda: len(rig.camera.calls) > tried + 4)


def test_settings_that_the_camera_cannot_meet_end_the_thread(rig: Rig):
    rig.camera.opens = [ConfigError("wrist_left: depth 1x1 is not possible")]
    streamer = rig.begin()
    rig.until(lambda: streamer.failure)
    assert isinstance(streamer.failure, ConfigError) and rig.camera.calls == ["open", "close"]


def test_settings_that_it_has_met_before_do_not(rig: Rig):
    rig.camera.opens = [None, ConfigError("not possible on USB 2.1")]
    rig.camera.acts.put(FRAME)
    rig.camera.acts.put(CameraError("gone"))
    rig.begin()
    rig.until(lambda: rig.camera.calls.count("open") == 3)
    assert ("not possible on USB 2.1", False) in rig.states and rig.streamer is not None
    assert rig.streamer.failure is None


def test_a_defect_ends_the_thread_and_is_kept_for_the_node(rig: Rig):
    rig.camera.acts.put(ZeroDivisionError("a defect"))
    streamer = rig.begin()
    rig.until(lambda: streamer.failure)
    assert isinstance(streamer.failure, ZeroDivisionError) and rig.camera.calls[-1] == "close"


def test_stopped_and_started_again(rig: Rig):
    streamer = rig.begin()
    rig.until(lambda: "open" in rig.camera.calls)
    streamer.stop()
    rig.until(lambda: rig.camera.calls[-1] == "close")
    rig.camera.acts.put(FRAME)
    streamer.start()
    rig.until(lambda: rig.frames)
    assert rig.states == [(None, False)], "a stop that was asked for is no fault"


def test_stopped_and_started_within_a_read_it_is_opened_anew(rig: Rig):
    rig.camera.acts.put(FRAME)
    streamer = rig.begin()
    rig.until(lambda: rig.frames)
    rig.camera.forever = True
    reads = rig.camera.reads
    rig.until(lambda: rig.camera.reads > reads)
    streamer.stop()
    streamer.start()
    streamer.start()
    rig.camera.forever = False
    rig.camera.acts.put(FRAME)
    rig.camera.hang.set()
    rig.camera.acts.put(FRAME)
    rig.until(lambda: rig.camera.calls == ["open", "close", "open"] and len(rig.states) == 2)
    assert rig.states == [(None, False), (None, False)], "who was told that it is being opened hears that it is open"


def test_nobody_waits_for_a_read_that_hangs(rig: Rig):
    rig.camera.forever = True
    streamer = rig.begin()
    rig.until(lambda: "open" in rig.camera.calls)
    streamer.stop()
    streamer.start()
    streamer.stop()
    assert streamer.close() is False
    rig.camera.hang.set()
    assert streamer.close(10.0)


def test_the_first_frame_may_take_longer(rig: Rig):
    rig.begin(settle_s=30.0, timeout_s=0.01)
    rig.until(lambda: rig.camera.reads > 5)  # each waits for 10 ms in vain
    rig.camera.acts.put(FRAME)
    rig.until(lambda: rig.frames)
    assert rig.camera.calls == ["open"]
    rig.until(lambda: rig.camera.calls.count("open") == 2)
