"""How many samples a second each stage of training takes, and how long the loader makes it wait.

    python test/bench/bench_training.py                                      # the policy in the box's experiment
    python test/bench/bench_training.py --experiment clamp_paper --steps 3 --batch 2 --rows 4     # full size: minutes
    python test/bench/bench_training.py --renderer torch --compile

A store of made-up scenes is written first: depth images of 848x480 of each camera, so that the loader decompresses and
renders what it does in earnest. Then `clamp train`'s own loops run, and what they log themselves is printed: samples
per second, the share of a step that was spent waiting for the loader (the goal is less than 5%), and on a GPU peak
memory, FLOP/s and MFU. The first steps, in which things are compiled and warmed up, are left out where there are more
than twenty.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import zstandard

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import fusion_scene
from clamp_training import config
from clamp_training.machine import prepare
from clamp_training.meter import NOT_MEASURED
from clamp_training.pretrain import pretrain
from clamp_training.processes import joined
from clamp_training.store import FORMAT, INDEX, Store, packed, png
from clamp_training.train_policy import train_policy
from safetensors.numpy import save_file

from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE


def write_store(folder: Path, experiment: config.Experiment, rows: int) -> Store:
    """One episode of still scenes, another every four rows."""
    rng, rgb = np.random.default_rng(0), experiment.policy.rgb
    compress = zstandard.ZstdCompressor(level=6).compress
    corners = sum("wrist" not in camera for camera in experiment.cameras)
    optics = fusion_scene.cameras(corners, len(experiment.cameras) - corners)
    scenes = [fusion_scene.frames(corners, len(optics) - corners, seed=s) for s in range(-(-rows // 4))]
    depth = [compress(frame.depth_mm.tobytes()) for row in range(rows) for frame in scenes[row // 4]]
    images = rng.integers(0, 255, (rows * len(experiment.cameras), rgb.height, rgb.width, 3), dtype=np.uint8)
    joints = np.asarray(REST_POSE, np.float32) + 0.1 * rng.standard_normal((rows, 14)).astype(np.float32)
    tensors = {
        "stamps_ns": np.arange(rows, dtype=np.int64) * 5 * CONTROL_PERIOD_NS,
        "joint_positions": joints,
        "history": np.repeat(joints[:, None], 50, axis=1),
        "actions": np.repeat(joints[:, None], 50, axis=1),
        "world_from_camera": np.tile(np.stack([pose for _, pose in optics]), (rows, 1, 1, 1)),
        "world_from_gripper": np.tile(np.stack(list(fusion_scene.gripper_poses().values())), (rows, 1, 1, 1)),
        "objects": rng.uniform(-0.2, 0.2, (rows, 1, 3)).astype(np.float32),
        **packed("depth", depth),
        **packed("rgb", [png(image) for image in images]),
    }
    metadata = {
        "cameras": experiment.cameras,
        "pinholes": {c: vars(p) for c, (p, _) in zip(experiment.cameras, optics, strict=True)},
        "objects": ["block"],
        "texts": [f"Pick it up. Objects: block at ({i}). Progress: {i}" for i in range(rows)],
    }
    folder.mkdir()
    save_file(tensors, folder / "made_up.safetensors", metadata={"clamp": json.dumps(metadata)})
    episode = {"file": "made_up.safetensors", "rows": rows, "task": "made_up", "seed": 0, "bag": "made_up"}
    size = [rgb.height, rgb.width]
    index = {"format": FORMAT, "cameras": list(experiment.cameras), "rgb_size": size, "episodes": [episode]}
    (folder / INDEX).write_text(json.dumps(index))
    return Store([folder])


def report(stage: str, run: Path, batch: int) -> None:
    """The means that a run logged of its last steps."""
    row = json.loads((run / "scalars.jsonl").read_text().splitlines()[-1])
    step_ms, waited = row["step_ms"], row["loader_wait_percent"]
    line = f"{stage:10}{batch:7d}{step_ms:12.1f}{1e3 * batch / step_ms:12.2f}{waited:10.2f}%"
    if "peak_memory_gib" in row:
        mfu = f", MFU {row['mfu_percent']:.1f}%" if "mfu_percent" in row else ""
        line += f"   {row['peak_memory_gib']:.2f} GiB, {row['tflops']:.1f} TFLOP/s{mfu}"
    print(line)


def main() -> None:
    """Trains encoders, then a policy on them, for a few steps each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="mug_on_plate_easy")
    parser.add_argument("--steps", type=int, default=40, help="of each stage; a multiple of 20 (default 40)")
    parser.add_argument("--batch", type=int, help="in place of both stages' own")
    parser.add_argument("--rows", type=int, default=96, help="observations in the store (default 96)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--renderer", choices=("auto", "numba", "torch"), default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the Transformer blocks")
    parser.add_argument("--stages", nargs="+", choices=("encoders", "policy"), default=("encoders", "policy"))
    args = parser.parse_args()
    prepare(args.threads)
    experiment = config.load_experiment(args.experiment)
    encoders, policy = experiment.encoders, experiment.training
    few = {"steps": args.steps, "compile": args.compile}
    encoders = dataclasses.replace(encoders, **few, batch=args.batch or encoders.batch)
    policy = dataclasses.replace(policy, **few, batch=args.batch or policy.batch)
    if args.batch:
        encoders = dataclasses.replace(encoders, accumulate=1)
    experiment = dataclasses.replace(experiment, renderer=args.renderer, encoders=encoders, training=policy)
    with tempfile.TemporaryDirectory() as folder, joined() as processes:
        out = Path(folder)
        store = write_store(out / "store", experiment, args.rows)
        weights = None
        print(f"{experiment.name} on {processes.device}: {args.threads} threads, {args.steps} steps of each stage")
        if processes.device.type == "cpu":
            print(NOT_MEASURED)
        else:
            print(torch.cuda.get_device_name(processes.device))
        head = f"{'stage':10}{'batch':>7}{'ms a step':>12}{'samples/s':>12}{'waited':>11}"
        if "encoders" in args.stages or experiment.policy.tokens != "none":
            first = experiment
            if "encoders" not in args.stages:  # the policy's stage needs some, whatever they have learnt
                first = dataclasses.replace(experiment, encoders=dataclasses.replace(encoders, steps=1))
            weights = pretrain(first, store, None, out / "encoders", processes=processes)
        print(head)
        if "encoders" in args.stages:
            report("encoders", out / "encoders", encoders.batch)
        if "policy" in args.stages:
            reads = weights if experiment.policy.tokens != "none" else None
            train_policy(experiment, store, None, reads, out / "policy", processes=processes)
            report("policy", out / "policy", policy.batch)


if __name__ == "__main__":
    main()
