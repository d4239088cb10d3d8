"""The RealSense SDK's devices: what they say of themselves, their options, their depth filters.

``python -m clamp_ros.camera.device`` lists those that are plugged in.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clamp_ros.camera.settings import AUTOMATIC, DEFAULT_GAIN, FILTERS, CameraSettings
from clamp_ros.contract.errors import ClampError, ConfigError

_ON_DISPARITY = ("spatial", "temporal")
_RGB_EXPOSURE_UNIT_US = 100
"""A D4xx's RGB module counts exposure as UVC does, its stereo module in microseconds (librealsense issue 8243)."""


@lru_cache(maxsize=1)
def sdk() -> Any:
    """The module pyrealsense2. A process of ROS must have imported rclpy before: the two share symbols.

    Raises:
        ConfigError: it is not installed, or lacks libusb.
    """
    try:
        import pyrealsense2
    except ImportError as error:
        raise ConfigError(
            f"the RealSense SDK cannot be loaded ({error}); run: pip install 'clamp_ros[hardware]' and "
            "sudo apt-get install -y libusb-1.0-0"
        ) from None
    return pyrealsense2


@dataclass(frozen=True)
class Device:
    """What a camera says of itself."""

    model: str
    serial: str
    firmware: str
    usb: str

    @property
    def slow_link(self) -> bool:
        """Whether it hangs on USB 2, which carries a quarter of what it has to send."""
        return self.usb.startswith(("1", "2"))

    def __str__(self) -> str:
        return f"{self.model}, serial {self.serial}, firmware {self.firmware}, USB {self.usb}"


def describe(device: Any) -> Device:
    """What a device of the SDK says of itself; a recording may lack some of it."""
    info = sdk().camera_info
    keys = (info.name, info.serial_number, info.firmware_version, info.usb_type_descriptor)
    return Device(*(device.get_info(key) if device.supports(key) else "unknown" for key in keys))


def apply_options(device: Any, settings: CameraSettings, name: str) -> None:
    """Sets preset, exposure, gain and white balance of a device.

    Raises:
        ConfigError: the device has no such option or preset, or not such a value.
        RuntimeError: the SDK failed.
    """
    option, stream = sdk().option, sdk().stream
    sensors = {}
    for sensor in device.query_sensors():
        for kind in {profile.stream_type() for profile in sensor.get_stream_profiles()}:
            sensors.setdefault(kind, sensor)
        if sensor.supports(option.global_time_enabled):  # lets the SDK ask the device for its time
            sensor.set_option(option.global_time_enabled, 1)
    stereo, color = sensors[stream.depth], sensors[stream.color]
    shared = stream.color in {profile.stream_type() for profile in stereo.get_stream_profiles()}
    if settings.preset:  # first: a preset sets exposures as well
        _set_preset(stereo, settings.preset, name)
    _set_exposure(stereo, "depth", settings.depth_exposure_us, settings.depth_gain, 1, name)
    if shared and settings.color_exposure_us != AUTOMATIC:
        raise ConfigError(
            f"{name}.color_exposure_us is {settings.color_exposure_us}, but colour and depth of this camera are one "
            "sensor; set depth_exposure_us"
        )
    if not shared:
        _set_exposure(
            color, "color", settings.color_exposure_us, settings.color_gain, _RGB_EXPOSURE_UNIT_US, name
        )
    if settings.white_balance_k != AUTOMATIC:
        _set(color, option.enable_auto_white_balance, 0, f"{name}.white_balance_k")
        _set(color, option.white_balance, settings.white_balance_k, f"{name}.white_balance_k")
    elif color.supports(option.enable_auto_white_balance):
        color.set_option(option.enable_auto_white_balance, 1)


def _set_exposure(sensor: Any, what: str, exposure_us: int, gain: int, unit_us: int, name: str) -> None:
    option = sdk().option
    if exposure_us == AUTOMATIC:
        if sensor.supports(option.enable_auto_exposure):
            sensor.set_option(option.enable_auto_exposure, 1)
        return
    key = f"{name}.{what}_exposure_us"
    if sensor.supports(option.enable_auto_exposure):
        sensor.set_option(option.enable_auto_exposure, 0)
    _set(sensor, option.exposure, exposure_us / unit_us, key, unit_us)
    if gain == DEFAULT_GAIN and sensor.supports(option.gain):
        gain = sensor.get_option_range(option.gain).default
    if gain != DEFAULT_GAIN:
        _set(sensor, option.gain, gain, f"{name}.{what}_gain")


def _set(sensor: Any, option: Any, value: float, key: str, unit: int = 1) -> None:
    if not sensor.supports(option):
        raise ConfigError(f"{key}: the camera's {sensor.name} has no option {option.name}")
    limits = sensor.get_option_range(option)
    if not limits.min <= value <= limits.max:
        raise ConfigError(
            f"{key} is {value * unit:g}, but the camera's {sensor.name} takes {limits.min * unit:g} to "
            f"{limits.max * unit:g}"
        )
    sensor.set_option(option, limits.min + round((value - limits.min) / limits.step) * limits.step)


def _set_preset(sensor: Any, preset: str, name: str) -> None:
    option = sdk().option.visual_preset
    if not sensor.supports(option):
        raise ConfigError(f"{name}.preset is {preset!r}, but this camera has no presets")
    limits = sensor.get_option_range(option)
    values = {}
    for value in range(round(limits.min), round(limits.max) + 1):
        if text := sensor.get_option_value_description(option, value):
            values[text.lower()] = (value, text)
    if preset.lower() not in values:
        known = ", ".join(text for _, text in values.values())
        raise ConfigError(f"{name}.preset is {preset!r}, but this camera knows {known}")
    sensor.set_option(option, values[preset.lower()][0])


def make_filters(settings: CameraSettings) -> list[Any]:
    """The SDK's filters of framesets, in order; those that smooth work on disparity, where stereo noise is even."""
    rs = sdk()
    filters: list[Any] = []
    for kind in FILTERS:
        if kind not in settings.filters:
            continue
        if kind == "threshold":
            made = rs.threshold_filter(settings.depth_min_m, settings.depth_max_m)
        else:
            made = getattr(rs, f"{kind}_filter")()
        if kind in _ON_DISPARITY:
            filters += [rs.disparity_transform(True), made, rs.disparity_transform(False)]
        else:
            filters.append(made)
    return filters


def connected() -> list[Device]:
    """The cameras that are plugged in.

    Raises:
        ConfigError: there is no SDK.
        RuntimeError: the SDK failed, say because a device may not be opened.
    """
    return [describe(device) for device in sdk().context().query_devices()]


def main() -> int:
    """Lists the cameras that are plugged in; 1 if there is none."""
    try:
        devices = connected()
    except (ClampError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for device in devices:
        print(f"{device}{': SLOW, plug it into a USB 3 port' if device.slow_link else ''}")
    if not devices:
        print("no RealSense camera is connected: check cables and udev rules", file=sys.stderr)
    return 0 if devices else 1


if __name__ == "__main__":
    sys.exit(main())
