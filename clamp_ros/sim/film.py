"""Films of episodes: an MP4 with a line of text under what the overview camera saw."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError

_LINE_PX = 22
_MARGIN_PX = 8


class Film:
    """An H.264 film being written; a context manager. It has its name only when it is complete."""

    def __init__(self, path: Path, width: int, height: int, fps: int = 25, lines: int = 1) -> None:
        """Opens the encoder.

        Args:
            path: ends in .mp4.
            width, height: of the pictures, even numbers of pixels; the lines of text are added below.
            fps: pictures a second.
            lines: of text.
        """
        self._path = path
        self._partial = path.with_name(f".{path.name}")
        self._footer = _LINE_PX * lines + _MARGIN_PX
        path.parent.mkdir(parents=True, exist_ok=True)
        self._encoder = subprocess.Popen(
            [
                _ffmpeg(), "-loglevel", "error", "-y",
                "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height + self._footer}", "-r", str(fps),
                "-i", "-",
                "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p", "-f", "mp4",
                str(self._partial),
            ],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def add(self, picture: NDArray[np.uint8], lines: Sequence[str]) -> None:
        """Appends a (H, W, 3) uint8 RGB picture with its text.

        Raises:
            SimulationError: the encoder gave up (a full disk?).
        """
        footer = np.full((self._footer, picture.shape[1], 3), 24, np.uint8)
        for i, line in enumerate(lines):
            origin = (_MARGIN_PX, _LINE_PX * (i + 1) - _MARGIN_PX // 4)
            cv2.putText(footer, line, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (235, 235, 235), 1, cv2.LINE_AA)
        if self._encoder.stdin is None:
            raise SimulationError(f"the film {self._path} is complete")
        try:
            self._encoder.stdin.write(np.vstack([picture, footer]).tobytes())
        except OSError:  # it has ended, and says why when it is closed
            raise self._failure(self._close()) from None

    def __enter__(self) -> Film:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        complaint = self._close()
        if kind is None and self._encoder.returncode == 0:
            self._partial.replace(self._path)
            return
        self._partial.unlink(missing_ok=True)
        if kind is None:
            raise self._failure(complaint)

    def _close(self) -> str:
        return self._encoder.communicate()[1].decode(errors="replace").strip()

    def _failure(self, complaint: str) -> SimulationError:
        return SimulationError(f"the film {self._path} cannot be written: {complaint}")


def _ffmpeg() -> str:
    """The encoder that imageio-ffmpeg brings, or the system's."""
    try:
        import imageio_ffmpeg
    except ImportError:
        found = shutil.which("ffmpeg")
        if found is None:
            raise SimulationError("there is no ffmpeg to write films with; sudo apt-get install -y ffmpeg") from None
        return found
    return imageio_ffmpeg.get_ffmpeg_exe()
