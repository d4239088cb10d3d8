"""One Intel RealSense camera, D405 or any D4xx, over the unpatched SDK: where images enter the stack.

`RealSense` opens a camera by its serial number and gives out frames: colour, and depth aligned to it, both as a
pinhole camera would see them, in true units, stamped by the host's clock. A recording of the SDK takes a camera's
place, played through the same pipeline. Who keeps a camera open through unplugging is `streamer.Streamer`.

The SDK holds Python's lock while it enumerates, starts and stops (not while it waits): the longest of these is about a
second. `opening` is where a caller bounds it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clamp_ros.camera.device import Device, apply_options, describe, make_filters, sdk
from clamp_ros.camera.images import DepthScale, Rectification
from clamp_ros.camera.settings import CameraSettings
from clamp_ros.camera.stamps import DeviceClock, FrameWatch
from clamp_ros.contract.errors import CameraError, ConfigError, ContractError
from clamp_ros.geometry.pinhole import Pinhole


@dataclass(frozen=True, eq=False)
class CameraFrame:
    """One frame.

    Attributes:
        stamp_ns: when it was taken, by the host's monotonic clock (`time.monotonic_ns`).
        color: (H, W, 3) uint8 RGB, without distortion.
        raw_depth: (H, W) uint16 in the device's units, aligned to color.
        scale: from those units.
        pinhole: intrinsics of both.
    """

    stamp_ns: int
    color: NDArray[np.uint8]
    raw_depth: NDArray[np.uint16]
    scale: DepthScale
    pinhole: Pinhole


class RealSense:
    """One camera. `open`, then `read` from one thread, then `close`; it may be opened again.

    Attributes:
        device: what it is, once opened.
        unmatched: pairs of colour and depth that the SDK gave out though they were not of one instant; skipped.
    """

    def __init__(
        self,
        name: str,
        settings: CameraSettings,
        report: Callable[[str, str, int], None],
        opening: AbstractContextManager[Any] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Nothing is opened yet.

        Args:
            name: the camera's name, for messages.
            settings: which device, and how it is set.
            report: told (counter, message, amount) of frames that were dropped, frozen or late.
            opening: entered around each call of the SDK that may take long, so that one camera at a time does so.
            clock: the host's clock, in ns, by which a frame's arrival is known.

        Raises:
            ConfigError: there is neither a serial number nor a recording, or no SDK.
        """
        if not settings.serial and not settings.recording:
            raise ConfigError(
                f"{name}.serial is missing; give the number that `python -m clamp_ros.camera.device` shows, in quotes, "
                "in config/cameras.yaml, or leave the camera out of `cameras`"
            )
        self.name = name
        self.device: Device | None = None
        self.unmatched = 0
        self._settings = settings
        self._report = report
        self._opening = opening or nullcontext()
        self._clock_ns = clock
        self._rs = sdk()
        self._pipeline: Any = None
        self._stamp_ns = 0

    def open(self) -> None:
        """Finds, starts and sets the camera; `close` it even if this fails.

        Raises:
            CameraError: it is absent, in use, or fails; it may be tried again.
            ConfigError: it cannot do what the settings ask for.
        """
        rs, settings = self._rs, self._settings
        try:
            with self._opening:
                config, context = rs.config(), rs.context()
                self._check_offer(self._find(context))
                if settings.recording:
                    config.enable_device_from_file(settings.recording, False)
                else:
                    config.enable_device(settings.serial)
                config.enable_stream(rs.stream.depth, *settings.depth_size, rs.format.z16, settings.rate_hz)
                config.enable_stream(rs.stream.color, settings.width, settings.height, rs.format.rgb8, settings.rate_hz)
                pipeline = rs.pipeline(context)
                # Of a device that is gone again, `start` waits 15 s for it, and no other thread of this process runs.
                if not settings.recording and not config.can_resolve(rs.pipeline_wrapper(pipeline)):
                    raise CameraError(f"{self.name} was found, and is gone again; check cable and hub")
                profile = pipeline.start(config)
                self._pipeline = pipeline
                if not settings.recording:
                    # Not before: the device found is another object than the pipeline's, and some options are the
                    # object's own.
                    apply_options(profile.get_device(), settings, self.name)
            self._begin(profile)
        except RuntimeError as error:  # all that the SDK raises
            raise CameraError(f"{self.name} cannot be started: {error}") from None

    def read(self, wait_s: float) -> CameraFrame | None:
        """The next new frame; None if none comes within `wait_s`, or what came is not to be used.

        Raises:
            CameraError: the camera is gone, or sends what cannot be understood.
        """
        if self._pipeline is None:
            raise CameraError(f"{self.name} is not open")
        try:
            ok, frames = self._pipeline.try_wait_for_frames(max(1, round(1000 * wait_s)))
            return self._take(frames, self._clock_ns()) if ok else None
        except RuntimeError as error:
            raise CameraError(f"{self.name} has failed: {error}") from None

    def close(self) -> None:
        """Stops the camera, if it is open."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            with self._opening:
                try:
                    pipeline.stop()
                except RuntimeError:  # it is gone already
                    return

    def _find(self, context: Any) -> Any:
        rs, settings = self._rs, self._settings
        if settings.recording:
            if not Path(settings.recording).is_file():
                raise ConfigError(f"{self.name}.recording: there is no file {settings.recording!r}")
            try:
                return rs.context().load_device(settings.recording)  # of its own: a context plays a file once
            except RuntimeError as error:
                raise ConfigError(f"{self.name}.recording {settings.recording!r} cannot be played: {error}") from None
        devices = list(context.query_devices())
        seen = [describe(device) for device in devices]
        for device, description in zip(devices, seen, strict=True):
            if description.serial == settings.serial:
                return device
        raise CameraError(
            f"{self.name}: no RealSense with serial {settings.serial}; connected: "
            f"{'; '.join(map(str, seen)) or 'none'}. Check cable and udev rules"
        )

    def _check_offer(self, device: Any) -> None:
        rs, settings = self._rs, self._settings
        profiles = [p for sensor in device.query_sensors() for p in sensor.get_stream_profiles()]
        self.device = describe(device)
        for what, stream, fmt, size in (
            ("colour", rs.stream.color, rs.format.rgb8, (settings.width, settings.height)),
            ("depth", rs.stream.depth, rs.format.z16, settings.depth_size),
        ):
            videos = [p.as_video_stream_profile() for p in profiles if p.stream_type() == stream and p.format() == fmt]
            offered = {(v.width(), v.height(), v.fps()) for v in videos}
            if (*size, settings.rate_hz) not in offered:
                listed = ", ".join(f"{w}x{h} at {r} Hz" for w, h, r in sorted(offered, reverse=True)) or "nothing"
                raise ConfigError(
                    f"{self.name}: {what} {size[0]}x{size[1]} at {settings.rate_hz} Hz is not possible with "
                    f"{self.device}; it offers {listed}"
                )

    def _begin(self, profile: Any) -> None:
        rs, settings = self._rs, self._settings
        color = profile.get_stream(rs.stream.color).as_video_stream_profile()
        depth = profile.get_stream(rs.stream.depth).as_video_stream_profile()
        intrinsics = color.get_intrinsics()
        self._pinhole = pinhole = _pinhole(intrinsics)
        self._rectification = Rectification(pinhole, intrinsics.model.name, list(intrinsics.coeffs))
        self._filters = make_filters(settings)
        aligned = "decimation" not in settings.filters and _same_view(depth, color)
        self._align = None if aligned else rs.align(rs.stream.color)
        self._scale: DepthScale | None = None
        self._clock, self._color_watch, self._depth_watch = DeviceClock(), FrameWatch(), FrameWatch()
        self._warmup = settings.warmup_frames
        self._synchronised = (rs.timestamp_domain.global_time, rs.timestamp_domain.system_time)

    def _take(self, frames: Any, arrival_ns: int) -> CameraFrame | None:
        depth, color = frames.get_depth_frame(), frames.get_color_frame()
        if not depth or not color:
            return None
        depth_ns, color_ns = round(1e6 * depth.get_timestamp()), round(1e6 * color.get_timestamp())
        if abs(depth_ns - color_ns) > 5e8 / self._settings.rate_hz:  # half a period; the matching pair follows
            self.unmatched += 1
            return None
        lost = (
            self._depth_watch.lost_before(depth.get_frame_number(), depth_ns),
            self._color_watch.lost_before(color.get_frame_number(), color_ns),
        )
        if lost[0] is None or lost[1] is None:
            self._report("frozen", f"{self.name} sent a frame again; it is skipped", 1)
            return None
        synchronised = depth.get_frame_timestamp_domain() in self._synchronised
        if synchronised:  # to the clock that no one sets
            depth_ns += self._clock_ns() - time.time_ns()
        stamp_ns = self._clock.host_ns(depth_ns, arrival_ns, synchronised)
        if self._warmup > 0:
            self._warmup -= 1
            return None
        self._judge(max(lost[0], lost[1]))
        if stamp_ns <= self._stamp_ns:
            self._report("frozen", f"{self.name} sent a frame no newer than the last; it is skipped", 1)
            return None
        self._stamp_ns = stamp_ns
        return self._convert(frames, stamp_ns)

    def _judge(self, lost: int) -> None:
        if lost:
            self._report("dropped", f"{self.name} lost {lost} frame(s) between camera and host", lost)
        delay_s = 1e-9 * self._clock.delay_ns
        if delay_s > self._settings.late_s:
            self._report("late", f"a frame of {self.name} came {1000 * delay_s:.0f} ms late", 1)

    def _convert(self, frames: Any, stamp_ns: int) -> CameraFrame:
        for depth_filter in self._filters:
            frames = depth_filter.process(frames).as_frameset()
        if self._align is not None:
            frames = self._align.process(frames)
        depth, color = frames.get_depth_frame(), frames.get_color_frame()
        unit_m = depth.get_units()
        if self._scale is None or not math.isclose(unit_m, self._scale.unit_m, rel_tol=1e-5):
            self._scale = DepthScale(unit_m)
        # Copies: the SDK's buffers are few, and a frame that is held is a frame that cannot be filled again.
        rgb, raw = np.array(color.get_data()), np.array(depth.get_data())
        size = (self._pinhole.height, self._pinhole.width)
        if rgb.shape != (*size, 3) or raw.shape != size:
            raise CameraError(f"{self.name} sent colour {rgb.shape} and depth {raw.shape}, expected {size}")
        rgb, raw = self._rectification.color(rgb), self._rectification.depth(raw)
        return CameraFrame(stamp_ns, rgb, raw, self._scale, self._pinhole)


def _pinhole(intrinsics: Any) -> Pinhole:
    numbers = (intrinsics.fx, intrinsics.fy, intrinsics.ppx, intrinsics.ppy)
    try:
        return Pinhole(intrinsics.width, intrinsics.height, *numbers)
    except ContractError as error:
        raise CameraError(f"the camera's calibration is unusable: {error}") from None


def _same_view(depth: Any, color: Any) -> bool:
    """Whether depth is aligned to color as it comes: the same intrinsics, the same place."""
    a, b, motion = depth.get_intrinsics(), color.get_intrinsics(), depth.get_extrinsics_to(color)
    same = all(getattr(a, key) == getattr(b, key) for key in ("width", "height", "fx", "fy", "ppx", "ppy", "coeffs"))
    still = np.allclose(motion.rotation, np.eye(3).ravel(), atol=1e-6) and not np.any(motion.translation)
    return same and still
