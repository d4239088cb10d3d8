"""What was commanded and measured, by stamp: the policy's action history and its proprioception.

Fed by topics on the robot and by bags in training, so that both compute the same rows. Not thread-safe.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, NUM_JOINTS, joint_vector


class StampedVectors:
    """Joint vectors sorted by stamp, the newest `horizon_ns` of them; the last one before the horizon is kept too."""

    def __init__(self, horizon_ns: int) -> None:
        self._horizon_ns = horizon_ns
        self._stamps: list[int] = []
        self._vectors: list[NDArray[np.float64]] = []

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest vector."""
        return self._stamps[-1] if self._stamps else None

    def clear(self) -> None:
        """Forgets everything."""
        self._stamps.clear()
        self._vectors.clear()

    def push(self, stamp_ns: int, vector: ArrayLike) -> None:
        """Adds a (14,) vector; order of arrival does not matter, an equal stamp replaces.

        Raises:
            ContractError: the vector is not (14,) finite numbers.
        """
        values = joint_vector(vector).copy()
        i = bisect_left(self._stamps, stamp_ns)
        if i < len(self._stamps) and self._stamps[i] == stamp_ns:
            self._vectors[i] = values
            return
        self._stamps.insert(i, stamp_ns)
        self._vectors.insert(i, values)
        stale = bisect_right(self._stamps, self._stamps[-1] - self._horizon_ns) - 1
        if stale > 0:
            del self._stamps[:stale], self._vectors[:stale]

    def at_or_before(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """The newest vector at or before a stamp."""
        i = bisect_right(self._stamps, stamp_ns)
        return self._vectors[i - 1] if i else None

    def interpolated(self, stamp_ns: int, max_gap_ns: int) -> NDArray[np.float64]:
        """The vector at a stamp: itself where one was pushed, else linear between its neighbours.

        Raises:
            ContractError: there is none, or no neighbour within `max_gap_ns` on a side.
        """
        i = bisect_left(self._stamps, stamp_ns)
        if i < len(self._stamps) and self._stamps[i] == stamp_ns:
            return self._vectors[i]
        if i == 0 or i == len(self._stamps):
            span = f"{self._stamps[0]} to {self._stamps[-1]} ns" if self._stamps else "none at all"
            raise ContractError(f"no joint state around stamp {stamp_ns} ns; there are {span}")
        before, after = self._stamps[i - 1], self._stamps[i]
        if after - before > max_gap_ns:
            gap_ms = (after - before) / 1e6
            raise ContractError(f"joint states around stamp {stamp_ns} ns are {gap_ms:.0f} ms apart: a gap")
        fraction = (stamp_ns - before) / (after - before)
        return (1.0 - fraction) * self._vectors[i - 1] + fraction * self._vectors[i]


class ActionHistory:
    """The commands sent before an observation, on its 20 ms grid (paper Section III-A: a_{t-1} ... a_{t-H}).

    Row k is the command in force at ``stamp - (k + 1) * 20 ms``. Commands are matched to that grid within half a
    period, so a loop whose ticks jitter or lie between the images' stamps still gives one command a row; across a gap
    the last command stays in force, as it does on the robot. Rows from before the first command, or before the
    episode's start given to `start`, are zero.
    """

    def __init__(self, size: int = CHUNK_SIZE, period_ns: int = CONTROL_PERIOD_NS) -> None:
        self._size = size
        self._period_ns = period_ns
        self._start_ns: int | None = None
        # Twice the history: an observation may be that much older than the newest command.
        self._commands = StampedVectors(2 * size * period_ns)

    def __len__(self) -> int:
        return len(self._commands)

    def start(self, stamp_ns: int | None = None) -> None:
        """Begins an episode: commands due before `stamp_ns` (all so far, if None) are void."""
        if stamp_ns is None:
            self._commands.clear()
        self._start_ns = stamp_ns

    def push(self, stamp_ns: int, action: ArrayLike) -> None:
        """Adds a (14,) command by the time it was due, rad and m.

        Raises:
            ContractError: the action is not (14,) finite numbers.
        """
        self._commands.push(stamp_ns, action)

    def rows(self, stamp_ns: int) -> NDArray[np.float32]:
        """(size, 14) float32 commands before the stamp, newest first, zero where there was none."""
        rows = np.zeros((self._size, NUM_JOINTS), dtype=np.float32)
        slack_ns = self._period_ns // 2
        for k in range(self._size):
            grid_ns = stamp_ns - (k + 1) * self._period_ns
            if self._start_ns is not None and grid_ns + slack_ns < self._start_ns:
                break
            command = self._commands.at_or_before(grid_ns + slack_ns)
            if command is None:
                break
            rows[k] = command
        return rows
