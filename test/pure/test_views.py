"""The virtual views and the fusion settings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import gripper_frame
from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.views import NUM_VIEWS, PAPER_VIEWS, TILED_SHAPE, VIEW_SIZE, WORLD_FRAME, FusionConfig
from clamp_ros.geometry.transforms import apply, invert


def test_the_papers_five_views_in_tile_order() -> None:
    assert [view.name for view in PAPER_VIEWS] == ["overhead", "front_left", "back_right", "wrist_left", "wrist_right"]
    assert [view.frame for view in PAPER_VIEWS] == [WORLD_FRAME] * 3 + [gripper_frame(arm) for arm in ARMS]
    assert TILED_SHAPE == (224, 1120, 4)


@pytest.mark.parametrize("view", PAPER_VIEWS, ids=lambda view: view.name)
def test_each_view_sees_its_target_in_the_middle(view: Any) -> None:
    pixel, depth = view.pinhole().project(apply(invert(view.frame_from_camera()), view.target_m))
    np.testing.assert_allclose(pixel, [(VIEW_SIZE - 1) / 2] * 2, atol=1e-6)
    assert depth == pytest.approx(np.linalg.norm(np.subtract(view.target_m, view.eye_m)))


@pytest.mark.parametrize("view", PAPER_VIEWS[:3], ids=lambda view: view.name)
def test_fixed_views_see_the_middle_of_the_table(view: Any) -> None:
    corners = np.array([(x, y, 0.0) for x in (-0.2, 0.2) for y in (-0.2, 0.2)])
    pixels, depths = view.pinhole().project(apply(invert(view.frame_from_camera()), corners))
    assert (depths > 0).all()
    assert (pixels > 0).all() and (pixels < VIEW_SIZE - 1).all()


def test_the_overhead_view_has_the_worlds_x_to_the_right_and_y_up() -> None:
    overhead = PAPER_VIEWS[0]
    (u, v), _ = overhead.pinhole().project(apply(invert(overhead.frame_from_camera()), (0.1, 0.2, 0.0)))
    assert u > VIEW_SIZE / 2 and v < VIEW_SIZE / 2


def test_settings_survive_json() -> None:
    views = (replace(PAPER_VIEWS[0], fovy_deg=61.0), *PAPER_VIEWS[1:])
    config = FusionConfig(voxel_m=0.002, max_points=1234, views=views)
    assert FusionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "values",
    [
        {"voxel_m": 0.0}, {"voxel_m": float("nan")}, {"max_points": 0}, {"depth_min_m": 3.0}, {"depth_min_m": 0.0},
        {"crop_min_m": (1.0, 0.0, 0.0)}, {"footprint_m": -0.001}, {"footprint_max_px": 9}, {"near_m": 0.0},
        {"views": ()}, {"views": (PAPER_VIEWS[0],) * NUM_VIEWS}, {"view_px": 8},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FusionConfig(**values)


def test_unknown_keys_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="voxels_m"):
        FusionConfig.from_dict({"voxels_m": 0.001})
    views = FusionConfig().to_dict()["views"]
    with pytest.raises(ConfigError, match="lens"):
        FusionConfig.from_dict({"views": [{**views[0], "lens": 1}, *views[1:]]})
