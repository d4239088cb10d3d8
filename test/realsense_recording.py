"""Recordings of an emulated RealSense, made by the SDK's own recorder, for the production pipeline to play.

The SDK's software_device takes the camera's place; it does not show up in a context, but its recording plays like any.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyrealsense2 as rs

SERIAL = "128422271521"
PERIOD_S = 1.0 / 30.0


@dataclass(frozen=True)
class Lens:
    """Intrinsics of one stream."""

    width: int
    height: int
    f: float
    cx: float
    cy: float
    model: Any = rs.distortion.none
    coefficients: tuple[float, ...] = (0.0,) * 5

    def intrinsics(self) -> Any:
        made = rs.intrinsics()
        made.width, made.height, made.fx, made.fy = self.width, self.height, self.f, self.f
        made.ppx, made.ppy, made.model, made.coeffs = self.cx, self.cy, self.model, list(self.coefficients)
        return made


COLOR = Lens(96, 64, 60.0, 47.25, 31.75)
DEPTH = Lens(160, 120, 100.0, 79.5, 59.5)


@dataclass(frozen=True)
class Shot:
    """What the device sends at one instant: frame number, stamp in ms of its own clock, and the two images."""

    number: int
    stamp_ms: float
    color: np.ndarray
    depth: np.ndarray


def shots(
    numbers: Sequence[int], depth_m: float = 0.5, unit_m: float = 0.0001, color: Lens = COLOR, depth: Lens = DEPTH
) -> list[Shot]:
    """A flat wall at `depth_m`, whose colour tells the frame number, at 30 Hz of device time."""
    raw = round(depth_m / unit_m)
    return [
        Shot(
            n, 1000.0 + 1000.0 * PERIOD_S * n,
            np.full((color.height, color.width, 3), (n, 2 * n, 200), np.uint8),
            np.full((depth.height, depth.width), raw, np.uint16),
        )
        for n in numbers
    ]  # fmt: skip


def record(
    path: Path,
    taken: Sequence[Shot],
    *,
    unit_m: float = 0.0001,
    color: Lens = COLOR,
    depth: Lens = DEPTH,
    color_at_m: Sequence[float] = (0.0, 0.0, 0.0),
    name: str = "Intel RealSense D405",
    usb: str = "3.2",
    pauses_s: Sequence[float] | None = None,
    domain: Any = rs.timestamp_domain.hardware_clock,
) -> Path:
    """Records shots, one every 33 ms unless `pauses_s` says otherwise; playback keeps that pace."""
    device = rs.software_device()
    for key, value in (
        (rs.camera_info.name, name),
        (rs.camera_info.serial_number, SERIAL),
        (rs.camera_info.firmware_version, "5.15.1"),
        (rs.camera_info.usb_type_descriptor, usb),
    ):
        device.register_info(key, value)
    stereo, rgb = device.add_sensor("Stereo Module"), device.add_sensor("RGB Camera")
    stereo.add_read_only_option(rs.option.depth_units, unit_m)
    depth_profile = stereo.add_video_stream(_stream(rs.stream.depth, 1, rs.format.z16, 2, depth))
    color_profile = rgb.add_video_stream(_stream(rs.stream.color, 2, rs.format.rgb8, 3, color))
    motion = rs.extrinsics()
    motion.rotation, motion.translation = np.eye(3).ravel().tolist(), list(color_at_m)
    depth_profile.register_extrinsics_to(color_profile, motion)
    recorder = rs.recorder(str(path), device)
    sensors = recorder.query_sensors()
    for sensor in sensors:
        sensor.open(sensor.get_stream_profiles()[0])
        sensor.start(lambda frame: None)
    due_s = time.monotonic()
    for i, shot in enumerate(taken):
        rgb.on_video_frame(_frame(shot.color, shot, color_profile, domain))
        stereo.on_video_frame(_frame(shot.depth, shot, depth_profile, domain, unit_m))
        due_s += PERIOD_S if pauses_s is None else pauses_s[i]
        while (left_s := due_s - time.monotonic()) > 0.0:
            time.sleep(left_s)
    for sensor in sensors:
        sensor.stop()
        sensor.close()
    recorder.pause()
    return path


def _stream(kind: Any, uid: int, fmt: Any, bpp: int, lens: Lens) -> Any:
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid, stream.fmt, stream.bpp = kind, 0, uid, fmt, bpp
    stream.width, stream.height, stream.fps, stream.intrinsics = lens.width, lens.height, 30, lens.intrinsics()
    return stream


def _frame(image: np.ndarray, shot: Shot, profile: Any, domain: Any, unit_m: float | None = None) -> Any:
    frame = rs.software_video_frame()
    frame.pixels = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
    frame.bpp = image.itemsize * (image.shape[2] if image.ndim == 3 else 1)
    frame.stride = frame.bpp * image.shape[1]
    frame.timestamp, frame.domain, frame.frame_number = shot.stamp_ms, domain, shot.number
    frame.profile = profile.as_video_stream_profile()
    if unit_m is not None:
        frame.depth_units = unit_m
    return frame
