"""How long a frame takes, from depth images to the five views, against Open3D and plain NumPy on the same input.

    python test/bench/bench_fusion.py                      # four corner cameras, 848x480
    python test/bench/bench_fusion.py --corners 2 --wrists 2

The ways take turns in one run, so that whatever else the machine does slows all of them. Printed are medians and their
ratios, of time passed and of processor time; on a busy machine only the latter means something. Open3D is optional
(`pip install open3d-cpu`; Debian: libusb-1.0-0) and is given the easier work: its points are drawn one pixel wide.
"Equal voxels" is the share of our centroids that the peer has too, within 2 um.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import fusion_reference
import fusion_scene

from clamp_ros.contract.views import TILED_SHAPE, VIEW_SIZE, FusionConfig
from clamp_ros.fusion.cloud import DepthFrame
from clamp_ros.fusion.pipeline import Fusion
from clamp_ros.fusion.views import world_from_views
from clamp_ros.geometry.transforms import invert

try:
    open3d: Any = importlib.import_module("open3d")
except ImportError:
    open3d = None

Frames = Sequence[DepthFrame]
Taken = tuple[float, float, float]
"""Seconds: of the cloud, of the views, and of all the process's threads."""


class Clock:
    """Time since it was made, and since its lap."""

    def __init__(self) -> None:
        self.start, self.cpu = time.perf_counter(), time.process_time()
        self.middle = self.start

    def lap(self) -> None:
        self.middle = time.perf_counter()

    def taken(self) -> Taken:
        now = time.perf_counter()
        return self.middle - self.start, now - self.middle, time.process_time() - self.cpu


def draw(points: NDArray[np.float64], poses: NDArray[np.float64], config: FusionConfig) -> NDArray[np.float32]:
    """Five views with a NumPy depth buffer, one pixel a point."""
    out = np.zeros(TILED_SHAPE, dtype=np.float32)
    for i, (view, pose) in enumerate(zip(config.views, poses, strict=True)):
        camera_from_world = invert(pose)
        p = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        kept = np.flatnonzero(p[:, 2] > config.near_m)
        pinhole, z = view.pinhole(), p[kept, 2]
        u = np.rint(p[kept, 0] / z * pinhole.fx + pinhole.cx).astype(np.int64)
        v = np.rint(p[kept, 1] / z * pinhole.fy + pinhole.cy).astype(np.int64)
        inside = (u >= 0) & (u < VIEW_SIZE) & (v >= 0) & (v < VIEW_SIZE)
        kept, z, at = kept[inside], z[inside], (v * VIEW_SIZE + u)[inside]
        order = np.argsort(-z)  # the nearest is written last
        tile = np.zeros((VIEW_SIZE * VIEW_SIZE, 4), dtype=np.float32)
        tile[at[order], 0] = z[order]
        tile[at[order], 1:] = points[kept[order]]
        out[:, i * VIEW_SIZE : (i + 1) * VIEW_SIZE] = tile.reshape(VIEW_SIZE, VIEW_SIZE, 4)
    return out


def open3d_cloud(frames: Frames, config: FusionConfig) -> NDArray[np.float64]:
    """Deproject, crop, voxel_down_sample with Open3D's point cloud."""
    low, high = np.array(config.crop_min_m), np.array(config.crop_max_m)
    box = open3d.geometry.AxisAlignedBoundingBox(low, high)
    # Open3D's grid starts half a voxel before the cloud's minimum; this point makes it start on the world's grid.
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector((low - 0.5 * config.voxel_m)[None]))
    for frame in frames:
        p = frame.pinhole
        intrinsic = open3d.camera.PinholeCameraIntrinsic(p.width, p.height, p.fx, p.fy, p.cx, p.cy)
        image = open3d.geometry.Image(frame.depth_mm)
        cloud += open3d.geometry.PointCloud.create_from_depth_image(
            image, intrinsic, invert(frame.world_from_camera), depth_scale=1000.0, depth_trunc=config.depth_max_m
        ).crop(box)
    return np.asarray(cloud.voxel_down_sample(config.voxel_m).points)


def numpy_cloud(frames: Frames, config: FusionConfig) -> NDArray[np.float64]:
    """The tests' reference, without its rounding."""
    points = fusion_reference.world_points(frames, config)
    return fusion_reference.voxel_centroids(points, config, quantised=False)[1]


