"""Between ROS messages and the stack's values. Everything that enters is checked here, once.

Stamps are integer nanoseconds. Images are read without a copy, and filled without the per-byte check of the generated
setters, which costs 58 ms for one 1.2 MB image.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import TransformStamped
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState, PointCloud2, PointField
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, JOINT_NAMES, joint_vector, order_by_name
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import make, quat_xyzw_from_rotation, rotation_from_quat_xyzw

ENCODINGS: dict[str, tuple[type, int]] = {
    "rgb8": (np.uint8, 3),
    "16UC1": (np.uint16, 1),
    "32FC1": (np.float32, 1),
    "32FC4": (np.float32, 4),
}
"""The encodings of the stack: numpy type and channels."""

_NS = 1_000_000_000
_NAMES = list(JOINT_NAMES)


def stamp_ns(time: Time) -> int:
    """Nanoseconds of a message's stamp."""
    return time.sec * _NS + time.nanosec


def time_message(stamp: int) -> Time:
    """A message's stamp from nanoseconds.

    Raises:
        ContractError: the stamp does not fit a ROS time.
    """
    sec, nanosec = divmod(int(stamp), _NS)
    if not -(2**31) <= sec < 2**31:
        raise ContractError(f"stamp {stamp} ns does not fit a ROS time; expected nanoseconds since the epoch")
    return Time(sec=sec, nanosec=nanosec)


def header_message(stamp: int, frame: str) -> Header:
    """A header from nanoseconds and a frame name."""
    return Header(stamp=time_message(stamp), frame_id=frame)


