"""Draws colour and depth of the simulated cameras from one OpenGL pass each, without a window.

Depth is read from the z-buffer of the very pass that drew the colour, which is right only without multisampling.
Shadows and reflections are off: in software OpenGL they cost more than everything else together. One renderer uses one
core; `sim.render_pool` spreads cameras over processes.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.sim.cameras import CameraConfig, DepthFaults

NEAR_M = 0.01
FAR_M = 20.0
"""Clipping planes. Where nothing is drawn there is no depth (0), and the colour is `SKY_RGB`."""
SKY_RGB = (176, 184, 194)

_MAX_GEOMS = 4000
_GROUPS = (1, 1, 1, 0, 0, 0)  # Menagerie's: collision geoms (3) and sites (4, 5) are not drawn
_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
_PACKAGES = ("apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (for MUJOCO_GL=egl), "
             "or libosmesa6 (for MUJOCO_GL=osmesa)")


def choose_backend() -> str:
    """MUJOCO_GL where it is set, else `egl` or `osmesa`, whichever has its library on this machine.

    Raises:
        SimulationError: no off-screen OpenGL is installed, or MUJOCO_GL names none.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted and wanted not in _LIBRARIES:
        raise SimulationError(f"MUJOCO_GL is {wanted!r}, expected egl or osmesa, which need no window")
    for backend in (wanted,) if wanted else _LIBRARIES:
        try:
            ctypes.CDLL(_LIBRARIES[backend])
        except OSError:
            continue
        return backend
    raise SimulationError(f"no off-screen OpenGL{f' for MUJOCO_GL={wanted}' if wanted else ''}; {_PACKAGES}")


def _gl_context(width: int, height: int) -> Any:
    backend = choose_backend()
    os.environ.setdefault("LP_NUM_THREADS", "1")  # llvmpipe: processes scale over cores, its threads do not
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        else:
            from mujoco.osmesa import GLContext
        return GLContext(width, height)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise SimulationError(f"OpenGL by {backend} does not start: {error}; {_PACKAGES}") from error


class Renderer:
    """Draws cameras in this process, for the thread that made it only: an OpenGL context belongs to one thread.

    Args:
        model: the world's model; shared, not changed but for its off-screen buffer's size.
        cameras: the cameras it can draw.

    Raises:
        SimulationError: there is no off-screen OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, cameras: Iterable[CameraConfig]) -> None:
        self.cameras: Mapping[str, CameraConfig] = {camera.name: camera for camera in cameras}
        width = max((camera.width for camera in self.cameras.values()), default=8)
        height = max((camera.height for camera in self.cameras.values()), default=8)
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        model.vis.quality.offsamples = 0
        self._model = model
        self._gl: Any = _gl_context(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # float32 is densest near 0, where it is far
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        # MuJoCo's sky would write its own distance into the z-buffer, besides taking time.
        for flag in ("SHADOW", "REFLECTION", "HAZE", "SKYBOX"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = _GROUPS
        self._option.sitegroup[:] = 0
        self._free = mujoco.MjvCamera()
        self._frames: dict[str, int] = {}
        # Left to the interpreter's end, the context would outlive EGL's own exit handler and fail noisily.
        self._at_exit = functools.partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)

    def render(
        self, data: mujoco.MjData, camera: str, frame: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Draws one camera.

        Args:
            data: the state; kinematics and lights are up to date (`mj_forward`, or any step of the world).
            camera: a name of `cameras`.
            frame: number of the picture, which with the seed decides the depth noise; counted if left out.

        Returns:
            color: (H, W, 3) uint8 RGB.
            depth_mm: (H, W) uint16 millimetres along the optical axis, 0 where there is none.
        """
        config = self._config(camera)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._free, everything, self._scene)
        self._aim(config, data)
        rect = mujoco.MjrRect(0, 0, config.width, config.height)
        color = np.empty((config.height, config.width, 3), np.uint8)
        zbuffer = np.empty((config.height, config.width), np.float32)
        self._gl.make_current()
        mujoco.mjr_render(rect, self._scene, self._context)
        mujoco.mjr_readPixels(color, zbuffer, rect, self._context)
        if frame is None:
            frame = self._frames[camera] = self._frames.get(camera, -1) + 1
        color[zbuffer <= 0.0] = SKY_RGB
        depth_mm = depth_mm_from_zbuffer(zbuffer[::-1])
        return np.ascontiguousarray(color[::-1]), with_faults(depth_mm, config, frame)

    def set_cameras(self, cameras: Iterable[CameraConfig]) -> None:
        """Other poses, lenses and faults for the same cameras, with pictures of the same size."""
        self.cameras = {camera.name: camera for camera in cameras}

    def _config(self, camera: str) -> CameraConfig:
        try:
            return self.cameras[camera]
        except KeyError:
            raise SimulationError(f"there is no camera {camera!r}; cameras are: {', '.join(self.cameras)}") from None

    def _aim(self, config: CameraConfig, data: mujoco.MjData) -> None:
        pose = config.world_from_camera(data)
        top = NEAR_M * np.tan(np.deg2rad(0.5 * config.fovy_deg))
        for eye in self._scene.camera:  # MuJoCo's two eyes, of which the first is drawn
            eye.pos, eye.forward, eye.up = pose[:3, 3], pose[:3, 2], -pose[:3, 1]
            eye.orthographic, eye.frustum_center, eye.frustum_width = 0, 0.0, 0.0
            eye.frustum_top, eye.frustum_bottom, eye.frustum_near, eye.frustum_far = top, -top, NEAR_M, FAR_M

    def close(self) -> None:
        """Frees the OpenGL context. Calling it twice is harmless."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None
            atexit.unregister(self._at_exit)

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(reference: weakref.ref[Renderer]) -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()


def depth_mm_from_zbuffer(zbuffer: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Millimetres along the optical axis, rounded, from a reversed z-buffer (1 at NEAR_M, 0 at FAR_M and beyond).

    A perspective z-buffer is hyperbolic: zbuffer = near (far - z) / (z (far - near)).
    """
    near_mm, far_mm = 1000.0 * NEAR_M, 1000.0 * FAR_M
    z = zbuffer.astype(np.float64)
    z *= far_mm - near_mm
    z += near_mm
    np.divide(near_mm * far_mm, z, out=z)
    z[zbuffer <= 0.0] = 0.0
    return np.rint(z, out=z).astype(np.uint16)


