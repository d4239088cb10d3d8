"""Whose targets the arms follow: the policy's chunks, a person's leader arms, or a recording that is played again.

One source is selected at a time, and the others are not listened to. The policy sends chunks (`control.chunks`); the
others send streams, one absolute target a message, of which the newest counts until it is `stale_after_s` old.
Selecting a source starts it afresh: what was sent before is void. So does whatever interrupts the arms; a stream that
was interrupted then stays shut until it is selected again, since its sender cannot know where the arms have been left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.control.chunks import FUTURE_TOLERANCE_NS, ChunkExecutor, Due

STREAMS = ("teleop", "replay")
SOURCES = ("policy", *STREAMS)
NOBODY = "nobody"


class TargetStream:
    """The newest of a stream's targets, and its deadline."""

    def __init__(self, name: str, stale_after_s: float) -> None:
        """A stream that is shut.

        Args:
            name: who sends it, for the reasons.
            stale_after_s: how long a target counts after its stamp.
        """
        self._name = name
        self._stale_after_ns = round(1e9 * stale_after_s)
        self._target: NDArray[np.float64] | None = None
        self._stamp_ns = 0
        self._shut: str | None = f"{name} is not selected"

    @property
    def is_open(self) -> bool:
        """Whether it takes targets."""
        return self._shut is None

    def open(self, now_ns: int) -> None:
        """Takes targets from now on; those stamped earlier are void."""
        self._target, self._stamp_ns, self._shut = None, now_ns, None

    def shut(self, reason: str) -> None:
        """Takes none; `reason` is given until it is opened."""
        self._target, self._shut = None, reason

    def add(self, target: NDArray[np.float64], stamp_ns: int, now_ns: int) -> str | None:
        """Takes a (14,) target in contract order; returns why it is refused, or None."""
        if self._shut is not None:
            return f"{self._name} target refused: {self._shut}"
        if stamp_ns - now_ns > FUTURE_TOLERANCE_NS:
            ahead_s = (stamp_ns - now_ns) / 1e9
            return f"{self._name} target refused: stamped {ahead_s:.2f} s in the future; do the nodes share one clock?"
        if stamp_ns < self._stamp_ns:
            late_ms = (self._stamp_ns - stamp_ns) / 1e6
            return f"{self._name} target refused: it is {late_ms:.0f} ms older than the newest, or than the selection"
        self._target, self._stamp_ns = target, stamp_ns
        return None

    def at(self, now_ns: int) -> Due:
        """The target that counts now, or why there is none."""
        if self._shut is not None:
            return Due(None, self._shut)
        if self._target is None:
            return Due(None, f"no {self._name} target yet")
        age_ns = now_ns - self._stamp_ns
        if age_ns > self._stale_after_ns:
            limit_s = self._stale_after_ns / 1e9
            return Due(None, f"the newest {self._name} target is {age_ns / 1e9:.2f} s old, limit {limit_s:.2f} s")
        return Due(self._target.copy(), "")


class Sources:
    """The sources and which one is selected. Pure: time is an argument.

    Attributes:
        chunks: the policy's.
        selected: one of `SOURCES`.
    """

    def __init__(self, chunks: ChunkExecutor, selected: str, stale_after_s: float) -> None:
        """Starts with a source selected.

        Args:
            chunks: the policy's.
            selected: one of `SOURCES`.
            stale_after_s: how long a stream's target counts after its stamp.

        Raises:
            ConfigError: there is no such source.
        """
        self.chunks = chunks
        self._streams = {name: TargetStream(name, stale_after_s) for name in STREAMS}
        self.selected = ""
        self.select(selected, 0)

    @property
    def followed(self) -> str:
        """Who is listened to: the selected source, or nobody where that is a stream which was interrupted."""
        return self.selected if self.selected == "policy" or self._streams[self.selected].is_open else NOBODY

    def select(self, source: str, now_ns: int) -> None:
        """Follows a source, afresh where it is selected already: nothing sent before now counts.

        Raises:
            ConfigError: there is no such source.
        """
        if source not in SOURCES:
            raise unknown_key(source, SOURCES, "source of targets")
        self.selected = source
        for name, stream in self._streams.items():
            if name == source:
                stream.open(now_ns)
            else:
                stream.shut(f"{name} is not selected")
        self.chunks.clear(void_before_ns=now_ns)

    def void(self, reason: str, now_ns: int | None) -> None:
        """Forgets every target, since the arms were stopped or moved by something else.

        Args:
            reason: why there is no target, until there is one.
            now_ns: chunks whose observation is older are void; None where time itself ran back.
        """
        self.chunks.clear(reason, void_before_ns=now_ns)
        if self.selected in self._streams:
            self._streams[self.selected].shut(f"{reason}; select {self.selected} again")

    def add_chunk(self, chunk: ActionChunk) -> str | None:
        """Takes a chunk of the policy; returns why it is refused, or None. Unless it is selected it is dropped."""
        return self.chunks.add(chunk) if self.selected == "policy" else None

    def add_target(self, source: str, target: NDArray[np.float64], stamp_ns: int, now_ns: int) -> str | None:
        """Takes a stream's (14,) target; returns why it is refused, or None. Unless it is selected it is dropped."""
        return self._streams[source].add(target, stamp_ns, now_ns) if source == self.selected else None

    def at(self, now_ns: int) -> Due:
        """The target due at a control tick, or why there is none; call it once a tick, in order of time."""
        return self.chunks.action_at(now_ns) if self.selected == "policy" else self._streams[self.selected].at(now_ns)
