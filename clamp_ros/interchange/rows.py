"""An episode as rows, which is how the datasets of other stacks hold one: a row a command, what was measured before it.

Every format reads into `Rows` and is written from them. The images stay where they are until one is asked for, so that
memory does not grow with the episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.robot import NUM_JOINTS
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.record.metadata import EpisodeMetadata


@dataclass(frozen=True, eq=False)
class CameraRows:
    """One camera's frames, and which of them each row shows.

    Attributes:
        size: (height, width) of its images.
        stamps_ns: (N,) int64, increasing: when each frame was taken.
        held: (T,) int64: the newest frame that was there at each row.
        has_depth: whether each frame has depth of the same stamp, aligned to its colour.
        pinhole: intrinsics of both; None where nobody knows.
        world_from_camera: (N, 4, 4) float64, the optical frame at each frame's stamp; None where nobody knows.
    """

    size: tuple[int, int]
    stamps_ns: NDArray[np.int64]
    held: NDArray[np.int64]
    has_depth: bool
    pinhole: Pinhole | None
    world_from_camera: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.stamps_ns)


@dataclass(frozen=True, eq=False)
class Rows:
    """T rows, each at the stamp of a command.

    Attributes:
        stamps_ns: (T,) int64, increasing: when each command was due.
        state_stamps_ns: (T,) int64: when the newest joints were measured then.
        positions: (T, 14) float64, measured, contract order, rad and m.
        velocities: (T, 14) float64, rad/s and m/s; NaN where none were measured.
        efforts: (T, 14) float64, N m and N; NaN where none were measured.
        actions: (T, 14) float64, commanded, as positions.
        cameras: by name.
        objects: name to (T, 4, 4) float64, world_from_object at the joints' stamps; simulation only.
        task_state: (T,) the newest JSON of the simulation's privileged state; empty where there is none.
        metadata: the episode's own facts.
    """

    stamps_ns: NDArray[np.int64]
    state_stamps_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    efforts: NDArray[np.float64]
    actions: NDArray[np.float64]
    cameras: Mapping[str, CameraRows]
    objects: Mapping[str, NDArray[np.float64]]
    task_state: tuple[str, ...]
    metadata: EpisodeMetadata

    def __post_init__(self) -> None:
        count = len(self.stamps_ns)
        if not count:
            raise RecordError("the episode has no row")
        for name in ("positions", "velocities", "efforts", "actions"):
            if (shape := getattr(self, name).shape) != (count, NUM_JOINTS):
                raise RecordError(f"{name} are {shape}, expected {(count, NUM_JOINTS)}")
        for name in ("positions", "actions"):
            bad = np.flatnonzero(~np.isfinite(getattr(self, name)).all(axis=1))
            if len(bad):
                raise RecordError(f"{name} of {len(bad)} rows are not finite, the first is row {bad[0]}")
        if (back := np.flatnonzero(np.diff(self.stamps_ns) <= 0)).size:
            raise RecordError(f"stamps repeat or go back in time after row {back[0]}")
        if np.any(np.diff(self.state_stamps_ns) < 0):
            raise RecordError("stamps of the joints go back in time")
        for name, camera in self.cameras.items():
            if len(camera.held) != count or np.any(np.diff(camera.held) < 0):
                raise RecordError(f"{name} shows {len(camera.held)} frames in {count} rows, or goes back in time")

    def __len__(self) -> int:
        return len(self.stamps_ns)


class Recording(Protocol):
    """An episode open for reading, of whatever format; a context manager.

    Attributes:
        name: of the bag that it is, was or becomes.
        origin: the bag, file or episode, for whoever asks where a bag comes from.
        rows: all but the images.
        left_out: what of it `rows` do not hold, in words, and how much of each.
    """

    name: str
    origin: str
    rows: Rows
    left_out: dict[str, int]

    def color(self, camera: str, i: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of a camera's frame i."""
        ...

    def depth_mm(self, camera: str, i: int) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres of a camera's frame i, 0 invalid; only where the camera has depth."""
        ...


def newest(stamps_ns: NDArray[np.int64], at_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) index of the newest of some increasing stamps at or before each time; -1 where there is none."""
    return np.searchsorted(stamps_ns, at_ns, side="right") - 1
