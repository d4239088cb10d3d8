"""Depth images and gripper poses -> the policy's tiled views: what the fusion node, the dataset and training call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.interfaces import gripper_frame
from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.cloud import CloudFuser, DepthFrame, DepthImage
from clamp_ros.fusion.views import ViewRenderer, world_from_views
from clamp_ros.geometry.pinhole import Pinhole


class Fusion:
    """`CloudFuser` followed by `ViewRenderer`; one serves one caller at a time."""

    def __init__(self, config: FusionConfig, threads: int | None = None) -> None:
        """Sets up both; `threads` as in `CloudFuser`."""
        self.config = config
        self.fuser = CloudFuser(config, threads)
        self.renderer = ViewRenderer(config, threads)
        self._cloud = np.empty((config.max_points, 3), dtype=np.float32)

    def views(
        self,
        frames: Sequence[DepthImage],
        world_from_grippers: Mapping[str, NDArray[np.float64]],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The policy's view of the scene.

        Args:
            frames: one depth image per camera, all of one instant.
            world_from_grippers: arm name (`left`, `right`) to the (4, 4) pose of its gripper at that instant.
            out: float32 of `config.tiled_shape` to write to; by default a new array.

        Returns:
            Float32 of `config.tiled_shape`: (depth, X, Y, Z) in metres, world frame; zero where nothing is seen.

        Raises:
            ContractError: an image does not fit its intrinsics, a gripper is missing, or a pose is not rigid.
        """
        poses = self._view_poses(world_from_grippers)
        return self.renderer.render(self.fuser.fuse(frames, self._cloud), poses, out)

    def views_and_cloud(
        self, frames: Sequence[DepthImage], world_from_grippers: Mapping[str, NDArray[np.float64]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`views`, and the (N, 3) float32 cloud they were rendered from, metres, world frame; N may be 0."""
        poses = self._view_poses(world_from_grippers)
        cloud = self.fuser.fuse(frames)
        return self.renderer.render(cloud, poses), cloud

    def _view_poses(self, world_from_grippers: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return world_from_views(self.config, {gripper_frame(arm): p for arm, p in world_from_grippers.items()})

    def warm_up(self) -> None:
        """Compiles or loads every kernel (seconds the first time, then cached), so that the first frame is not late."""
        frame = DepthFrame(np.full((8, 8), 500, np.uint16), Pinhole(8, 8, 8.0, 8.0, 3.5, 3.5), np.eye(4))
        self.views([frame], {"left": np.eye(4), "right": np.eye(4)})
