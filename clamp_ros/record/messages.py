"""Messages as bytes: the CDR form of the stack's message types, encoded and decoded without ROS.

The recorder node hands over bytes it received; demonstrations and training have values. The definitions are those of
the `rosbags` type store, whose hashes and layout equal ROS's own, so both kinds of bag are the same kind.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from clamp_ros.contract.errors import ContractError, RecordError
from clamp_ros.contract.robot import JOINT_NAMES, NUM_JOINTS, order_by_name
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import make, quat_xyzw_from_rotation, rotation_from_quat_xyzw

JOINT_STATE = "sensor_msgs/msg/JointState"
IMAGE = "sensor_msgs/msg/Image"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TF_MESSAGE = "tf2_msgs/msg/TFMessage"
STRING = "std_msgs/msg/String"

NS = 1_000_000_000


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """The message definitions of ROS 2 Kilted."""
    return get_typestore(Stores.ROS2_KILTED)


def definition(message_type: str) -> tuple[str, str]:
    """The ros2msg text and the RIHS01 hash of a message type.

    Raises:
        RecordError: the type is not one of ROS's common interfaces.
    """
    store = typestore()
    if message_type not in store.fielddefs:
        raise RecordError(f"no message definition for {message_type!r}; only ROS's common interfaces can be recorded")
    return store.generate_msgdef(message_type, ros_version=2)[0], store.hash_rihs01(message_type)


def decode(cdr: bytes | memoryview, message_type: str) -> Any:
    """A message object, whose attributes are the message's fields.

    Raises:
        RecordError: the bytes are not such a message.
    """
    try:
        return typestore().deserialize_cdr(cdr, message_type)
    except (SerdeError, KeyError, IndexError, AssertionError) as error:
        raise RecordError(f"{len(cdr)} bytes are not a {message_type}: {error}") from error


def _encode(message_type: str, **values: Any) -> memoryview:
    store = typestore()
    return store.serialize_cdr(store.types[message_type](**values), message_type)


def _header(stamp_ns: int, frame: str) -> Any:
    types = typestore().types
    time = types["builtin_interfaces/msg/Time"](sec=stamp_ns // NS, nanosec=stamp_ns % NS)
    return types["std_msgs/msg/Header"](stamp=time, frame_id=frame)


def stamp_ns(message: Any) -> int:
    """The header's stamp."""
    return message.header.stamp.sec * NS + message.header.stamp.nanosec


def header_stamp_ns(cdr: bytes | memoryview) -> int:
    """The stamp of any serialised message that begins with a header, without decoding the rest.

    Raises:
        RecordError: the bytes are too few.
    """
    if len(cdr) < 12:
        raise RecordError(f"{len(cdr)} bytes are not a message with a header")
    sec, nanosec = struct.unpack_from("<iI" if cdr[1] else ">iI", cdr, 4)
    return sec * NS + nanosec


def encode_joints(
    stamp_ns: int, positions: ArrayLike, velocities: ArrayLike | None = None, efforts: ArrayLike | None = None
) -> memoryview:
    """A JointState of (14,) positions, rad and m, and of (14,) velocities and efforts where given; contract order."""
    empty = np.empty(0)
    return _encode(
        JOINT_STATE,
        header=_header(stamp_ns, ""),
        name=list(JOINT_NAMES),
        position=np.ascontiguousarray(positions, dtype=np.float64),
        velocity=empty if velocities is None else np.ascontiguousarray(velocities, dtype=np.float64),
        effort=empty if efforts is None else np.ascontiguousarray(efforts, dtype=np.float64),
    )


