"""A tree of time-stamped transforms with the semantics of ROS's tf2 (geometry2: `cache.cpp`, `buffer_core.cpp`).

Nodes fill it from /tf and /tf_static (`clamp_ros.ros.tf`), data sets from a bag; both then look up the same poses.

Kept from tf2: translation is interpolated linearly and rotation by slerp; nothing is extrapolated; each sample that
comes first drops what is older than the history allows, counted from the newest sample so far; samples may come out of
order; where a frame changed its parent between two samples, the older one holds; a static frame holds at any time.
Different: a stamp of 0 is a time like any other (ask `latest_common_stamp_ns` for the newest); a sample whose stamp is
already there replaces it, so that a frozen clock cannot grow the history; and a frame that nobody has named is an error
even in itself.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import (
    ContractError,
    FutureExtrapolationError,
    PastExtrapolationError,
    TransformError,
    UnknownFrameError,
)
from clamp_ros.geometry.transforms import interpolate, invert

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Sample:
    """Where a frame stood: its parent, and (4, 4) parent_from_child."""

    parent: str
    pose: Matrix


@dataclass
class _History:
    """One frame's samples, oldest first; a static frame has one, which holds at any time."""

    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    samples: list[_Sample] = field(default_factory=list)

    def insert(self, stamp_ns: int, sample: _Sample, history_ns: int) -> bool:
        if self.static:
            self.stamps_ns, self.samples = [stamp_ns], [sample]
            return True
        if self.stamps_ns:
            oldest_ns = self.stamps_ns[-1] - history_ns
            old = bisect_left(self.stamps_ns, oldest_ns)
            del self.stamps_ns[:old], self.samples[:old]
            if stamp_ns < oldest_ns:
                return False
        i = bisect_left(self.stamps_ns, stamp_ns)
        if i < len(self.stamps_ns) and self.stamps_ns[i] == stamp_ns:
            self.samples[i] = sample
        else:
            self.stamps_ns.insert(i, stamp_ns)
            self.samples.insert(i, sample)
        return True

    def at(self, frame: str, stamp_ns: int) -> _Sample:
        """The sample at a time, interpolated between its neighbours."""
        if self.static:
            return self.samples[0]
        oldest, newest = self.stamps_ns[0], self.stamps_ns[-1]
        if stamp_ns > newest:
            raise FutureExtrapolationError(
                f"frame {frame!r} is not known yet at {_s(stamp_ns)}: its newest transform is of {_s(newest)}"
            )
        if stamp_ns < oldest:
            raise PastExtrapolationError(
                f"frame {frame!r} is no longer known at {_s(stamp_ns)}: its oldest transform is of {_s(oldest)}"
            )
        i = bisect_right(self.stamps_ns, stamp_ns) - 1
        older = self.samples[i]
        if self.stamps_ns[i] == stamp_ns or older.parent != self.samples[i + 1].parent:
            return older
        fraction = (stamp_ns - self.stamps_ns[i]) / (self.stamps_ns[i + 1] - self.stamps_ns[i])
        return _Sample(older.parent, interpolate(older.pose, self.samples[i + 1].pose, fraction))


