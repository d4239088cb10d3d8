"""One shot from a running system: pictures of one moment, taken while the arms stood still, with the joints of then.

Pure: messages come in as values, time as stamps, and a shot goes out. `capture_node` feeds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.board import Board, Detection
from clamp_ros.calibration.session import Picture, Session, Shot
from clamp_ros.contract.errors import CalibrationError
from clamp_ros.contract.robot import GRIPPER_INDICES, JOINT_NAMES, joint_vector
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.pinhole import Pinhole

STILL_RAD = 0.004
"""An arm whose joints range further than this is not at rest; an encoder's step is 0.0015 rad."""
STILL_NS = 250_000_000
"""For so long before the first picture the arms must have stood still; the joints of then are averaged."""
MOVED_PX = 1.5
"""A board whose corners are further than this from where a fixed camera saw them last has been moved."""
_STAMPS = 8
_JOINTS = 2000


@dataclass
class _Parts:
    """What has come of one camera's frame."""

    color: NDArray[np.uint8] | None = None
    depth_mm: NDArray[np.uint16] | None = None
    pinhole: Pinhole | None = None


class Capture:
    """Gathers what comes from a running system; `take` makes a shot of it. Memory is bounded."""

    def __init__(self, cameras: tuple[str, ...]) -> None:
        """An empty one for some cameras."""
        self._frames: dict[str, dict[int, _Parts]] = {camera: {} for camera in cameras}
        self._joints: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=_JOINTS)

    def add_joints(self, stamp_ns: int, positions: NDArray[np.float64]) -> None:
        """Takes measured (14,) joints in.

        Raises:
            ContractError: one is not finite.
        """
        positions = joint_vector(positions, "joint positions")
        if not self._joints or stamp_ns > self._joints[-1][0]:
            self._joints.append((stamp_ns, positions))

    def add_color(self, camera: str, stamp_ns: int, color: NDArray[np.uint8]) -> None:
        """Takes a colour picture in."""
        self._parts(camera, stamp_ns).color = color

    def add_depth(self, camera: str, stamp_ns: int, depth_mm: NDArray[np.uint16]) -> None:
        """Takes a depth picture in."""
        self._parts(camera, stamp_ns).depth_mm = depth_mm

    def add_pinhole(self, camera: str, stamp_ns: int, pinhole: Pinhole) -> None:
        """Takes a frame's intrinsics in."""
        self._parts(camera, stamp_ns).pinhole = pinhole

    def _parts(self, camera: str, stamp_ns: int) -> _Parts:
        frames = self._frames[camera]
        parts = frames.setdefault(stamp_ns, _Parts())
        while len(frames) > _STAMPS:
            del frames[min(frames)]
        return parts

    def clear(self) -> None:
        """Forgets everything, as after time jumped back."""
        self._joints.clear()
        for frames in self._frames.values():
            frames.clear()

    def ready(self, after_ns: int) -> bool:
        """Whether every camera has a whole frame from after a time, and the joints have come as far."""
        newest = [self._newest(camera, after_ns) for camera in self._frames]
        stamps = [found[0] for found in newest if found is not None]
        whole = len(stamps) == len(newest) and all(f is not None and f[1].depth_mm is not None for f in newest)
        return whole and bool(self._joints) and self._joints[-1][0] >= max(stamps)

    def _newest(self, camera: str, after_ns: int) -> tuple[int, _Parts] | None:
        frames = self._frames[camera]
        usable = [
            (parts.depth_mm is not None, stamp) for stamp, parts in frames.items()
            if stamp >= after_ns and parts.color is not None and parts.pinhole is not None
        ]  # fmt: skip
        if not usable:
            return None
        stamp = max(usable)[1]
        return stamp, frames[stamp]

    def take(
        self, after_ns: int, place: int, poses: Mapping[str, NDArray[np.float64]]
    ) -> tuple[Shot, list[str]]:  # fmt: skip
        """A shot of what has come since a time, and the cameras that sent nothing.

        Args:
            after_ns: pictures are of this time or later.
            place: where the board lies.
            poses: frame_from_camera of the cameras that have one, as the running system knows it.

        Raises:
            CalibrationError: no picture or no joints came, or an arm moved.
        """
        pictures, missing = {}, []
        for camera in self._frames:
            found = self._newest(camera, after_ns)
            if found is None:
                missing.append(camera)
                continue
            stamp, parts = found
            assert parts.color is not None and parts.pinhole is not None  # noqa: S101 (see _newest)
            size = (parts.pinhole.height, parts.pinhole.width)
            if parts.color.shape[:2] != size or (parts.depth_mm is not None and parts.depth_mm.shape != size):
                raise CalibrationError(f"{camera} sends pictures of {parts.color.shape}, but camera_info is for {size}")
            pictures[camera] = Picture(stamp, parts.color, parts.depth_mm, parts.pinhole, poses.get(camera))
        if not pictures:
            raise CalibrationError(f"no picture came from {', '.join(missing)}; are the cameras running?")
        stamps = [picture.stamp_ns for picture in pictures.values()]
        joints = self._still_joints(min(stamps) - STILL_NS, max(stamps))
        return Shot(max(stamps), joints, place, pictures), missing

    def _still_joints(self, first_ns: int, last_ns: int) -> NDArray[np.float64]:
        """(14,) mean of the joints over a time in which they stood still."""
        window = np.array([positions for stamp, positions in self._joints if first_ns <= stamp <= last_ns])
        if len(window) < 3:
            raise CalibrationError(
                f"{len(window)} joint states came in the {1e-9 * (last_ns - first_ns):.2f} s of the pictures, expected "
                "3 or more on /joint_states; is the arm node running?"
            )
        ranges = np.ptp(window, axis=0)
        ranges[list(GRIPPER_INDICES)] = 0.0
        worst = int(np.argmax(ranges))
        if ranges[worst] > STILL_RAD:
            raise CalibrationError(
                f"{JOINT_NAMES[worst]} moved by {ranges[worst]:.4f} rad while the pictures were taken, expected at "
                f"most {STILL_RAD}; let the arms come to rest"
            )
        return window.mean(axis=0)


