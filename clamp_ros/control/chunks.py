"""Which action is due: action chunks in, one action a control tick out.

Row i of a chunk is due at its observation's stamp + i * 20 ms, so the time that inference took never has to be known:
the rows that it cost are simply in the past. Two ways of joining chunks:

- open loop: a chunk is followed until `execute_steps` of its actions have been sent (counted, not estimated) and a
  newer chunk is there; if none is, on to its last row.
- temporal ensembling (ACT, arXiv 2304.13705 Section IV-A): the mean of every chunk's action for this instant, weighted
  by exp(-0.01 i), i = 0 the oldest chunk. Its smoothing lags.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS

MODES = ("open_loop", "temporal_ensemble")
ENSEMBLE_DECAY = 0.01
FUTURE_TOLERANCE_NS = 5 * CONTROL_PERIOD_NS
"""A stamp further ahead than this is a fault (another clock), not the jitter of two processes."""


class Due(NamedTuple):
    """The (14,) action due now, or None and the reason why there is none."""

    action: NDArray[np.float64] | None
    reason: str


class ChunkExecutor:
    """Holds the chunks that still matter; at most one a stamp, and no more than `CHUNK_SIZE` of them.

    Attributes:
        consumed: actions of the present chunk that were sent (open loop).
        refused: chunks that were never used: out of order, expired on arrival, or from the future.
    """

    def __init__(self, mode: str = "open_loop", execute_steps: int = 25) -> None:
        if mode not in MODES:
            raise ConfigError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
        if not 1 <= execute_steps <= CHUNK_SIZE:
            raise ConfigError(f"execute_steps is {execute_steps}, expected 1 to {CHUNK_SIZE}")
        self._mode = mode
        self._execute_steps = execute_steps
        self._chunks: list[ActionChunk] = []
        self._void_before_ns: int | None = None
        self._reason = "no action chunk yet"
        self.consumed = 0
        self.refused = 0

    def clear(self, reason: str = "no action chunk yet", void_before_ns: int | None = None) -> None:
        """Forgets every chunk; `reason` is given until the next.

        Args:
            reason: why there is nothing to do.
            void_before_ns: refuse chunks whose observation is older, say those still being inferred.
        """
        self._chunks.clear()
        self._void_before_ns = void_before_ns
        self._reason = reason
        self.consumed = 0

    def add(self, chunk: ActionChunk) -> str | None:
        """Takes a chunk; returns why it is refused, or None."""
        if self._void_before_ns is not None and chunk.stamp_ns < self._void_before_ns:
            return self._refuse("chunk refused: its observation is from before the reset")
        if self._chunks and chunk.stamp_ns <= self._chunks[-1].stamp_ns:
            late_ms = (self._chunks[-1].stamp_ns - chunk.stamp_ns) / 1e6
            return self._refuse(f"chunk refused: its observation is {late_ms:.0f} ms older than the newest chunk's")
        if self._mode == "open_loop":
            del self._chunks[1:]  # the one being executed stays; of those that wait, the newest counts
        self._chunks.append(chunk)
        del self._chunks[:-CHUNK_SIZE]
        return None

    def _refuse(self, reason: str) -> str:
        self.refused += 1
        return reason

    def action_at(self, now_ns: int) -> Due:
        """The action due at a control tick; call it once a tick, in order of time."""
        self._drop_unusable(now_ns)
        due = [chunk for chunk in self._chunks if _row(chunk, now_ns) >= 0]
        if not due:
            return Due(None, self._reason)
        if self._mode == "temporal_ensemble":
            rows = np.stack([chunk.actions[_row(chunk, now_ns)] for chunk in due])
            weights = np.exp(-ENSEMBLE_DECAY * np.arange(len(rows)))
            return Due(weights @ rows / weights.sum(), "")
        if len(due) > 1 and self.consumed >= self._execute_steps:
            self._chunks.pop(0)
            self.consumed = 0
        self.consumed += 1
        return Due(self._chunks[0].actions[_row(self._chunks[0], now_ns)].copy(), "")

    def _drop_unusable(self, now_ns: int) -> None:
        """Drops chunks whose rows are all past, or whose stamp lies in the future."""
        kept = []
        for chunk in self._chunks:
            row = _row(chunk, now_ns)
            if row >= CHUNK_SIZE:
                age_s = (now_ns - chunk.stamp_ns) / 1e9
                self._reason = f"the newest action chunk has run out: its observation is {age_s:.2f} s old"
            elif chunk.stamp_ns - now_ns > FUTURE_TOLERANCE_NS:
                ahead_s = (chunk.stamp_ns - now_ns) / 1e9
                self._reason = self._refuse(
                    f"chunk refused: its stamp is {ahead_s:.2f} s in the future; do the nodes share one clock?"
                )
            else:
                kept.append(chunk)
        if self._chunks and (not kept or kept[0] is not self._chunks[0]):
            self.consumed = 0
        self._chunks = kept


def _row(chunk: ActionChunk, now_ns: int) -> int:
    """Row of the chunk due nearest to a time; half a period early counts as due."""
    return math.floor((now_ns - chunk.stamp_ns + CONTROL_PERIOD_NS // 2) / CONTROL_PERIOD_NS)
