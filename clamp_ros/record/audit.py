"""Audits a bag: rates, gaps, numbers that are not finite, joint names, unmatched images; and a verdict."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError, TransformError
from clamp_ros.contract.interfaces import (
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    TASK_STATE,
    TF,
    TOPICS,
    camera_info_topic,
    optical_frame,
)
from clamp_ros.contract.robot import LOWER_LIMITS, UPPER_LIMITS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.record import messages
from clamp_ros.record.episode import Episode

MAX_GAP_PERIODS = 3.0
"""A gap longer than this many of the topic's own median periods is a fault."""
_MANY_SENDERS = (TASK_STATE.name, DIAGNOSTICS.name)
"""Topics without one steady rate: of as many nodes as there are, or told when something happens."""
STAMPED = ("Image", "CompressedImage", "CameraInfo", "JointState", "JointTrajectory", "PointCloud2", "Header")
"""Types that begin with a header: their own stamps tell of the sender's gaps, whatever the way to the bag adds."""
_LIMIT_SLACK = 0.02
"""Measured joints may overshoot their limits by this much, rad or m, before it counts as a fault of the units."""


@dataclass(frozen=True)
class TopicReport:
    """One topic's figures; `rate_hz` is 1 / median period, `gaps` the number of periods over three medians."""

    name: str
    type: str
    count: int
    rate_hz: float
    longest_gap_s: float
    gaps: int


