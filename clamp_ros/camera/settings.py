"""How one RealSense camera is set: which device, where it is mounted, size, rate, exposure and filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ConfigError, ContractError
from clamp_ros.contract.interfaces import gripper_frame
from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.transforms import make, rotation_from_quat_xyzw

FILTERS = ("decimation", "threshold", "spatial", "temporal", "hole_filling")
"""The SDK's depth filters, in the order in which its manual says to apply them."""
AUTOMATIC = 0
DEFAULT_GAIN = -1
_FRAMES = (WORLD_FRAME, *(gripper_frame(arm) for arm in ARMS))


@dataclass(frozen=True)
class CameraSettings:
    """Parameters of one camera. Exposure, gain and white balance are of the colour image, or of the stereo pair."""

    serial: str = param("", "serial number, as `python -m clamp_ros.camera.device` shows it")
    recording: str = param("", "an SDK recording (.db3) to play in the camera's place, over and over")
    frame: str = param(WORLD_FRAME, "what it is mounted on", choices=_FRAMES)
    position_m: tuple[float, ...] = param(
        (), "x, y, z of its colour optical frame in `frame`; empty until it is calibrated", unit="m"
    )
    quat_xyzw: tuple[float, ...] = param((), "rotation of its colour optical frame in `frame`; empty until calibrated")
    width: int = param(848, "of the colour image, and so of the aligned depth", unit="px", minimum=16, maximum=4096)
    height: int = param(480, "of the colour image, and so of the aligned depth", unit="px", minimum=16, maximum=4096)
    depth_width: int = param(0, "of the depth before it is aligned; 0 is as colour", unit="px", minimum=0, maximum=4096)
    depth_height: int = param(
        0, "of the depth before it is aligned; 0 is as colour", unit="px", minimum=0, maximum=4096
    )
    rate_hz: int = param(30, "frames a second of both streams", unit="Hz", minimum=1, maximum=300)
    color_exposure_us: int = param(AUTOMATIC, "exposure of colour; 0 is automatic", unit="us", minimum=0)
    color_gain: int = param(
        DEFAULT_GAIN, "gain of colour, beside a fixed exposure; -1 is the device's default", minimum=-1, maximum=1000
    )
    white_balance_k: int = param(AUTOMATIC, "colour temperature; 0 is automatic", unit="K", minimum=0, maximum=10000)
    depth_exposure_us: int = param(
        AUTOMATIC, "exposure of the stereo pair, on a D405 of colour too; 0 is automatic", unit="us", minimum=0
    )
    depth_gain: int = param(
        DEFAULT_GAIN, "gain of the stereo pair, beside a fixed exposure; -1 is the device's", minimum=-1, maximum=1000
    )
    preset: str = param("", "visual preset by its name in the SDK, say High Accuracy; empty leaves it alone")
    filters: tuple[str, ...] = param((), f"depth filters, applied in the order {', '.join(FILTERS)}", choices=FILTERS)
    depth_min_m: float = param(0.07, "of the filter `threshold`", unit="m", minimum=0.0, maximum=16.0)
    depth_max_m: float = param(4.0, "of the filter `threshold`", unit="m", minimum=0.0, maximum=16.0)
    warmup_frames: int = param(
        15, "frames dropped after opening, while exposure and clock settle", unit="frames", minimum=0, maximum=1000
    )
    late_s: float = param(0.05, "a frame that comes this much later than the quickest is late", unit="s", minimum=0.001)

    def __post_init__(self) -> None:
        check(self)
        for what in ("color", "depth"):
            if getattr(self, f"{what}_gain") != DEFAULT_GAIN and getattr(self, f"{what}_exposure_us") == AUTOMATIC:
                raise ConfigError(f"{what}_gain needs a fixed {what}_exposure_us; automatic exposure sets the gain too")
        if (self.depth_width == 0) != (self.depth_height == 0):
            raise ConfigError(f"depth_width is {self.depth_width}, depth_height {self.depth_height}; give both or none")
        if self.depth_min_m >= self.depth_max_m:
            raise ConfigError(f"depth_min_m {self.depth_min_m} must be less than depth_max_m {self.depth_max_m}")
        if self.serial and self.recording:
            raise ConfigError(f"serial {self.serial!r} and recording {self.recording!r} exclude each other")
        self.frame_from_camera()

    @property
    def depth_size(self) -> tuple[int, int]:
        """Width and height of the depth stream."""
        return (self.depth_width, self.depth_height) if self.depth_width else (self.width, self.height)

    def frame_from_camera(self) -> NDArray[np.float64] | None:
        """(4, 4) pose of the colour optical frame in `frame`; None before it is calibrated.

        Raises:
            ConfigError: only half of it is given, or it is no pose.
        """
        if not self.position_m and not self.quat_xyzw:
            return None
        if len(self.position_m) != 3 or len(self.quat_xyzw) != 4:
            raise ConfigError(
                f"position_m is {list(self.position_m)} and quat_xyzw {list(self.quat_xyzw)}; expected 3 and 4 "
                "numbers, or neither"
            )
        try:
            return make(rotation_from_quat_xyzw(self.quat_xyzw), self.position_m)
        except ContractError as error:
            raise ConfigError(f"quat_xyzw: {error}") from None
