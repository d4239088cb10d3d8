"""Draws the simulated cameras in processes of their own, so that pictures use the cores and physics need not wait.

Each worker (`sim.render_worker`) holds a copy of the model and an OpenGL context, and draws its share of the cameras.
The state goes to it, and the pictures come back, through anonymous shared memory: nothing is left behind however a
process ends, and a worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.sim.cameras import CameraConfig
from clamp_ros.sim.render import choose_backend

Picture = tuple[NDArray[np.uint8], NDArray[np.uint16]]
START_TIMEOUT_S = 120.0
FRAME_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Layout:
    """Where things lie in the memory shared with one worker, in bytes.

    The state, float64: qpos, then mocap positions and quaternions. Then colour and depth of each camera, in order.
    """

    state_size: int
    cameras: tuple[CameraConfig, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return 8 * self.state_size + sum(5 * camera.width * camera.height for camera in self.cameras)

    def views(self, memory: mmap.mmap) -> tuple[NDArray[np.float64], list[Picture]]:
        """The state and each camera's (color, depth_mm) as arrays over the memory."""
        state = np.frombuffer(memory, np.float64, self.state_size)
        pictures, offset = [], 8 * self.state_size
        for camera in self.cameras:
            pixels = camera.width * camera.height
            color = np.frombuffer(memory, np.uint8, 3 * pixels, offset).reshape(camera.height, camera.width, 3)
            # colour's size may be odd, and numpy reads unaligned depth well
            depth = np.frombuffer(memory, np.uint16, pixels, offset + 3 * pixels).reshape(camera.height, camera.width)
            pictures.append((color, depth))
            offset += 5 * pixels
        return state, pictures


def state_size(model: mujoco.MjModel) -> int:
    """Numbers that decide a picture: qpos and the mocap bodies' poses."""
    return model.nq + 7 * model.nmocap


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