@dataclass(frozen=True)
class Report:
    """The audit of one bag.

    Attributes:
        path: the bag.
        duration_s: between the first and the last message.
        topics: figures of each topic.
        problems: what makes the bag unfit for training, in words; empty if nothing does.
        notes: what is worth knowing and does no harm.
    """

    path: Path
    duration_s: float
    topics: tuple[TopicReport, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """The verdict."""
        return not self.problems

    def text(self) -> str:
        """A table and the verdict, for a terminal."""
        width = max([len(t.name) for t in self.topics] + [5])
        lines = [f"{self.path}: {self.duration_s:.1f} s"]
        lines.append(f"  {'topic':<{width}}  {'count':>6}  {'Hz':>6}  {'longest gap':>11}  gaps")
        lines += [
            f"  {t.name:<{width}}  {t.count:>6}  {t.rate_hz:>6.1f}  {1e3 * t.longest_gap_s:>8.0f} ms  {t.gaps:>4}"
            for t in self.topics
        ]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  PROBLEM: {fault}" for fault in self.problems]
        lines.append(f"  verdict: {'good' if self.ok else 'not fit for training'}")
        return "\n".join(lines)


def audit(directory: Path | str) -> Report:
    """Reads a whole bag and reports what is in it; a fault is reported, not raised.

    Raises:
        RecordError: the directory cannot be opened as a bag.
    """
    with Episode.open(directory) as episode:
        return _audit(episode)


def _audit(episode: Episode) -> Report:
    problems: list[str] = []
    notes: list[str] = []
    topics = tuple(_topic_report(episode, name, problems) for name in sorted(episode.topics))
    expected = {t.name: t.type for t in TOPICS}
    for info in episode.topics.values():
        if info.name in expected and info.type != expected[info.name]:
            problems.append(f"{info.name} is a {info.type}, expected {expected[info.name]}")
    for required in (JOINT_STATES.name, JOINT_COMMANDS.name):
        if not len(episode.stamps_ns(required)):
            problems.append(f"{required} is missing")
        else:
            _audit_joints(episode, required, problems)
    for camera in episode.metadata.cameras or episode.cameras:
        _audit_camera(episode, camera, problems)
    for camera in episode.color_only:
        notes.append(f"{camera} has colour and no depth: fit only for training that needs none")
    if not (episode.metadata.cameras or episode.cameras or episode.color_only):
        notes.append("no camera was recorded")
    if episode.metadata.outcome != "success":
        notes.append(f"outcome: {episode.metadata.outcome}")
    notes += [f"said while recording: {problem}" for problem in episode.metadata.audit.get("problems", ())]
    ends = [episode.stamps_ns(name)[[0, -1]] for name in episode.topics if episode.topics[name].count]
    duration = 1e-9 * float(np.ptp(np.concatenate(ends))) if ends else 0.0  # killed before its first second was over
    return Report(episode.path, duration, topics, tuple(problems), tuple(notes))


def _topic_report(episode: Episode, name: str, problems: list[str]) -> TopicReport:
    info, stamps = episode.topics[name], _stamps_ns(episode, name)
    periods = 1e-9 * np.diff(stamps)
    if periods.size == 0:
        return TopicReport(name, info.type, info.count, 0.0, 0.0, 0)
    median = float(np.median(periods))
    gaps = int(np.count_nonzero(periods > MAX_GAP_PERIODS * median)) if median > 0 else 0
    periodic = any(t.name == name and t.rate_hz is not None for t in TOPICS) and name not in _MANY_SENDERS
    if periodic and gaps:
        at = 1e-9 * float(stamps[int(np.argmax(periods))] - stamps[0])
        problems.append(f"{name} has {gaps} gaps, the longest {1e3 * periods.max():.0f} ms, {at:.2f} s from its start")
    rate = 1.0 / median if median > 0 else 0.0
    return TopicReport(name, info.type, info.count, rate, float(periods.max()), gaps)


def _stamps_ns(episode: Episode, name: str) -> NDArray[np.int64]:
    """(N,) increasing times of a topic: its messages' own, or the bag's where they have none."""
    if episode.topics[name].type.rpartition("/")[2] not in STAMPED:
        return episode.stamps_ns(name)
    stamps = []
    for _, cdr in episode.messages(name):
        with contextlib.suppress(RecordError):  # too few bytes: told where the topic's messages are decoded
            stamps.append(messages.header_stamp_ns(cdr))
    return np.sort(np.array(stamps, dtype=np.int64))


def _audit_joints(episode: Episode, topic: str, problems: list[str]) -> None:
    rows, bad, first = [], 0, ""
    stamps = []
    for _, cdr in episode.messages(topic):
        try:
            stamp, positions, _ = messages.decode_joints(cdr)
            stamps.append(stamp)
            rows.append(positions)
        except RecordError as error:
            bad, first = bad + 1, first or str(error)
    if bad:
        problems.append(f"{topic}: {bad} messages are unusable; the first: {first}")
    if rows:
        positions = np.array(rows)
        outside = (positions < LOWER_LIMITS - _LIMIT_SLACK) | (positions > UPPER_LIMITS + _LIMIT_SLACK)
        if outside.any():
            problems.append(f"{topic}: {int(outside.any(axis=1).sum())} messages are outside the joints' limits")
        if np.any(np.diff(stamps) <= 0):
            problems.append(f"{topic}: header stamps repeat or go back in time")


def _audit_camera(episode: Episode, camera: str, problems: list[str]) -> None:
    if camera not in episode.cameras:
        problems.append(f"images of {camera} are missing")
        return
    try:
        frames = episode.frames(camera)
        if not len(frames):
            problems.append(f"{camera} has no frame with both colour and depth")
            return
        if frames.unmatched:
            problems.append(f"{camera}: {frames.unmatched} images have no partner of the same stamp")
        pinhole = frames.pinhole
        infos = {messages.decode_camera_info(cdr) for _, cdr in episode.messages(camera_info_topic(camera))}
        if infos != {pinhole}:
            problems.append(f"{camera}: intrinsics change within the episode")
        seen = [i for i in range(len(frames)) if frames.depth_mm(i).any()]
        if len(seen) < len(frames):
            problems.append(f"{camera}: {len(frames) - len(seen)} depth images are all invalid")
        for i in (0, len(frames) - 1):
            color = frames.color(i)
            if color.shape[:2] != (pinhole.height, pinhole.width):
                problems.append(
                    f"{camera}: images are {color.shape}, camera_info says {pinhole.width}x{pinhole.height}"
                )
        episode.tf.lookup(WORLD_FRAME, optical_frame(camera), int(frames.stamps_ns[0]))
    except TransformError as error:
        problems.append(f"{camera} has no pose in {TF.name} or /tf_static: {error}")
    except RecordError as error:
        problems.append(f"{camera}: {error}")
