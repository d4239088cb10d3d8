"""Keeps one camera streaming from a thread of its own: opens it, reads it, and opens it again after unplugging."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from clamp_ros.camera.realsense import CameraFrame
from clamp_ros.contract.errors import CameraError, ConfigError

_SLICE_S = 0.1
"""How long a thread may take to notice that it is to stop."""


class Camera(Protocol):
    """What a streamer drives; `RealSense` is one."""

    name: str

    def open(self) -> None:
        """Finds and starts the camera."""
        ...

    def read(self, wait_s: float) -> CameraFrame | None:
        """The next new frame, or None."""
        ...

    def close(self) -> None:
        """Stops the camera."""
        ...


class Streamer:
    """Runs a camera while it is started. The callbacks are called in the streamer's thread.

    Attributes:
        failure: what ended the thread, where something did: settings that the camera cannot meet, or a defect.
        opened: how often the camera was opened.
    """

    def __init__(
        self,
        camera: Camera,
        on_frame: Callable[[CameraFrame], None],
        on_state: Callable[[str | None, bool], None],
        *,
        settle_s: float,
        timeout_s: float,
        retry_s: float,
        deadline_s: float,
    ) -> None:
        """Starts the thread, which waits for `start`.

        Args:
            camera: is opened, read and closed by the thread alone.
            on_frame: given each frame.
            on_state: told (None, False) when frames flow, else (what is wrong, whether it has lasted for `deadline_s`).
            settle_s: how much longer the first frame after opening may take.
            timeout_s: without a new frame for so long, the camera is taken for unplugged.
            retry_s: between two attempts to open it.
            deadline_s: after so long without a frame the fault is an error; attempts go on.
        """
        self._camera = camera
        self._on_frame = on_frame
        self._on_state = on_state
        self._settle_s, self._timeout_s = settle_s, timeout_s
        self._retry_s, self._deadline_s = retry_s, deadline_s
        self._changed = threading.Condition()
        self._wanted = False
        self._starts = self._served = 0
        self._closed = False
        self._seen_s = 0.0
        self._flowing = False
        self.failure: BaseException | None = None
        self.opened = 0
        self._thread = threading.Thread(target=self._run, name=f"camera {camera.name}", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Begins to stream; returns at once. A camera that was just stopped is closed first, and opened anew."""
        with self._changed:
            self._starts += not self._wanted
            self._wanted = True
            self._changed.notify()

    def stop(self) -> None:
        """Stops streaming; returns at once. A frame in progress may still be given out."""
        with self._changed:
            self._wanted = False
            self._changed.notify()

    def close(self, timeout_s: float = 0.0) -> bool:
        """Ends the thread, and waits for it for at most `timeout_s`; whether it has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def _going(self) -> bool:
        return self._wanted and self._served == self._starts and not self._closed

    def _run(self) -> None:
        try:
            while not self._closed:
                with self._changed:
                    self._changed.wait_for(lambda: self._wanted or self._closed)
                    self._served = self._starts
                self._seen_s = time.monotonic()
                self._flowing = False
                while self._going:
                    self._attempt()
        except BaseException as error:  # the node raises it in its own thread
            self.failure = error

    def _attempt(self) -> None:
        """Opens the camera and reads it until it fails or is to stop; then waits a little."""
        try:
            try:
                self._camera.open()
                self.opened += 1
                self._read()
            finally:
                self._camera.close()
        except ConfigError as error:
            if self.opened == 0:
                raise
            self._tell(f"{error}")  # plugged into a slower port, say: the others go on
        except CameraError as error:
            self._tell(f"{error}")
        with self._changed:
            if self._going:
                self._changed.wait_for(lambda: not self._going, self._retry_s)

    def _read(self) -> None:
        last_s = time.monotonic() + self._settle_s
        while self._going:
            frame = self._camera.read(_SLICE_S)
            now_s = time.monotonic()
            if frame is not None:
                self._seen_s = last_s = now_s
                if not self._flowing:
                    self._flowing = True
                    self._on_state(None, False)
                self._on_frame(frame)
            elif now_s - last_s > self._timeout_s:
                raise CameraError(f"{self._camera.name} sent nothing new for {self._timeout_s:g} s: unplugged or stuck")

    def _tell(self, message: str) -> None:
        self._flowing = False
        if not self._going:
            return
        gone_s = time.monotonic() - self._seen_s
        overdue = gone_s > self._deadline_s
        self._on_state(f"{message} (no frame for {gone_s:.0f} s; trying again)" if overdue else message, overdue)
