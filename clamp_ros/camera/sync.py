"""Matching the images of several cameras by stamp.

Cameras deliver one by one, late, or not at all. The synchronizer gathers images whose stamps agree within a tolerance,
gives out a set as soon as every camera has one, and gives up on a set after a bounded wait, counting who was missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from clamp_ros.contract.errors import ContractError

Item = TypeVar("Item")


@dataclass
class _Set(Generic[Item]):
    """Images that belong together: all stamps lie within the tolerance of the first's."""

    stamp_ns: int
    arrived_ns: int
    items: dict[str, Item] = field(default_factory=dict)


class FrameSynchronizer(Generic[Item]):
    """Gathers one item a camera into sets of one instant; the newest complete set wins.

    A complete set also ends every older one: images are never given out of order. Memory holds at most `MAX_PENDING`
    incomplete sets.

    Attributes:
        missed: camera name to how many sets were given up because its image did not come.
        late: camera name to how many of its images came after their set had been given out or given up.
        complete: how many sets were given out.
    """

    MAX_PENDING = 8

    def __init__(self, cameras: Sequence[str], tolerance_ns: int, timeout_ns: int) -> None:
        """An empty synchronizer.

        Args:
            cameras: who belongs to a set.
            tolerance_ns: images of a set lie no further than this from its first.
            timeout_ns: how long after its first image's arrival an incomplete set is kept.
        """
        if not cameras or len(set(cameras)) != len(cameras):
            raise ContractError(f"cameras are {list(cameras)}, expected different names, and at least one")
        if tolerance_ns < 0 or timeout_ns <= 0:
            raise ContractError(f"tolerance is {tolerance_ns} ns and timeout {timeout_ns} ns, expected >= 0 and > 0")
        self._cameras = tuple(cameras)
        self._tolerance_ns = tolerance_ns
        self._timeout_ns = timeout_ns
        self._pending: list[_Set[Item]] = []
        self._done_ns: int | None = None
        self.missed = dict.fromkeys(cameras, 0)
        self.late = dict.fromkeys(cameras, 0)
        self.complete = 0

    def add(self, camera: str, stamp_ns: int, item: Item, now_ns: int) -> dict[str, Item] | None:
        """Takes an image in; returns the set it completes, in the order of `cameras`, or None.

        A second image of a camera for the same set replaces the first.

        Args:
            camera: whose image.
            stamp_ns: its stamp.
            item: the image, or anything.
            now_ns: time of arrival, by a clock of the caller's that does not run back without a `reset`.

        Raises:
            ContractError: the camera is not one of those to be matched.
        """
        if camera not in self.missed:
            raise ContractError(f"camera {camera!r} is not among {list(self._cameras)}")
        self.expire(now_ns)
        if self._done_ns is not None and stamp_ns <= self._done_ns + self._tolerance_ns:
            self.late[camera] += 1
            return None
        match = self._match(stamp_ns)
        if match is None:
            match = _Set(stamp_ns, now_ns)
            self._pending.append(match)
            if len(self._pending) > self.MAX_PENDING:
                self._give_up(min(self._pending, key=lambda s: s.stamp_ns))
        match.items[camera] = item
        if len(match.items) < len(self._cameras):
            return None
        for older in [s for s in self._pending if s.stamp_ns < match.stamp_ns]:
            self._give_up(older)
        self._pending.remove(match)
        self._done_ns = match.stamp_ns
        self.complete += 1
        return {name: match.items[name] for name in self._cameras}

    def expire(self, now_ns: int) -> None:
        """Gives up the sets that have waited too long; `add` does so too."""
        for stale in [s for s in self._pending if now_ns - s.arrived_ns > self._timeout_ns]:
            self._give_up(stale)

    def reset(self) -> None:
        """Forgets pending sets and the newest stamp, as after time jumped back; counters stay."""
        self._pending.clear()
        self._done_ns = None

    def _match(self, stamp_ns: int) -> _Set[Item] | None:
        near = min(self._pending, key=lambda s: abs(s.stamp_ns - stamp_ns), default=None)
        return near if near is not None and abs(near.stamp_ns - stamp_ns) <= self._tolerance_ns else None

    def _give_up(self, incomplete: _Set[Item]) -> None:
        self._pending.remove(incomplete)
        self._done_ns = incomplete.stamp_ns if self._done_ns is None else max(self._done_ns, incomplete.stamp_ns)
        for camera in self._cameras:
            if camera not in incomplete.items:
                self.missed[camera] += 1
