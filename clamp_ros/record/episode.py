"""Reads an episode without ROS: joint states, commands, camera frames, transforms and task state as arrays.

Stamps are those of the messages' headers, so a frame or a joint state means the same here as in the live nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import (
    JOINT_COMMANDS,
    JOINT_STATES,
    TASK_STATE,
    TF,
    TF_STATIC,
    camera_info_topic,
    color_compressed_topic,
    color_topic,
    depth_compressed_topic,
    depth_topic,
    gripper_frame,
)
from clamp_ros.contract.robot import ARMS, NUM_JOINTS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.tf_tree import TfTree
from clamp_ros.record import compressed, messages
from clamp_ros.record.mcap_file import McapFile
from clamp_ros.record.metadata import EpisodeMetadata, TopicInfo, read_bag_information


@dataclass(frozen=True, eq=False)
class JointSeries:
    """Joint vectors over time.

    Attributes:
        stamps_ns: (N,) int64, increasing.
        positions: (N, 14) float64, contract order, rad and m.
        velocities: (N, 14) float64, rad/s and m/s; NaN where the messages have none.
    """

    stamps_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def at(self, stamp_ns: int) -> NDArray[np.float64]:
        """(14,) positions of the newest sample at or before a time.

        Raises:
            RecordError: the series starts later.
        """
        i = int(np.searchsorted(self.stamps_ns, stamp_ns, side="right")) - 1
        if i < 0:
            raise RecordError(f"no joint vector at or before {stamp_ns} ns; the series starts at {self.stamps_ns[:1]}")
        return self.positions[i]


class CameraFrames:
    """The frames of one camera that have colour and depth of the same stamp, decoded when asked for.

    A camera of whose depth nothing was recorded has the frames of its colour.
    """

    def __init__(self, camera: str, file: McapFile) -> None:
        self.camera = camera
        self._file = file
        self._color, self._depth = color_topic(camera), depth_topic(camera)
        self.compressed = self._color not in file.topics
        """Whether the bag holds JPEG and compressed depth of this camera, and no raw images."""
        if self.compressed:
            self._color, self._depth = color_compressed_topic(camera), depth_compressed_topic(camera)
        self.has_depth = self._depth in file.topics
        color = _image_stamps(file, self._color)
        depth = _image_stamps(file, self._depth) if self.has_depth else color
        self.stamps_ns: NDArray[np.int64]
        self.stamps_ns, self._color_i, self._depth_i = np.intersect1d(color, depth, return_indices=True)
        """(N,) int64, increasing."""
        self.unmatched = len(color) + len(depth) - 2 * len(self.stamps_ns)

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @property
    def has_pinhole(self) -> bool:
        """Whether the bag has this camera's intrinsics, as all that this stack has recorded do."""
        return len(self._file.topics.get(camera_info_topic(self.camera), ())) > 0

    @cached_property
    def pinhole(self) -> Pinhole:
        """Intrinsics of color and aligned depth.

        Raises:
            RecordError: the bag has no camera_info of this camera.
        """
        topic = camera_info_topic(self.camera)
        if not self.has_pinhole:
            raise RecordError(f"{self._file.path} has images of {self.camera} and no {topic}")
        return messages.decode_camera_info(self._file.read(topic, 0))

    def color(self, i: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of frame i."""
        cdr = self._file.read(self._color, int(self._color_i[i]))
        return compressed.decode_color(cdr) if self.compressed else messages.decode_image(cdr)

    def depth_mm(self, i: int) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres of frame i, aligned to color, 0 invalid.

        Raises:
            RecordError: no depth of this camera was recorded.
        """
        if not self.has_depth:
            raise RecordError(f"{self._file.path} has no depth of {self.camera}")
        cdr = self._file.read(self._depth, int(self._depth_i[i]))
        return compressed.decode_depth(cdr) if self.compressed else messages.decode_image(cdr)

    def index_at(self, stamp_ns: int) -> int:
        """Index of the frame with this very stamp.

        Raises:
            RecordError: there is none.
        """
        i = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if i == len(self) or self.stamps_ns[i] != stamp_ns:
            raise RecordError(f"{self.camera} has no frame stamped {stamp_ns} ns")
        return i


class Episode:
    """One recorded episode, open for reading; a context manager. Not for use by several threads or across a fork."""

    def __init__(self, path: Path, information: dict[str, Any], file: McapFile) -> None:
        self.path = path
        self.metadata = EpisodeMetadata.from_custom_data(information.get("custom_data"))
        hashes = {
            t["topic_metadata"]["name"]: t["topic_metadata"].get("type_description_hash", "")
            for t in information.get("topics_with_message_count", [])
        }
        self.topics: Mapping[str, TopicInfo] = {
            name: TopicInfo(name, index.type, hashes.get(name, ""), len(index)) for name, index in file.topics.items()
        }
        self._file = file

    @classmethod
    def open(cls, directory: Path | str) -> Episode:
        """Opens a bag directory.

        Raises:
            RecordError: it is not a finished bag of one MCAP file, or it is damaged.
        """
        directory = Path(directory)
        information = read_bag_information(directory)
        return cls(directory, information, McapFile(directory / Path(information["relative_file_paths"][0]).name))

    def __enter__(self) -> Episode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; arrays already decoded remain valid."""
        self._file.close()

    def messages(self, topic: str) -> Iterator[tuple[int, memoryview]]:
        """(stamp_ns of the bag, serialised message) of every message of a topic, in order of time."""
        return ((stamp, cdr) for _, stamp, cdr in self._file.read_all([topic]))

    def stamps_ns(self, topic: str) -> NDArray[np.int64]:
        """(N,) the bag's times of a topic's messages; empty if it was not recorded."""
        index = self._file.topics.get(topic)
        return np.empty(0, np.int64) if index is None else index.stamps_ns

    @cached_property
    def _small(self) -> dict[str, list[tuple[int, bytes]]]:
        """The low-rate topics, read in one pass: every chunk holds some of each."""
        names = [t.name for t in (JOINT_STATES, JOINT_COMMANDS, TF, TF_STATIC, TASK_STATE)]
        found: dict[str, list[tuple[int, bytes]]] = {name: [] for name in names}
        for name, stamp, cdr in self._file.read_all(names):
            found[name].append((stamp, bytes(cdr)))
        return found

    @cached_property
    def joint_states(self) -> JointSeries:
        """Measured joints.

        Raises:
            RecordError: a message names other joints, or holds a number that is not finite.
        """
        return self._joints(JOINT_STATES.name)

    @cached_property
    def commands(self) -> JointSeries:
        """Commanded joints, each due at its stamp.

        Raises:
            RecordError: a message names other joints, or holds a number that is not finite.
        """
        return self._joints(JOINT_COMMANDS.name)

    def _joints(self, topic: str) -> JointSeries:
        rows = [messages.decode_joints(cdr) for _, cdr in self._small[topic]]
        rows.sort(key=lambda row: row[0])
        empty = np.zeros((0, NUM_JOINTS))
        return JointSeries(
            np.array([row[0] for row in rows], dtype=np.int64),
            np.array([row[1] for row in rows]) if rows else empty,
            np.array([row[2] for row in rows]) if rows else empty,
        )

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras with colour and depth in the bag, both raw or both compressed."""
        found: dict[str, None] = {}
        for color, depth in ((color_topic, depth_topic), (color_compressed_topic, depth_compressed_topic)):
            suffix = color("")[1:]
            names = [name[1 : -len(suffix)] for name in self.topics if name.endswith(suffix)]
            found |= dict.fromkeys(name for name in names if depth(name) in self.topics)
        return tuple(found)

    @cached_property
    def color_only(self) -> tuple[str, ...]:
        """Names of the cameras with colour and no depth, as datasets of other robots have them."""
        suffixes = (color_topic("")[1:], color_compressed_topic("")[1:])
        names = [n[1 : -len(s)] for s in suffixes for n in self.topics if n.endswith(s)]
        depths = (depth_topic, depth_compressed_topic)
        return tuple(dict.fromkeys(n for n in names if not any(depth(n) in self.topics for depth in depths)))

    @cached_property
    def joint_efforts(self) -> NDArray[np.float64]:
        """(N, 14) efforts beside `joint_states`, N m and N; NaN where the messages have none.

        Raises:
            RecordError: a message names other joints, or holds a number that is not finite.
        """
        told = self._small[JOINT_STATES.name]
        rows = [(messages.header_stamp_ns(cdr), messages.decode_efforts(cdr)) for _, cdr in told]
        rows.sort(key=lambda row: row[0])
        return np.array([efforts for _, efforts in rows]).reshape(-1, NUM_JOINTS)

    def frames(self, camera: str) -> CameraFrames:
        """The frames of a camera.

        Raises:
            RecordError: the bag has no such camera.
        """
        if camera not in (*self.cameras, *self.color_only):
            raise RecordError(f"{self.path.name} has no camera {camera!r}; it has {', '.join(self.cameras) or 'none'}")
        return CameraFrames(camera, self._file)

    def world_from_grippers(self, stamp_ns: int) -> dict[str, NDArray[np.float64]]:
        """(4, 4) poses of both grippers at a time.

        Raises:
            TransformError: they are not in the bag.
        """
        return {arm: self.tf.lookup(WORLD_FRAME, gripper_frame(arm), stamp_ns) for arm in ARMS}

    @cached_property
    def tf(self) -> TfTree:
        """Every transform of the bag."""
        tree = TfTree(history_s=1e9)
        for topic, static in ((TF_STATIC.name, True), (TF.name, False)):
            for _, cdr in self._small[topic]:
                for stamp, parent, child, pose in messages.decode_transforms(cdr):
                    tree.set_transform(parent, child, stamp, pose, static=static)
        return tree

    @cached_property
    def task_state(self) -> list[tuple[int, dict[str, Any]]]:
        """(stamp_ns of the bag, row) of the simulation's privileged state.

        Raises:
            RecordError: a row is not JSON.
        """
        rows = []
        for stamp, cdr in self._small[TASK_STATE.name]:
            text = messages.decode_string(cdr)
            try:
                rows.append((stamp, json.loads(text)))
            except json.JSONDecodeError as error:
                raise RecordError(f"{TASK_STATE.name} at {stamp} ns is not JSON: {text[:80]!r}") from error
        return rows


def _image_stamps(file: McapFile, topic: str) -> NDArray[np.int64]:
    """Header stamps of a topic of Images, in the order of the index."""
    return np.array(
        [messages.header_stamp_ns(file.read(topic, i)) for i in range(len(file.topics[topic]))], dtype=np.int64
    )
