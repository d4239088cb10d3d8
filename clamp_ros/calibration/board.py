"""The ChArUco board: its geometry, from which it is printed and drawn, and its corners in a picture.

The board's frame has its origin at the outer corner of the first (black, top left) square, x along the columns, y along
the rows, z into the board, so that a camera straight in front of it has the board's axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.config import check, param, unknown_key
from clamp_ros.contract.errors import CalibrationError, ConfigError

DICTIONARIES = ("4X4_50", "4X4_100", "5X5_50", "5X5_100", "5X5_250", "6X6_250")
MIN_CORNERS = 6
"""A view with fewer corners says too little about the board's pose to be used."""
_RATIO = 0.74
"""Of a marker's edge to its square's, where it is not given: as large as a clean white border allows."""


@dataclass(frozen=True)
class Board:
    """A ChArUco board as it is printed. The defaults fill an A3 sheet."""

    columns: int = param(10, "squares along the long side", minimum=4, maximum=40)
    rows: int = param(7, "squares along the short side", minimum=4, maximum=40)
    square_m: float = param(0.038, "edge of a square, as measured on the print", unit="m", minimum=0.005, maximum=0.5)
    marker_m: float = param(0.0, "edge of a marker; 0: 0.74 of a square", unit="m", minimum=0.0, maximum=0.5)
    dictionary: str = param("4X4_50", "of its ArUco markers", choices=DICTIONARIES)

    def __post_init__(self) -> None:
        check(self)
        if not self.marker_m:
            object.__setattr__(self, "marker_m", round(_RATIO * self.square_m, 6))
        if not 0.3 * self.square_m <= self.marker_m <= 0.9 * self.square_m:
            raise ConfigError(
                f"marker_m is {self.marker_m}, expected 0.3 to 0.9 of the square's {self.square_m} m: OpenCV needs "
                "white around a marker"
            )
        there_are = int(self.dictionary.split("_")[1])
        if self.markers > there_are:
            raise ConfigError(
                f"a board of {self.columns}x{self.rows} squares has {self.markers} markers, more than dictionary "
                f"{self.dictionary} has; take a larger dictionary or fewer squares"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Board:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a key is unknown or a value impossible.
        """
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise unknown_key(key, cls.__dataclass_fields__, "key of the board")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"board {dict(values)} is not one: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows} squares of {1e3 * self.square_m:g} mm, {self.dictionary}"

    @property
    def markers(self) -> int:
        """How many markers there are: one in each white square."""
        return self.columns * self.rows // 2

    @property
    def size_m(self) -> tuple[float, float]:
        """Width and height of the chessboard."""
        return self.columns * self.square_m, self.rows * self.square_m

    @cached_property
    def corners_m(self) -> NDArray[np.float64]:
        """(N, 3) inner corners of the chessboard in the board's frame, by corner number: row by row."""
        x, y = np.meshgrid(np.arange(1, self.columns), np.arange(1, self.rows))
        corners = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1) * self.square_m
        return corners.astype(np.float64)

    def _opencv(self) -> Any:
        size = (self.columns, self.rows)
        return cv2.aruco.CharucoBoard(size, self.square_m, self.marker_m, _dictionary(self.dictionary))

    @cached_property
    def _detector(self) -> Any:
        return cv2.aruco.CharucoDetector(self._opencv())

    def black_m(self) -> list[tuple[float, float, float, float]]:
        """Everything black: rectangles (x, y, width, height) in metres, y down from the chessboard's top left."""
        s = self.square_m
        squares = [(x * s, y * s, s, s) for y in range(self.rows) for x in range(self.columns) if (x + y) % 2 == 0]
        modules = int(self.dictionary[0]) + 2  # a marker's bits, and its black border
        m = self.marker_m / modules
        board = self._opencv()
        for number, corners in zip(board.getIds().ravel(), board.getObjPoints(), strict=True):
            bits = cv2.aruco.generateImageMarker(_dictionary(self.dictionary), int(number), modules) == 0
            margin = 0.5 * (s - self.marker_m)
            # OpenCV's float32, back on the exact grid
            x0, y0 = (round((float(c) - margin) / s) * s for c in corners[0][:2])
            for row, column in zip(*np.nonzero(bits), strict=True):
                squares.append((x0 + margin + column * m, y0 + margin + row * m, m, m))
        return squares

    def image(self, pixels_per_m: float, margin_m: float = 0.0) -> NDArray[np.uint8]:
        """(H, W) uint8 picture of the board, anti-aliased, with a white margin around it."""
        over = 4
        scale, margin = over * pixels_per_m, margin_m
        width, height = (over * round((extent + 2 * margin) * pixels_per_m) for extent in self.size_m)
        image = np.full((height, width), 255, np.uint8)
        for x, y, w, h in self.black_m():
            left, top, right, bottom = ((v + margin) * scale for v in (x, y, x + w, y + h))
            image[round(top) : round(bottom), round(left) : round(right)] = 0
        return cv2.resize(image, (width // over, height // over), interpolation=cv2.INTER_AREA).astype(np.uint8)

    def detect(self, image: NDArray[np.uint8]) -> Detection:
        """The board's corners in a picture, to sub-pixels; there may be none.

        Args:
            image: (H, W) grey or (H, W, 3) RGB, without lens distortion.

        Raises:
            CalibrationError: it is no such picture.
        """
        grey = _grey(image)
        corners, ids, *_ = self._detector.detectBoard(grey)
        if corners is None or ids is None or len(ids) < MIN_CORNERS:
            return Detection(np.empty(0, np.int64), np.empty((0, 2)))
        ids = np.asarray(ids).ravel().astype(np.int64)
        pixels = np.asarray(corners, dtype=np.float64).reshape(-1, 2)
        rows, columns = np.divmod(ids, self.columns - 1)
        if len(ids) - max(np.bincount(rows).max(), np.bincount(columns).max()) < 2:
            return Detection(np.empty(0, np.int64), np.empty((0, 2)))  # all but one on a line: no pose
        return Detection(ids, pixels)

    def explain_absence(self, image: NDArray[np.uint8]) -> str:
        """Why `detect` finds nothing: no marker at all, a mirrored print, another board, or too few corners."""
        grey = _grey(image)
        corners, _, _, marker_ids = self._detector.detectBoard(grey)
        seen = 0 if marker_ids is None else len(marker_ids)
        if len(self.detect(np.ascontiguousarray(grey[:, ::-1]))):
            return "the board is there as in a mirror: the picture is flipped, or the print is mirrored; print it again"
        for name in DICTIONARIES:
            detector = cv2.aruco.ArucoDetector(_dictionary(name))
            _, ids, _ = detector.detectMarkers(grey)
            found = 0 if ids is None else len(ids)
            if found > max(seen, 3):
                others = int(np.count_nonzero(np.asarray(ids) >= self.markers))
                if name != self.dictionary:
                    return f"{found} markers of another dictionary, {name}, are there; expected a board of {self}"
                if others or not seen:
                    return f"{found} markers are there, {others} of them not of a board of {self}; is it another board?"
        if seen >= 4 and corners is None:
            return f"{seen} markers are there but do not make up a board of {self}; is it another board?"
        if seen:
            return f"only {seen} markers can be read: nearer, sharper, more light, or less of it hidden"
        return "no marker can be read: the board is out of the picture, too far, blurred, dark or glaring"


@dataclass(frozen=True, eq=False)
class Detection:
    """The corners of a board that a picture shows.

    Attributes:
        ids: (N,) int64 numbers of corners, into `Board.corners_m`; N may be 0.
        pixels: (N, 2) float64 (u, v); the centre of the top left pixel is (0, 0).
    """

    ids: NDArray[np.int64]
    pixels: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)

    def moved_px(self, other: Detection) -> float | None:
        """Median distance of the corners that both have; None if they share too few."""
        common, mine, theirs = np.intersect1d(self.ids, other.ids, return_indices=True)
        if len(common) < MIN_CORNERS:
            return None
        return float(np.median(np.linalg.norm(self.pixels[mine] - other.pixels[theirs], axis=1)))


def _dictionary(name: str) -> Any:
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{name}"))


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise CalibrationError(f"picture is {image.shape} {image.dtype}, expected (H, W) or (H, W, 3) uint8")
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.ascontiguousarray(grey, dtype=np.uint8)
