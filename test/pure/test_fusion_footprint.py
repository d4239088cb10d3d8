"""Footprints close the gaps between points in near views, at little cost in leaks and outlines."""

from __future__ import annotations

from dataclasses import replace

import fusion_scene
import pytest
from fusion_quality import quality

from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.cloud import CloudFuser
from clamp_ros.fusion.views import ViewRenderer, world_from_views

CONFIG = FusionConfig()
POSES = world_from_views(CONFIG, {f"{arm}/gripper": pose for arm, pose in fusion_scene.gripper_poses().items()})


@pytest.mark.parametrize(("corners", "wrists"), [(4, 0), (2, 2)])
def test_footprints_close_pinholes(corners: int, wrists: int) -> None:
    shapes = fusion_scene.scene()
    frames = fusion_scene.frames(corners, wrists, noise=0.0, holes=0.0)
    cloud = CloudFuser(CONFIG, 1).fuse(frames)
    thin = replace(CONFIG, footprint_m=0.0)
    by_config = {c: ViewRenderer(c, 1).render(cloud, POSES) for c in (CONFIG, thin)}
    for i, view in ((0, CONFIG.views[0]), (1, CONFIG.views[1]), (3, CONFIG.views[3])):
        closed = quality(by_config[CONFIG], i, POSES[i], shapes, frames, CONFIG)
        open_ = quality(by_config[thin], i, POSES[i], shapes, frames, thin)
        print(f"{corners}+{wrists} {view.name:12} one pixel: {open_}\n{'':16} footprint: {closed}")
        assert closed.leaks < 0.005
        assert closed.fattening < 0.25
        if view.name.startswith("wrist"):
            assert closed.holes < 0.01
            assert open_.holes + open_.leaks > 0.1
