"""A failure's picture: its start, two instants on the way, and its end, side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError
from clamp_ros.files import write_whole

_PICTURE_PX = (320, 180)
_PICTURES = 4


class Strip:
    """Collects the pictures of one episode."""

    def __init__(self, max_seconds: float) -> None:
        """`max_seconds`: simulated, after which the episode has failed."""
        self._step_s = max_seconds / (_PICTURES - 1)
        self._pictures: list[NDArray[np.uint8]] = []

    def due(self, seconds: float) -> bool:
        """Whether a picture should be added at this simulated time."""
        return len(self._pictures) < _PICTURES - 1 and seconds >= len(self._pictures) * self._step_s - 1e-9

    def add(self, picture: NDArray[np.uint8], seconds: float) -> None:
        """Adds an (H, W, 3) RGB picture of a simulated time."""
        self._pictures.append(_small(picture, seconds))

    def save(self, folder: Path, seed: int, picture: NDArray[np.uint8], seconds: float) -> str:
        """Writes the strip, with one picture more, of the end, as JPEG.

        Args:
            folder: of failures, see `failures_folder`.
            seed: of the episode.
            picture: (H, W, 3) RGB.
            seconds: when it was taken.

        Returns:
            The file, relative to the results.

        Raises:
            RecordError: the disk refuses.
        """
        pictures = [*self._pictures, _small(picture, seconds)]
        quality = [cv2.IMWRITE_JPEG_QUALITY, 80]
        path = folder / f"{seed:07d}.jpg"
        try:
            write_whole(path, cv2.imencode(".jpg", np.hstack(pictures)[..., ::-1], quality)[1].tobytes())
        except OSError as error:
            raise RecordError(f"{path}: {error}; make room, and run the same command again") from error
        return f"{folder.name}/{path.name}"


def failures_folder(results: Path) -> Path:
    """Where the pictures of failures are, beside their results file."""
    return results.with_name(f"{results.stem}_failures")


def _small(picture: NDArray[np.uint8], seconds: float) -> NDArray[np.uint8]:
    small = cv2.resize(picture, _PICTURE_PX, interpolation=cv2.INTER_AREA)
    for color, thickness in (((20, 20, 20), 2), ((255, 255, 255), 1)):  # an outline keeps it readable on any ground
        cv2.putText(small, f"{seconds:.1f} s", (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)
    return np.asarray(small, np.uint8)