def image_message(array: np.ndarray, encoding: str, stamp: int, frame: str) -> Image:
    """An Image over the array's own memory, which must not change until the message is published.

    Args:
        array: (H, W) or (H, W, channels) of the encoding's dtype; copied only if it is not contiguous.
        encoding: a key of `ENCODINGS`.
        stamp: nanoseconds.
        frame: the header's frame_id.

    Raises:
        ContractError: the array's shape or dtype does not fit the encoding.
    """
    dtype, channels = _encoding(encoding)
    wanted = array.ndim == 2 if channels == 1 else array.ndim == 3 and array.shape[2] == channels
    if not wanted or array.dtype != dtype:
        raise ContractError(
            f"image for {encoding} is {array.shape} {array.dtype}, expected (H, W{_tail(channels)}) {np.dtype(dtype)}"
        )
    array = np.ascontiguousarray(array)
    message = Image(header=header_message(stamp, frame), height=array.shape[0], width=array.shape[1], encoding=encoding)
    message.is_bigendian = 0
    message.step = array.shape[1] * channels * array.itemsize
    # The public setter checks each byte, or copies; the C serialiser takes any contiguous buffer as it is.
    message._data = array.reshape(-1).view(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    return message


def compressed_image_message(data: NDArray[np.uint8], image_format: str, stamp: int, frame: str) -> CompressedImage:
    """A CompressedImage over (N,) bytes of an encoded image, which must not change until it is published.

    Args:
        data: the file's bytes, and what the transport puts before them.
        image_format: the transport's description, say "rgb8; jpeg compressed bgr8".
        stamp: nanoseconds.
        frame: the header's frame_id.
    """
    if data.ndim != 1 or data.dtype != np.uint8:
        raise ContractError(f"compressed image is {data.shape} {data.dtype}, expected (N,) uint8")
    message = CompressedImage(header=header_message(stamp, frame), format=image_format)
    message._data = np.ascontiguousarray(data)  # pyright: ignore[reportAttributeAccessIssue]
    return message


def array_from_image(message: Image, encoding: str, what: str = "image") -> np.ndarray:
    """(H, W) or (H, W, channels) read-only array over the message's own memory.

    Raises:
        ContractError: another encoding, a big-endian image, or a size that does not match the data.
    """
    dtype, channels = _encoding(encoding)
    if message.encoding != encoding:
        raise ContractError(f"{what} has encoding {message.encoding!r}, expected {encoding!r}")
    item = np.dtype(dtype).itemsize
    if message.is_bigendian and item > 1:
        raise ContractError(f"{what} is big-endian, expected little-endian")
    height, width, step = message.height, message.width, message.step
    if height < 1 or width < 1 or step < width * channels * item or len(message.data) != height * step:
        raise ContractError(
            f"{what} is {width}x{height} {encoding} with step {step} and {len(message.data)} bytes, expected a step of "
            f"at least {width * channels * item} and height * step bytes"
        )
    shape = (height, width) if channels == 1 else (height, width, channels)
    strides = (step, item) if channels == 1 else (step, channels * item, item)
    array = np.ndarray(shape, dtype, np.frombuffer(message.data, np.uint8), strides=strides)
    array.setflags(write=False)
    return array


def _encoding(encoding: str) -> tuple[type, int]:
    if encoding not in ENCODINGS:
        raise ContractError(f"encoding {encoding!r} is not one of {', '.join(ENCODINGS)}")
    return ENCODINGS[encoding]


def _tail(channels: int) -> str:
    return "" if channels == 1 else f", {channels}"


def camera_info_message(pinhole: Pinhole, stamp: int, frame: str) -> CameraInfo:
    """Intrinsics of a rectified image."""
    message = CameraInfo(header=header_message(stamp, frame), height=pinhole.height, width=pinhole.width)
    message.distortion_model = "plumb_bob"
    message.d = [0.0] * 5
    message.k = pinhole.k.ravel()
    message.r = np.eye(3).ravel()
    message.p = np.column_stack([pinhole.k, np.zeros(3)]).ravel()
    return message


def pinhole_from_camera_info(message: CameraInfo, what: str = "camera_info") -> Pinhole:
    """The intrinsics, which must be those of a rectified image without skew.

    Raises:
        ContractError: the matrix is no pinhole camera's, or the image is distorted.
    """
    k = np.asarray(message.k, dtype=np.float64).reshape(3, 3)
    if np.any(np.asarray(message.d) != 0.0):
        raise ContractError(f"{what} has distortion {list(message.d)}, expected none; rectify the image first")
    if not (k[0, 1] == k[1, 0] == k[2, 0] == k[2, 1] == 0.0 and k[2, 2] == 1.0):
        raise ContractError(f"{what} has k {k.ravel().tolist()}, expected (fx, 0, cx, 0, fy, cy, 0, 0, 1)")
    try:
        return Pinhole(message.width, message.height, k[0, 0].item(), k[1, 1].item(), k[0, 2].item(), k[1, 2].item())
    except ContractError as error:
        raise ContractError(f"{what}: {error}") from None


def joint_state_message(
    positions: ArrayLike, stamp: int, velocities: ArrayLike | None = None, efforts: ArrayLike | None = None
) -> JointState:
    """A JointState of the 14 joints in contract order: radians and metres, per second, newton metres and newtons."""
    message = JointState(header=header_message(stamp, ""), name=list(JOINT_NAMES))
    message.position = joint_vector(positions, "joint positions").tolist()
    if velocities is not None:
        message.velocity = joint_vector(velocities, "joint velocities").tolist()
    if efforts is not None:
        message.effort = joint_vector(efforts, "joint efforts").tolist()
    return message


def joints_from_message(message: JointState, what: str = "joint message") -> NDArray[np.float64]:
    """(14,) positions in contract order, whatever the message's order.

    Raises:
        ContractError: names are missing, unknown or repeated, or a value is not finite.
    """
    return _reorder(message.name, message.position, what)


def joint_efforts_from_message(message: JointState, what: str = "joint message") -> NDArray[np.float64] | None:
    """(14,) efforts in contract order, None where the message has none; raises as `joints_from_message`."""
    return _reorder(message.name, message.effort, f"effort of {what}") if len(message.effort) else None


def _reorder(names: Iterable[str], values: ArrayLike, what: str) -> NDArray[np.float64]:
    return joint_vector(values, what) if names == _NAMES else order_by_name(list(names), values, what)


def chunk_message(chunk: ActionChunk) -> JointTrajectory:
    """A chunk as a trajectory: the header's stamp is the observation's, point i is due 20 ms * i after it."""
    return JointTrajectory(
        header=header_message(chunk.stamp_ns, ""),
        joint_names=list(JOINT_NAMES),
        points=[
            JointTrajectoryPoint(positions=row, time_from_start=_duration_message(i * CONTROL_PERIOD_NS))
            for i, row in enumerate(chunk.actions.tolist())
        ],
    )


def chunk_from_message(message: JointTrajectory, what: str = "action chunk") -> ActionChunk:
    """The inverse of `chunk_message`, for any order of the joint names.

    Raises:
        ContractError: not 50 points 20 ms apart, wrong joint names, or a value that is not finite.
    """
    if len(message.points) != CHUNK_SIZE:
        raise ContractError(f"{what} has {len(message.points)} points, expected {CHUNK_SIZE}")
    rows = []
    for i, point in enumerate(message.points):
        due = point.time_from_start.sec * _NS + point.time_from_start.nanosec
        if due != i * CONTROL_PERIOD_NS:
            raise ContractError(f"{what} has point {i} due after {due} ns, expected {i * CONTROL_PERIOD_NS} ns")
        rows.append(_reorder(message.joint_names, point.positions, f"point {i} of {what}"))
    return ActionChunk(stamp_ns(message.header.stamp), np.stack(rows))


def _duration_message(duration_ns: int) -> Duration:
    sec, nanosec = divmod(duration_ns, _NS)
    return Duration(sec=sec, nanosec=nanosec)


def transform_message(parent: str, child: str, parent_from_child: ArrayLike, stamp: int) -> TransformStamped:
    """A TransformStamped from a (4, 4) pose of `child` in `parent`, metres."""
    matrix = np.asarray(parent_from_child, dtype=np.float64)
    message = TransformStamped(header=header_message(stamp, parent), child_frame_id=child)
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = matrix[:3, 3].tolist()
    r.x, r.y, r.z, r.w = quat_xyzw_from_rotation(matrix[:3, :3]).tolist()
    return message


def transform_from_message(message: TransformStamped) -> tuple[str, str, int, NDArray[np.float64]]:
    """(parent, child, stamp_ns, parent_from_child (4, 4)). tf2's old leading slashes are stripped.

    Raises:
        ContractError: a frame has no name, a number is not finite, or the quaternion cannot be normalised.
    """
    parent, child = message.header.frame_id.lstrip("/"), message.child_frame_id.lstrip("/")
    if not parent or not child or parent == child:
        raise ContractError(f"transform from {child!r} to {parent!r}: expected two different frames with names")
    t, r = message.transform.translation, message.transform.rotation
    translation = np.array([t.x, t.y, t.z])
    if not np.isfinite(translation).all():
        raise ContractError(f"transform from {child!r} to {parent!r} has translation {translation.tolist()}")
    try:
        rotation = rotation_from_quat_xyzw((r.x, r.y, r.z, r.w))
    except ContractError as error:
        raise ContractError(f"transform from {child!r} to {parent!r}: {error}") from None
    return parent, child, stamp_ns(message.header.stamp), make(rotation, translation)


def cloud_message(points: NDArray[np.float32], stamp: int, frame: str) -> PointCloud2:
    """A PointCloud2 of (N, 3) float32 points in metres, over the array's own memory."""
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype != np.float32:
        raise ContractError(f"cloud is {points.shape} {points.dtype}, expected (N, 3) float32")
    points = np.ascontiguousarray(points)
    message = PointCloud2(header=header_message(stamp, frame), height=1, width=len(points), is_dense=True)
    message.fields = [
        PointField(name=axis, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, axis in enumerate("xyz")
    ]
    message.is_bigendian = False
    message.point_step = 12
    message.row_step = 12 * len(points)
    message._data = points.reshape(-1).view(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    return message


def points_from_cloud(message: PointCloud2, what: str = "cloud") -> NDArray[np.float32]:
    """(N, 3) float32 points of a `cloud_message`, read-only, over the message's own memory.

    Raises:
        ContractError: the points are not packed x, y, z of float32, little-endian, or the size does not match the data.
    """
    fields = [(f.name, f.offset, f.datatype, f.count) for f in message.fields]
    expected = [(axis, 4 * i, PointField.FLOAT32, 1) for i, axis in enumerate("xyz")]
    count = message.width * message.height
    if fields != expected or message.point_step != 12 or message.is_bigendian or len(message.data) != 12 * count:
        raise ContractError(
            f"{what} has {count} points of {message.point_step} bytes, fields {fields} and {len(message.data)} bytes, "
            "expected packed little-endian float32 x, y, z, 12 bytes each"
        )
    points = np.frombuffer(message.data, np.float32).reshape(count, 3)
    points.setflags(write=False)
    return points
