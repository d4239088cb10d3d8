"""Real-time chunking: which actions are committed while the next chunk is inferred (arXiv 2506.07339, 2512.05964).

A chunk takes over some ticks after its observation: those that inference took, and no fewer than the chunk before it,
whose actions are counted from its own takeover. Until then the robot goes on with the chunk before. Those actions are
what the next chunk has to begin with, so that nothing jumps where it takes over. A prefix that is too long only reacts
later; one that is too short jumps: so it is as long as the slowest chunk of the episode, counted, never estimated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.observation import ActionChunk, Observation
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, NUM_JOINTS

_FOLLOWED = 0.005
"""rad or m: commands that differ more from the plan do not follow it."""


class CommittedActions:
    """Remembers the newest chunk of an episode, and how long the slowest took. Open loop; not thread-safe.

    Attributes:
        delay_steps: ticks from observation to chunk, the most in this episode; 0 before the first.
    """

    def __init__(self, longest: int) -> None:
        """`longest` is the manifest's `prefix`: of a policy that cannot continue actions, 0."""
        self._longest = longest
        self.start()

    def start(self) -> None:
        """Begins an episode: nothing is committed."""
        self._newest: ActionChunk | None = None
        self.delay_steps = 0

    def add(self, chunk: ActionChunk, now_ns: int) -> None:
        """Takes a chunk that is handed to the control loop now."""
        self._newest = chunk
        self.delay_steps = max(self.delay_steps, -(-(now_ns - chunk.stamp_ns) // CONTROL_PERIOD_NS))

    @property
    def too_slow(self) -> bool:
        """Whether chunks took longer than the policy can bridge, so that they jump where they take over."""
        return 0 < self._longest < self.delay_steps

    def before(self, observation: Observation) -> NDArray[np.float64]:
        """(d, 14) actions from the observation's stamp on that will be sent before its chunk is there; d may be 0.

        Nothing is committed where there is no chunk yet, or where the robot did not follow the newest one up to this
        observation: it was stopped, held back, or never took it. Going on with that plan would be going on with what
        did not happen.
        """
        nothing = np.zeros((0, NUM_JOINTS))
        if self._newest is None or self._longest == 0:
            return nothing
        row = round((observation.stamp_ns - self._newest.stamp_ns) / CONTROL_PERIOD_NS)
        if not 1 <= row < CHUNK_SIZE:
            return nothing
        plan, command = self._newest.actions[row - 1], observation.action_history[0]
        if np.abs(plan - command).max() > _FOLLOWED:
            return nothing
        return self._newest.actions[row : row + min(self.delay_steps, self._longest)].copy()
