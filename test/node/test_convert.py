"""Messages to values and back, through the serialiser where it matters; everything wrong is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, JointState, PointCloud2
from trajectory_msgs.msg import JointTrajectory

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import JOINT_NAMES, REST_POSE
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import make, rotation_from_quat_xyzw
from clamp_ros.ros import convert

STAMP = 1_700_000_000_123_456_789
PINHOLE = Pinhole(64, 48, 50.0, 51.0, 31.0, 24.5)
ARRAYS = {
    "rgb8": np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3),
    "16UC1": np.arange(4 * 5, dtype=np.uint16).reshape(4, 5) * 1000,
    "32FC1": np.linspace(-1, 1, 4 * 5, dtype=np.float32).reshape(4, 5),
    "32FC4": np.linspace(-1, 1, 4 * 5 * 4, dtype=np.float32).reshape(4, 5, 4),
}


def over_the_wire(message: Any) -> Any:
    return deserialize_message(serialize_message(message), type(message))


@given(st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1))
def test_stamps_are_exact(stamp: int) -> None:
    assert convert.stamp_ns(convert.time_message(stamp)) == stamp


@pytest.mark.parametrize("stamp", [2**31 * 10**9, -(2**31) * 10**9 - 1])
def test_a_stamp_that_does_not_fit_is_refused(stamp: int) -> None:
    with pytest.raises(ContractError, match=str(stamp)):
        convert.time_message(stamp)


@pytest.mark.parametrize("encoding", convert.ENCODINGS)
def test_images_keep_every_bit_stamp_and_frame(encoding: str) -> None:
    message = over_the_wire(convert.image_message(ARRAYS[encoding], encoding, STAMP, "camera"))
    assert (convert.stamp_ns(message.header.stamp), message.header.frame_id) == (STAMP, "camera")
    assert (message.width, message.height, message.encoding) == (5, 4, encoding)
    array = convert.array_from_image(message, encoding)
    np.testing.assert_array_equal(array, ARRAYS[encoding])
    assert array.dtype == ARRAYS[encoding].dtype


def test_images_are_filled_and_read_without_a_copy() -> None:
    source = ARRAYS["16UC1"].copy()
    message = convert.image_message(source, "16UC1", STAMP, "camera")
    array = convert.array_from_image(message, "16UC1")
    assert np.shares_memory(array, source)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_an_array_that_is_not_contiguous_is_sent_right() -> None:
    array = np.arange(80, dtype=np.uint16).reshape(8, 10)[::2, ::2]
    message = over_the_wire(convert.image_message(array, "16UC1", STAMP, "camera"))
    np.testing.assert_array_equal(convert.array_from_image(message, "16UC1"), array)


def test_a_compressed_image_keeps_its_bytes_format_stamp_and_frame() -> None:
    data = np.arange(300).astype(np.uint8)
    message = over_the_wire(convert.compressed_image_message(data, "rgb8; jpeg compressed bgr8", STAMP, "camera"))
    assert bytes(message.data) == data.tobytes()
    assert (message.format, message.header.frame_id) == ("rgb8; jpeg compressed bgr8", "camera")
    assert convert.stamp_ns(message.header.stamp) == STAMP


def test_a_compressed_image_that_is_no_bytes_is_refused() -> None:
    with pytest.raises(ContractError, match=r"\(2, 3\) uint16, expected \(N,\) uint8"):
        convert.compressed_image_message(ARRAYS["16UC1"][:2, :3], "16UC1; compressedDepth png", STAMP, "camera")


@pytest.mark.parametrize("encoding", ["rgb8", "16UC1"])
def test_padding_at_the_rows_ends_is_skipped(encoding: str) -> None:
    array = ARRAYS[encoding]
    rows = array.reshape(4, -1).view(np.uint8)
    message = convert.image_message(array, encoding, STAMP, "camera")
    message.data = np.hstack([rows, np.full((4, 7), 255, np.uint8)]).tobytes()
    message.step = rows.shape[1] + 7
    np.testing.assert_array_equal(convert.array_from_image(message, encoding), array)


@pytest.mark.parametrize(
    ("array", "encoding", "says"),
    [
        (np.zeros((4, 5, 3), np.float32), "rgb8", r"float32, expected \(H, W, 3\) uint8"),
        (np.zeros((4, 5), np.uint8), "rgb8", r"\(4, 5\) uint8"),
        (np.zeros((4, 5, 1), np.uint16), "16UC1", r"expected \(H, W\) uint16"),
        (np.zeros((4, 5), np.uint8), "mono8", "'mono8' is not one of rgb8"),
    ],
)
def test_an_array_that_does_not_fit_its_encoding_is_refused(array: np.ndarray, encoding: str, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        convert.image_message(array, encoding, STAMP, "camera")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoding": "32FC1"}, "'32FC1', expected '16UC1'"),
        ({"is_bigendian": 1}, "big-endian"),
        ({"height": 5}, "5x5"),
        ({"width": 6}, "at least 12"),
        ({"step": 9}, "step 9"),
        ({"height": 0}, "5x0"),
        ({"data": b""}, "0 bytes"),
    ],
)
def test_an_image_that_does_not_fit_itself_is_refused(change: dict[str, Any], says: str) -> None:
    message = convert.image_message(ARRAYS["16UC1"], "16UC1", STAMP, "camera")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ContractError, match=f"depth of wrist_left.*{says}"):
        convert.array_from_image(message, "16UC1", "depth of wrist_left")


def test_an_empty_message_is_refused() -> None:
    for read in (
        lambda: convert.array_from_image(Image(), "rgb8"),
        lambda: convert.pinhole_from_camera_info(CameraInfo()),
        lambda: convert.joints_from_message(JointState()),
        lambda: convert.chunk_from_message(JointTrajectory()),
        lambda: convert.transform_from_message(TransformStamped()),
    ):
        with pytest.raises(ContractError):
            read()


def test_intrinsics_are_exact() -> None:
    message = over_the_wire(convert.camera_info_message(PINHOLE, STAMP, "camera"))
    assert convert.pinhole_from_camera_info(message) == PINHOLE
    np.testing.assert_array_equal(np.reshape(message.p, (3, 4))[:, :3], PINHOLE.k)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("d", [0.1, 0.0, 0.0, 0.0, 0.0], "rectify"),
        ("d", [float("nan")] * 5, "rectify"),
        ("k", [50.0, 1.0, 31.0, 0.0, 51.0, 24.5, 0.0, 0.0, 1.0], "expected \\(fx, 0, cx"),
        ("k", [0.0] * 8 + [1.0], "front_left.*fx=0.0"),
        ("k", [float("nan"), 0.0, 31.0, 0.0, 51.0, 24.5, 0.0, 0.0, 1.0], "fx=nan"),
        ("width", 0, "0x48"),
    ],
)
def test_intrinsics_of_no_pinhole_camera_are_refused(field: str, value: Any, says: str) -> None:
    message = convert.camera_info_message(PINHOLE, STAMP, "camera")
    setattr(message, field, value)
    with pytest.raises(ContractError, match=says):
        convert.pinhole_from_camera_info(message, "front_left")


@given(st.permutations(range(14)))
def test_joints_come_back_in_contract_order_from_any_order(order: list[int]) -> None:
    message: Any = convert.joint_state_message(REST_POSE, STAMP)
    message.name = [message.name[i] for i in order]
    message.position = [message.position[i] for i in order]
    message = over_the_wire(message)
    np.testing.assert_array_equal(convert.joints_from_message(message), REST_POSE)


def test_messages_do_not_share_their_names() -> None:
    message: Any = convert.joint_state_message(REST_POSE, STAMP)
    message.name[0] = "changed"
    assert convert.joint_state_message(REST_POSE, STAMP).name == list(JOINT_NAMES)


def test_wrong_joints_are_refused_by_name() -> None:
    message: Any = convert.joint_state_message(REST_POSE, STAMP)
    message.position[3] = float("nan")
    with pytest.raises(ContractError, match="left/forearm_roll"):
        convert.joints_from_message(message)
    message.name[13] = "right/griper"
    with pytest.raises(ContractError, match=r"missing \['right/gripper'\], unknown \['right/griper'\]"):
        convert.joints_from_message(message)
    with pytest.raises(ContractError, match="joint positions"):
        convert.joint_state_message(np.full(14, np.inf), STAMP)


def random_chunk() -> ActionChunk:
    return ActionChunk(STAMP, np.random.default_rng(0).normal(size=(50, 14)))


def test_chunks_are_exact() -> None:
    chunk = random_chunk()
    message = over_the_wire(convert.chunk_message(chunk))
    back = convert.chunk_from_message(message)
    assert back.stamp_ns == STAMP
    np.testing.assert_array_equal(back.actions, chunk.actions)
    last = message.points[49].time_from_start
    assert (last.sec, last.nanosec) == (0, 980_000_000)
    message.joint_names = list(reversed(message.joint_names))
    np.testing.assert_array_equal(convert.chunk_from_message(message).actions[:, 0], chunk.actions[:, 13])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: m.points.pop(), "49 points, expected 50"),
        (lambda m: setattr(m.points[7].time_from_start, "nanosec", 1), "point 7 due after 1 ns, expected 140000000"),
        (lambda m: m.points[3].positions.__setitem__(5, float("inf")), "point 3.*left/wrist_rotate"),
        (lambda m: m.points[3].positions.pop(), "point 3.*13"),
        (lambda m: m.joint_names.__setitem__(0, "tail"), "tail"),
    ],
)
def test_a_chunk_that_breaks_the_contract_is_refused(spoil: Any, says: str) -> None:
    message = convert.chunk_message(random_chunk())
    spoil(message)
    with pytest.raises(ContractError, match=says):
        convert.chunk_from_message(message)


def test_transforms_come_back() -> None:
    pose = make(rotation_from_quat_xyzw((0.1, -0.2, 0.3, 0.9)), (1.0, 2.0, 3.0))
    message = over_the_wire(convert.transform_message("world", "camera", pose, STAMP))
    parent, child, stamp, back = convert.transform_from_message(message)
    assert (parent, child, stamp) == ("world", "camera", STAMP)
    np.testing.assert_allclose(back, pose, atol=1e-12)
    message.header.frame_id = "/world"
    assert convert.transform_from_message(message)[0] == "world"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: setattr(m.transform.translation, "y", float("nan")), "camera.*nan"),
        (lambda m: setattr(m.transform.rotation, "w", float("nan")), "'camera'.*normalised"),
        (lambda m: setattr(m.transform.rotation, "w", 0.0), "'camera'.*normalised"),
        (lambda m: setattr(m, "child_frame_id", ""), "names"),
        (lambda m: setattr(m, "child_frame_id", "world"), "different"),
    ],
)
def test_a_transform_that_is_none_is_refused(spoil: Any, says: str) -> None:
    message = convert.transform_message("world", "camera", np.eye(4), STAMP)
    spoil(message)
    with pytest.raises(ContractError, match=says):
        convert.transform_from_message(message)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_clouds_are_exact(count: int) -> None:
    points = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    message = over_the_wire(convert.cloud_message(points, STAMP, "world"))
    assert isinstance(message, PointCloud2)
    assert (message.width, message.height, message.point_step, message.is_dense) == (count, 1, 12, True)
    assert [(f.name, f.offset) for f in message.fields] == [("x", 0), ("y", 4), ("z", 8)]
    np.testing.assert_array_equal(np.frombuffer(message.data, np.float32).reshape(-1, 3), points)


def test_points_come_back_from_a_cloud_and_others_are_refused() -> None:
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    message = over_the_wire(convert.cloud_message(points, STAMP, "world"))
    assert isinstance(message, PointCloud2)
    np.testing.assert_array_equal(convert.points_from_cloud(message), points)
    message.point_step = 16
    with pytest.raises(ContractError, match=r"16 bytes.*expected packed"):
        convert.points_from_cloud(message)


def test_a_cloud_of_another_shape_is_refused() -> None:
    with pytest.raises(ContractError, match="float64"):
        convert.cloud_message(np.zeros((4, 3)), STAMP, "world")  # type: ignore[arg-type]
