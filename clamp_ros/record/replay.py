"""A bag's recorded commands as targets again: a smooth way to the first one, the recording, and a hold at the end.

Pure: time is an argument. What it gives still passes the safety gate, like any other source's targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.motion import Motion
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import JOINT_COMMANDS
from clamp_ros.contract.robot import (
    CONTROL_PERIOD_NS,
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    UPPER_LIMITS,
    joint_vector,
)
from clamp_ros.record.episode import Episode, JointSeries
from clamp_ros.record.metadata import EpisodeMetadata

_MAX_GAP_NS = 500_000_000
_LATE_PERIODS = 1.5
"""A tick that comes late plays no more than this of the recording: late, rather than faster than it was."""
_LIMIT_SLACK = 1e-6


@dataclass(frozen=True)
class ReplayConfig:
    """Parameters of a replay."""

    bag: str = param("", "the bag whose commands are played")
    speed: float = param(1.0, "of the recording; 0.5 takes twice as long", minimum=0.05, maximum=1.0)
    approach_rad_s: float = param(
        0.4, "fastest joint on the way to the recording's first pose", unit="rad/s", minimum=0.01, maximum=2.0
    )
    approach_gripper_m_s: float = param(
        0.02, "fastest gripper on the way there", unit="m/s", minimum=0.001, maximum=0.2
    )
    hold_s: float = param(1.0, "how long the last pose is asked for after the end", unit="s", minimum=0.0, maximum=60.0)
    interrupted_s: float = param(
        2.0, "give up when the arms do not follow for so long", unit="s", minimum=0.1, maximum=60.0
    )

    def __post_init__(self) -> None:
        check(self)


def load_commands(bag: Path | str) -> tuple[EpisodeMetadata, JointSeries]:
    """A bag's metadata and the commands that may be played again.

    Raises:
        RecordError: there is no such bag, or it has no commands, or they have a gap, or no robot could follow them.
    """
    with Episode.open(bag) as episode:
        metadata, commands = episode.metadata, episode.commands
    if not len(commands):
        raise RecordError(f"{bag} has no {JOINT_COMMANDS.name}, so there is nothing to replay")
    periods = np.diff(commands.stamps_ns)
    if np.any(periods <= 0):
        raise RecordError(f"{bag}: the stamps of {JOINT_COMMANDS.name} repeat or go back in time")
    if periods.size and periods.max() > _MAX_GAP_NS:
        at_s = 1e-9 * (commands.stamps_ns[int(np.argmax(periods))] - commands.stamps_ns[0])
        raise RecordError(
            f"{bag}: {JOINT_COMMANDS.name} has a gap of {1e-9 * periods.max():.2f} s, {at_s:.2f} s from its start;"
            " what the arms did in it is not known, so it is not replayed"
        )
    low, high = commands.positions < LOWER_LIMITS - _LIMIT_SLACK, commands.positions > UPPER_LIMITS + _LIMIT_SLACK
    if (outside := np.argwhere(low | high)).size:
        row, joint = outside[0]
        value = commands.positions[row, joint]
        raise RecordError(
            f"{bag}: {JOINT_NAMES[joint]} is commanded to {value:.3f}, outside its limits"
            f" {LOWER_LIMITS[joint]:.3f} to {UPPER_LIMITS[joint]:.3f}; this is no command of this robot"
        )
    return metadata, commands


class Player:
    """The target, tick after tick. It goes on only while the arms follow, so that a hold is no jump afterwards.

    Attributes:
        commands: the recording.
        phase: waiting, approach, play, hold, or done.
        played_s: how much of the recording has been played.
    """

    def __init__(self, commands: JointSeries, config: ReplayConfig) -> None:
        self.commands = commands
        self.phase = "waiting"
        self.played_s = 0.0
        self._config = config
        self._times_s = 1e-9 * (commands.stamps_ns - commands.stamps_ns[0])
        self._approach = Motion(commands.positions[0], commands.positions[0], 0.0, 1.0)
        self._phase_s = 0.0
        self._last_ns = 0
        self._stuck_ns: int | None = None

    @property
    def duration_s(self) -> float:
        """Of the recording, at its own speed."""
        return float(self._times_s[-1])

    @property
    def approach_s(self) -> float:
        """How long the way to the first pose takes."""
        return self._approach.duration_s

    def begin(self, start: NDArray[np.float64], now_ns: int) -> None:
        """Sets out from a (14,) pose: the arms' last command, or where they were measured."""
        start, end = joint_vector(start, "the pose to set out from"), self.commands.positions[0]
        fastest = np.full(NUM_JOINTS, self._config.approach_rad_s)
        fastest[list(GRIPPER_INDICES)] = self._config.approach_gripper_m_s
        scaled = Motion.between(start / fastest, end / fastest, 0.0, 1.0)  # every joint at most its own speed
        self._approach = Motion(start, end, 0.0, scaled.duration_s)
        self.phase, self._phase_s, self._last_ns = "approach", 0.0, now_ns

    def tick(self, now_ns: int, following: bool) -> NDArray[np.float64]:
        """The (14,) target of a tick; call it every 20 ms once it has begun.

        Args:
            now_ns: ROS time.
            following: whether the control loop says that it follows targets.

        Raises:
            RecordError: the arms have not followed for too long, or time ran back: the simulation was reset.
        """
        if now_ns < self._last_ns:
            raise RecordError("time ran back, the simulation was reset: replay given up")
        elapsed_ns = min(now_ns - self._last_ns, round(_LATE_PERIODS * CONTROL_PERIOD_NS))
        self._last_ns = now_ns
        if following:
            self._stuck_ns = None
            self._advance(1e-9 * elapsed_ns)
        elif self._stuck_ns is None:
            self._stuck_ns = now_ns
        elif now_ns - self._stuck_ns > 1e9 * self._config.interrupted_s:
            raise RecordError(f"the arms have not followed for {self._config.interrupted_s:g} s: replay given up")
        return self._target()

    def _advance(self, elapsed_s: float) -> None:
        self._phase_s += elapsed_s
        if self.phase == "approach" and self._phase_s >= self._approach.duration_s:
            self.phase, self._phase_s = "play", 0.0
        elif self.phase == "play":
            self.played_s = min(self.played_s + self._config.speed * elapsed_s, self.duration_s)
            if self.played_s >= self.duration_s:
                self.phase, self._phase_s = "hold", 0.0
        elif self.phase == "hold" and self._phase_s >= self._config.hold_s:
            self.phase = "done"

    def _target(self) -> NDArray[np.float64]:
        if self.phase in ("waiting", "approach"):
            return self._approach.at(self._phase_s)
        i = int(np.searchsorted(self._times_s, self.played_s + 1e-9, side="right")) - 1
        if i + 1 >= len(self._times_s):
            return self.commands.positions[-1].copy()
        # a hair past a sample is the sample: ticks of 20 ms play a recording of 20 ms unchanged
        share = (self.played_s - self._times_s[i]) / (self._times_s[i + 1] - self._times_s[i])
        share = 0.0 if share < 1e-6 else share
        return (1.0 - share) * self.commands.positions[i] + share * self.commands.positions[i + 1]
