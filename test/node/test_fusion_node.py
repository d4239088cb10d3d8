"""The fusion node between real publishers and subscribers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from tiny_artifact import TINY_CAMERA, build_tiny_artifact

from clamp_ros.contract.errors import ArtifactError, ConfigError
from clamp_ros.contract.interfaces import (
    CLOCK,
    CLOUD,
    DIAGNOSTICS,
    VIEWS,
    camera_info_topic,
    depth_topic,
    gripper_frame,
    optical_frame,
    topic,
)
from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.cloud import DepthFrame
from clamp_ros.fusion.fusion_node import FusionNode
from clamp_ros.fusion.pipeline import Fusion
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import look_at, make
from clamp_ros.policy.artifact import CameraSpec
from clamp_ros.ros.convert import array_from_image, camera_info_message, image_message, stamp_ns, time_message
from clamp_ros.ros.run import advertise, interface_type, subscribe
from clamp_ros.ros.tf import TfBroadcaster

CAMERAS = ("front_left", "back_right")
PINHOLE = Pinhole.from_fovy(64, 48, 0.7)
WORLD_FROM_CAMERA = {
    "front_left": look_at((-0.5, -0.3, 0.6), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
    "back_right": look_at((0.5, 0.3, 0.6), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
}
START_NS = 5_000_000_000
PERIOD_NS = 100_000_000
TOO_LONG_NS = 600_000_000
"""More than a set may wait, by the node's defaults."""


def depth_of(camera: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, CAMERAS.index(camera)])
    return rng.integers(600, 900, (PINHOLE.height, PINHOLE.width), dtype=np.uint16)


def world_from_grippers(stamp: int) -> dict[str, np.ndarray]:
    """Both grippers move along x, each its own way, so that a pose of another time shows."""
    t = stamp * 1e-9
    return {arm: make(translation=(sign * (0.1 + 0.01 * t), 0.0, 0.2)) for arm, sign in zip(ARMS, (-1, 1), strict=True)}


def expected_views(
    stamp: int, seed: int = 0, pinhole: Pinhole = PINHOLE, config: FusionConfig | None = None
) -> np.ndarray:
    frames = [DepthFrame(depth_of(camera, seed), pinhole, WORLD_FROM_CAMERA[camera]) for camera in CAMERAS]
    return Fusion(config or FusionConfig()).views(frames, world_from_grippers(stamp))


