"""The virtual views and the fusion settings, as the manifest carries them from training to the robot.

Square views are rendered from the fused cloud and tiled side by side. The paper's are five, (224, 1120, 4): overhead,
front-left, back-right, wrist-left, wrist-right (Section III-B and Appendix C); any other set is data. Channels are
(depth, X, Y, Z): depth along the view's optical axis and the point's world coordinates, all in metres, all zero where
no point is seen.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import ConfigError
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import look_at

VIEW_SIZE = 224
NUM_VIEWS = 5
MAX_VIEWS = 64
TILED_SHAPE = (VIEW_SIZE, VIEW_SIZE * NUM_VIEWS, 4)
WORLD_FRAME = "world"


@dataclass(frozen=True)
class ViewSpec:
    """One virtual camera.

    Attributes:
        name: of the paper's views overhead, front_left, back_right, wrist_left or wrist_right.
        frame: the frame it is mounted on: `world` for a fixed view, `left/gripper` or `right/gripper` for a wrist view.
        eye_m: position in that frame.
        target_m: the point it looks at, in that frame.
        up: the direction, in that frame, that points up in the image.
        fovy_deg: vertical field of view.
    """

    name: str
    frame: str
    eye_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    up: tuple[float, float, float]
    fovy_deg: float

    def pinhole(self, size: int = VIEW_SIZE) -> Pinhole:
        """Intrinsics of the square view, `size` pixels wide."""
        return Pinhole.from_fovy(size, size, math.radians(self.fovy_deg))

    def frame_from_camera(self) -> NDArray[np.float64]:
        """(4, 4) pose of the view's optical frame in `frame`."""
        return look_at(np.array(self.eye_m), np.array(self.target_m), np.array(self.up))


# The wrist views sit behind and above the gripper, a little offset, and look at the point between the finger tips: the
# paper's "small offset for improved visibility" (Section III-B). The gripper frame's x points out of the fingers.
PAPER_VIEWS: tuple[ViewSpec, ...] = (
    ViewSpec("overhead", WORLD_FRAME, (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 53.0),
    ViewSpec("front_left", WORLD_FRAME, (-0.61, -0.37, 0.70), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 50.0),
    ViewSpec("back_right", WORLD_FRAME, (0.61, 0.37, 0.70), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 50.0),
    ViewSpec("wrist_left", "left/gripper", (-0.16, 0.0, 0.10), (0.03, 0.0, 0.0), (0.0, 0.0, 1.0), 65.0),
    ViewSpec("wrist_right", "right/gripper", (-0.16, 0.0, 0.10), (0.03, 0.0, 0.0), (0.0, 0.0, 1.0), 65.0),
)


@dataclass(frozen=True)
class FusionConfig:
    """How clouds are merged and views rendered. Part of the manifest: training and robot must agree.

    Attributes:
        crop_min_m, crop_max_m: corners of the workspace box, world frame; points outside are dropped.
        voxel_m: edge of the down-sampling grid, whose origin is the world's (paper: 0.001).
        max_points: the cloud's size; more are subsampled by a seeded hash, fewer padded at the origin (paper: 0.3M).
        seed: of the subsampling.
        depth_min_m, depth_max_m: camera depths outside are invalid.
        footprint_m: world-size radius of a rendered point; its radius in pixels is ``round(f * footprint_m / z)``.
        footprint_max_px: cap of that radius.
        near_m: points nearer than this to a view are not rendered.
        view_px: width and height of a view (paper: 224).
        views: the views, in tile order (paper: five).
    """

    crop_min_m: tuple[float, float, float] = (-0.45, -0.37, -0.02)
    crop_max_m: tuple[float, float, float] = (0.45, 0.37, 0.50)
    voxel_m: float = 0.001
    max_points: int = 300_000
    seed: int = 0
    depth_min_m: float = 0.05
    depth_max_m: float = 3.0
    footprint_m: float = 0.002
    footprint_max_px: int = 3
    near_m: float = 0.03
    view_px: int = VIEW_SIZE
    views: tuple[ViewSpec, ...] = field(default=PAPER_VIEWS)

    def __post_init__(self) -> None:
        if not all(lo < hi for lo, hi in zip(self.crop_min_m, self.crop_max_m, strict=True)):
            raise ConfigError(f"crop_min_m {self.crop_min_m} must lie below crop_max_m {self.crop_max_m} on every axis")
        if not 0.0005 <= self.voxel_m <= 0.05:
            raise ConfigError(f"voxel_m is {self.voxel_m}, expected 0.0005 to 0.05")
        if not 1 <= self.max_points <= 2_000_000:
            raise ConfigError(f"max_points is {self.max_points}, expected 1 to 2,000,000")
        if not 0.0 < self.depth_min_m < self.depth_max_m <= 60.0:
            raise ConfigError(f"depth range {self.depth_min_m}..{self.depth_max_m} m is not increasing within 0..60")
        if not (0.0 <= self.footprint_m <= 0.05 and 0 <= self.footprint_max_px <= 8):
            raise ConfigError(f"footprint {self.footprint_m} m capped at {self.footprint_max_px} px is out of range")
        if self.near_m <= 0.0:
            raise ConfigError(f"near_m is {self.near_m}, expected more than 0")
        if not 16 <= self.view_px <= 1024:
            raise ConfigError(f"view_px is {self.view_px}, expected 16 to 1024")
        if not 1 <= len(self.views) <= MAX_VIEWS or len({v.name for v in self.views}) != len(self.views):
            raise ConfigError(f"views are {[v.name for v in self.views]}, expected 1 to {MAX_VIEWS} of different names")

    @property
    def tiled_shape(self) -> tuple[int, int, int]:
        """Shape of the tiled views; the paper's is `TILED_SHAPE`."""
        return (self.view_px, self.view_px * len(self.views), TILED_SHAPE[2])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FusionConfig:
        """The inverse of `to_dict`; lists become tuples.

        Raises:
            ConfigError: a key is unknown or a value is out of range.
        """
        views = {"views": lambda vs: tuple(ViewSpec(**_tupled(ViewSpec, v, {})) for v in vs)}
        return cls(**_tupled(cls, values, views))


def _tupled(cls: type, values: dict[str, Any], convert: dict[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{cls.__name__} does not know {unknown}; it knows {sorted(known)}")
    return {k: convert[k](v) if k in convert else tuple(v) if isinstance(v, list) else v for k, v in values.items()}
