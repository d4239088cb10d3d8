"""A bag with what a recorded one may have: a moving camera, images between commands, efforts, objects, other topics."""

from __future__ import annotations

import json
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
    object_frame,
    optical_frame,
)
from clamp_ros.contract.robot import ARMS, CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import axis_angle, make
from clamp_ros.record import messages
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import EpisodeWriter

CAMERAS = ("front_left", "wrist_left")
PINHOLES = {
    "front_left": Pinhole(64, 48, 70.0, 71.0, 31.5, 23.5),
    "wrist_left": Pinhole(40, 32, 50.0, 50.5, 19.0, 16.0),
}
TICKS = 120
START_NS = 7_000_000_000
STATE_OFFSET_NS = -3_000_000
"""Joints are measured this long before the command of their tick is due."""
IMAGE_PERIOD_NS = 2 * CONTROL_PERIOD_NS - 1_000_001


def joints_at(tick: int) -> np.ndarray:
    return np.asarray(REST_POSE) + 1e-3 * np.sin(0.1 * tick + np.arange(14))


def image_of(camera: str, i: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([CAMERAS.index(camera), i])
    pinhole = PINHOLES[camera]
    size = (pinhole.height, pinhole.width)
    color = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return color, rng.integers(0, 40000, size, dtype=np.uint16)


def pose_of(camera: str, i: int) -> np.ndarray:
    turn = 0.7 if camera == "front_left" else 0.01 * i
    return make(axis_angle((0.0, 0.6, 0.8), turn), (0.1, -0.2, 0.7 if camera == "front_left" else 0.3 + 0.001 * i))


def make_bag(
    path: Path,
    task: str = "mug_on_plate",
    ticks: int = TICKS,
    depth: bool = True,
    efforts: bool = True,
    offset: float = 0.0,
) -> Path:
    """Commands at 50 Hz from START_NS on; joints 3 ms earlier; images at 25 Hz of their own phase."""
    metadata = EpisodeMetadata(task, 7, "unknown", CAMERAS if depth else (), "expert", extra={"simulated": True})
    writer = EpisodeWriter(path, metadata, chunk_bytes=100_000, wait=True)
    events: list[tuple[int, str, str, memoryview]] = []

    def put(topic: str, kind: str, stamp: int, cdr: memoryview) -> None:
        events.append((stamp, topic, kind, cdr))

    still = {optical_frame("front_left"): pose_of("front_left", 0)}
    put(TF_STATIC.name, TF_STATIC.type, START_NS, messages.encode_transforms(START_NS, still))
    for tick in range(-2, ticks + 1):  # joints are heard of before the first command, and after the last
        due = START_NS + tick * CONTROL_PERIOD_NS
        at, joints = due + STATE_OFFSET_NS, joints_at(tick)
        force = np.full(14, 0.1 * tick) if efforts else None
        put(JOINT_STATES.name, JOINT_STATES.type, at, messages.encode_joints(at, joints, 0.5 * joints, force))
        poses = {gripper_frame(arm): world_from_gripper(arm, joints) for arm in ARMS}
        poses[object_frame("mug")] = make(axis_angle((0.0, 0.0, 1.0), 0.01 * tick), (0.1, 0.001 * tick, 0.05))
        put(TF.name, TF.type, at, messages.encode_transforms(at, poses))
        if 0 <= tick < ticks:
            put(JOINT_COMMANDS.name, JOINT_COMMANDS.type, due, messages.encode_joints(due, joints + 0.01 + offset))
            if tick % 5 == 0:
                text = json.dumps({"text": f"Progress: {tick}", "time_s": 0.02 * tick})
                put(TASK_STATE.name, TASK_STATE.type, due, messages.encode_string(text))
        if tick % 50 == 0:
            put("/note", messages.STRING, due, messages.encode_string("nobody reads this"))
    for camera in CAMERAS:
        frame = optical_frame(camera)
        for i, stamp in enumerate(range(START_NS - 5_000_000, START_NS + ticks * CONTROL_PERIOD_NS, IMAGE_PERIOD_NS)):
            color, millimetres = image_of(camera, i)
            put(color_topic(camera), messages.IMAGE, stamp, messages.encode_color(stamp, frame, color))
            if depth:
                put(depth_topic(camera), messages.IMAGE, stamp, messages.encode_depth(stamp, frame, millimetres))
            put(camera_info_topic(camera), messages.CAMERA_INFO, stamp,
                messages.encode_camera_info(stamp, frame, PINHOLES[camera]))  # fmt: skip
            if camera == "wrist_left":
                put(TF.name, TF.type, stamp, messages.encode_transforms(stamp, {frame: pose_of(camera, i)}))
    for stamp, topic, kind, cdr in sorted(events, key=lambda event: event[0]):
        writer.write(topic, kind, stamp, cdr)
    return writer.close("success")