@dataclass
class Places:
    """Numbers the places of the board: fixed cameras see whether it has been moved since the last shot."""

    place: int = 0
    _seen: dict[str, Detection] = field(default_factory=dict)
    _begun: bool = False

    def follow(self, detections: Mapping[str, Detection], mounts: Mapping[str, str], unknown_is_new: bool) -> int:
        """The place of a new shot.

        Args:
            detections: by camera; those without corners are left out or empty.
            mounts: what cameras are mounted on.
            unknown_is_new: where no fixed camera saw the board in this shot and the last one, it lies elsewhere.
        """
        fixed = {n: d for n, d in detections.items() if mounts.get(n) == WORLD_FRAME and len(d)}
        moves = [fixed[name].moved_px(self._seen[name]) for name in fixed.keys() & self._seen.keys()]
        known = [move for move in moves if move is not None]
        moved = float(np.median(known)) > MOVED_PX if known else unknown_is_new
        if moved and self._begun:
            self.new()
        self._begun = True
        self._seen.update(fixed)
        return self.place

    def new(self) -> int:
        """The board has been moved, whatever the cameras say."""
        self.place += 1
        self._seen.clear()
        return self.place


def continue_places(session: Session) -> Places:
    """The state of `Places` after the shots that a session has."""
    paths = session.shots()
    if not paths:
        return Places()
    last = session.read(paths[-1])
    places = Places(place=last.place)
    places.follow(detect(session.board, last), session.mounts, unknown_is_new=False)
    return places


def detect(board: Board, shot: Shot) -> dict[str, Detection]:
    """The board in each picture of a shot."""
    return {camera: board.detect(picture.color) for camera, picture in shot.pictures.items()}
