"""Records what a running system publishes, one bag an episode, as the bytes that were on the wire.

Start, stop and discard are services; `auto_start` records from the first moment until the node is stopped.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from clamp_ros.contract.config import check, param, unknown_key
from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    CAMERAS,
    CONTROL_SOURCE,
    CONTROL_STATUS,
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    LEADER_STATES,
    RECORD_DISCARD,
    RECORD_START,
    RECORD_STOP,
    TASK_STATE,
    TELEOP_STATUS,
    TF,
    TF_STATIC,
    TOPICS,
    Topic,
    camera_info_topic,
    color_topic,
    depth_topic,
)
from clamp_ros.record.messages import decode_string
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import COMPRESSIONS, EpisodeWriter
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, run_node, serve, subscribe

_BY_NAME = {topic.name: topic for topic in TOPICS}
_ALWAYS = (
    JOINT_STATES, JOINT_COMMANDS, ACTION_CHUNK, TF, TF_STATIC, TASK_STATE, CONTROL_STATUS, DIAGNOSTICS,
    CONTROL_SOURCE, TELEOP_STATUS, LEADER_STATES,
)  # fmt: skip
_KEPT = (TF_STATIC.name, CONTROL_STATUS.name, CONTROL_SOURCE.name, TELEOP_STATUS.name)
"""Latched topics: what they said before an episode begins belongs to the episode too."""
_WATCH_S = 1.0


@dataclass(frozen=True)
class RecorderConfig:
    """Parameters of the recorder."""

    folder: str = param("recordings", "where bags are written, one directory an episode")
    task: str = param("", "task, for the bag's metadata and name; in simulation it is taken from the task state")
    operator: str = param("", "who moves the arms: a person's name, or the policy's")
    cameras: tuple[str, ...] = param(("front_left", "back_right"), "cameras to record; the other topics always are")
    extra_topics: tuple[str, ...] = param((), "further topics of the interface table, such as /fusion/views")
    compression: str = param("lz4", "of the bag's chunks", choices=tuple(COMPRESSIONS))
    queue_mb: int = param(512, "what may wait in memory for the disk", unit="MB", minimum=16, maximum=65536)
    flush_s: float = param(1.0, "at most this much is lost in a crash", unit="s", minimum=0.1, maximum=60.0)
    min_free_gb: float = param(1.0, "refuse to start, and stop, with less disk space", unit="GB", minimum=0.0)
    auto_start: bool = param(False, "record from the start until the node is stopped")

    def __post_init__(self) -> None:
        check(self)
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise unknown_key(camera, CAMERAS, "camera")
        for topic in self.extra_topics:
            if topic not in _BY_NAME:
                raise unknown_key(topic, _BY_NAME, "topic")


def recorded_topics(config: RecorderConfig) -> list[Topic]:
    """Rows of the interface table that a configuration records, each once."""
    names = [topic.name for topic in _ALWAYS]
    for camera in config.cameras:
        names += [color_topic(camera), depth_topic(camera), camera_info_topic(camera)]
    return [_BY_NAME[name] for name in dict.fromkeys([*names, *config.extra_topics])]


class RecorderNode(Node):
    """Subscribes to serialised messages and hands them to an `EpisodeWriter`, whose thread writes them."""

    def __init__(self, **options: Any) -> None:
        super().__init__("recorder_node", **options)
        self._config = declare(self, RecorderConfig)
        self._health = Health(self)
        for counter in ("episodes", "messages", "dropped"):
            self._health.count(counter, 0)
        self._folder = Path(self._config.folder).expanduser()
        self._writer: EpisodeWriter | None = None
        self._reported = (0, 0)
        self._kept: dict[str, list[bytes]] = {name: [] for name in _KEPT}
        self._task_state: dict[str, Any] = {}
        for topic in recorded_topics(self._config):
            subscribe(self, topic, self._receiver(topic), raw=True)
        serve(self, RECORD_START, self._on_start)
        serve(self, RECORD_STOP, self._on_stop)
        serve(self, RECORD_DISCARD, self._on_discard)
        self.create_timer(_WATCH_S, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self._config.auto_start:
            self._start()

    def _receiver(self, topic: Topic) -> Callable[[bytes], None]:
        kept = self._kept.get(topic.name)

        def receive(cdr: bytes) -> None:
            if kept is not None:
                if topic.name != TF_STATIC.name:
                    kept.clear()
                if cdr not in kept:
                    kept.append(cdr)
            if topic.name == TASK_STATE.name:
                self._task_state = json.loads(decode_string(cdr))
            if self._writer is not None:
                self._write(topic, cdr)

        return receive

    def _write(self, topic: Topic, cdr: bytes) -> None:
        writer = self._writer
        if writer is None:
            return
        try:
            if not writer.write(topic.name, topic.type, self.get_clock().now().nanoseconds, cdr):
                self._health.fault("full_queue", f"the disk is too slow: dropped a message of {topic.name}")
        except RecordError as error:
            self._fail(str(error))

    def _start(self) -> Path:
        if self._writer is not None:
            raise RecordError(f"already recording {self._writer.path.name}; stop it first")
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < 1e9 * self._config.min_free_gb:
            raise RecordError(
                f"{self._folder} has {1e-9 * free:.1f} GB free, less than min_free_gb {self._config.min_free_gb}; "
                "make room or record elsewhere"
            )
        metadata = EpisodeMetadata(
            task=self._config.task, operator=self._config.operator, cameras=tuple(self._config.cameras)
        )
        self._writer = EpisodeWriter(
            self._bag_path(),
            self._with_task_state(metadata),
            compression=self._config.compression,
            queue_bytes=self._config.queue_mb << 20,
            flush_s=self._config.flush_s,
        )
        self._reported = (0, 0)
        self._health.hold("recording", None)
        for name, messages in self._kept.items():
            for cdr in messages:
                self._write(_BY_NAME[name], cdr)
        self.get_logger().info(f"recording {self._writer.path}")
        return self._writer.path

    def _bag_path(self) -> Path:
        task = self._config.task or self._task_state.get("task") or "episode"
        stem = f"{task}_{datetime.now(timezone.utc):%Y%m%dT%H%M%S}"
        path, n = self._folder / stem, 1
        while path.exists() or path.with_name(path.name + ".partial").exists():
            n += 1
            path = self._folder / f"{stem}_{n}"
        return path

    def _with_task_state(self, metadata: EpisodeMetadata) -> EpisodeMetadata:
        """The task and seed that the simulation says it runs."""
        state = self._task_state
        return replace(metadata, task=metadata.task or state.get("task", ""), seed=state.get("seed", metadata.seed))

    def _finish(self, end: Callable[[EpisodeWriter], Path]) -> Path:
        if self._writer is None:
            raise RecordError("nothing is being recorded; call /record/start first")
        writer, self._writer = self._writer, None
        writer.metadata = self._with_task_state(writer.metadata)
        path = end(writer)
        self._count(writer)
        self._health.count("episodes")
        dropped = f", {writer.dropped} messages dropped" if writer.dropped else ""
        self.get_logger().info(f"wrote {path}: {writer.message_count} messages{dropped}")
        return path

    def _fail(self, message: str) -> None:
        """The disk is full or failed: what is written stays, to be recovered; recording ends, the node lives."""
        self._writer = None
        self._health.hold("recording", message, error=True)
        self.get_logger().error(message)

    def _watch(self) -> None:
        if self._writer is None:
            return
        self._count(self._writer)
        self._health.gauge("queue_mb", self._writer.queued_bytes / (1 << 20))
        free = shutil.disk_usage(self._folder).free
        self._health.gauge("free_gb", 1e-9 * free)
        if free < 1e9 * self._config.min_free_gb:
            path = self._finish(lambda writer: writer.close("interrupted"))
            self._fail(f"stopped recording {path.name}: {1e-9 * free:.1f} GB left, min_free_gb reached")

    def _count(self, writer: EpisodeWriter) -> None:
        now = (writer.message_count, writer.dropped)
        self._health.count("messages", now[0] - self._reported[0])
        self._health.count("dropped", now[1] - self._reported[1])
        self._reported = now

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, self._start)

    def _on_stop(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        outcome = "success" if request.data else "failure"
        return self._answer(response, lambda: self._finish(lambda writer: writer.close(outcome)))

    def _on_discard(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, lambda: self._finish(EpisodeWriter.discard))

    def _answer(self, response: Any, action: Callable[[], Path]) -> Any:
        try:
            response.success, response.message = True, str(action())
        except (RecordError, OSError) as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(str(error))
        return response

    def close(self) -> None:
        """Finishes the bag in progress, with outcome unknown."""
        if self._writer is not None:
            self._finish(lambda writer: writer.close("unknown"))


def main() -> int:
    """Entry point of the executable `recorder_node`."""
    return run_node(RecorderNode)


if __name__ == "__main__":
    sys.exit(main())
