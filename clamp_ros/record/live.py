"""The audit of an episode while it is recorded: every topic's rate, gaps, losses and drops, and a verdict at its end.

Memory is bounded: a topic is a few numbers and its last periods. `clamp_ros.record.audit` reads a whole bag instead,
and looks into the messages; this one costs microseconds a message, and speaks while the episode can still be saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import (
    CAMERAS,
    JOINT_COMMANDS,
    JOINT_STATES,
    Topic,
    camera_info_topic,
    color_compressed_topic,
    color_topic,
    depth_compressed_topic,
    depth_topic,
)
from clamp_ros.record.audit import MAX_GAP_PERIODS, STAMPED
from clamp_ros.record.messages import header_stamp_ns

_LOST_PERIODS = 1.5
"""A period longer than so many medians has messages missing in it."""
_PERIODS = 256
_ENOUGH = 8
"""Periods that make a median."""
_MIN_JOINTS_HZ = 45.0
_MAX_LOST = 0.01
_SILENT_S = 0.5

_JUDGED = {JOINT_STATES.name, JOINT_COMMANDS.name} | {
    name(camera)
    for camera in CAMERAS
    for name in (color_topic, depth_topic, camera_info_topic, color_compressed_topic, depth_compressed_topic)
}
"""Topics of one sender and a steady rate; the others may come as they like."""


@dataclass(frozen=True)
class TopicFigures:
    """One topic so far.

    Attributes:
        name: of the topic.
        count: messages received.
        rate_hz: 1 / median of its last periods, 0 before there are any.
        longest_gap_s: its longest period.
        gaps: periods of more than three medians; counted for topics of a steady rate, as is `lost`.
        lost: messages that never arrived, told from the stamps of those that did.
        dropped: messages that arrived and could not be written.
        bytes: of the messages received.
    """

    name: str
    count: int
    rate_hz: float
    longest_gap_s: float
    gaps: int
    lost: int
    dropped: int
    bytes: int


class _Track:
    """What is kept of one topic."""

    def __init__(self, topic: Topic) -> None:
        self.stamped = topic.type.rpartition("/")[2] in STAMPED
        self.judged = topic.name in _JUDGED
        self.count = self.bytes = self.gaps = self.lost = self.dropped = self.backwards = 0
        self.longest_ns = 0
        self.last_ns: int | None = None
        self.last_bag_ns = 0
        self.median_ns = 0.0
        self.periods: deque[int] = deque(maxlen=_PERIODS)

    def take(self, bag_ns: int, cdr: bytes | memoryview) -> None:
        self.count += 1
        self.bytes += len(cdr)
        self.last_bag_ns = bag_ns
        try:
            stamp = header_stamp_ns(cdr) if self.stamped else bag_ns
        except RecordError:
            return  # the audit of the bag names it
        if self.last_ns is not None:
            period = stamp - self.last_ns
            if period <= 0:
                self.backwards += 1
            else:
                self.longest_ns = max(self.longest_ns, period)
                self.periods.append(period)
                if self.median_ns:
                    self._judge(period)
                elif len(self.periods) == _ENOUGH:
                    self.update()
                    for earlier in self.periods:
                        self._judge(earlier)
        self.last_ns = stamp

    def update(self) -> None:
        """The median of the last periods; not at every message, which would cost more than the recording."""
        if len(self.periods) >= _ENOUGH:
            self.median_ns = float(np.median(np.array(self.periods)))

    def _judge(self, period: int) -> None:
        if not self.judged:
            return
        if period > _LOST_PERIODS * self.median_ns:
            self.lost += round(period / self.median_ns) - 1
        if period > MAX_GAP_PERIODS * self.median_ns:
            self.gaps += 1


class LiveAudit:
    """Counts the messages of one episode."""

    def __init__(self, topics: Iterable[Topic], required: Sequence[str], image_rate_hz: float = 0.0) -> None:
        """Knows what may come.

        Args:
            topics: rows of the interface table that are recorded.
            required: names without which the episode is unfit.
            image_rate_hz: what cameras should send; 0 where any steady rate will do.
        """
        self._required = tuple(required)
        self._image_rate_hz = image_rate_hz
        self._tracks = {topic.name: _Track(topic) for topic in topics}
        self._bytes, self._bytes_at = 0, 0
        self._start_ns: int | None = None
        self.end_ns = 0
        """Bag time of the newest message."""
        self.bytes_per_s = 0.0
        """What came in between the last two calls of `update`."""

    def take(self, topic: str, bag_ns: int, cdr: bytes | memoryview) -> None:
        """One message of a topic that was told of at the start, at its time in the bag."""
        self._tracks[topic].take(bag_ns, cdr)
        self._bytes += len(cdr)
        self._start_ns = bag_ns if self._start_ns is None else self._start_ns
        self.end_ns = max(self.end_ns, bag_ns)

    def drop(self, topic: str) -> None:
        """The message just taken could not be written."""
        self._tracks[topic].dropped += 1

    def update(self, elapsed_s: float) -> None:
        """Takes stock, about once a second; `elapsed_s` is the (wall) time since the last call."""
        for track in self._tracks.values():
            track.update()
        if elapsed_s > 0.0:
            self.bytes_per_s = (self._bytes - self._bytes_at) / elapsed_s
        self._bytes_at = self._bytes

    @property
    def seconds(self) -> float:
        """Between the first and the newest message."""
        return 1e-9 * (self.end_ns - self._start_ns) if self._start_ns is not None else 0.0

    def figures(self) -> tuple[TopicFigures, ...]:
        """Every topic, in the order given."""
        return tuple(
            TopicFigures(
                name, t.count, 1e9 / t.median_ns if t.median_ns else 0.0, 1e-9 * t.longest_ns, t.gaps, t.lost,
                t.dropped, t.bytes,
            )
            for name, t in self._tracks.items()
        )  # fmt: skip

    def silent(self, now_ns: int) -> tuple[str, ...]:
        """Names of the required topics that have stopped, at a bag time."""
        return tuple(
            name
            for name in self._required
            if (track := self._tracks[name]).count
            and now_ns - track.last_bag_ns > max(1e9 * _SILENT_S, MAX_GAP_PERIODS * track.median_ns)
        )

    def problems(self) -> tuple[str, ...]:
        """What makes the episode unfit so far, in words."""
        missing = [name for name in self._required if not self._tracks[name].count]
        found = [f"missing: {', '.join(missing)}"] if missing else []
        for row in self.figures():
            track = self._tracks[row.name]
            if row.dropped:
                found.append(f"{row.name}: {row.dropped} messages were dropped, the disk is too slow")
            if not track.judged or not row.count:
                continue
            if row.gaps:
                found.append(f"{row.name}: {row.gaps} gaps, the longest {1e3 * row.longest_gap_s:.0f} ms")
            if row.lost > _MAX_LOST * (row.count + row.lost):
                found.append(f"{row.name}: {row.lost} of {row.count + row.lost} messages never arrived")
            if track.backwards:
                found.append(f"{row.name}: stamps repeat or go back {track.backwards} times")
            wanted = self._wanted_hz(row.name)
            if 0.0 < row.rate_hz < wanted:
                found.append(f"{row.name}: {row.rate_hz:.1f} Hz, expected at least {wanted:.1f}")
        return tuple(found)

    def _wanted_hz(self, topic: str) -> float:
        return _MIN_JOINTS_HZ if topic in (JOINT_STATES.name, JOINT_COMMANDS.name) else 0.9 * self._image_rate_hz

    def verdict(self) -> dict[str, Any]:
        """For the bag's metadata: `verdict` (good or poor), `problems`, and the figures of each topic."""
        for track in self._tracks.values():
            track.update()
        problems = self.problems()
        topics = {row.name: asdict(row) for row in self.figures() if row.count}
        for row in topics.values():
            del row["name"]
            row["rate_hz"], row["longest_gap_s"] = round(row["rate_hz"], 2), round(row["longest_gap_s"], 4)
        return {"verdict": "poor" if problems else "good", "problems": list(problems), "topics": topics}
