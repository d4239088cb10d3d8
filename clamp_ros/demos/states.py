"""Episodes as states: what the physics did, tick by tick, without pictures, to be drawn later.

An episode is a directory with `states.npz`: states (T + 1, N) as `World.get_state` and actions (T, 14), float64. The
state of tick t is the one before action t; the last is the end.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError
from clamp_ros.record.writer import PARTIAL_SUFFIX
from clamp_ros.sim.world import World

FILE = "states.npz"


class StateRecorder:
    """Collects an episode of a world; takes the calls of `WorldRecorder`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._states: list[NDArray[np.float64]] = []
        self._actions: list[NDArray[np.float64]] = []

    def observe(self) -> None:
        """Keeps this tick's state."""
        self._states.append(self._world.get_state())

    def command(self, action: NDArray[np.float64]) -> None:
        """Keeps the (14,) command due at this tick."""
        self._actions.append(action.copy())

    def end(self) -> None:
        """Keeps the final state, after the last command."""
        self.observe()

    def save(self, episode: Path) -> int:
        """Writes the episode's directory, whole or not at all; returns its bytes.

        Raises:
            RecordError: the disk refuses.
        """
        partial = episode.with_name(episode.name + PARTIAL_SUFFIX)
        try:
            partial.mkdir(parents=True)
            with (partial / FILE).open("wb") as file:
                seed = -1 if self._world.seed is None else self._world.seed
                np.savez_compressed(
                    file, states=np.array(self._states), actions=np.array(self._actions), seed=np.array(seed)
                )
                file.flush()
                os.fsync(file.fileno())
            partial.rename(episode)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RecordError(
                f"{episode} cannot be written: {error}; make room, then run the same command again"
            ) from error
        return (episode / FILE).stat().st_size


def load(episode: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """States (T + 1, N), actions (T, 14) and seed of a stored episode.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    try:
        with np.load(episode / FILE, allow_pickle=False) as stored:
            states, actions, seed = stored["states"], stored["actions"], int(stored["seed"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RecordError(f"{episode} holds no states that can be read: {error}") from error
    if states.ndim != 2 or actions.shape != (len(states) - 1, 14):
        raise RecordError(f"{episode} holds states {states.shape} and actions {actions.shape}, expected one state more")
    return states, actions, seed
