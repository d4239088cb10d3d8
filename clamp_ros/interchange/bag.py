"""Bags as rows, and rows as bags: the stack's own end of every import and export."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
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
    object_frame,
    optical_frame,
)
from clamp_ros.contract.robot import ARMS, CONTROL_PERIOD_NS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.interchange.rows import CameraRows, Recording, Rows, newest
from clamp_ros.record import messages
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import CameraFrames, Episode
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import PARTIAL_SUFFIX, EpisodeWriter

_RATE_TOLERANCE = 0.1
_QUEUE_BYTES = 64 << 20
"""What may wait for the disk: a reader that waits for it, unlike a recorder, loses nothing by it."""
_CARRIED = (JOINT_STATES.name, JOINT_COMMANDS.name, TF.name, TF_STATIC.name, TASK_STATE.name)


class BagRecording:
    """A bag as rows: one for every command from the first at which all cameras and the joints had been heard.

    A row shows the newest joints at its stamp, and the newest frame of each camera at the joints' stamp, so that no
    image is newer than the joints beside it.
    """

    def __init__(self, bag: Path) -> None:
        """Opens and audits the bag.

        Raises:
            RecordError: it is no bag, it fails its audit, or its commands are not 50 Hz.
            TransformError: a camera's pose is missing at an image's stamp.
        """
        report = audit(bag)
        if not report.ok:
            raise RecordError(f"{bag} fails its audit: {'; '.join(report.problems)}")
        self.name = self.origin = bag.name
        self.left_out: dict[str, int] = {}
        self._episode = Episode.open(bag)
        try:
            self._frames = {name: self._episode.frames(name) for name in self._episode.cameras}
            self._frames |= {name: self._episode.frames(name) for name in self._episode.color_only}
            self._used: dict[str, NDArray[np.int64]] = {}
            self.rows = self._read()
        except BaseException:
            self._episode.close()
            raise

    def __enter__(self) -> BagRecording:
        return self

    def __exit__(self, *_: object) -> None:
        self._episode.close()

    def color(self, camera: str, i: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        return self._frames[camera].color(int(self._used[camera][i]))

    def depth_mm(self, camera: str, i: int) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres."""
        return self._frames[camera].depth_mm(int(self._used[camera][i]))

    def _leave(self, what: str, count: int) -> None:
        if count:
            self.left_out[what] = self.left_out.get(what, 0) + count

    def _read(self) -> Rows:
        episode, commands, states = self._episode, self._episode.commands, self._episode.joint_states
        period_ns = float(np.median(np.diff(commands.stamps_ns))) if len(commands) > 1 else 0.0
        if abs(period_ns - CONTROL_PERIOD_NS) > _RATE_TOLERANCE * CONTROL_PERIOD_NS:
            rate = 1e9 / period_ns if period_ns else 0.0
            raise RecordError(f"{episode.path} has commands at {rate:.1f} Hz, expected 50: a row is one of 50 a second")
        state = newest(states.stamps_ns, commands.stamps_ns)
        known = state >= 0
        for frames in self._frames.values():
            known &= newest(frames.stamps_ns, states.stamps_ns[np.maximum(state, 0)]) >= 0
        if not known.any():
            raise RecordError(f"{episode.path} has no command at which joints and an image of each camera were known")
        first = int(np.argmax(known))
        kept, state = slice(first, None), state[first:]
        self._leave("commands before the first joints and images", first)
        self._leave("joint states between or after the commands", len(states) - len(np.unique(state)))
        at = states.stamps_ns[state]
        cameras = {name: self._camera(name, frames, at) for name, frames in self._frames.items()}
        objects = sorted(
            f.removeprefix(object_frame("")) for f in episode.tf.frames() if f.startswith(object_frame(""))
        )
        task_state = self._task_state(commands.stamps_ns[kept])
        self._leave_topics()
        return Rows(
            commands.stamps_ns[kept], at, states.positions[state], states.velocities[state],
            episode.joint_efforts[state], commands.positions[kept], cameras,
            {name: self._poses(object_frame(name), at) for name in objects}, task_state, episode.metadata,
        )  # fmt: skip

    def _camera(self, name: str, frames: CameraFrames, at: NDArray[np.int64]) -> CameraRows:
        shown = newest(frames.stamps_ns, at)
        used, held = np.unique(shown, return_inverse=True)
        self._leave(f"images of {name} before, between or after the rows", len(frames) - len(used))
        self._used[name] = used
        stamps = frames.stamps_ns[used]
        height, width = frames.color(int(used[0])).shape[:2]
        known = frames.has_depth or optical_frame(name) in self._episode.tf.frames()
        poses = self._poses(optical_frame(name), stamps) if known else None
        pinhole = frames.pinhole if frames.has_pinhole else None
        return CameraRows((height, width), stamps, held.astype(np.int64), frames.has_depth, pinhole, poses)

    def _poses(self, frame: str, stamps_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.stack([self._episode.tf.lookup(WORLD_FRAME, frame, stamp) for stamp in stamps_ns.tolist()])

    def _task_state(self, at: NDArray[np.int64]) -> tuple[str, ...]:
        told = self._episode.task_state
        if not told:
            return ()
        stamps = np.array([stamp for stamp, _ in told], np.int64)
        index = np.maximum(newest(stamps, at), 0)
        self._leave(f"messages of {TASK_STATE.name} between or after the commands", len(told) - len(np.unique(index)))
        texts = [json.dumps(row) for _, row in told]
        return tuple(texts[i] for i in index)

    def _leave_topics(self) -> None:
        of_cameras = (color_topic, depth_topic, color_compressed_topic, depth_compressed_topic, camera_info_topic)
        carried = {*_CARRIED, *(topic(camera) for camera in self._frames for topic in of_cameras)}
        for name, info in self._episode.topics.items():
            if name not in carried:
                self._leave(f"messages of {name}", info.count)
        frames = {gripper_frame(arm) for arm in ARMS} | {optical_frame(camera) for camera in self._frames}
        others = {f for f in self._episode.tf.frames() if f not in frames and not f.startswith(object_frame(""))}
        for frame in others - {WORLD_FRAME}:
            self._leave(f"the transform of {frame}", 1)


def write_bag(recording: Recording, bag: Path, compression: str = "zstd") -> Path:
    """Writes an episode as a bag, with the topics, types and stamps of a recorded one.

    Grippers' poses are computed from the joints, as the nodes do. A camera that has not moved stands in /tf_static.

    Raises:
        RecordError: the bag exists, another process is writing it, or the disk is full.
    """
    _clear_away(bag)
    rows = recording.rows
    origin = {**rows.metadata.extra, "imported": recording.origin}
    colour_only = [name for name, camera in rows.cameras.items() if not camera.has_depth]
    if colour_only:
        origin["color_only"] = colour_only
    with_depth = tuple(name for name in rows.cameras if name not in colour_only)
    metadata = replace(rows.metadata, cameras=with_depth, extra=origin)
    writer = EpisodeWriter(bag, metadata, compression=compression, queue_bytes=_QUEUE_BYTES, flush_s=None, wait=True)
    try:
        for stamp, _, write in sorted(_messages(recording, writer), key=lambda event: event[:2]):
            write(stamp)
        return writer.close(rows.metadata.outcome)
    except BaseException:
        writer.abandon()
        raise


def _clear_away(bag: Path) -> None:
    """Removes what an import that was killed has left under the bag's name; an import is simply done again."""
    partial_ = bag.with_name(bag.name + PARTIAL_SUFFIX)
    growing = partial_ / f"{bag.name}_0.mcap"
    if not growing.exists():
        return
    with growing.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordError(f"{partial_} is being written by another process; wait for it, or stop it") from None
    shutil.rmtree(partial_)


_Event = tuple[int, int, Callable[[int], object]]
"""A message: its stamp, its place among those of the same stamp, and what writes it."""


def _messages(recording: Recording, writer: EpisodeWriter) -> Iterator[_Event]:
    rows = recording.rows
    start = int(min(rows.stamps_ns[0], rows.state_stamps_ns[0]))

    def put(topic: Any, encode: Callable[[int], memoryview], stamp: int) -> None:
        writer.write(topic.name, topic.type, stamp, encode(stamp))

    still = {}
    for name, camera in rows.cameras.items():
        poses = camera.world_from_camera
        moves = poses is not None and bool((poses != poses[:1]).any())
        if poses is not None and not moves:
            still[optical_frame(name)] = poses[0]
        for i, stamp in enumerate(camera.stamps_ns.tolist()):
            yield stamp, 2, partial(_write_frame, recording, writer, name, i, moves)
    if still:
        yield start, 0, partial(put, TF_STATIC, lambda stamp: messages.encode_transforms(stamp, still))
    for t, (due, measured) in enumerate(zip(rows.stamps_ns.tolist(), rows.state_stamps_ns.tolist(), strict=True)):
        if t == 0 or measured != rows.state_stamps_ns[t - 1]:
            yield measured, 1, partial(put, JOINT_STATES, partial(_joint_state, rows, t))
            yield measured, 1, partial(put, TF, partial(_transforms, rows, t))
        if rows.task_state and (t == 0 or rows.task_state[t] != rows.task_state[t - 1]):
            yield due, 3, partial(put, TASK_STATE, lambda _, t=t: messages.encode_string(rows.task_state[t]))
        yield due, 4, partial(put, JOINT_COMMANDS, lambda stamp, t=t: messages.encode_joints(stamp, rows.actions[t]))


def _joint_state(rows: Rows, t: int, stamp: int) -> memoryview:
    velocities, efforts = rows.velocities[t], rows.efforts[t]
    return messages.encode_joints(
        stamp, rows.positions[t],
        velocities if np.isfinite(velocities).all() else None,
        efforts if np.isfinite(efforts).all() else None,
    )  # fmt: skip


def _transforms(rows: Rows, t: int, stamp: int) -> memoryview:
    poses = {gripper_frame(arm): world_from_gripper(arm, rows.positions[t]) for arm in ARMS}
    poses |= {object_frame(name): pose[t] for name, pose in rows.objects.items()}
    return messages.encode_transforms(stamp, poses)


def _write_frame(recording: Recording, writer: EpisodeWriter, name: str, i: int, moves: bool, stamp: int) -> None:
    camera, frame = recording.rows.cameras[name], optical_frame(name)
    if moves and camera.world_from_camera is not None:
        cdr = messages.encode_transforms(stamp, {frame: camera.world_from_camera[i]})
        writer.write(TF.name, TF.type, stamp, cdr)
    color = messages.encode_color(stamp, frame, recording.color(name, i))
    writer.write(color_topic(name), messages.IMAGE, stamp, color)
    if camera.has_depth:
        depth = messages.encode_depth(stamp, frame, recording.depth_mm(name, i))
        writer.write(depth_topic(name), messages.IMAGE, stamp, depth)
    if camera.pinhole is not None:
        info = messages.encode_camera_info(stamp, frame, camera.pinhole)
        writer.write(camera_info_topic(name), messages.CAMERA_INFO, stamp, info)


def metadata_text(metadata: EpisodeMetadata) -> str:
    """An episode's facts as one JSON text, for formats that have no place for them."""
    return json.dumps(metadata.to_custom_data())


def metadata_from_text(text: str, where: str) -> EpisodeMetadata:
    """The inverse of `metadata_text`.

    Raises:
        RecordError: it is none.
    """
    try:
        return EpisodeMetadata.from_custom_data(json.loads(text))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise RecordError(f"the episode's facts in {where} are damaged: {error}") from error
