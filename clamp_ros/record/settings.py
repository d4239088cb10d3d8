"""How the recorder is set: what it records, where to, and how much memory that may take."""

from __future__ import annotations

from dataclasses import dataclass

from clamp_ros.contract.config import check, param, unknown_key
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    ARMS_STATUS,
    CAMERAS,
    CONTROL_SOURCE,
    CONTROL_STATUS,
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    LEADER_STATES,
    RECORD_KEEP,
    TASK_STATE,
    TELEOP_STATUS,
    TF,
    TF_STATIC,
    TOPICS,
    Topic,
    camera_info_topic,
    color_compressed_topic,
    color_topic,
    depth_compressed_topic,
    depth_topic,
)
from clamp_ros.record.writer import COMPRESSIONS

_BY_NAME = {topic.name: topic for topic in TOPICS}
_ALWAYS = (
    JOINT_STATES, JOINT_COMMANDS, ACTION_CHUNK, TF, TF_STATIC, TASK_STATE, CONTROL_STATUS, ARMS_STATUS, DIAGNOSTICS,
    CONTROL_SOURCE, TELEOP_STATUS, LEADER_STATES,
)  # fmt: skip


@dataclass(frozen=True)
class RecorderConfig:
    """Parameters of the recorder."""

    folder: str = param("recordings", "where bags are written, one directory an episode")
    task: str = param("", "task, for the bag's metadata and name; in simulation it is taken from the task state")
    operator: str = param("", "who moves the arms: a person's name, or the policy's")
    cameras: tuple[str, ...] = param(("front_left", "back_right"), "cameras to record; the other topics always are")
    images: str = param("raw", "of cameras: raw, or the camera node's JPEG and depth", choices=("raw", "compressed"))
    image_rate_hz: float = param(
        0.0, "what cameras should send; 0 where any steady rate will do", unit="Hz", minimum=0.0, maximum=300.0
    )
    extra_topics: tuple[str, ...] = param((), "further topics of the interface table, such as /fusion/views")
    calibration: tuple[str, ...] = param((), "configuration files to keep in the metadata, such as config/cameras.yaml")
    compression: str = param("lz4", "of the bag's chunks", choices=tuple(COMPRESSIONS))
    queue_mb: int = param(512, "what may wait in memory for the disk", unit="MB", minimum=16, maximum=65536)
    flush_s: float = param(0.5, "at most this much is lost in a crash", unit="s", minimum=0.1, maximum=60.0)
    min_free_gb: float = param(1.0, "refuse to start, and stop, with less disk space", unit="GB", minimum=0.0)
    keep_s: float = param(
        0.0, f"how much is held in memory between episodes, for {RECORD_KEEP.name}; 0 keeps nothing", unit="s",
        minimum=0.0, maximum=3600.0,
    )  # fmt: skip
    keep_mb: int = param(1024, "and how much memory that may take", unit="MB", minimum=16, maximum=65536)
    disk_check_s: float = param(
        0.5, "how long the disk's speed is measured at the start; 0 trusts it", unit="s", minimum=0.0, maximum=30.0
    )
    auto_start: bool = param(False, "record from the start until the node is stopped")

    def __post_init__(self) -> None:
        check(self)
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise unknown_key(camera, CAMERAS, "camera")
        for topic in self.extra_topics:
            if topic not in _BY_NAME:
                raise unknown_key(topic, _BY_NAME, "topic")


def camera_topics(config: RecorderConfig) -> list[str]:
    """Names of the topics that an episode's cameras must send."""
    color, depth = (
        (color_topic, depth_topic) if config.images == "raw" else (color_compressed_topic, depth_compressed_topic)
    )
    return [name(camera) for camera in config.cameras for name in (color, depth, camera_info_topic)]


def recorded_topics(config: RecorderConfig) -> list[Topic]:
    """Rows of the interface table that a configuration records, each once."""
    names = [*(topic.name for topic in _ALWAYS), *camera_topics(config), *config.extra_topics]
    return [_BY_NAME[name] for name in dict.fromkeys(names)]
