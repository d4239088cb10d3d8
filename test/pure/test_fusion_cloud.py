"""The fused cloud: equal to the plain reference, independent of order and threads, exact at borders and at the cap."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import fusion_reference
import fusion_scene
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clamp_ros.contract.errors import ConfigError, ContractError
from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.cloud import CloudFuser, DepthFrame
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import look_at, make
from clamp_ros.policy.preprocess import pad_cloud

CONFIG = FusionConfig()
ONE_PIXEL = Pinhole(1, 1, 1.0, 1.0, 0.0, 0.0)


def by_place(cloud: np.ndarray) -> np.ndarray:
    return cloud[np.lexsort(cloud.T)]


def pixel(depth_mm: int, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> DepthFrame:
    """A camera of one pixel at (x, y, z) that looks along the world's z."""
    return DepthFrame(np.full((1, 1), depth_mm, np.uint16), ONE_PIXEL, make(translation=(x, y, z)))


def mixed_frames() -> list[DepthFrame]:
    """Four cameras of different sizes and intrinsics, one of them with oblong pixels and an off-centre axis."""
    rng = np.random.default_rng(3)
    shapes = fusion_scene.scene(3)
    eyes = [(-0.61, -0.37, 0.70), (0.61, 0.37, 0.70), (0.05, -0.5, 0.4), (0.0, 0.1, 0.15)]
    pinholes = [
        Pinhole.from_fovy(424, 240, 0.73),
        Pinhole(101, 77, 95.0, 130.0, 43.2, 50.9),
        Pinhole(640, 9, 500.0, 500.0, 320.0, 4.0),
        Pinhole.from_fovy(160, 120, 1.0),
    ]
    poses = [look_at(eye, (0.0, 0.0, 0.0), (0.0, 1.0, 1.0)) for eye in eyes]
    return [
        fusion_scene.depth_frame(shapes, p, pose, rng, noise=0.002, holes=0.05)
        for p, pose in zip(pinholes, poses, strict=True)
    ]