def subsampled(cloud: NDArray[np.float64], config: FusionConfig) -> NDArray[np.float64]:
    """The cap of max_points."""
    if len(cloud) <= config.max_points:
        return cloud
    return cloud[np.random.default_rng(config.seed).choice(len(cloud), config.max_points, replace=False)]


def equal_share(ours: NDArray[np.float32], theirs: NDArray[np.float64]) -> float:
    """The share of our points within 2 um of one of theirs."""
    from scipy.spatial import KDTree

    distance, _ = KDTree(theirs).query(ours, distance_upper_bound=2e-6)
    return float(np.isfinite(distance).mean())


def main() -> None:
    """Runs the ways in turn and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corners", type=int, default=4, choices=range(5), help="corner cameras (default 4)")
    parser.add_argument("--wrists", type=int, default=0, choices=range(3), help="wrist cameras (default 0)")
    parser.add_argument("--size", type=int, nargs=2, default=(848, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=7, help="runs of each way (default 7)")
    parser.add_argument("--noise", type=float, default=0.001, help="depth noise in metres at one metre (default 0.001)")
    args = parser.parse_args()

    config = FusionConfig()
    frames = fusion_scene.frames(args.corners, args.wrists, *args.size, noise=args.noise)
    grippers = fusion_scene.gripper_poses()
    poses = world_from_views(config, {f"{arm}/gripper": pose for arm, pose in grippers.items()})
    cloud_out, views_out = np.empty((config.max_points, 3), np.float32), np.empty(TILED_SHAPE, np.float32)
    ours = Fusion(config), Fusion(config, threads=1)

    def fast(fusion: Fusion) -> Taken:
        clock = Clock()
        cloud = fusion.fuser.fuse(frames, cloud_out)
        clock.lap()
        fusion.renderer.render(cloud, poses, views_out)
        return clock.taken()

    def peer(cloud_of: Callable[[Frames, FusionConfig], NDArray[np.float64]]) -> Taken:
        clock = Clock()
        cloud = subsampled(cloud_of(frames, config), config)
        clock.lap()
        draw(cloud, poses, config)
        return clock.taken()

    ways: dict[str, Callable[[], Taken]] = {"numpy": lambda: peer(numpy_cloud)}
    if open3d is not None:
        ways["open3d"] = lambda: peer(open3d_cloud)
    ways["clamp_ros, 1 thread"] = lambda: fast(ours[1])
    ways[f"clamp_ros, {ours[0].fuser.threads} threads"] = lambda: fast(ours[0])

    times: dict[str, list[Taken]] = {name: [] for name in ways}
    for repeat in range(args.rounds + 1):
        for name, way in ways.items():
            for _ in range(1 if name in ("numpy", "open3d") else 5):
                taken = way()
                if repeat > 0:  # the first round compiles and warms up
                    times[name].append(taken)

    valid = sum(int((f.depth_mm > 0).sum()) for f in frames)
    reference = numpy_cloud(frames, config)
    print(f"{len(frames)} cameras {args.size[0]}x{args.size[1]}: {valid:,} valid pixels, {len(reference):,} voxels")
    cloud = ours[0].fuser.fuse(frames)
    print(f"equal voxels: {equal_share(cloud, reference):.4%} with numpy", end="")
    print(f", {equal_share(cloud, open3d_cloud(frames, config)):.4%} with open3d" if open3d is not None else "")
    peers = [name for name in ("open3d", "numpy") if name in ways]
    medians = {name: 1e3 * np.median(taken, axis=0) for name, taken in times.items()}
    ratio_columns = "".join(f"{'x ' + p:>10}" for p in peers)
    print(f"{'median ms':22}{'cloud':>9}{'views':>9}{'both':>9}{ratio_columns}{'cpu':>9}{ratio_columns}")
    for name, (fuse, render, cpu) in medians.items():
        passed = "".join(f"{medians[p][:2].sum() / (fuse + render):10.1f}" for p in peers)
        used = "".join(f"{medians[p][2] / cpu:10.1f}" for p in peers)
        print(f"{name:22}{fuse:9.2f}{render:9.2f}{fuse + render:9.2f}{passed}{cpu:9.2f}{used}")


if __name__ == "__main__":
    main()
