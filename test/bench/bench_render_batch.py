"""How many samples a second are rendered for training: torch, a batch at a time, against numba, one by one.

    python test/bench/bench_render_batch.py                     # two corner and two wrist cameras, 848x480
    python test/bench/bench_render_batch.py --batch 32 --threads 2

The ways take turns in one run, on the same batch, and their results are compared: the share of pixels that are equal,
and the largest difference where both show a point. On a GPU the time is also set against the byte floor: what reading
the depth images once and writing the views once takes at the memory's bandwidth, which is measured by a copy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import fusion_scene
from clamp_training.processes import moved
from clamp_training.render import depth_batch, rendered

from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.pipeline import Fusion


def timed(way: Callable[[], object], device: torch.device) -> float:
    """Seconds, until the device is done."""
    started = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of half a gigabyte within the device's memory reads and writes."""
    source = torch.ones(1 << 29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(timed(lambda: target.copy_(source), device) for _ in range(8))


def main() -> None:
    """Runs the ways in turn and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="samples (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="of numba, as of torch on a CPU (default 1)")
    parser.add_argument("--corners", type=int, default=2, choices=range(5))
    parser.add_argument("--wrists", type=int, default=2, choices=range(3))
    parser.add_argument("--size", type=int, nargs=2, default=(848, 480), metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(args.threads)
    config, grippers = FusionConfig(), fusion_scene.gripper_poses()
    batch = [fusion_scene.frames(args.corners, args.wrists, *args.size, seed=seed) for seed in range(args.batch)]
    data = depth_batch(batch, [grippers] * args.batch, config)
    there = moved(data, device)
    fusion = Fusion(config, threads=args.threads)
    out = np.empty((args.batch, *config.tiled_shape), np.float32)

    def numba() -> None:
        for frames, views in zip(batch, out, strict=True):
            fusion.views(frames, grippers, views)

    ways = {
        f"numba, {args.threads} thread(s)": numba,
        f"torch, {device.type}": lambda: rendered(there),
        f"torch, {device.type}, with the transfer": lambda: rendered(moved(data, device)),
    }
    if device.type == "cpu":
        del ways["torch, cpu, with the transfer"]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.rounds + 1):
        for name, way in ways.items():
            taken = timed(way, device)
            if repeat > 0:  # the first compiles and warms up
                times[name].append(taken)

    print(f"{args.batch} samples of {args.corners + args.wrists} images {args.size[0]}x{args.size[1]}")
    if device.type == "cuda":
        print(f"on {torch.cuda.get_device_name(device)}")
    peer = float(np.median(times[next(iter(ways))]))
    print(f"{'':34}{'ms a sample':>13}{'samples/s':>12}{'x numba':>10}")
    for name, values in times.items():
        median = float(np.median(values))
        print(f"{name:34}{1e3 * median / args.batch:13.2f}{args.batch / median:12.1f}{peer / median:10.2f}")
    found = rendered(there).cpu().numpy()
    both = (found[..., 0] > 0) & (out[..., 0] > 0)
    print(f"equal pixels: {(found == out).all(axis=-1).mean():.6%}; filled in one alone: ", end="")
    print(f"{int(((found[..., 0] > 0) != (out[..., 0] > 0)).sum()):,}; ", end="")
    print(f"largest difference where both are filled: {1e3 * np.abs(found - out)[both].max():.4f} mm")
    size = data.depth.numel() * 2 + out.nbytes
    print(f"bytes in and out: {size / args.batch / 1e6:.1f} MB a sample; floor: ", end="")
    if device.type != "cuda":
        print("not measured (no GPU)")
        return
    floor, taken = size / bandwidth(device), float(np.median(times["torch, cuda"]))
    print(f"{1e3 * floor / args.batch:.3f} ms a sample; torch takes {taken / floor:.0f} times that")


if __name__ == "__main__":
    main()