CASES = {
    "four corners, capped": (fusion_scene.frames(4, 0, 320, 180), replace(CONFIG, max_points=40_000)),
    "corners and wrists": (fusion_scene.frames(2, 2, 320, 180), CONFIG),
    "one camera": (fusion_scene.frames(1, 0, 212, 120), CONFIG),
    "mixed sizes": (mixed_frames(), CONFIG),
    "coarse voxels": (fusion_scene.frames(2, 2, 212, 120), replace(CONFIG, voxel_m=0.005)),
    "fine voxels, capped, odd crop": (
        fusion_scene.frames(2, 1, 212, 120),
        replace(CONFIG, voxel_m=0.0007, crop_min_m=(-0.3333, -0.2, 0.0013), max_points=9_999, seed=11),
    ),
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_float64_reference_bit_for_bit(case: str, threads: int) -> None:
    frames, config = CASES[case]
    cloud = CloudFuser(config, threads).fuse(frames)
    expected = fusion_reference.cloud(frames, config)
    assert len(expected) > 5_000
    np.testing.assert_array_equal(by_place(cloud), by_place(expected))


def test_rounding_to_a_thousandth_of_a_voxel_moves_nothing_that_matters() -> None:
    frames = CASES["corners and wrists"][0]
    points = fusion_reference.world_points(frames, CONFIG)
    rounded, rounded_centroids = fusion_reference.voxel_centroids(points, CONFIG)
    plain, plain_centroids = fusion_reference.voxel_centroids(points, CONFIG, quantised=False)
    one = np.array([10**8, 10**4, 1])
    _, i, j = np.intersect1d(rounded @ one, plain @ one, return_indices=True)
    assert len(i) > 0.999 * max(len(plain), len(rounded))
    distance = np.linalg.norm(rounded_centroids[i] - plain_centroids[j], axis=1)
    assert np.quantile(distance, 0.999) < 1e-6  # the rest gained or lost a point across a border


def test_neither_order_nor_threads_nor_repetition_changes_a_bit() -> None:
    frames, config = CASES["corners and wrists"]
    config = replace(config, max_points=50_000)
    fuser = CloudFuser(config, 2)
    first = fuser.fuse(frames)
    fuser.fuse(mixed_frames())
    np.testing.assert_array_equal(fuser.fuse(frames), first)
    np.testing.assert_array_equal(fuser.fuse(frames[::-1]), first)
    np.testing.assert_array_equal(CloudFuser(config, 1).fuse([frames[i] for i in (2, 0, 3, 1)]), first)


def test_images_of_any_memory_layout() -> None:
    frame = CASES["one camera"][0][0]
    fuser = CloudFuser(CONFIG, 1)
    transposed = replace(frame, depth_mm=np.asfortranarray(frame.depth_mm))
    np.testing.assert_array_equal(fuser.fuse([transposed]), fuser.fuse([frame]))


@pytest.mark.parametrize("cap", [1, 777, 20_000])
def test_cap_is_exact_seeded_and_keeps_whole_voxels(cap: int) -> None:
    frames = fusion_scene.frames(2, 0, 212, 120)
    everything = {tuple(p) for p in CloudFuser(CONFIG, 1).fuse(frames)}
    assert len(everything) > 20_000
    kept = {tuple(p) for p in CloudFuser(replace(CONFIG, max_points=cap), 1).fuse(frames)}
    assert len(kept) == cap
    assert kept <= everything
    other = {tuple(p) for p in CloudFuser(replace(CONFIG, max_points=cap, seed=1), 1).fuse(frames)}
    assert len(other) == cap
    assert other != kept


def test_cap_keeps_a_fair_sample() -> None:
    frames = CASES["four corners, capped"][0]
    everything = CloudFuser(CONFIG, 1).fuse(frames)
    kept = CloudFuser(replace(CONFIG, max_points=len(everything) // 4), 1).fuse(frames)
    edges = [np.linspace(-0.45, 0.45, 7), np.linspace(-0.37, 0.37, 7), np.linspace(-0.02, 0.5, 4)]
    total, _ = np.histogramdd(everything, edges)
    sample, _ = np.histogramdd(kept, edges)
    many = total > 300
    share = sample[many] / total[many]
    assert np.all(np.abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / total[many]))


def test_a_cap_that_is_not_reached_changes_nothing() -> None:
    frames = CASES["one camera"][0]
    cloud = CloudFuser(CONFIG, 1).fuse(frames)
    np.testing.assert_array_equal(CloudFuser(replace(CONFIG, max_points=len(cloud)), 1).fuse(frames), cloud)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [DepthFrame(np.zeros((12, 16), np.uint16), Pinhole(16, 12, 9.0, 9.0, 8.0, 6.0), np.eye(4))],
        [pixel(400, z=5.0)],
        [pixel(49), pixel(3001, z=-2.6)],
    ],
    ids=["no camera", "invalid depth", "outside the crop", "outside the depth range"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_empty(frames: list[DepthFrame], threads: int) -> None:
    cloud = CloudFuser(CONFIG, threads).fuse(frames)
    assert cloud.shape == (0, 3)
    assert cloud.dtype == np.float32


def test_faces_of_the_crop_and_ends_of_the_depth_range_are_inside() -> None:
    fuser = CloudFuser(CONFIG, 1)
    corners = [pixel(500, x, y, z - 0.5) for x in (-0.45, 0.45) for y in (-0.37, 0.37) for z in (-0.02, 0.5)]
    for corner in corners:
        np.testing.assert_allclose(fuser.fuse([corner])[0], corner.world_from_camera[:3, 3] + (0, 0, 0.5), atol=1e-7)
    for axis in range(3):
        for frame in (corners[0], corners[-1]):
            pose = frame.world_from_camera.copy()
            pose[axis, 3] += np.copysign(2e-6, pose[axis, 3] + 0.5 * (axis == 2))
            assert len(fuser.fuse([replace(frame, world_from_camera=pose)])) == 0
    assert len(fuser.fuse([pixel(50), pixel(3000, z=-2.6)])) == 2


def test_a_point_on_a_border_of_voxels_is_in_the_upper_one() -> None:
    fuser = CloudFuser(CONFIG, 1)
    below, on, above = pixel(100, z=-0.0004), pixel(100), pixel(100, z=0.0004)
    np.testing.assert_allclose(fuser.fuse([on, above])[:, 2], [0.1002], atol=1e-6)
    np.testing.assert_allclose(fuser.fuse([on, below])[:, 2], [0.0996, 0.1], atol=1e-6)
    np.testing.assert_allclose(fuser.fuse([pixel(100, z=-4e-7)] * 3 + [above])[:, 2], [0.1001], atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(60, 480), st.floats(-0.44, 0.44), st.floats(-0.36, 0.36)), min_size=1))
