"""RealSense cameras as a ROS 2 lifecycle node: colour, aligned depth and intrinsics out, all of one stamp.

Configuring checks the settings, makes the topics and sends the cameras' poses; activating streams, each camera in a
thread of its own. Nothing is published but new frames: a camera that is unplugged or stuck falls silent and says so on
/diagnostics, and whoever needs its images holds.

The SDK holds Python's lock while it opens a camera, and everything in this process waits for it: about a second. One
process a camera keeps that to the camera itself. A call of the SDK that never returns ends the process, which bringup
then starts again.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher

from clamp_ros.camera import images
from clamp_ros.camera.realsense import CameraFrame, RealSense
from clamp_ros.camera.settings import CameraSettings
from clamp_ros.camera.streamer import Streamer
from clamp_ros.contract.config import check, param, unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import (
    CAMERAS,
    camera_info_topic,
    color_compressed_topic,
    color_topic,
    depth_compressed_topic,
    depth_metres_topic,
    depth_topic,
    optical_frame,
    topic,
)
from clamp_ros.ros.convert import camera_info_message, compressed_image_message, image_message
from clamp_ros.ros.lifecycle import ManagedNode
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, advertise, run_node
from clamp_ros.ros.tf import TfBroadcaster
from clamp_ros.ros.worker import NewestWorker

_COUNTERS = ("frames", "dropped", "frozen", "late")
_CLOSE_S = 3.0


@dataclass(frozen=True)
class CameraNodeConfig:
    """Parameters of the camera node; `cameras` says which of the four sections count."""

    cameras: tuple[str, ...] = param(CAMERAS, "cameras that this process serves")
    front_left: CameraSettings = field(default_factory=CameraSettings)
    back_right: CameraSettings = field(default_factory=CameraSettings)
    wrist_left: CameraSettings = field(default_factory=CameraSettings)
    wrist_right: CameraSettings = field(default_factory=CameraSettings)
    compressed: bool = param(False, "offer JPEG colour and PNG or RVL depth too")
    depth_compression: str = param("png", "of compressed depth: png is small, rvl quick", choices=("png", "rvl"))
    jpeg_quality: int = param(90, "of compressed colour", minimum=1, maximum=100)
    png_level: int = param(1, "of compressed depth: 1 is quick, 9 small", minimum=0, maximum=9)
    autostart: bool = param(True, "configure and activate by itself; false leaves that to a lifecycle manager")
    timeout_s: float = param(
        1.0, "a camera that sends nothing new for so long is opened again", unit="s", minimum=0.1, maximum=60.0
    )
    retry_s: float = param(1.0, "between two attempts to open a camera", unit="s", minimum=0.05, maximum=60.0)
    deadline_s: float = param(
        10.0, "a camera that is gone for so long is an error; attempts go on", unit="s", minimum=0.1, maximum=3600.0
    )
    start_s: float = param(
        3.0, "how much longer the first frame after opening may take", unit="s", minimum=0.0, maximum=60.0
    )
    sdk_deadline_s: float = param(
        30.0, "a call of the SDK that takes longer ends the process", unit="s", minimum=1.0, maximum=600.0
    )

    def __post_init__(self) -> None:
        check(self)
        for name in self.cameras:
            if name not in CAMERAS:
                raise unknown_key(name, CAMERAS, "camera")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras are {list(self.cameras)}, expected different ones of {', '.join(CAMERAS)}")
        serials: dict[str, str] = {}
        for name, settings in self.settings().items():
            other = serials.setdefault(settings.serial, name) if settings.serial else name
            if other != name:
                raise ConfigError(f"{name} and {other} both have serial {settings.serial!r}; it names one camera")

    def settings(self) -> dict[str, CameraSettings]:
        """Settings of the cameras that this process serves, by name."""
        return {name: getattr(self, name) for name in self.cameras}


class Output:
    """The topics of one camera. `publish` is called by the camera's thread, `close` by the node's."""

    def __init__(self, node: LifecycleNode, name: str, config: CameraNodeConfig) -> None:
        """Advertises."""
        self._node = node
        self._frame = optical_frame(name)
        self._config = config
        self._lock = threading.Lock()
        self._closed = False
        self._color = advertise(node, topic(color_topic(name)))
        self._depth = advertise(node, topic(depth_topic(name)))
        self._info = advertise(node, topic(camera_info_topic(name)))
        self._metres = advertise(node, topic(depth_metres_topic(name)))
        self._publishers: list[Publisher] = [self._color, self._depth, self._info, self._metres]
        self._packer: NewestWorker[tuple[CameraFrame, int, Any]] | None = None
        if config.compressed:
            self._jpeg = advertise(node, topic(color_compressed_topic(name)))
            self._packed_depth = advertise(node, topic(depth_compressed_topic(name)))
            self._publishers += [self._jpeg, self._packed_depth]
            self._packer = NewestWorker(self._pack)

    def publish(self, frame: CameraFrame, stamp: int) -> None:
        """Publishes a frame under a stamp of ROS time in ns."""
        depth_mm = frame.scale.millimetres(frame.raw_depth)
        with self._lock:
            if self._closed:
                return
            self._info.publish(camera_info_message(frame.pinhole, stamp, self._frame))
            self._color.publish(image_message(frame.color, "rgb8", stamp, self._frame))
            self._depth.publish(image_message(depth_mm, "16UC1", stamp, self._frame))
            if self._metres.get_subscription_count():
                metres = frame.scale.metres(frame.raw_depth)
                self._metres.publish(image_message(metres, "32FC1", stamp, self._frame))
        if self._packer is not None:
            self._packer.submit((frame, stamp, depth_mm))

    def _pack(self, job: tuple[CameraFrame, int, Any]) -> None:
        """Compresses for those who listen, in a thread of its own; a frame it has no time for is left out."""
        frame, stamp, depth_mm = job
        if self._listened_to(self._jpeg):
            data = images.jpeg(frame.color, self._config.jpeg_quality)
            self._send(self._jpeg, compressed_image_message(data, images.JPEG_FORMAT, stamp, self._frame))
        if self._listened_to(self._packed_depth):
            if self._config.depth_compression == "rvl":
                data, kind = images.rvl_depth(depth_mm), images.RVL_DEPTH_FORMAT
            else:
                data, kind = images.png_depth(depth_mm, self._config.png_level), images.PNG_DEPTH_FORMAT
            self._send(self._packed_depth, compressed_image_message(data, kind, stamp, self._frame))

    def _listened_to(self, publisher: Publisher) -> bool:
        with self._lock:
            return not self._closed and publisher.get_subscription_count() > 0

    def _send(self, publisher: Publisher, message: Any) -> None:
        with self._lock:
            if not self._closed:
                publisher.publish(message)

    @property
    def uncompressed(self) -> int:
        """How many frames there was no time to compress."""
        return self._packer.dropped if self._packer is not None else 0

    def close(self) -> None:
        """Ends the topics; nothing is published after this."""
        with self._lock:
            self._closed = True
        if self._packer is not None:
            self._packer.close()
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)


class CameraNode(ManagedNode):
    """Publishes cameras, each from a `Streamer`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("camera_node", **options)
        self._config = declare(self, CameraNodeConfig)
        self.health = Health(self)
        self._broadcaster = TfBroadcaster(self)
        self._cameras: dict[str, RealSense] = {}
        self._streamers: dict[str, Streamer] = {}
        self._outputs: dict[str, Output] = {}
        self.create_timer(1.0, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self._config.autostart:
            self.start_by_itself()

    def load(self) -> None:
        """Makes the cameras and their topics, and sends their poses; no camera is opened yet."""
        config = self._config
        if config.compressed and config.depth_compression == "rvl":
            images.rvl_depth(np.zeros((1, 1), np.uint16))  # compiled now, and not under the first frame
        for name, settings in config.settings().items():
            for counter in _COUNTERS:
                self.health.count(f"{name}.{counter}", 0)
            camera = RealSense(name, settings, self._reporter(name), Opening(config.sdk_deadline_s))
            self._cameras[name] = camera
            self._outputs[name] = Output(self, name, config)
            self._streamers[name] = Streamer(
                camera,
                self._receiver(name, self._outputs[name]),
                self._teller(camera),
                settle_s=config.start_s + settings.warmup_frames / settings.rate_hz,
                timeout_s=config.timeout_s,
                retry_s=config.retry_s,
                deadline_s=config.deadline_s,
            )
        self._send_poses()

    def _send_poses(self) -> None:
        poses = []
        for name, settings in self._config.settings().items():
            pose = settings.frame_from_camera()
            missing = f"{name} has no pose in config/cameras.yaml: calibrate it; its images cannot be fused"
            self.health.hold(f"{name}.pose", missing if pose is None else None)
            if pose is not None:
                poses.append((settings.frame, optical_frame(name), pose))
        self._broadcaster.send_static(poses, self.get_clock().now().nanoseconds)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins to stream."""
        for name, streamer in self._streamers.items():
            self.health.hold(name, f"{name} is being opened")
            streamer.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops streaming."""
        for name, streamer in self._streamers.items():
            streamer.stop()
            self.health.hold(name, None)
        return super().on_deactivate(state)

    def release(self) -> None:
        """Gives cameras and topics back."""
        self._release(0.0)

    def _release(self, timeout_s: float) -> None:
        for streamer in self._streamers.values():
            streamer.close()
        deadline_s = time.monotonic() + timeout_s
        for streamer in self._streamers.values():
            streamer.close(max(0.0, deadline_s - time.monotonic()))
        for name, output in self._outputs.items():
            output.close()
            self.health.hold(name, None)
        self._streamers, self._outputs, self._cameras = {}, {}, {}

    def close(self) -> None:
        """Stops the cameras, within a deadline; `run_node` calls it before the node is destroyed."""
        self._release(_CLOSE_S)

    # The cameras' threads.

    def _reporter(self, name: str) -> Callable[[str, str, int], None]:
        return lambda counter, message, amount: self.health.fault(f"{name}.{counter}", message, amount)

    def _receiver(self, name: str, output: Output) -> Callable[[CameraFrame], None]:
        def receive(frame: CameraFrame) -> None:
            now = time.monotonic_ns()
            stamp = frame.stamp_ns + self.get_clock().now().nanoseconds - now
            output.publish(frame, stamp)
            self.health.count(f"{name}.frames")
            self.health.sample(f"{name}.age_ms", 1e-6 * (now - frame.stamp_ns))

        return receive

    def _teller(self, camera: RealSense) -> Callable[[str | None, bool], None]:
        name = camera.name

        def tell(message: str | None, overdue: bool) -> None:
            self.health.hold(name, message, error=overdue)
            if message is not None:
                self.health.fault(f"{name}.failures", message)
                return
            device = camera.device
            self.get_logger().info(f"{name} streams: {device}")
            self.health.gauge(f"{name}.device", str(device))
            slow = f"{name} is on USB {device.usb}: plug it into a USB 3 port" if device and device.slow_link else None
            self.health.hold(f"{name}.usb", slow)

        return tell

    # The executor's thread.

    def _watch(self) -> None:
        """Reports rates, and ends the node where a camera's thread has ended."""
        for name, streamer in self._streamers.items():
            if streamer.failure is not None:
                raise streamer.failure
            self.health.gauge(f"{name}.opened", streamer.opened)
            self.health.gauge(f"{name}.unmatched", self._cameras[name].unmatched)
            if self._config.compressed:
                self.health.gauge(f"{name}.uncompressed", self._outputs[name].uncompressed)


class Opening:
    """Lets one camera at a time into the SDK, and ends the process if a call there outlasts a deadline.

    Several cameras at once get in each other's way on the USB. And a call that never returns holds Python's lock, so
    that no thread of Python's could end it; faulthandler's own can.
    """

    _lock = threading.Lock()

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s

    def __enter__(self) -> None:
        self._lock.acquire()
        faulthandler.dump_traceback_later(self._deadline_s, exit=True, file=sys.__stderr__ or sys.stderr)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._lock.release()


def main() -> int:
    """The executable `camera_node`."""
    return run_node(CameraNode)


if __name__ == "__main__":
    sys.exit(main())
