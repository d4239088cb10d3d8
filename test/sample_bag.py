"""A small, whole episode to write: 50 Hz joints, 10 Hz images of one camera, both arms' frames.

`make_bag(path)` writes it; `skip` and `joints` plant faults. The values are functions of the tick, to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from clamp_ros.contract.interfaces import (
    JOINT_COMMANDS,
    JOINT_STATES,
    TASK_STATE,
    TF,
    TF_STATIC,
    camera_info_topic,
    color_topic,
    depth_topic,
    gripper_frame,
    optical_frame,
)
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import axis_angle, make
from clamp_ros.record import messages
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import EpisodeWriter

CAMERA = "front_left"
PINHOLE = Pinhole(64, 48, 70.0, 71.0, 31.5, 23.5)
WORLD_FROM_CAMERA = make(axis_angle((0.0, 0.6, 0.8), 0.7), (0.1, -0.2, 0.7))
TICKS = 100


def joints_at(tick: int) -> np.ndarray:
    return np.asarray(REST_POSE) + 1e-4 * tick


def image_at(tick: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(tick)
    return rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), rng.integers(1, 2000, (48, 64), dtype=np.uint16)


def write_episode(
    writer: EpisodeWriter,
    ticks: Iterable[int] = range(TICKS),
    joints: Callable[[int], np.ndarray] = joints_at,
    skip: Callable[[str, int], bool] = lambda topic, tick: False,
) -> None:
    """A small, whole episode: 50 Hz joints, 10 Hz images."""

    def put(topic: str, message_type: str, tick: int, cdr) -> None:
        if not skip(topic, tick):
            writer.write(topic, message_type, tick * CONTROL_PERIOD_NS, cdr)

    frame = optical_frame(CAMERA)
    put(TF_STATIC.name, TF_STATIC.type, 0, messages.encode_transforms(0, {frame: WORLD_FROM_CAMERA}))
    for tick in ticks:
        stamp = tick * CONTROL_PERIOD_NS
        put(JOINT_STATES.name, JOINT_STATES.type, tick, messages.encode_joints(stamp, joints(tick), np.zeros(14)))
        put(JOINT_COMMANDS.name, JOINT_COMMANDS.type, tick, messages.encode_joints(stamp, joints(tick) + 0.01))
        poses = {gripper_frame(arm): make(translation=(0.001 * tick, 0.0, 0.2)) for arm in ("left", "right")}
        put(TF.name, TF.type, tick, messages.encode_transforms(stamp, poses))
        if tick % 5 == 0:
            color, depth = image_at(tick)
            put(color_topic(CAMERA), messages.IMAGE, tick, messages.encode_color(stamp, frame, color))
            put(depth_topic(CAMERA), messages.IMAGE, tick, messages.encode_depth(stamp, frame, depth))
            info = messages.encode_camera_info(stamp, frame, PINHOLE)
            put(camera_info_topic(CAMERA), messages.CAMERA_INFO, tick, info)
            put(TASK_STATE.name, TASK_STATE.type, tick, messages.encode_string(f'{{"time_s": {1e-9 * stamp}}}'))


METADATA = EpisodeMetadata(task="mug_on_plate", seed=7, cameras=(CAMERA,), operator="expert", extra={"note": "3"})


def make_bag(path: Path, compression: str = "lz4", **kwargs) -> Path:
    writer = EpisodeWriter(path, METADATA, compression=compression, chunk_bytes=100_000)
    write_episode(writer, **kwargs)
    return writer.close("success")
