"""Recordings of an emulated camera, played by the SDK through the production pipeline."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyrealsense2 as rs
import pytest
from realsense_recording import COLOR, DEPTH, SERIAL, Lens, record, shots

from clamp_ros.camera.realsense import CameraFrame, RealSense
from clamp_ros.camera.settings import CameraSettings
from clamp_ros.camera.streamer import Streamer
from clamp_ros.contract.errors import CameraError, ConfigError
from clamp_ros.geometry.pinhole import Pinhole

_ATTEMPTS = 10
_PLAYED_S = 10.0
_EMPTY = 10
"""Reads without a frame, of which those of the warm-up and of unmatched pairs are some, that say there is no more."""


def settings(recording: Path, **values: Any) -> CameraSettings:
    sizes = {"width": COLOR.width, "height": COLOR.height, "depth_width": DEPTH.width, "depth_height": DEPTH.height}
    return CameraSettings(**{"recording": str(recording), "warmup_frames": 0, **sizes, **values})


class Paced:
    """The SDK, but a pipeline's recording waits for its reader from the first frame on.

    Told so only once the pipeline has started, it would play at its own pace until then, and its beginning be missed.

    Attributes:
        first: number of the frame that was given out first, 0 before.
        arriving: and of that which was given out last.
    """

    def __init__(self) -> None:
        self.first = self.arriving = 0

    def pipeline(self, context: Any) -> Any:
        return _PacedPipeline(self, context)

    def __getattr__(self, name: str) -> Any:
        return getattr(rs, name)


class _PacedPipeline:
    def __init__(self, paced: Paced, context: Any) -> None:
        paced.first = paced.arriving = 0
        self._paced, self._sdks = paced, rs.pipeline(context)

    def start(self, config: Any) -> Any:
        profile = config.resolve(rs.pipeline_wrapper(self._sdks))
        profile.get_device().as_playback().set_real_time(False)
        return self._sdks.start(config)

    def try_wait_for_frames(self, timeout_ms: int) -> tuple[bool, Any]:
        ok, frames = self._sdks.try_wait_for_frames(timeout_ms)
        if ok and (depth := frames.get_depth_frame()):
            self._paced.arriving = depth.get_frame_number()
            self._paced.first = self._paced.first or self._paced.arriving
        return ok, frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sdks, name)


class Player:
    """A camera and what it reports."""

    def __init__(self, recording: Path, clock: Callable[[], int] = time.monotonic_ns, **values: Any) -> None:
        self.reports: Counter[str] = Counter()
        self.frames: list[CameraFrame] = []
        self.paced = Paced()
        self.attempts = 0
        self.camera = RealSense("wrist_left", settings(recording, **values), self._report, clock=clock)

    def _report(self, counter: str, message: str, amount: int) -> None:
        assert message
        self.reports[counter] += amount

    def play(self, real_time: bool = False) -> list[CameraFrame]:
        """Every frame, at the pace of the reader, for whom the SDK then waits, or at that of the recording.

        On a busy computer the SDK's player may hang, or miss the beginning all the same: it is then tried again. At the
        recording's own pace any two frames will do.
        """
        if not real_time:
            self.camera._rs = self.paced
        for _ in range(_ATTEMPTS):
            if self._play() and len(self.frames) > 1 and (real_time or self.paced.first <= 2):
                return self.frames
        pytest.fail(f"the SDK did not play the recording in {_ATTEMPTS} attempts")

    def _play(self) -> bool:
        """Plays it once; whether it came to its end."""
        self.attempts += 1
        self.reports.clear()
        self.frames.clear()
        self.camera.open()
        try:
            playback = self.camera._pipeline.get_active_profile().get_device().as_playback()
            deadline_s = time.monotonic() + _PLAYED_S
            while playback.current_status() == rs.playback_status.playing:
                if time.monotonic() > deadline_s:
                    return False
                self._read()
            empty = 0
            while empty < _EMPTY:  # the file is at its end, but not what the SDK holds of it
                empty = 0 if self._read() else empty + 1
        finally:
            self.camera.close()
        return True

    def _read(self) -> bool:
        frame = self.camera.read(0.05)
        if frame is None:
            return False
        assert frame.stamp_ns <= time.monotonic_ns(), "a stamp of the future"
        self.frames.append(frame)
        return True


def number(frame: CameraFrame) -> int:
    """The frame's number, which the fixture paints into its red."""
    return int(frame.color[COLOR.height // 2, COLOR.width // 2, 0])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of a wall at 0.5 m in the D405's tenths of a millimetre."""
    return record(tmp_path_factory.mktemp("plain") / "d405.db3", shots(range(1, 13)))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame 10 is sent three times; 12 and 13 are lost; 16 has the stamp of 15."""
    taken = shots([*range(1, 10), 10, 10, 10, 11, 14, 15, 16, 17, 18])
    taken[15] = replace(taken[15], stamp_ms=taken[14].stamp_ms)
    return record(tmp_path_factory.mktemp("faulty") / "d405.db3", taken)


def test_metres_in_are_millimetres_out(plain: Path):
    player = Player(plain)
    frames = player.play()
    assert len(frames) >= 4 and player.reports["frozen"] == 0
    for frame in frames:
        assert frame.scale.unit_m == 0.0001
        assert np.all(frame.raw_depth == 5000)
        assert np.all(frame.scale.millimetres(frame.raw_depth) == 500)
        assert np.all(frame.scale.metres(frame.raw_depth) == np.float32(0.5))
        assert frame.color.shape == (64, 96, 3) and frame.color.dtype == np.uint8
        assert np.all(frame.color == (number(frame), 2 * number(frame), 200))


def test_the_intrinsics_are_the_devices(plain: Path):
    frames = Player(plain).play()
    assert frames[0].pinhole == Pinhole(96, 64, 60.0, 60.0, 47.25, 31.75)


@pytest.mark.parametrize("domain", ["hardware_clock", "system_time", "global_time"])
def test_stamps_increase_and_none_is_of_the_future(tmp_path: Path, domain: str):
    path = record(tmp_path / "domain.db3", shots(range(1, 13)), domain=getattr(rs.timestamp_domain, domain))
    before_ns = time.monotonic_ns()
    stamps = [frame.stamp_ns for frame in Player(path).play(real_time=True)]
    assert stamps and stamps[0] > before_ns, "an old recording's stamps say nothing of now, whatever they claim to be"
    assert all(later > earlier for earlier, later in itertools.pairwise(stamps))


def test_a_camera_says_what_it_is(plain: Path):
    player = Player(plain)
    player.play()
    device = player.camera.device
    assert device is not None and not device.slow_link
    assert str(device) == f"Intel RealSense D405, serial {SERIAL}, firmware 5.15.1, USB 3.2"


def test_depth_is_seen_from_the_colour_camera(tmp_path: Path):
    # A step at the depth camera's axis, 0.5 m to the left of it and 1 m to the right. The colour camera's axis is
    # 50 mm to the left, so points move right by f * 0.05 / z = 6 and 3 pixels of 47.25: near depth ends in column 53.
    taken = shots(range(1, 9))
    for shot in taken:
        shot.depth[:, DEPTH.width // 2 :] = 10000
    path = record(tmp_path / "step.db3", taken, color_at_m=(0.05, 0.0, 0.0))
    frames = Player(path).play()
    assert frames
    for frame in frames:
        row = frame.scale.millimetres(frame.raw_depth)[COLOR.height // 2]
        assert np.all(row[8:53] == 500) and np.all(row[55:88] == 1000), "nearer depth hides the farther"


def test_repeated_frames_are_frozen_and_gaps_are_dropped(faulty: Path):
    player = Player(faulty)
    numbers = [number(frame) for frame in player.play()]
    assert len(set(numbers)) == len(numbers), "no frame is given out twice"
    assert 16 not in numbers, "its stamp is frozen"
    assert numbers == sorted(numbers) and {10, 11, 14, 15, 18} <= set(numbers)
    assert player.reports["frozen"] >= 3
    missing = set(range(numbers[0], 19)) - set(numbers)
    assert missing == {12, 13, 16} and player.reports["dropped"] == 3


def test_frames_that_come_late_are_given_out_and_counted(tmp_path: Path):
    path = record(tmp_path / "late.db3", shots(range(1, 15)))
    begun_ns = time.monotonic_ns() - 2 * _ATTEMPTS * 10**9

    def clock() -> int:
        """The frames arrive at 30 Hz as they are taken, but for the seventh to the tenth, 0.2 s later than that."""
        due = player.paced.arriving
        return begun_ns + player.attempts * 10**9 + due * 10**9 // 30 + (200_000_000 if 7 <= due <= 10 else 0)

    player = Player(path, clock, late_s=0.1)
    numbers = [number(frame) for frame in player.play()]
    assert player.reports["late"] == 4
    assert len(numbers) >= 12, "the late ones, too"


def test_warm_up_frames_are_not_given_out(plain: Path):
    assert number(Player(plain, warmup_frames=4).play()[0]) >= 5


def test_millimetre_devices_and_small_wire_sizes(tmp_path: Path):
    small = Lens(48, 32, 30.0, 23.5, 15.5)
    path = record(tmp_path / "d435.db3", shots(range(1, 9), 1.234, 0.001, COLOR, small), unit_m=0.001, depth=small)
    frames = Player(path, depth_width=48, depth_height=32).play()
    assert frames
    middle = frames[0].scale.millimetres(frames[0].raw_depth)[24:40, 40:56]
    assert np.all(middle == 1234)


def test_a_lens_that_distorts_is_straightened(tmp_path: Path):
    lens = replace(COLOR, model=rs.distortion.brown_conrady, coefficients=(-0.3, 0.1, 0.0, 0.0, 0.0))
    taken = shots(range(1, 9))
    for shot in taken:
        shot.color[:, :, 1] = np.arange(COLOR.width, dtype=np.uint8)
    frames = Player(record(tmp_path / "bent.db3", taken, color=lens)).play()
    assert frames
    x = (80 - COLOR.cx) / COLOR.f
    r2 = x * x + ((32 - COLOR.cy) / COLOR.f) ** 2
    expected = COLOR.cx + COLOR.f * x * (1 - 0.3 * r2 + 0.1 * r2 * r2)
    for frame in frames:
        assert frame.pinhole == Pinhole(96, 64, 60.0, 60.0, 47.25, 31.75)
        assert frame.color[32, 80, 1] == pytest.approx(expected, abs=1.0) and expected < 78.0
        assert np.all(frame.scale.millimetres(frame.raw_depth)[16:48, 24:72] == 500)


def test_a_lens_that_cannot_be_straightened_is_refused_and_the_camera_closed(tmp_path: Path):
    path = record(tmp_path / "fish.db3", shots([1, 2, 3]), color=replace(COLOR, model=rs.distortion.kannala_brandt4))
    camera = Player(path).camera
    with pytest.raises(CameraError, match="distortion model 'kannala_brandt4' is not supported"):
        camera.open()
    camera.close()
    with pytest.raises(CameraError, match="wrist_left is not open"):
        camera.read(0.1)


def test_filters_do_their_work(tmp_path: Path):
    taken = shots(range(1, 9))
    for shot in taken:
        shot.depth[:, :40] = 30000  # 3 m
        shot.depth[58:61, 78:81] = 0
    path = record(tmp_path / "holes.db3", taken)
    raw = Player(path).play()[-1].raw_depth
    assert raw[32, 10] == 30000 and np.any(raw[24:40, 40:56] == 0)
    far_cut = Player(path, filters=("threshold",), depth_max_m=2.0).play()[-1].raw_depth
    assert far_cut[32, 10] == 0 and np.any(far_cut[24:40, 40:56] == 0)
    filled = Player(path, filters=("hole_filling", "temporal", "spatial", "decimation")).play()[-1]
    millimetres = filled.scale.millimetres(filled.raw_depth)[24:40, 40:56]
    assert millimetres.min() >= 499 and millimetres.max() <= 501


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"width": 1920, "height": 1080}, r"wrist_left: colour 1920x1080 at 30 Hz is not possible with .*D405.* 96x64"),
        ({"rate_hz": 90}, r"colour 96x64 at 90 Hz is not possible with .*; it offers 96x64 at 30 Hz"),
        ({"depth_width": 640, "depth_height": 480}, "depth 640x480 at 30 Hz is not possible .* 160x120 at 30 Hz"),
    ],
)
def test_a_stream_that_the_camera_does_not_offer_is_refused_with_what_it_does(plain: Path, values: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        Player(plain, **values).camera.open()


def test_a_recording_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"wrist_left.recording: there is no file '.*none.db3'"):
        Player(tmp_path / "none.db3").camera.open()
    junk = tmp_path / "junk.db3"
    junk.write_bytes(b"no recording")
    with pytest.raises(ConfigError, match=r"wrist_left.recording '.*junk.db3' cannot be played"):
        Player(junk).camera.open()


def test_a_camera_that_is_not_there_may_come_yet():
    camera = RealSense("front_left", CameraSettings(serial="999"), lambda *_: None)
    with pytest.raises(CameraError, match=r"front_left: no RealSense with serial 999; connected: .*Check cable"):
        camera.open()
    with pytest.raises(CameraError, match="front_left is not open"):
        camera.read(0.1)
    camera.close()


def test_a_camera_that_goes_between_finding_and_starting_is_not_waited_for(monkeypatch):
    """By a start the SDK would wait for it, for 15 s, and let no other thread run."""
    camera = RealSense("front_left", CameraSettings(serial="999"), lambda *_: None)
    monkeypatch.setattr(camera, "_find", lambda _context: None)
    monkeypatch.setattr(camera, "_check_offer", lambda _device: None)
    with pytest.raises(CameraError, match="front_left was found, and is gone again"):
        camera.open()


def test_a_camera_without_a_serial_is_refused():
    with pytest.raises(ConfigError, match=r"front_left.serial is missing; give the number"):
        RealSense("front_left", CameraSettings(), lambda *_: None)


def test_a_camera_that_ends_is_opened_again_and_time_goes_on(plain: Path):
    frames: list[CameraFrame] = []
    states: list[str | None] = []
    player = Player(plain)
    streamer = Streamer(
        player.camera, frames.append, lambda message, _: states.append(message),
        settle_s=1.0, timeout_s=0.3, retry_s=0.01, deadline_s=10.0,
    )  # fmt: skip
    streamer.start()
    deadline_s = time.monotonic() + 30.0
    while states.count(None) < 3 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert streamer.close(10.0) and streamer.failure is None
    assert streamer.opened >= 3
    assert states.count(None) >= 3 and "wrist_left sent nothing new for 0.3 s: unplugged or stuck" in states
    assert all(later.stamp_ns > earlier.stamp_ns for earlier, later in itertools.pairwise(frames))


@pytest.fixture(autouse=True)
def _no_camera_is_plugged_in() -> Iterator[None]:
    """These tests are of recordings; a camera with a made-up serial would be a surprise."""
    assert SERIAL not in {d.get_info(rs.camera_info.serial_number) for d in rs.context().query_devices()}
    yield