class Rig:
    """The node, the cameras and transforms that feed it, and what it publishes. Time stands where the test sets it."""

    def __init__(self, ros: Any, **parameters: Any) -> None:
        self.ros = ros
        overrides = [Parameter(name, value=value) for name, value in {"use_sim_time": True, **parameters}.items()]
        self.fusion = ros.add(FusionNode(parameter_overrides=overrides))
        self.feeder = ros.node("feeder")
        self.depth = {c: advertise(self.feeder, topic(depth_topic(c))) for c in CAMERAS}
        self.info = {c: advertise(self.feeder, topic(camera_info_topic(c))) for c in CAMERAS}
        self.tf = TfBroadcaster(self.feeder)
        self.clock = advertise(self.feeder, CLOCK)
        self.views: list[Any] = []
        self.status: dict[str, str] = {}
        self.level, self.message = b"", ""
        subscribe(self.feeder, VIEWS, self.views.append)
        subscribe(self.feeder, DIAGNOSTICS, self._on_diagnostics)
        publishers = [
            self.clock, *self.depth.values(), *self.info.values(), self.tf._publisher, self.tf._static_publisher,
        ]  # fmt: skip
        ros.spin_until(lambda: all(p.get_subscription_count() for p in publishers), what="the node to subscribe")
        ros.spin_until(lambda: self.feeder.count_publishers(VIEWS.name), what="the node to advertise")
        self.tf.send_static([("world", optical_frame(c), WORLD_FROM_CAMERA[c]) for c in CAMERAS], 0)

    def _on_diagnostics(self, array: Any) -> None:
        for status in array.status:
            self.status = {value.key: value.value for value in status.values}
            self.level, self.message = status.level, status.message

    def set_time(self, stamp: int) -> None:
        self.clock.publish(interface_type(CLOCK.type)(clock=time_message(stamp)))
        self.ros.spin_until(lambda: self.fusion.get_clock().now().nanoseconds == stamp, what=f"time {stamp}")

    def send_grippers(self, stamp: int) -> None:
        self.tf.send([("world", gripper_frame(a), pose) for a, pose in world_from_grippers(stamp).items()], stamp)

    def send_camera(self, camera: str, stamp: int, seed: int = 0, pinhole: Pinhole = PINHOLE) -> None:
        depth = image_message(depth_of(camera, seed), "16UC1", stamp, optical_frame(camera))
        self.depth[camera].publish(depth)
        self.info[camera].publish(camera_info_message(pinhole, stamp, optical_frame(camera)))

    def send_all(self, stamp: int, seed: int = 0) -> None:
        self.send_grippers(stamp)
        for camera in CAMERAS:
            self.send_camera(camera, stamp, seed)

    def wait_views(self, count: int) -> None:
        self.ros.spin_until(lambda: len(self.views) >= count, 30.0, f"{count} views")

    def wait_count(self, key: str, at_least: int = 1) -> None:
        self.ros.spin_until(lambda: int(self.status.get(key, 0)) >= at_least, what=f"{key} in {self.status}")

    def prime(self) -> None:
        """One set through, so that all connections stand and the kernels are compiled."""
        self.set_time(START_NS)
        self.send_all(START_NS)
        self.wait_views(1)
        self.views.clear()


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """The kernels are compiled before any test's deadline runs: on a busy machine that takes minutes."""
    Fusion(FusionConfig()).warm_up()


@pytest.fixture
def rig(ros: Any) -> Rig:
    return Rig(ros)


def test_views_equal_the_library_and_carry_the_images_stamp(rig: Rig) -> None:
    rig.set_time(START_NS)
    rig.send_all(START_NS)
    rig.wait_views(1)
    message = rig.views[0]
    assert stamp_ns(message.header.stamp) == START_NS
    assert message.header.frame_id == "world"
    np.testing.assert_array_equal(array_from_image(message, "32FC4"), expected_views(START_NS))
    assert np.count_nonzero(array_from_image(message, "32FC4")) > 1000


def test_grippers_are_looked_up_at_the_images_stamp(rig: Rig) -> None:
    rig.prime()
    stamp = START_NS + PERIOD_NS
    rig.set_time(stamp + 20_000_000)
    for camera in CAMERAS:  # the transforms come after the images, at other stamps, around theirs
        rig.send_camera(camera, stamp)
    rig.send_grippers(stamp - 20_000_000)
    rig.send_grippers(stamp + 20_000_000)
    rig.wait_views(1)
    got = array_from_image(rig.views[0], "32FC4")
    np.testing.assert_allclose(got, expected_views(stamp), atol=1e-6)


def test_a_missing_camera_is_counted_and_its_sets_are_skipped(rig: Rig) -> None:
    rig.prime()
    stamp, missing = START_NS + PERIOD_NS, depth_topic("back_right")
    rig.send_grippers(stamp)
    rig.send_camera("front_left", stamp)
    rig.ros.spin_until(lambda: rig.fusion._sync._pending, what="the set to wait")
    rig.set_time(stamp + TOO_LONG_NS)
    rig.wait_count(f"missed {missing}")
    rig.send_all(stamp + TOO_LONG_NS)
    rig.wait_views(1)
    assert [stamp_ns(m.header.stamp) for m in rig.views] == [stamp + TOO_LONG_NS]


