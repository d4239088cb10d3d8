"""Depth images, intrinsics and transforms in; the policy's views, and on demand the fused cloud, out.

A set of images of one instant passes three stages. The synchronizer gathers each camera's depth and camera_info by
stamp. The set then waits, for a bounded time, until the transforms of its stamps are there: a wrist camera's and a
gripper's pose is never that of another time. Fusion runs in a thread of its own and takes the newest set; older ones
are dropped and counted.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.logging import get_logger
from rclpy.node import Node

from clamp_ros.camera.sync import FrameSynchronizer
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import (
    ArtifactError,
    ClampError,
    ConfigError,
    ContractError,
    FutureExtrapolationError,
    TransformError,
    UnknownFrameError,
)
from clamp_ros.contract.interfaces import (
    CAMERAS,
    CLOUD,
    VIEWS,
    camera_info_topic,
    depth_topic,
    gripper_frame,
    optical_frame,
    topic,
)
from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.views import WORLD_FRAME, FusionConfig
from clamp_ros.fusion.cloud import DepthFrame
from clamp_ros.fusion.pipeline import Fusion
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.policy.artifact import Artifact, Manifest
from clamp_ros.ros.convert import array_from_image, cloud_message, image_message, pinhole_from_camera_info, stamp_ns
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, advertise, ahead_of_clock_s, on_time_jump_back, run_node, subscribe
from clamp_ros.ros.tf import TfListener
from clamp_ros.ros.worker import NewestWorker

SILENCE_S = 2.0
"""Without views for this long, the node reports a warning that lasts."""
_SLOW_START_S = 3.0
"""Kernels that were compiled before are loaded in less."""
_COMPILING = "compiling the kernels, once after they were installed or changed; no views for a minute or two"


@dataclass(frozen=True)
class FusionNodeConfig:
    """Parameters of the node. What shapes the views themselves is in the artifact's manifest."""

    artifact: str = param("", "folder of the policy artifact whose cameras and fusion settings hold; empty: defaults")
    cameras: tuple[str, ...] = param(("front_left", "back_right"), "physical cameras to fuse", choices=CAMERAS)
    match_tolerance_s: float = param(0.016, "stamps of one set differ by no more", unit="s", minimum=0.0, maximum=1.0)
    match_timeout_s: float = param(0.5, "how long a set waits for its last image", unit="s", minimum=0.01, maximum=10.0)
    tf_timeout_s: float = param(0.5, "how long a set waits for its transforms", unit="s", minimum=0.01, maximum=10.0)

    def __post_init__(self) -> None:
        check(self)
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras are {list(self.cameras)}, expected one or more, each once")


@dataclass(frozen=True, eq=False)
class _Image:
    """One camera's part of a set, before its pose is known."""

    stamp_ns: int
    depth_mm: NDArray[np.uint16]
    pinhole: Pinhole


@dataclass(frozen=True, eq=False)
class _Set:
    """Images of one instant, stamped with the oldest one's stamp; it was complete at `matched_ns` of ROS time."""

    stamp_ns: int
    images: Mapping[str, _Image]
    matched_ns: int
    matched_s: float


@dataclass(frozen=True, eq=False)
class _PosedSet:
    """A set with the poses it is fused with. `epoch` counts the times that time jumped back before it."""

    epoch: int
    stamp_ns: int
    frames: list[DepthFrame]
    world_from_grippers: Mapping[str, NDArray[np.float64]]