def test_hand_computed_centroids(points: list[tuple[int, float, float]]) -> None:
    groups: dict[tuple[int, ...], list[np.ndarray]] = {}
    for depth, x, y in points:
        quanta = np.floor(np.array([x, y, depth / 1000]) * 1024e3 + 0.5)
        groups.setdefault(tuple((quanta // 1024).astype(int)), []).append(quanta / 1024e3)
    cloud = FUSER.fuse([pixel(*point) for point in points])
    expected = np.array([np.mean(group, axis=0) for group in groups.values()])
    np.testing.assert_allclose(by_place(cloud), by_place(expected.astype(np.float32)), atol=1e-7)


FUSER = CloudFuser(CONFIG, 1)


def test_steady_state_allocates_nothing_that_grows() -> None:
    frames = fusion_scene.frames(2, 0, 212, 120)
    fuser = CloudFuser(CONFIG, 2)
    out = np.empty((CONFIG.max_points, 3), np.float32)
    cloud = fuser.fuse(frames, out)
    assert np.shares_memory(cloud, out)
    tracemalloc.start()
    try:
        fuser.fuse(frames, out)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_without_out_the_array_is_the_callers() -> None:
    fuser = CloudFuser(CONFIG, 1)
    first = fuser.fuse([pixel(100)])
    fuser.fuse([pixel(200)])
    np.testing.assert_allclose(first, [[0.0, 0.0, 0.1]], atol=1e-7)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (DepthFrame(np.zeros((1, 1), np.uint16), ONE_PIXEL, np.full((4, 4), np.nan)), "finite"),
        (DepthFrame(np.zeros((1, 1), np.uint16), ONE_PIXEL, np.eye(3)), "finite"),
        (DepthFrame(np.zeros((1, 1), np.uint16), ONE_PIXEL, np.diag([1.0, 2.0, 1.0, 1.0])), "rigid"),
        (DepthFrame(np.zeros((2, 1), np.uint16), ONE_PIXEL, np.eye(4)), r"\(2, 1\).*\(1, 1\)"),
        (DepthFrame(np.zeros((1, 1), np.float32), ONE_PIXEL, np.eye(4)), "uint16"),  # type: ignore[arg-type]
        (
            DepthFrame(np.zeros((3000, 3000), np.uint16), Pinhole(3000, 3000, 1.0, 1.0, 0.0, 0.0), np.eye(4)),
            "9,000,000 pixels",
        ),
    ],
    ids=["NaN pose", "3x3 pose", "scaled pose", "size", "dtype", "too many pixels"],
)
def test_refuses(frame: DepthFrame, message: str) -> None:
    fuser = CloudFuser(CONFIG, 1)
    with pytest.raises(ContractError, match=message):
        fuser.fuse([frame])
    np.testing.assert_allclose(fuser.fuse([pixel(100)]), [[0.0, 0.0, 0.1]], atol=1e-7)


def test_refuses_a_grid_too_fine_and_threads_that_are_none() -> None:
    with pytest.raises(ConfigError, match="voxel_m larger"):
        CloudFuser(replace(CONFIG, voxel_m=0.0005, crop_min_m=(-2.0, -2.0, -1.0), crop_max_m=(2.0, 2.0, 1.0)))
    with pytest.raises(ConfigError, match="threads is 0"):
        CloudFuser(CONFIG, 0)
    with pytest.raises(ContractError, match="out is"):
        CloudFuser(CONFIG, 1).fuse([], np.empty((10, 3), np.float32))


def test_padding() -> None:
    cloud = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(pad_cloud(cloud, 4), [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]])
    assert pad_cloud(cloud, 4).dtype == np.float32
    with pytest.raises(ContractError, match="2 points, more than the 1"):
        pad_cloud(cloud, 1)
