"""The rendered views: equal to the plain reference, hand-worked cases, and what the tiles mean."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import fusion_reference
import fusion_scene
import numpy as np
import pytest
from numba.core import config

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.views import NUM_VIEWS, TILED_SHAPE, VIEW_SIZE, WORLD_FRAME, FusionConfig, ViewSpec
from clamp_ros.fusion.cloud import CloudFuser
from clamp_ros.fusion.pipeline import Fusion
from clamp_ros.fusion.threads import choose_threading_layer
from clamp_ros.fusion.views import ViewRenderer, world_from_views
from clamp_ros.geometry.transforms import apply, axis_angle, invert, make
from clamp_ros.policy.preprocess import pad_cloud

CONFIG = FusionConfig()
GRIPPERS = fusion_scene.gripper_poses()
FRAMES = {f"{arm}/gripper": pose for arm, pose in GRIPPERS.items()}
POSES = world_from_views(CONFIG, FRAMES)


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return CloudFuser(CONFIG, 1).fuse(fusion_scene.frames(2, 2, 320, 180))


def tile(views: np.ndarray, i: int) -> np.ndarray:
    return views[:, i * VIEW_SIZE : (i + 1) * VIEW_SIZE]


def near_poses() -> np.ndarray:
    """The left gripper 5 cm above the table, straight down: the wrist view almost touches what it sees."""
    down = make(axis_angle((0.0, 1.0, 0.0), math.pi / 2), (0.0, 0.0, 0.05))
    return world_from_views(CONFIG, {**FRAMES, "left/gripper": down})


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("config", "poses"),
    [
        (CONFIG, POSES),
        (CONFIG, near_poses()),
        (replace(CONFIG, footprint_m=0.0, footprint_max_px=0), POSES),
        (replace(CONFIG, footprint_m=0.02, footprint_max_px=5), POSES),
        (replace(CONFIG, near_m=0.9), POSES),
    ],
    ids=["default", "near", "one pixel", "wide", "far only"],
)
def test_equals_the_reference_bit_for_bit(
    cloud: np.ndarray, config: FusionConfig, poses: np.ndarray, threads: int
) -> None:
    some = cloud[::5]
    views = ViewRenderer(config, threads).render(some, poses)
    assert (views[..., 0] > 0).mean() > 0.02
    np.testing.assert_array_equal(views, fusion_reference.render(some, poses, config))


def test_channels_are_depth_and_place_and_empty_pixels_are_zero(cloud: np.ndarray) -> None:
    views = ViewRenderer(CONFIG, 1).render(cloud, POSES)
    assert views.shape == TILED_SHAPE
    assert views.dtype == np.float32
    members = {tuple(p) for p in cloud}
    for i in range(NUM_VIEWS):
        seen = tile(views, i)[..., 0] > 0
        assert 0.05 < seen.mean() < 1.0
        assert not tile(views, i)[~seen].any()
        values = tile(views, i)[seen]
        np.testing.assert_allclose(apply(invert(POSES[i]), values[:, 1:])[:, 2], values[:, 0], atol=1e-6)
        assert {tuple(p) for p in values[:, 1:]} <= members


def test_repeats_to_the_bit_and_forgets_the_last_cloud(cloud: np.ndarray) -> None:
    renderer = ViewRenderer(CONFIG, 2)
    first = renderer.render(cloud, POSES)
    assert not renderer.render(cloud[:0], POSES).any()
    np.testing.assert_array_equal(renderer.render(cloud, POSES), first)
    np.testing.assert_array_equal(renderer.render(cloud, POSES, np.full(TILED_SHAPE, 7, np.float32)), first)


def test_the_order_of_the_points_changes_no_depth(cloud: np.ndarray) -> None:
    renderer = ViewRenderer(CONFIG, 2)
    shuffled = np.random.default_rng(0).permutation(cloud)
    np.testing.assert_array_equal(renderer.render(shuffled, POSES)[..., 0], renderer.render(cloud, POSES)[..., 0])


def test_padding_is_never_rendered(cloud: np.ndarray) -> None:
    renderer = ViewRenderer(CONFIG, 1)
    some = cloud[(np.abs(cloud[:, :2]) > 0.05).any(axis=1)]  # the origin, in the middle of every fixed view, is empty
    views = renderer.render(some, POSES)
    assert views[VIEW_SIZE // 2, VIEW_SIZE // 2, 0] == 0.0
    np.testing.assert_array_equal(renderer.render(pad_cloud(some, len(some) + 5000), POSES), views)


# One view at the world's origin that looks along x, so that (x, y, z) is seen at column -y, row -z; f = 112 pixels.
AHEAD = ViewSpec("overhead", WORLD_FRAME, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), 90.0)
FLAT = replace(CONFIG, views=(AHEAD, *CONFIG.views[1:]))
FLAT_POSES = world_from_views(FLAT, FRAMES)


def draw(points: list[tuple[float, float, float]], config: FusionConfig = FLAT) -> np.ndarray:
    return tile(ViewRenderer(config, 1).render(np.array(points, np.float32), FLAT_POSES), 0)


@pytest.mark.parametrize(("distance", "radius"), [(0.46, 0), (0.44, 1), (0.15, 1), (0.149, 2), (0.08, 3), (0.04, 3)])
def test_footprint_is_round_f_size_over_z_and_capped(distance: float, radius: int) -> None:
    at = 0.5 / 112 * distance  # half a pixel from the axis: the centre of pixel (112, 112)
    image = draw([(distance, -at, -at)])
    rows, columns = np.nonzero(image[..., 0])
    np.testing.assert_array_equal(np.unique(rows), np.arange(112 - radius, 113 + radius))
    np.testing.assert_array_equal(np.unique(columns), np.arange(112 - radius, 113 + radius))
    assert len(rows) == (2 * radius + 1) ** 2
    np.testing.assert_allclose(image[112, 112], [distance, distance, -at, -at], rtol=1e-6)


def test_the_nearest_point_wins_and_of_equals_the_first() -> None:
    near, far = (0.2, 0.0, 0.0), (0.3, 0.0, 0.0)
    for points in ([near, far], [far, near]):
        np.testing.assert_allclose(draw(points)[111, 111, 0], 0.2, rtol=1e-6)
    left, right = (0.2, 0.001, 0.0), (0.2, -0.001, 0.0)
    for points in ([left, right], [right, left]):
        np.testing.assert_allclose(draw(points)[111, 111], [0.2, *points[0]], rtol=1e-6)


def test_near_behind_and_beside() -> None:
    assert draw([(0.031, 0.0, 0.0)]).any()
    assert not draw([(0.029, 0.0, 0.0), (-0.5, 0.0, 0.0), (0.3, 0.5, 0.0), (0.3, 0.0, -0.5)]).any()
    beyond = draw([(0.2, 0.2 * 113.4 / 112, 0.0)])  # column -1.9: its footprint of 1 does not reach the image
    assert not beyond.any()
    border = draw([(0.2, 0.2 * 112.4 / 112, 0.0)])  # column -0.9, rounded to -1: its footprint reaches column 0
    np.testing.assert_array_equal(np.unique(np.nonzero(border[..., 0])[1]), [0])


def test_steady_state_allocates_nothing_that_grows(cloud: np.ndarray) -> None:
    renderer = ViewRenderer(CONFIG, 2)
    out = np.empty(TILED_SHAPE, np.float32)
    assert renderer.render(cloud, POSES, out) is out
    tracemalloc.start()
    try:
        renderer.render(cloud, POSES, out)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_views_are_mounted_on_their_frames() -> None:
    moved = {**FRAMES, "left/gripper": make(translation=(0.0, 0.0, 0.1)) @ FRAMES["left/gripper"]}
    poses = world_from_views(CONFIG, moved)
    np.testing.assert_array_equal(poses[[0, 1, 2, 4]], POSES[[0, 1, 2, 4]])
    np.testing.assert_allclose(poses[3] - POSES[3], make(translation=(0.0, 0.0, 0.1)) - np.eye(4), atol=1e-12)
    with pytest.raises(ContractError, match="wrist_right is mounted on 'right/gripper', whose pose is missing"):
        world_from_views(CONFIG, {"left/gripper": np.eye(4)})
    with pytest.raises(ContractError, match="pose of left/gripper"):
        world_from_views(CONFIG, {**FRAMES, "left/gripper": np.full((4, 4), np.nan)})


@pytest.mark.parametrize(
    ("points", "poses", "out", "message"),
    [
        (np.zeros((3, 4), np.float32), POSES, None, "cloud is"),
        (np.zeros((3, 3)), POSES, None, "float64"),
        (np.zeros((3, 3), np.float32), POSES[:4], None, r"\(5, 4, 4\)"),
        (np.zeros((3, 3), np.float32), np.full((5, 4, 4), np.nan), None, "pose of view overhead"),
        (np.zeros((3, 3), np.float32), POSES, np.zeros((224, 224, 4), np.float32), "out is"),
    ],
    ids=["cloud shape", "cloud dtype", "four poses", "NaN pose", "out"],
)
def test_refuses(points: np.ndarray, poses: np.ndarray, out: np.ndarray | None, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        ViewRenderer(CONFIG, 1).render(points, poses, out)


def test_pipeline_is_fuse_then_render() -> None:
    frames = fusion_scene.frames(1, 1, 212, 120)
    fusion = Fusion(CONFIG, 1)
    fusion.warm_up()
    cloud = CloudFuser(CONFIG, 1).fuse(frames)
    expected = ViewRenderer(CONFIG, 1).render(cloud, POSES)
    np.testing.assert_array_equal(fusion.views(frames, GRIPPERS), expected)
    views, its_cloud = fusion.views_and_cloud(frames, GRIPPERS)
    np.testing.assert_array_equal(views, expected)
    np.testing.assert_array_equal(its_cloud, cloud)
    with pytest.raises(ContractError, match="right/gripper"):
        fusion.views(frames, {"left": np.eye(4)})


FORK = """
import os, sys
from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.pipeline import Fusion
fusion = Fusion(FusionConfig(), threads=1)
fusion.warm_up()
child = os.fork()
if child == 0:
    fusion.warm_up()
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_fuses_on_one_thread_may_fork() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 7, done.stderr


def test_without_openmp_another_layer_is_taken_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(config, "THREADING_LAYER", "omp")
    monkeypatch.delenv("NUMBA_THREADING_LAYER", raising=False)
    monkeypatch.setitem(sys.modules, "numba.np.ufunc.omppool", None)
    with caplog.at_level(logging.WARNING):
        assert choose_threading_layer() == "default"
    assert "libgomp1" in caplog.text
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "workqueue")
    assert choose_threading_layer() == "workqueue"