def test_a_missing_transform_gives_no_views_and_a_report(rig: Rig) -> None:
    rig.prime()
    stamp = START_NS + PERIOD_NS
    for camera in CAMERAS:
        rig.send_camera(camera, stamp)
    rig.ros.spin_until(lambda: rig.fusion._waiting, what="the set to wait")
    rig.set_time(stamp + TOO_LONG_NS)
    rig.wait_count("no_transform")
    assert rig.views == []
    assert "left/gripper" in rig.message


def test_a_transform_that_is_not_finite_is_refused(rig: Rig) -> None:
    rig.prime()
    stamp = START_NS + PERIOD_NS
    bad = world_from_grippers(stamp)["left"].copy()
    bad[0, 3] = np.nan
    rig.tf.send([("world", gripper_frame("left"), bad)], stamp)
    rig.wait_count("tf_refused")
    rig.send_all(stamp)
    rig.wait_views(1)
    np.testing.assert_array_equal(array_from_image(rig.views[0], "32FC4"), expected_views(stamp))


def test_covered_cameras_give_no_views_and_a_report(rig: Rig) -> None:
    rig.prime()
    stamp = START_NS + PERIOD_NS
    rig.set_time(stamp)
    rig.send_grippers(stamp)
    for camera in CAMERAS:
        dark = np.zeros((PINHOLE.height, PINHOLE.width), np.uint16)
        rig.depth[camera].publish(image_message(dark, "16UC1", stamp, optical_frame(camera)))
        rig.info[camera].publish(camera_info_message(PINHOLE, stamp, optical_frame(camera)))
    rig.wait_count("empty_cloud")
    assert "front_left, back_right see nothing" in rig.message
    assert all(stamp_ns(views.header.stamp) != stamp for views in rig.views)


def test_a_stamp_that_stands_still_is_reported(rig: Rig) -> None:
    rig.prime()
    rig.send_camera("front_left", START_NS)
    rig.wait_count(f"late {depth_topic('front_left')}")
    assert rig.views == []


def test_changed_intrinsics_hold_from_their_own_stamp_on(rig: Rig) -> None:
    rig.prime()
    stamp = START_NS + PERIOD_NS
    changed = Pinhole.from_fovy(PINHOLE.width, PINHOLE.height, 0.8)
    rig.send_grippers(stamp)
    for camera in CAMERAS:
        rig.send_camera(camera, stamp, pinhole=changed)
    rig.wait_views(1)
    np.testing.assert_array_equal(array_from_image(rig.views[0], "32FC4"), expected_views(stamp, pinhole=changed))
    rig.wait_count("intrinsics_changed", 2)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda depth, info: setattr(depth, "encoding", "32FC1"), "32FC1"),
        (lambda depth, info: setattr(depth.header, "frame_id", "elsewhere"), "elsewhere"),
        (lambda depth, info: setattr(info, "width", 65), "65x48"),
        (lambda depth, info: info.k.__setitem__(0, float("nan")), "nan"),
        (lambda depth, info: setattr(info, "d", [0.1, 0.0, 0.0, 0.0, 0.0]), "rectify"),
    ],
)
def test_a_message_that_breaks_the_contract_is_refused(rig: Rig, spoil: Any, says: str) -> None:
    rig.prime()
    stamp = START_NS + PERIOD_NS
    rig.send_grippers(stamp)
    rig.send_camera("front_left", stamp)
    depth = image_message(depth_of("back_right"), "16UC1", stamp, optical_frame("back_right"))
    info = camera_info_message(PINHOLE, stamp, optical_frame("back_right"))
    spoil(depth, info)
    rig.depth["back_right"].publish(depth)
    rig.info["back_right"].publish(info)
    rig.wait_count("refused")
    assert says in rig.message
    assert rig.views == []