def with_faults(depth_mm: NDArray[np.uint16], config: CameraConfig, frame: int) -> NDArray[np.uint16]:
    """Depth as the camera's `faults` leave it; the same for the same seed, camera name and frame number."""
    faults = config.faults
    if faults == DepthFaults(seed=faults.seed):
        return depth_mm
    rng = np.random.default_rng([faults.seed, frame, *config.name.encode()])
    height, width = depth_mm.shape
    noise = rng.standard_normal((height, width), dtype=np.float32)
    blobs = rng.random((-(-height // 4), -(-width // 4))) < faults.hole_fraction if faults.hole_fraction > 0.0 else None
    shadow = _one_imager_only(depth_mm, config) if faults.baseline_m > 0.0 else None
    if faults.edge_px > 0.0:
        aside = np.rint(faults.edge_px * rng.standard_normal((2, height, width), dtype=np.float32)).astype(np.int64)
        rows = np.clip(np.arange(height)[:, None] + aside[0], 0, height - 1)
        depth_mm = depth_mm[rows, np.clip(np.arange(width) + aside[1], 0, width - 1)]
    z = depth_mm * 0.001
    noisy = z + faults.noise_m * z * z * noise
    valid = (depth_mm > 0) & (z >= faults.min_m)
    if blobs is not None:
        valid &= ~np.kron(blobs, np.ones((4, 4), dtype=bool))[:height, :width]
    if shadow is not None:
        valid &= ~shadow
    return np.where(valid, np.clip(np.rint(1000.0 * noisy), 1, 65535), 0).astype(np.uint16)


def _one_imager_only(depth_mm: NDArray[np.uint16], config: CameraConfig) -> NDArray[np.bool_]:
    """(H, W) whether the second imager, to the right of the first, has something nearer in the way.

    A pixel at column u with disparity d = f baseline / z is at u - d there. It is hidden if one to its right in the
    first picture comes to lie at or left of it in the second.
    """
    z = np.where(depth_mm > 0, 0.001 * depth_mm, np.inf)
    column = np.arange(z.shape[1]) - config.pinhole.fx * config.faults.baseline_m / z
    leftmost = np.minimum.accumulate(column[:, ::-1], axis=1)[:, ::-1]  # of this pixel and all to its right
    hidden = np.zeros(z.shape, dtype=bool)
    hidden[:, :-1] = leftmost[:, 1:] <= column[:, :-1]
    return hidden
