"""The recorder without ROS: an episode being written or none, the last seconds in memory, and what there is to say.

Memory is bounded: `queue_mb` waits for the disk, `keep_mb` is the ring, and as much again while one is being written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clamp_ros.contract import interfaces
from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import (
    ARMS_STATUS,
    CONTROL_SOURCE,
    CONTROL_STATUS,
    JOINT_COMMANDS,
    JOINT_STATES,
    RECORD_START,
    TASK_STATE,
    TELEOP_STATUS,
    TF_STATIC,
    Topic,
)
from clamp_ros.record.disk import shortage
from clamp_ros.record.live import LiveAudit, TopicFigures
from clamp_ros.record.messages import decode_string
from clamp_ros.record.metadata import EpisodeMetadata, calibration
from clamp_ros.record.ring import Recorded, Ring
from clamp_ros.record.settings import RecorderConfig, camera_topics, recorded_topics
from clamp_ros.record.writer import PARTIAL_SUFFIX, EpisodeWriter

_KEPT = {TF_STATIC.name: 100, **{t.name: 1 for t in (CONTROL_STATUS, ARMS_STATUS, CONTROL_SOURCE, TELEOP_STATUS)}}
"""Latched topics: what they said before an episode begins belongs to it too; how many messages of each."""
_BEHIND = 0.25
"""A queue filled so far means that the disk, or the compressor, does not keep up."""
_RATIO_BYTES = 32 << 20
"""What must be written before the ratio of compression is believed."""
_NAMED = 3
_GB = 1e9
_MB = 1 << 20


@dataclass(frozen=True)
class Look:
    """The recorder at a moment, for /diagnostics and the terminal.

    Attributes:
        recording: the bag being written, or None.
        seconds: of the episode, or since nothing has been recorded.
        figures: each topic's.
        gauges: numbers by name.
        warnings: lasting faults by name, in words; None where there is none.
        problems: what makes the episode unfit so far.
    """

    recording: Path | None
    seconds: float
    figures: tuple[TopicFigures, ...]
    gauges: Mapping[str, float]
    warnings: Mapping[str, str | None]
    problems: tuple[str, ...]


class Recorder:
    """Takes every message, in one thread; writers have their own.

    Attributes:
        config: what it was told.
        topics: what it wants to hear.
        disk_bytes_s: the disk's speed, once somebody has measured it.
        failure: why the last episode ended before its time; None once another begins.
        episodes, messages, dropped: since the start.
    """

    def __init__(self, config: RecorderConfig) -> None:
        self.config = config
        self.topics = recorded_topics(config)
        self.disk_bytes_s: float | None = None
        self.failure: str | None = None
        self.episodes = self.messages = self.dropped = 0
        self._folder = Path(config.folder).expanduser()
        self._required = [JOINT_STATES.name, JOINT_COMMANDS.name, *camera_topics(config)]
        self._audit = self._new_audit()
        self._looked_s = time.monotonic()
        self._kept: dict[str, deque[bytes]] = {name: deque(maxlen=n) for name, n in _KEPT.items()}
        self._ring = Ring(config.keep_s, config.keep_mb * _MB) if config.keep_s else None
        self._keeping: threading.Thread | None = None
        self._keep_failure: str | None = None
        self._writer: EpisodeWriter | None = None
        self.task_state: dict[str, Any] = {}
        """What the simulation said last."""

    @property
    def recording(self) -> Path | None:
        """The bag being written, or None."""
        return self._writer.path if self._writer is not None else None

    def _new_audit(self) -> LiveAudit:
        return LiveAudit(self.topics, self._required, self.config.image_rate_hz)

    def take(self, topic: Topic, stamp_ns: int, cdr: bytes) -> None:
        """One message as it came, at its time in the bag.

        Raises:
            RecordError: the disk is full or failed, and the episode has ended; or a task state is none.
        """
        kept = self._kept.get(topic.name)
        if kept is not None and cdr not in kept:
            kept.append(cdr)
        if stamp_ns < self._audit.end_ns and self._writer is None:
            self._audit = self._new_audit()  # simulated time went back: another episode
        self._audit.take(topic.name, stamp_ns, cdr)
        if self._writer is not None:
            self._write(topic, stamp_ns, cdr)
        elif self._ring is not None and topic is not TF_STATIC:
            self._ring.add(topic.name, topic.type, stamp_ns, cdr)
        if topic.name == TASK_STATE.name:
            try:
                self.task_state = dict(json.loads(decode_string(cdr)))
            except (ValueError, TypeError) as error:
                raise RecordError(f"{TASK_STATE.name} is not a JSON object: {error}") from error

    def _write(self, topic: Topic, stamp_ns: int, cdr: bytes) -> None:
        writer = self._writer
        if writer is None:
            return
        try:
            if writer.write(topic.name, topic.type, stamp_ns, cdr):
                self.messages += 1
            else:
                self.dropped += 1
                self._audit.drop(topic.name)
        except RecordError as error:  # what is written stays, to be recovered
            self._writer, self.failure = None, str(error)
            raise

    def start(self, now_ns: int) -> Path:
        """Begins an episode.

        Raises:
            RecordError: one is being recorded, the disk has no room, or a calibration cannot be read.
        """
        if self._writer is not None:
            raise RecordError(f"already recording {self._writer.path.name}; stop it first")
        self._writer = self._open(self.config.queue_mb * _MB)
        self._audit, self.failure = self._new_audit(), None
        if self._ring is not None:
            self._ring.clear()
        for topic, cdr in self._latched():
            self._audit.take(topic.name, now_ns, cdr)
            self._write(topic, now_ns, cdr)
        return self._writer.path

    def _open(self, queue_bytes: int) -> EpisodeWriter:
        config = self.config
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise RecordError(f"cannot record to {self._folder}: {error}") from error
        if free < _GB * config.min_free_gb:
            raise RecordError(
                f"{self._folder} has {free / _GB:.1f} GB free, less than min_free_gb {config.min_free_gb}; "
                "make room or record elsewhere"
            )
        metadata = EpisodeMetadata(
            task=config.task or self.task_state.get("task", ""),
            seed=self.task_state.get("seed"),
            operator=config.operator,
            cameras=tuple(config.cameras),
            calibration=calibration(map(Path, config.calibration)),
        )
        return EpisodeWriter(
            self._bag_path(), metadata, compression=config.compression, queue_bytes=queue_bytes, flush_s=config.flush_s
        )

    def _bag_path(self) -> Path:
        task = self.config.task or self.task_state.get("task") or "episode"
        stem = f"{task}_{datetime.now(timezone.utc):%Y%m%dT%H%M%S}"
        path, n = self._folder / stem, 1
        while path.exists() or path.with_name(path.name + PARTIAL_SUFFIX).exists():
            n += 1
            path = self._folder / f"{stem}_{n}"
        return path

    def _assets(self) -> dict[str, Any]:
        """Objects of the simulation that are not our own, for a bag's metadata."""
        return {"assets": self.task_state["assets"]} if "assets" in self.task_state else {}

    def _latched(self) -> list[tuple[Topic, bytes]]:
        return [(interfaces.topic(name), cdr) for name, messages in self._kept.items() for cdr in messages]

    def stop(self, outcome: str) -> Path:
        """Ends the episode and waits until it is on the disk; the path is the bag's.

        Raises:
            RecordError: nothing is being recorded, or the disk failed.
        """
        return self._finish(lambda writer: writer.close(outcome))

    def discard(self) -> Path:
        """Ends the episode and moves its bag to `discarded/`; raises as `stop`."""
        return self._finish(EpisodeWriter.discard)

    def _finish(self, end: Callable[[EpisodeWriter], Path]) -> Path:
        if self._writer is None:
            raise RecordError(f"nothing is being recorded; call {RECORD_START.name} first")
        writer, self._writer = self._writer, None
        state = self.task_state  # the simulation may have told its task, seed and assets only after the start
        writer.metadata = replace(
            writer.metadata,
            task=writer.metadata.task or state.get("task", ""),
            seed=state.get("seed", writer.metadata.seed),
            audit=self._audit.verdict(),
            extra={**writer.metadata.extra, **self._assets()},
        )
        try:
            path = end(writer)
        except (RecordError, OSError) as error:
            self.failure = str(error)
            raise
        self.episodes += 1
        return path

    @property
    def verdict(self) -> Mapping[str, Any]:
        """The live audit's, of the episode that is being recorded or was the last."""
        return self._audit.verdict()

    def keep(self) -> Path:
        """Writes the last `keep_s` seconds as an episode of its own, in a thread; the path is where it will be.

        Raises:
            RecordError: there is nothing to keep, or it is being recorded, or written, already.
        """
        if self._ring is None:
            raise RecordError("nothing is held in memory; set the parameter keep_s to the seconds that shall be")
        if self._writer is not None:
            raise RecordError(f"{self._writer.path.name} is being recorded and holds them; stop it to keep them")
        if self._keeping is not None and self._keeping.is_alive():
            raise RecordError("the last seconds kept are still being written; try again in a moment")
        if not len(self._ring):
            raise RecordError("no message has come yet, so there is nothing to keep")
        writer = self._open(2 * self._ring.max_bytes)
        messages = self._ring.take()
        self._keep_failure = None
        self._keeping = threading.Thread(target=self._write_ring, args=(writer, messages), name="keep", daemon=True)
        self._keeping.start()
        return writer.path

    def _write_ring(self, writer: EpisodeWriter, messages: list[Recorded]) -> None:
        audit = self._new_audit()
        try:
            start_ns = messages[0][2]
            heard = {message[0] for message in messages}
            latched = [
                (topic.name, topic.type, start_ns, cdr) for topic, cdr in self._latched() if topic.name not in heard
            ]
            for name, message_type, stamp_ns, cdr in [*latched, *messages]:
                audit.take(name, stamp_ns, cdr)
                writer.write(name, message_type, stamp_ns, cdr)
            del messages
            extra = {"kept_s": round(audit.seconds, 3), **self._assets()}
            writer.metadata = replace(writer.metadata, audit=audit.verdict(), extra=extra)
            writer.close("unknown")
            self.messages += writer.message_count
            self.episodes += 1
        except (RecordError, OSError) as error:
            self._keep_failure = str(error)

    def look(self, now_ns: int) -> Look:
        """Takes stock, about once a second; ends the episode where the disk has less than `min_free_gb` left."""
        config, writer = self.config, self._writer
        now_s = time.monotonic()
        self._audit.update(now_s - self._looked_s)
        self._looked_s = now_s
        gauges = {"input_mb_s": self._audit.bytes_per_s / _MB, "queue_mb": 0.0}
        warnings: dict[str, str | None] = {"recording": self.failure, "keep": self._keep_failure}
        ratio = 1.0 if config.compression == "none" else self._ratio()
        if self.disk_bytes_s is not None:
            gauges["disk_mb_s"] = self.disk_bytes_s / _MB
            warnings["disk"] = shortage(
                self._folder, self.disk_bytes_s, self._audit.bytes_per_s, ratio, config.queue_mb * _MB
            )
        if self._ring is not None:
            gauges |= {"kept_s": self._ring.span_s, "kept_mb": self._ring.bytes / _MB}
        silent = self._audit.silent(now_ns) if writer is not None else ()
        others = f" and {len(silent) - _NAMED} more topics" if len(silent) > _NAMED else ""
        warnings["silent"] = f"no messages any more on {', '.join(silent[:_NAMED])}{others}" if silent else None
        if writer is not None:
            free = self._free_bytes()
            full = writer.queued_bytes / (config.queue_mb * _MB)
            warnings["queue"] = None if full < _BEHIND else (
                f"the disk or the compressor is behind: {writer.queued_bytes / _MB:.0f} MB wait, and with"
                f" {config.queue_mb} MB messages are dropped"
            )  # fmt: skip
            gauges |= {
                "queue_mb": writer.queued_bytes / _MB, "free_gb": free / _GB, "file_mb": writer.file_bytes / _MB,
            }  # fmt: skip
            if free < _GB * config.min_free_gb:
                with contextlib.suppress(RecordError, OSError):  # what is written stays, to be recovered
                    self.stop("interrupted")
                self.failure = f"stopped recording {writer.path.name}: {free / _GB:.1f} GB left, min_free_gb reached"
                warnings["recording"] = self.failure
        problems = self._audit.problems() if self._writer is not None else ()
        return Look(self.recording, self._audit.seconds, self._audit.figures(), gauges, warnings, problems)

    def _free_bytes(self) -> int:
        """Of the disk; none of one that is gone."""
        try:
            return shutil.disk_usage(self._folder).free
        except OSError:
            return 0

    def _ratio(self) -> float:
        """What compression leaves; 1 before it is known."""
        writer = self._writer
        written = writer.taken_bytes - writer.queued_bytes if writer is not None else 0
        return writer.file_bytes / written if writer is not None and written > _RATIO_BYTES else 1.0

    def close(self) -> None:
        """Finishes what is being written; an episode in progress has the outcome unknown.

        Raises:
            RecordError: the disk failed.
        """
        if self._keeping is not None:
            self._keeping.join()
        if self._writer is not None:
            self.stop("unknown")