def test_the_cloud_comes_while_somebody_subscribes(rig: Rig) -> None:
    rig.prime()
    clouds: list[Any] = []
    subscription = subscribe(rig.feeder, CLOUD, clouds.append)
    rig.ros.spin_until(lambda: rig.fusion.count_subscribers(CLOUD.name), what="the cloud's subscription")
    stamp = START_NS + PERIOD_NS
    rig.send_all(stamp)
    rig.ros.spin_until(lambda: clouds, what="a cloud")
    points = np.frombuffer(clouds[0].data, np.float32).reshape(-1, 3)
    assert stamp_ns(clouds[0].header.stamp) == stamp
    assert len(points) == clouds[0].width > 1000
    rig.feeder.destroy_subscription(subscription)


def test_the_newest_set_wins_and_dropped_ones_are_counted(rig: Rig) -> None:
    rig.prime()
    stamps = [START_NS + i * 20_000_000 for i in range(1, 6)]
    for i, stamp in enumerate(stamps):
        for camera in CAMERAS:
            rig.send_camera(camera, stamp, seed=i)
        received = i + 1
        rig.ros.spin_until(lambda n=received: len(rig.fusion._waiting) == n, what="the set to wait")
    for stamp in stamps:
        rig.send_grippers(stamp)
    rig.ros.spin_until(lambda: any(stamp_ns(m.header.stamp) == stamps[-1] for m in rig.views), what="the newest views")
    np.testing.assert_array_equal(array_from_image(rig.views[-1], "32FC4"), expected_views(stamps[-1], seed=4))
    rig.ros.spin_until(lambda: int(rig.status.get("dropped", 0)) + len(rig.views) == 5, what=f"{rig.status}")


def test_after_a_jump_into_the_past_nothing_of_before_stands_in_the_way(ros: Any) -> None:
    rig = Rig(ros)
    before = START_NS + 100 * PERIOD_NS
    rig.set_time(before)
    rig.send_all(before)
    rig.wait_views(1)
    rig.set_time(START_NS)
    rig.send_all(before + PERIOD_NS)  # still on its way when time jumped
    rig.wait_count("from_the_future", 4)
    rig.wait_count("tf_from_the_future", 2)
    rig.send_all(START_NS, seed=1)
    rig.wait_views(2)
    assert [stamp_ns(m.header.stamp) for m in rig.views] == [before, START_NS]
    np.testing.assert_array_equal(array_from_image(rig.views[1], "32FC4"), expected_views(START_NS, seed=1))


def test_an_artifact_brings_its_fusion_settings(ros: Any, tmp_path: Path) -> None:
    fusion = FusionConfig(voxel_m=0.004, max_points=500)
    spec = CameraSpec(**vars(PINHOLE), rgb=False)
    artifact = build_tiny_artifact(tmp_path / "tiny", cameras=dict.fromkeys(CAMERAS, spec), fusion=fusion)
    rig = Rig(ros, artifact=str(artifact.folder))
    rig.set_time(START_NS)
    rig.send_all(START_NS)
    rig.wait_views(1)
    np.testing.assert_array_equal(array_from_image(rig.views[0], "32FC4"), expected_views(START_NS, config=fusion))
    rig.send_grippers(START_NS + PERIOD_NS)
    for camera in CAMERAS:
        rig.send_camera(camera, START_NS + PERIOD_NS, pinhole=Pinhole.from_fovy(64, 48, 1.2))
    rig.wait_count("refused")
    assert "trained with" in rig.message
    assert len(rig.views) == 1


def test_an_artifact_of_other_cameras_is_refused(ros: Any, tmp_path: Path) -> None:
    folder = str(build_tiny_artifact(tmp_path / "tiny", cameras={"wrist_left": TINY_CAMERA}).folder)
    with pytest.raises(ArtifactError, match=r"wrist_left.*back_right"):
        FusionNode(parameter_overrides=[Parameter("artifact", value=folder)])


def test_cameras_must_be_known_and_different(ros: Any) -> None:
    for cameras, says in ((["front_lft"], "front_lft"), (["front_left", "front_left"], "each once")):
        with pytest.raises(ConfigError, match=says):
            FusionNode(parameter_overrides=[Parameter("cameras", value=cameras)])