class TfTree:
    """Time-stamped transforms between named frames. Any thread may use it."""

    def __init__(self, history_s: float = 10.0) -> None:
        """An empty tree that keeps history_s seconds of each frame (tf2's default: 10)."""
        if not history_s > 0.0:
            raise ContractError(f"history_s is {history_s}, expected more than 0")
        self._history_ns = round(history_s * 1e9)
        self._histories: dict[str, _History] = {}
        self._frames: set[str] = set()
        self._lock = threading.Lock()

    def set_transform(
        self, parent: str, child: str, stamp_ns: int, parent_from_child: Matrix, static: bool = False
    ) -> bool:
        """Adds one sample.

        Args:
            parent: frame that the pose is expressed in.
            child: frame whose pose it is.
            stamp_ns: when it stood there.
            parent_from_child: (4, 4), metres.
            static: it stands there at all times. A frame that turns static, or stops being so, loses its history.

        Returns:
            False if the sample is older than the frame's history and was ignored.

        Raises:
            ContractError: a name is empty, both are the same, or the pose is not a finite (4, 4).
        """
        if not parent or not child or parent == child:
            raise ContractError(f"transform from {child!r} to {parent!r}: expected two different frames with names")
        pose = np.array(parent_from_child, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ContractError(f"transform from {child!r} to {parent!r} is no finite (4, 4) matrix: {pose.tolist()}")
        with self._lock:
            history = self._histories.get(child)
            if history is None or history.static != static:
                history = self._histories[child] = _History(static)
            self._frames.update((parent, child))
            return history.insert(stamp_ns, _Sample(parent, pose), self._history_ns)

    def lookup(self, target: str, source: str, stamp_ns: int) -> Matrix:
        """(4, 4) target_from_source at a time: carries points in `source` to `target`.

        Raises:
            UnknownFrameError: a frame was never named, or the two are not connected.
            PastExtrapolationError: a transform between them is needed from before its history.
            FutureExtrapolationError: a transform between them has not come yet; waiting may help.
            TransformError: the frames form a loop.
        """
        with self._lock:
            self._check_known(target, source)
            chain, blocked = self._chain_from(source, target, stamp_ns)
            if target in chain:
                return chain[target].copy()
            # The source's chain does not pass through the target: climb from there until the two meet.
            meeting, meeting_from_target = target, np.eye(4)
            visited = {target}
            while meeting not in chain:
                history = self._histories.get(meeting)
                if history is None:
                    if blocked is not None:  # they may be connected above the transform that is missing
                        raise blocked
                    raise UnknownFrameError(f"frames {target!r} and {source!r} are not connected")
                sample = history.at(meeting, stamp_ns)
                meeting, meeting_from_target = sample.parent, sample.pose @ meeting_from_target
                if meeting in visited:
                    raise _loop(meeting)
                visited.add(meeting)
            return invert(meeting_from_target) @ chain[meeting]

    def _chain_from(
        self, source: str, target: str, stamp_ns: int
    ) -> tuple[dict[str, Matrix], TransformError | None]:
        """Each ancestor of `source`, up to `target`, with ancestor_from_source; and what kept it from going higher."""
        frame, frame_from_source = source, np.eye(4)
        chain = {frame: frame_from_source}
        while frame != target and frame in self._histories:
            try:
                sample = self._histories[frame].at(frame, stamp_ns)
            except TransformError as error:
                return chain, error
            frame, frame_from_source = sample.parent, sample.pose @ frame_from_source
            if frame in chain:
                raise _loop(frame)
            chain[frame] = frame_from_source
        return chain, None

    def latest_common_stamp_ns(self, target: str, source: str) -> int:
        """The newest time at which `lookup` can succeed; 0 where everything between the frames is static.

        Raises:
            UnknownFrameError: a frame was never named, or the two are not connected by their newest parents.
            TransformError: the frames form a loop.
        """
        with self._lock:
            self._check_known(target, source)
            if target == source:
                history = self._histories.get(source)
                return 0 if history is None or history.static else history.stamps_ns[-1]
            source_chain, target_chain = self._newest_chain(source), self._newest_chain(target)
            meeting = next((frame for frame in source_chain if frame in target_chain), None)
            if meeting is None:
                raise UnknownFrameError(f"frames {target!r} and {source!r} are not connected")
            stamps = [source_chain[meeting], target_chain[meeting]]
            return min((stamp for stamp in stamps if stamp is not None), default=0)

    def _newest_chain(self, frame: str) -> dict[str, int | None]:
        """Each ancestor by the newest parents, with the oldest of the newest stamps below; None if all are static."""
        stamp: int | None = None
        chain: dict[str, int | None] = {frame: None}
        while frame in self._histories:
            history = self._histories[frame]
            if not history.static:
                stamp = history.stamps_ns[-1] if stamp is None else min(stamp, history.stamps_ns[-1])
            frame = history.samples[-1].parent
            if frame in chain:
                raise _loop(frame)
            chain[frame] = stamp
        return chain

    def frames(self) -> frozenset[str]:
        """Every frame heard of."""
        with self._lock:
            return frozenset(self._frames)

    def _check_known(self, *frames: str) -> None:
        for frame in frames:
            if frame not in self._frames:
                known = ", ".join(sorted(self._frames)) or "none"
                raise UnknownFrameError(f"frame {frame!r} is not known; known are: {known}")

    def clear(self) -> None:
        """Forgets what moves, as after time jumped back; static frames stay."""
        with self._lock:
            self._histories = {frame: history for frame, history in self._histories.items() if history.static}


def _loop(frame: str) -> TransformError:
    return TransformError(f"the transforms form a loop through frame {frame!r}")


def _s(stamp_ns: int) -> str:
    return f"{stamp_ns / 1e9:.6f} s"