class RenderPool:
    """Draws cameras in worker processes. Use it from one thread; close it, or leave its `with` block.

    Args:
        model: the world's model.
        cameras: the cameras; each belongs to one worker.
        workers: number of processes, by default one for each core, and no more than cameras.

    Raises:
        SimulationError: there is no off-screen OpenGL, or a worker does not start.
    """

    def __init__(self, model: mujoco.MjModel, cameras: Iterable[CameraConfig], workers: int | None = None) -> None:
        self.cameras: Mapping[str, CameraConfig] = {camera.name: camera for camera in cameras}
        count = min(usable_cores() if workers is None else workers, len(self.cameras))
        if count < 1:
            raise SimulationError(f"a render pool of {workers} workers for {len(self.cameras)} cameras draws nothing")
        choose_backend()  # a missing library is told here, not by a worker's death
        self._frames = dict.fromkeys(self.cameras, -1)
        self._pending: list[tuple[_Worker, list[str]]] | None = None
        self._workers: list[_Worker] = []
        try:
            with os.fdopen(os.memfd_create("clamp_model"), "wb") as file:
                buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
                mujoco.mj_saveModel(model, None, buffer)
                file.write(buffer.tobytes())
                file.flush()
                everything = list(self.cameras.values())
                for i in range(count):
                    self._workers.append(_Worker(file.fileno(), Layout(state_size(model), tuple(everything[i::count]))))
                for worker in self._workers:
                    worker.wait(START_TIMEOUT_S, "starting")
        except BaseException:
            self.close()
            raise

    @property
    def busy(self) -> bool:
        """Whether pictures were asked for and not yet collected."""
        return self._pending is not None

    def submit(self, data: mujoco.MjData, cameras: Sequence[str] | None = None, frame: int | None = None) -> None:
        """Starts drawing a state, of which a copy is taken; `collect` waits for the pictures.

        Args:
            data: the state; qpos and mocap poses count.
            cameras: names of those to draw, by default all.
            frame: number of the pictures, which with the seed decides the depth noise; counted if left out.

        Raises:
            SimulationError: pictures are pending, a name is unknown, or a worker has died.
        """
        if self._pending is not None:
            raise SimulationError("pictures are still pending; collect them before the next are asked for")
        names = list(self.cameras) if cameras is None else list(cameras)
        unknown = [name for name in names if name not in self.cameras]
        if unknown:
            raise SimulationError(f"there is no camera {unknown[0]!r}; cameras are: {', '.join(self.cameras)}")
        state = np.concatenate([data.qpos, data.mocap_pos.ravel(), data.mocap_quat.ravel()])
        pending = []
        for name in names:
            self._frames[name] = self._frames[name] + 1 if frame is None else frame
        for worker in self._workers:
            share = [name for name in worker.names if name in names]
            if share:
                worker.ask(state, [(worker.names.index(name), self._frames[name]) for name in share])
                pending.append((worker, share))
        self._pending = pending

    def set_scene(self, appearance: NDArray[np.float64], cameras: Mapping[str, CameraConfig]) -> None:
        """Another look of the model, and other poses, lenses and faults of the same cameras; waits until it is so.

        Raises:
            SimulationError: pictures are pending, or a worker has died or is stuck.
        """
        if self._pending is not None:
            raise SimulationError("pictures are still pending; collect them before the scene changes")
        self.cameras = {name: cameras[name] for name in self.cameras}
        for worker in self._workers:
            worker.tell(appearance, [cameras[name] for name in worker.names])
        for worker in self._workers:
            worker.wait(FRAME_TIMEOUT_S, "changing the scene")

    def ready(self) -> bool:
        """Whether `collect` would not wait."""
        return self._pending is not None and all(worker.answered() for worker, _ in self._pending)

    def collect(self, timeout_s: float = FRAME_TIMEOUT_S) -> dict[str, Picture]:
        """Waits for the pictures of the last `submit`.

        Returns:
            camera name to (color (H, W, 3) uint8, depth_mm (H, W) uint16), as `Renderer.render`; the caller's own.

        Raises:
            SimulationError: nothing was asked for, a worker has died, or the time is up. The pool is then of no more
                use and should be closed.
        """
        if self._pending is None:
            raise SimulationError("no pictures were asked for; submit a state first")
        pending, self._pending = self._pending, None
        deadline = time.monotonic() + timeout_s
        pictures: dict[str, Picture] = {}
        for worker, share in pending:
            worker.wait(deadline - time.monotonic(), f"drawing {', '.join(share)}")
            for name in share:
                color, depth_mm = worker.pictures[worker.names.index(name)]
                pictures[name] = color.copy(), depth_mm.copy()
        return {name: pictures[name] for name in self.cameras if name in pictures}

    def render(
        self, data: mujoco.MjData, cameras: Sequence[str] | None = None, frame: int | None = None
    ) -> dict[str, Picture]:
        """`submit` and `collect` in one."""
        self.submit(data, cameras, frame)
        return self.collect()

    def close(self) -> None:
        """Ends the workers. Calling it twice is harmless."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> RenderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One process: asks go down its stdin as JSON lines, each answered by one byte on its stdout."""

    def __init__(self, model_fd: int, layout: Layout) -> None:
        self.names = [camera.name for camera in layout.cameras]
        memory_fd = os.memfd_create("clamp_pictures")
        try:
            os.ftruncate(memory_fd, layout.size)
            self._memory = mmap.mmap(memory_fd, layout.size)
            self._state, self.pictures = layout.views(self._memory)
            self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clamp_ros.sim.render_worker", str(model_fd), str(memory_fd),
                 str(layout.state_size), json.dumps([camera.to_dict() for camera in layout.cameras])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, pass_fds=(model_fd, memory_fd),
                bufsize=0, env={**os.environ, "MUJOCO_GL": choose_backend(), "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(memory_fd)

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise SimulationError("a render worker has no pipes")
        return self._process.stdin, self._process.stdout

    def ask(self, state: NDArray[np.float64], cameras: list[tuple[int, int]]) -> None:
        """Asks for pictures of a state: (index of the camera, number of the frame) each."""
        self._state[:] = state
        self._send(cameras)

    def tell(self, appearance: NDArray[np.float64], cameras: list[CameraConfig]) -> None:
        """Sends another look of the model and of the worker's cameras, which is answered like an ask."""
        self._send({"appearance": appearance.tolist(), "cameras": [camera.to_dict() for camera in cameras]})

    def _send(self, words: Any) -> None:
        line = memoryview(json.dumps(words).encode() + b"\n")
        try:
            while line:  # an unbuffered pipe takes what it has room for
                line = line[self._pipes[0].write(line) :]
        except BrokenPipeError:
            raise self._dead("before drawing") from None

    def answered(self) -> bool:
        return bool(select.select([self._pipes[1]], [], [], 0.0)[0])

    def wait(self, timeout_s: float, doing: str) -> None:
        """Waits for one answer."""
        out = self._pipes[1]
        if not select.select([out], [], [], max(0.0, timeout_s))[0]:
            raise SimulationError(f"render worker {self._process.pid} was not done {doing} in time; is the machine "
                                  "overloaded, or OpenGL stuck?")
        if not out.read(1):
            raise self._dead(f"while {doing}")

    def _dead(self, when: str) -> SimulationError:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        why = f": {lines[-1]}" if lines else ""
        return SimulationError(f"render worker {self._process.pid} ended with code {code} {when}{why}")

    def close(self) -> None:
        """Closes its pipe, at which it ends, and sees that it does."""
        stdin, stdout = self._pipes
        stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()
        self._log.close()