class FusionNode(Node):
    """See the module."""

    MAX_WAITING = 8

    def __init__(self, **options: Any) -> None:
        super().__init__("fusion_node", **options)
        self._config = config = declare(self, FusionNodeConfig)
        self._manifest = _manifest(config)
        self._fusion = Fusion(FusionConfig() if self._manifest is None else self._manifest.fusion)
        self._health = Health(self)
        names = [name for camera in config.cameras for name in (depth_topic(camera), camera_info_topic(camera))]
        self._sync: FrameSynchronizer[Any] = FrameSynchronizer(
            names, round(config.match_tolerance_s * 1e9), round(config.match_timeout_s * 1e9)
        )
        self._reported = {**self._sync.missed}, {**self._sync.late}
        self._waiting: list[_Set] = []
        self._pinholes: dict[str, Pinhole] = {}
        self._superseded = 0
        self._epoch = 0
        self._published_s = time.monotonic()
        self._views_publisher = advertise(self, VIEWS)
        self._cloud_publisher = advertise(self, CLOUD)
        self._worker: NewestWorker[_PosedSet] = NewestWorker(self._fuse, start=self._warm_up)
        self._tf = TfListener(self, self._health, on_update=self._submit_posed)
        self._jump = on_time_jump_back(self, self._start_over)
        for name in names:
            subscribe(self, topic(name), partial(self._on_message, name))
        self.create_timer(0.1, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def close(self) -> None:
        """Ends the fusion thread."""
        self._worker.close()

    def _warm_up(self) -> None:
        start = time.monotonic()
        self._fusion.warm_up()
        self._published_s = time.monotonic()
        self.get_logger().info(
            f"fusing {', '.join(self._config.cameras)}; kernels ready after {self._published_s - start:.1f} s"
        )

    def _now_ns(self) -> int:
        """ROS time: where simulated time is slow, so is the patience with what is missing."""
        return self.get_clock().now().nanoseconds

    def _on_message(self, name: str, message: Any) -> None:
        stamp = stamp_ns(message.header.stamp)
        ahead_s = ahead_of_clock_s(self, stamp)
        if ahead_s:
            self._health.fault("from_the_future", f"a message on {name} is {ahead_s:.2f} s ahead of the clock")
            return
        matched = self._sync.add(name, stamp, message, self._now_ns())
        self._report_unmatched()
        if matched is None:
            return
        try:
            images = {camera: self._read(camera, matched) for camera in self._config.cameras}
        except ClampError as error:
            self._health.fault("refused", str(error))
            return
        if len(self._waiting) == self.MAX_WAITING:
            del self._waiting[0]
            self._superseded += 1
        oldest_ns = min(image.stamp_ns for image in images.values())
        self._waiting.append(_Set(oldest_ns, images, self._now_ns(), time.monotonic()))
        self._submit_posed()

    def _read(self, camera: str, matched: Mapping[str, Any]) -> _Image:
        message = matched[depth_topic(camera)]
        if message.header.frame_id != optical_frame(camera):
            raise ContractError(
                f"depth of {camera} has frame_id {message.header.frame_id!r}, expected {optical_frame(camera)!r}"
            )
        pinhole = pinhole_from_camera_info(matched[camera_info_topic(camera)], f"camera_info of {camera}")
        depth_mm = array_from_image(message, "16UC1", f"depth of {camera}")
        if depth_mm.shape != (pinhole.height, pinhole.width):
            raise ContractError(
                f"depth of {camera} is {depth_mm.shape[1]}x{depth_mm.shape[0]}, but its camera_info says "
                f"{pinhole.width}x{pinhole.height}"
            )
        if self._manifest is not None:
            self._manifest.check_camera(camera, pinhole)
        if pinhole != self._pinholes.get(camera):
            if camera in self._pinholes:
                self._health.fault("intrinsics_changed", f"{camera} changed from {self._pinholes[camera]} to {pinhole}")
            self._pinholes[camera] = pinhole
        return _Image(stamp_ns(message.header.stamp), depth_mm, pinhole)

    def _submit_posed(self) -> None:
        """Hands the newest set whose transforms are there to the fusion thread, and gives up those too long without."""
        for i in reversed(range(len(self._waiting))):
            try:
                posed = self._pose(self._waiting[i])
            except (FutureExtrapolationError, UnknownFrameError) as error:
                waited_s = 1e-9 * (self._now_ns() - self._waiting[i].matched_ns)
                if waited_s > self._config.tf_timeout_s:
                    del self._waiting[i]
                    self._health.fault("no_transform", f"no views of images that waited {waited_s:.1f} s: {error}")
            except TransformError as error:
                del self._waiting[i]
                self._health.fault("no_transform", f"no views: {error}")
            else:
                self._health.sample("tf_wait_ms", 1e3 * (time.monotonic() - self._waiting[i].matched_s))
                self._superseded += i
                del self._waiting[: i + 1]
                self._worker.submit(posed)
                return

    def _pose(self, images: _Set) -> _PosedSet:
        tree = self._tf.tree
        # first what moves, since it is what comes too late: this is tried with every transform that comes
        grippers = {arm: tree.lookup(WORLD_FRAME, gripper_frame(arm), images.stamp_ns) for arm in ARMS}
        frames = [
            DepthFrame(image.depth_mm, image.pinhole, tree.lookup(WORLD_FRAME, optical_frame(camera), image.stamp_ns))
            for camera, image in images.images.items()
        ]
        return _PosedSet(self._epoch, images.stamp_ns, frames, grippers)

    def _fuse(self, posed: _PosedSet) -> None:
        """In the worker's thread: one set to views, published."""
        start = time.monotonic()
        try:
            views, cloud = self._fusion.views_and_cloud(posed.frames, posed.world_from_grippers)
        except ContractError as error:
            self._health.fault("refused", str(error))
            return
        fused = time.monotonic()
        if posed.epoch != self._epoch:
            return
        if not len(cloud):  # to the policy, no points would look like an empty table
            cameras = ", ".join(self._config.cameras)
            self._health.fault("empty_cloud", f"{cameras} see nothing within the workspace; are they covered?")
            return
        self._views_publisher.publish(image_message(views, "32FC4", posed.stamp_ns, WORLD_FRAME))
        if self._cloud_publisher.get_subscription_count() > 0:
            self._cloud_publisher.publish(cloud_message(cloud, posed.stamp_ns, WORLD_FRAME))
        self._published_s = time.monotonic()
        self._health.count("views")
        self._health.gauge("points", float(len(cloud)))
        self._health.sample("fuse_ms", 1e3 * (fused - start))
        self._health.sample("publish_ms", 1e3 * (self._published_s - fused))
        self._health.sample("age_ms", 1e-6 * (self._now_ns() - posed.stamp_ns))

    def _on_timer(self) -> None:
        self._worker.check()
        self._sync.expire(self._now_ns())
        self._report_unmatched()
        self._submit_posed()
        self._health.gauge("dropped", self._worker.dropped + self._superseded)
        silent_s = time.monotonic() - self._published_s
        self._health.hold("silent", f"no views for {silent_s:.0f} s" if silent_s > SILENCE_S else None)

    def _report_unmatched(self) -> None:
        missed, late = self._reported
        for name, count in self._sync.missed.items():
            if count > missed[name]:
                self._health.fault(f"missed {name}", f"nothing came on {name} for images of others",
                                   count - missed[name])
                missed[name] = count
        for name, count in self._sync.late.items():
            if count > late[name]:
                self._health.fault(f"late {name}", f"a message on {name} came late, or its stamp stands still",
                                   count - late[name])
                late[name] = count

    def _start_over(self) -> None:
        self._epoch += 1
        self._sync.reset()
        self._waiting.clear()


def _manifest(config: FusionNodeConfig) -> Manifest | None:
    if not config.artifact:
        return None
    manifest = Artifact.load(config.artifact).manifest
    if set(manifest.cameras) != set(config.cameras):
        raise ArtifactError(
            f"the artifact {manifest.name!r} was trained on the cameras {sorted(manifest.cameras)}, but the parameter "
            f"cameras is {sorted(config.cameras)}; fuse the cameras of the artifact"
        )
    return manifest


def _make() -> FusionNode:
    # Before there is a node: while messages arrive, compiling takes several times as long, and they are lost anyway.
    telling = threading.Timer(_SLOW_START_S, lambda: get_logger("fusion_node").warning(_COMPILING))
    telling.start()
    try:
        Fusion(FusionConfig()).warm_up()
    finally:
        telling.cancel()
    return FusionNode()


def main() -> int:
    """Runs the node."""
    return run_node(_make)


if __name__ == "__main__":
    sys.exit(main())
