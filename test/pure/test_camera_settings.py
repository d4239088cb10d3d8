"""A camera's settings, and how they reach the options of an emulated device of the SDK."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyrealsense2 as rs
import pytest

from clamp_ros.camera import device as device_module
from clamp_ros.camera.device import apply_options, describe, make_filters
from clamp_ros.camera.settings import CameraSettings
from clamp_ros.contract.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"width": 0}, "width is 0, expected 16 to 4096 px"),
        ({"rate_hz": 0}, "rate_hz is 0"),
        ({"depth_width": 640}, "depth_width is 640, depth_height 0; give both or none"),
        ({"color_gain": 64}, "color_gain needs a fixed color_exposure_us"),
        ({"depth_gain": 16}, "depth_gain needs a fixed depth_exposure_us"),
        ({"depth_min_m": 2.0, "depth_max_m": 1.0}, "depth_min_m 2.0 must be less than depth_max_m 1.0"),
        ({"serial": "1", "recording": "a.db3"}, "exclude each other"),
        ({"filters": ("sharpen",)}, "filters is 'sharpen', expected one of 'decimation'"),
        ({"frame": "wrist"}, "frame is 'wrist', expected one of 'world', 'left/gripper', 'right/gripper'"),
        ({"position_m": (0.0, 0.0, 1.0)}, r"position_m is \[0.0, 0.0, 1.0\] and quat_xyzw \[\]; expected 3 and 4"),
        ({"position_m": (0.0, 0.0), "quat_xyzw": (0.0, 0.0, 0.0, 1.0)}, "expected 3 and 4"),
        ({"position_m": (0.0, 0.0, 1.0), "quat_xyzw": (0.0,) * 4}, "quat_xyzw: .*cannot be normalised"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        CameraSettings(**values)


def test_depth_is_as_large_as_colour_unless_told_otherwise():
    assert CameraSettings(width=640, height=360).depth_size == (640, 360)
    assert CameraSettings(depth_width=1280, depth_height=720).depth_size == (1280, 720)


def test_a_pose_is_a_pose_and_never_made_up():
    assert CameraSettings().frame_from_camera() is None
    pose = CameraSettings(position_m=(1.0, 2.0, 3.0), quat_xyzw=(0.0, 0.0, 2.0, 0.0)).frame_from_camera()
    assert pose == pytest.approx(np.array([[-1, 0, 0, 1], [0, -1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]))


class Emulated:
    """A device of the SDK with the options of a D435 (two sensors) or of a D405 (one)."""

    def __init__(self, separate: bool) -> None:
        self.device = rs.software_device()
        self.stereo = self.device.add_sensor("Stereo Module")
        self.color = self.device.add_sensor("RGB Camera") if separate else self.stereo
        self._stream(self.stereo, rs.stream.depth, rs.format.z16, 2, 1)
        self._stream(self.color, rs.stream.color, rs.format.rgb8, 3, 2)
        self._options(self.stereo, exposure=(1, 165000, 8500), gain=(16, 248, 16))
        self._option(self.stereo, rs.option.visual_preset, 0, 5, 0)
        if separate:
            self._options(self.color, exposure=(1, 10000, 166), gain=(0, 128, 64))
        self._option(self.color, rs.option.white_balance, 2800, 6500, 4600, 10)
        self._option(self.color, rs.option.enable_auto_white_balance, 0, 1, 0)

    @staticmethod
    def _stream(sensor: Any, kind: Any, fmt: Any, bpp: int, uid: int) -> None:
        stream = rs.video_stream()
        stream.type, stream.fmt, stream.bpp, stream.uid, stream.index = kind, fmt, bpp, uid, 0
        stream.width, stream.height, stream.fps, stream.intrinsics = 848, 480, 30, rs.intrinsics()
        sensor.add_video_stream(stream)

    def _options(self, sensor: Any, exposure: tuple[int, int, int], gain: tuple[int, int, int]) -> None:
        self._option(sensor, rs.option.enable_auto_exposure, 0, 1, 1)
        self._option(sensor, rs.option.exposure, *exposure)
        self._option(sensor, rs.option.gain, *gain)

    @staticmethod
    def _option(sensor: Any, option: Any, low: float, high: float, default: float, step: float = 1) -> None:
        limits = rs.option_range()
        limits.min, limits.max, limits.default, limits.step = low, high, default, step
        sensor.add_option(option, limits, True)
        sensor.set_option(option, default)

    def apply(self, **values: Any) -> None:
        apply_options(self.device, CameraSettings(serial="1", **values), "front_left")


def test_exposures_and_gains_reach_each_module_in_its_own_unit():
    camera = Emulated(separate=True)
    camera.apply(color_exposure_us=15600, color_gain=70, depth_exposure_us=7000, depth_gain=20, white_balance_k=4204)
    assert [s.get_option(rs.option.exposure) for s in (camera.color, camera.stereo)] == [156, 7000]
    assert [s.get_option(rs.option.gain) for s in (camera.color, camera.stereo)] == [70, 20]
    assert [s.get_option(rs.option.enable_auto_exposure) for s in (camera.color, camera.stereo)] == [0, 0]
    assert camera.color.get_option(rs.option.white_balance) == 4200, "its steps are of 10 K"
    assert camera.color.get_option(rs.option.enable_auto_white_balance) == 0


def test_what_is_not_fixed_is_automatic_and_gain_goes_back_to_its_default():
    camera = Emulated(separate=True)
    camera.apply(color_exposure_us=10000, color_gain=100, white_balance_k=5000)
    camera.apply(depth_exposure_us=9000)
    assert camera.color.get_option(rs.option.enable_auto_exposure) == 1
    assert camera.color.get_option(rs.option.enable_auto_white_balance) == 1
    camera.apply(color_exposure_us=10000)
    assert camera.color.get_option(rs.option.gain) == 64, "not the 100 of whoever set it before"


def test_the_one_sensor_of_a_d405_takes_the_depths_exposure():
    camera = Emulated(separate=False)
    camera.apply(depth_exposure_us=15000)
    assert camera.stereo.get_option(rs.option.exposure) == 15000
    with pytest.raises(ConfigError, match=r"front_left.color_exposure_us is 9000, but .* one sensor; set depth_expos"):
        camera.apply(color_exposure_us=9000)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"color_exposure_us": 2_000_000}, "color_exposure_us is 2e.06, but .*RGB Camera takes 100 to 1e.06"),
        ({"depth_exposure_us": 10, "depth_gain": 5}, "front_left.depth_gain is 5, but .* takes 16 to 248"),
        ({"white_balance_k": 9000}, "white_balance_k is 9000, but the camera's RGB Camera takes 2800 to 6500"),
        ({"preset": "Sharpest"}, "front_left.preset is 'Sharpest', but this camera knows"),
    ],
)
def test_what_the_device_does_not_take_is_refused_with_what_it_takes(values: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        Emulated(separate=True).apply(**values)


def test_a_device_without_an_option_says_so():
    bare = rs.software_device()
    for name, kind, fmt, bpp, uid in (
        ("Stereo Module", rs.stream.depth, rs.format.z16, 2, 1),
        ("RGB Camera", rs.stream.color, rs.format.rgb8, 3, 2),
    ):
        Emulated._stream(bare.add_sensor(name), kind, fmt, bpp, uid)
    apply_options(bare, CameraSettings(serial="1"), "wrist_left")
    with pytest.raises(ConfigError, match=r"wrist_left.depth_exposure_us: the camera's Stereo Module has no option"):
        apply_options(bare, CameraSettings(serial="1", depth_exposure_us=100), "wrist_left")
    with pytest.raises(ConfigError, match=r"wrist_left.preset is 'Default', but this camera has no presets"):
        apply_options(bare, CameraSettings(serial="1", preset="Default"), "wrist_left")


def test_filters_come_in_the_sdks_order_whatever_theirs():
    made = make_filters(CameraSettings(filters=("temporal", "threshold", "decimation")))
    kinds = [type(f).__name__ for f in made]
    assert kinds == ["decimation_filter", "threshold_filter", "disparity_transform", "temporal_filter",
                     "disparity_transform"]  # fmt: skip
    assert make_filters(CameraSettings()) == []


def test_a_device_that_says_little_is_described_all_the_same():
    device = rs.software_device()
    device.register_info(rs.camera_info.usb_type_descriptor, "2.1")
    assert describe(device).slow_link and "USB 2.1" in str(describe(device))


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    device_module.sdk.cache_clear()
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(ConfigError, match=r"pip install 'clamp_ros\[hardware\]' and sudo apt-get install -y libusb"):
        device_module.sdk()
    assert device_module.main() == 2 and "the RealSense SDK cannot be loaded" in capsys.readouterr().err


def test_the_list_of_cameras_is_empty_where_none_is_plugged_in(capsys: pytest.CaptureFixture[str]):
    found = len(rs.context().query_devices())
    assert device_module.main() == (0 if found else 1)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == found
    assert found or "no RealSense camera is connected" in printed.err
