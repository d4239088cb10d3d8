"""A calibration session on disk: one folder a shot, with the pictures, the joints and the cameras' poses of then.

    session.json                  the board, and what each camera is mounted on
    shot_000/shot.json            stamp, joints, place of the board; of each camera intrinsics and pose
    shot_000/front_left.png       colour; and front_left_depth.png, 16 bits of millimetres, where there was depth

A shot's folder appears under its name when it is complete, so that a session can be broken off and gone on with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.board import Board
from clamp_ros.contract.errors import CalibrationError, ClampError
from clamp_ros.contract.interfaces import CAMERAS, gripper_frame
from clamp_ros.contract.robot import ARMS, joint_vector
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.files import write_whole
from clamp_ros.geometry.pinhole import Pinhole

FORMAT = 1
MOUNTS = {"front_left": WORLD_FRAME, "back_right": WORLD_FRAME} | {f"wrist_{arm}": gripper_frame(arm) for arm in ARMS}
"""What each camera is mounted on, where its configuration does not say otherwise."""
_SESSION_FILE, _SHOT_FILE = "session.json", "shot.json"


@dataclass(frozen=True, eq=False)
class Picture:
    """What one camera saw in a shot.

    Attributes:
        stamp_ns: of the exposure.
        color: (H, W, 3) uint8 RGB, without distortion.
        depth_mm: (H, W) uint16, aligned to color, 0 invalid; None where there was none.
        pinhole: intrinsics of both, from the device.
        frame_from_camera: (4, 4) pose in what it is mounted on, as the running system had it; None if it had none.
    """

    stamp_ns: int
    color: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16] | None
    pinhole: Pinhole
    frame_from_camera: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Shot:
    """One pose of the robot, at rest, with the board at one place.

    Attributes:
        stamp_ns: of its newest picture.
        joints: (14,) measured, contract order.
        place: number of the place that the board lies at; shots of one place share the board's pose.
        pictures: by camera.
    """

    stamp_ns: int
    joints: NDArray[np.float64]
    place: int
    pictures: Mapping[str, Picture]

    def __post_init__(self) -> None:
        joint_vector(self.joints, "joints of a shot")
        if self.place < 0:
            raise CalibrationError(f"place of the board is {self.place}, expected 0 or more")


class Session:
    """A session's folder. One program writes to it at a time.

    Attributes:
        folder: where it is.
        board: the board that is used throughout.
        mounts: camera name to the frame that it is mounted on.
    """

    def __init__(self, folder: Path, board: Board, mounts: Mapping[str, str]) -> None:
        self.folder = folder
        self.board = board
        self.mounts = dict(mounts)

    @classmethod
    def create(cls, folder: Path, board: Board, mounts: Mapping[str, str]) -> Session:
        """Begins a session, or goes on with the one that is there.

        Raises:
            CalibrationError: the one that is there has another board or other cameras, or the disk refuses.
        """
        if (folder / _SESSION_FILE).is_file():
            session = cls.open(folder)
            if session.board != board or session.mounts != dict(mounts):
                raise CalibrationError(
                    f"{folder} is a session with a board of {session.board} and cameras {session.mounts}, not with "
                    f"{board} and {dict(mounts)}; go on with the same, or choose another folder"
                )
            return session
        for camera in mounts:
            if camera not in CAMERAS:
                raise CalibrationError(f"camera {camera!r} is not one of {', '.join(CAMERAS)}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise CalibrationError(f"{folder} holds something else than a session; choose a new or empty folder")
            content = {"format": FORMAT, "board": board.to_dict(), "mounts": dict(mounts)}
            write_whole(folder / _SESSION_FILE, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise CalibrationError(f"session {folder} cannot be written: {error}") from None
        return cls(folder, board, mounts)

    @classmethod
    def open(cls, folder: Path) -> Session:
        """An existing session.

        Raises:
            CalibrationError: there is none, or its file is damaged or of another version.
        """
        content = _read_json(folder / _SESSION_FILE, "make one with `clamp calibrate capture`")
        if content.get("format") != FORMAT:
            raise CalibrationError(f"{folder} has format {content.get('format')!r}, this version reads {FORMAT}")
        try:
            mounts = {str(camera): str(frame) for camera, frame in content["mounts"].items()}
            return cls(folder, Board.from_dict(content["board"]), mounts)
        except (KeyError, AttributeError, ClampError) as error:
            raise CalibrationError(f"{folder / _SESSION_FILE} is damaged: {error}") from None

    def shots(self) -> list[Path]:
        """Folders of the complete shots, in order."""
        return sorted(path for path in self.folder.glob("shot_[0-9]*") if (path / _SHOT_FILE).is_file())

    def add(self, shot: Shot) -> Path:
        """Writes a shot and returns its folder.

        Raises:
            CalibrationError: it has no picture, or the disk refuses.
        """
        if not shot.pictures:
            raise CalibrationError("a shot without a picture says nothing")
        number = max((int(path.name.partition("_")[2]) for path in self.shots()), default=-1) + 1
        final = self.folder / f"shot_{number:03d}"
        partial = self.folder / f".{final.name}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for camera, picture in shot.pictures.items():
                _write_image(partial / f"{camera}.png", cv2.cvtColor(picture.color, cv2.COLOR_RGB2BGR))
                if picture.depth_mm is not None:
                    _write_image(partial / f"{camera}_depth.png", picture.depth_mm)
            content = {
                "stamp_ns": shot.stamp_ns, "place": shot.place, "joints": np.asarray(shot.joints).tolist(),
                "cameras": {camera: _picture_to_dict(picture) for camera, picture in shot.pictures.items()},
            }  # fmt: skip
            (partial / _SHOT_FILE).write_text(json.dumps(content, indent=1) + "\n")
            partial.rename(final)
        except OSError as error:
            raise CalibrationError(f"shot {final} cannot be written: {error}") from None
        return final

    def discard_last(self) -> Path | None:
        """Sets the last shot aside, as discarded_NNN; returns its folder, or None where there is no shot."""
        shots = self.shots()
        if not shots:
            return None
        aside = self.folder / shots[-1].name.replace("shot", "discarded")
        shutil.rmtree(aside, ignore_errors=True)  # of the same number, set aside before
        return shots[-1].rename(aside)

    def read(self, path: Path) -> Shot:
        """One shot.

        Raises:
            CalibrationError: a file is missing or damaged, a joint is not a number, or a picture is not of its size.
        """
        content = _read_json(path / _SHOT_FILE, "set the shot aside")
        try:
            pictures = {
                camera: _read_picture(path, camera, values) for camera, values in content["cameras"].items()
                if camera in self.mounts
            }  # fmt: skip
            return Shot(int(content["stamp_ns"]), joint_vector(content["joints"], "joints"), int(content["place"]),
                        pictures)  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, ClampError) as error:
            raise CalibrationError(f"{path.name} of {self.folder} is of no use: {error}; set it aside") from None


def _picture_to_dict(picture: Picture) -> dict[str, Any]:
    pose = picture.frame_from_camera
    return {
        "stamp_ns": picture.stamp_ns, "pinhole": asdict(picture.pinhole),
        "frame_from_camera": None if pose is None else pose.tolist(),
    }  # fmt: skip


def _read_picture(folder: Path, camera: str, values: Mapping[str, Any]) -> Picture:
    pinhole = Pinhole(**values["pinhole"])
    color = cv2.imread(str(folder / f"{camera}.png"), cv2.IMREAD_COLOR)
    if color is None:
        raise CalibrationError(f"{camera}.png cannot be read")
    depth: NDArray[np.uint16] | None = None
    depth_path = folder / f"{camera}_depth.png"
    if depth_path.is_file():
        image = cv2.imread(str(depth_path), cv2.IMREAD_UNCHANGED)
        if image is None or image.dtype != np.uint16 or image.ndim != 2:
            raise CalibrationError(f"{depth_path.name} is no picture of 16 bits")
        depth = np.asarray(image, dtype=np.uint16)
    for image in (color, depth):
        if image is not None and image.shape[:2] != (pinhole.height, pinhole.width):
            raise CalibrationError(
                f"a picture of {camera} is {image.shape[1]}x{image.shape[0]}, its intrinsics are for "
                f"{pinhole.width}x{pinhole.height}"
            )
    pose = values["frame_from_camera"]
    if pose is not None:
        pose = np.asarray(pose, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise CalibrationError(f"frame_from_camera of {camera} is no finite (4, 4) matrix")
    color = np.ascontiguousarray(cv2.cvtColor(color, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    return Picture(int(values["stamp_ns"]), color, depth, pinhole, pose)


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read: {error}; {remedy}") from None
    if not isinstance(content, dict):
        raise CalibrationError(f"{path} holds no JSON object; {remedy}")
    return content


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path} was refused")
