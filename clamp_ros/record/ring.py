"""The last seconds of everything, in memory: what an operator wants to keep after it has happened."""

from __future__ import annotations

from collections import deque

Recorded = tuple[str, str, int, "bytes | memoryview"]
"""Topic, message type, bag time in ns, serialised message."""

_OVERHEAD_BYTES = 250
"""What a message takes beside its bytes, so that many small ones count too."""


class Ring:
    """Messages in order of arrival, the oldest forgotten. Bounded by time and by memory, whichever comes first.

    Attributes:
        seconds: what it holds at most, s.
        max_bytes: and in memory.
        bytes: what it holds now.
    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.seconds = seconds
        self.max_bytes = max_bytes
        self.bytes = 0
        self._span_ns = round(1e9 * seconds)
        self._messages: deque[Recorded] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, topic: str, message_type: str, stamp_ns: int, cdr: bytes | memoryview) -> None:
        """Takes the newest message. A time before the last one's means a new episode: what was before is void."""
        if self._messages and stamp_ns < self._messages[-1][2]:
            self.clear()
        self._messages.append((topic, message_type, stamp_ns, cdr))
        self.bytes += len(cdr) + _OVERHEAD_BYTES
        oldest_ns = stamp_ns - self._span_ns
        while self._messages and (self.bytes > self.max_bytes or self._messages[0][2] < oldest_ns):
            self.bytes -= len(self._messages.popleft()[3]) + _OVERHEAD_BYTES

    @property
    def span_s(self) -> float:
        """Between the oldest and the newest message, s."""
        return 1e-9 * (self._messages[-1][2] - self._messages[0][2]) if self._messages else 0.0

    def take(self) -> list[Recorded]:
        """Everything, oldest first; the ring is empty then."""
        messages = list(self._messages)
        self.clear()
        return messages

    def clear(self) -> None:
        """Forgets everything."""
        self._messages.clear()
        self.bytes = 0