def decode_joints(cdr: bytes | memoryview) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Stamp, (14,) positions and (14,) velocities (NaN where the message has none) of a JointState, contract order.

    Raises:
        RecordError: the names are not the robot's, or a position is not finite.
    """
    message = decode(cdr, JOINT_STATE)
    try:
        positions = order_by_name(message.name, message.position)
        velocities = np.full(NUM_JOINTS, np.nan)
        if len(message.velocity):
            velocities = order_by_name(message.name, message.velocity)
    except ContractError as error:
        raise RecordError(str(error)) from error
    return stamp_ns(message), positions, velocities


def decode_efforts(cdr: bytes | memoryview) -> NDArray[np.float64]:
    """(14,) efforts of a JointState, N m and N, contract order; NaN where the message has none.

    Raises:
        RecordError: the names are not the robot's, or an effort is not finite.
    """
    message = decode(cdr, JOINT_STATE)
    if not len(message.effort):
        return np.full(NUM_JOINTS, np.nan)
    try:
        return order_by_name(message.name, message.effort, "efforts")
    except ContractError as error:
        raise RecordError(str(error)) from error


def encode_color(stamp_ns: int, frame: str, color: NDArray[np.uint8]) -> memoryview:
    """An rgb8 Image of (H, W, 3)."""
    return _encode_image(stamp_ns, frame, "rgb8", color)


def encode_depth(stamp_ns: int, frame: str, depth_mm: NDArray[np.uint16]) -> memoryview:
    """A 16UC1 Image of (H, W) millimetres."""
    return _encode_image(stamp_ns, frame, "16UC1", depth_mm)


def _encode_image(stamp_ns: int, frame: str, encoding: str, array: NDArray[Any]) -> memoryview:
    array = np.ascontiguousarray(array)
    return _encode(
        IMAGE,
        header=_header(stamp_ns, frame),
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=array.strides[0],
        data=array.reshape(-1).view(np.uint8),
    )


_PIXELS: Mapping[str, tuple[str, int]] = {"rgb8": ("u1", 3), "bgr8": ("u1", 3), "16UC1": ("u2", 1)}


def decode_image(cdr: bytes | memoryview) -> NDArray[Any]:
    """(H, W, 3) uint8 RGB of an rgb8 or bgr8 Image, (H, W) uint16 millimetres of a 16UC1.

    Raises:
        RecordError: another encoding, or fewer bytes than its size asks for.
    """
    message = decode(cdr, IMAGE)
    if message.encoding not in _PIXELS:
        raise RecordError(f"image encoding is {message.encoding!r}, expected one of {', '.join(_PIXELS)}")
    kind, channels = _PIXELS[message.encoding]
    dtype = np.dtype((">" if message.is_bigendian else "<") + kind)
    row_bytes = message.width * channels * dtype.itemsize
    if message.step < row_bytes or message.data.size < message.step * message.height:
        raise RecordError(
            f"{message.encoding} image of {message.width}x{message.height} with step {message.step} has"
            f" {message.data.size} bytes"
        )
    rows = message.data[: message.step * message.height].reshape(message.height, message.step)[:, :row_bytes]
    array = np.ascontiguousarray(rows).view(dtype)
    if channels == 1:
        return array.astype(np.uint16, copy=False)
    array = array.reshape(message.height, message.width, channels)
    return np.ascontiguousarray(array[..., ::-1]) if message.encoding == "bgr8" else array


def encode_camera_info(stamp_ns: int, frame: str, pinhole: Pinhole) -> memoryview:
    """A CameraInfo of an undistorted camera."""
    roi = typestore().types["sensor_msgs/msg/RegionOfInterest"](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    k = pinhole.k
    return _encode(
        CAMERA_INFO,
        header=_header(stamp_ns, frame),
        height=pinhole.height,
        width=pinhole.width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.column_stack([k, np.zeros(3)]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def decode_camera_info(cdr: bytes | memoryview) -> Pinhole:
    """Intrinsics of a CameraInfo.

    Raises:
        RecordError: the image is distorted; it must be rectified first.
    """
    message = decode(cdr, CAMERA_INFO)
    if np.any(message.d):
        raise RecordError(f"camera_info has distortion {message.d.tolist()}; rectify the images before recording")
    return Pinhole(message.width, message.height, message.k[0], message.k[4], message.k[2], message.k[5])


def encode_transforms(stamp_ns: int, poses: Mapping[str, NDArray[np.float64]], parent: str = "world") -> memoryview:
    """A TFMessage of (4, 4) parent_from_child poses by child frame."""
    types = typestore().types
    transforms = []
    for child, pose in poses.items():
        x, y, z = map(float, pose[:3, 3])
        qx, qy, qz, qw = map(float, quat_xyzw_from_rotation(pose[:3, :3]))
        transforms.append(
            types["geometry_msgs/msg/TransformStamped"](
                header=_header(stamp_ns, parent),
                child_frame_id=child,
                transform=types["geometry_msgs/msg/Transform"](
                    translation=types["geometry_msgs/msg/Vector3"](x=x, y=y, z=z),
                    rotation=types["geometry_msgs/msg/Quaternion"](x=qx, y=qy, z=qz, w=qw),
                ),
            )
        )
    return _encode(TF_MESSAGE, transforms=transforms)


def decode_transforms(cdr: bytes | memoryview) -> list[tuple[int, str, str, NDArray[np.float64]]]:
    """(stamp_ns, parent, child, parent_from_child) of each transform of a TFMessage.

    Raises:
        RecordError: a quaternion cannot be normalised.
    """
    out = []
    for item in decode(cdr, TF_MESSAGE).transforms:
        t, q = item.transform.translation, item.transform.rotation
        try:
            pose = make(rotation_from_quat_xyzw((q.x, q.y, q.z, q.w)), (t.x, t.y, t.z))
        except ContractError as error:
            raise RecordError(f"transform {item.header.frame_id} -> {item.child_frame_id}: {error}") from error
        out.append((stamp_ns(item), item.header.frame_id, item.child_frame_id, pose))
    return out


def encode_string(text: str) -> memoryview:
    """A std_msgs/String."""
    return _encode(STRING, data=text)


def decode_string(cdr: bytes | memoryview) -> str:
    """The text of a std_msgs/String."""
    return decode(cdr, STRING).data
