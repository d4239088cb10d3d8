"""How long one action chunk takes on the robot's path, against eager torch of the same policy, weights and steps.

    python test/bench/bench_chunk.py                                        # the policy in the box's sizes
    python test/bench/bench_chunk.py --experiment clamp_paper_finetune --chunks 2   # full size: minutes, 4 GB of /tmp

The weights are random: what is in them does not change the time. Each chunk is of one observation, in float32, with as
many threads, as many denoising steps of the same sampler, and every patch showing a point. The ways take turns:

robot       what the policy node runs: the exported ONNX graphs in onnxruntime. The encoders, the ResNets and the
            policy's encoder run once a chunk, the decoder's cross-attention keys and values are computed once and kept.
no cache    eager PyTorch: all encoders once a chunk, but every denoising step computes the cross-attention's keys and
            values anew from the encoder's latents.
naive       eager PyTorch as the formula is written: every denoising step calls epsilon(O, a, k) as a whole, so that
            ResNets, policy encoder, keys and values are computed anew. Only the frozen CLAMP encoders run once.

On a machine that has other work, compare with `--threads 1`: torch's threads wait for each other at every operation.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from clamp_training import checkpoint
from clamp_training.config import Experiment, load_experiment
from clamp_training.export import export
from clamp_training.networks.build import new_policy
from clamp_training.networks.layers import DecoderBlock
from clamp_training.networks.policy import Context, DiffusionPolicy
from clamp_training.pretrain import Encoders, save_encoders, statistics
from clamp_training.train_policy import Objective

from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import CHUNK_SIZE, REST_POSE
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.policy.artifact import Artifact
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.preprocess import Normalization, preprocess_rgb
from clamp_ros.policy.runtime import PolicyRuntime


def exported(experiment: Experiment, folder: Path) -> tuple[Artifact, Objective, Normalization]:
    """An artifact of random weights, and the networks that it was made of."""
    torch.manual_seed(0)
    encoders, policy = Encoders(experiment, []).eval(), new_policy(experiment).eval()
    generator = np.random.default_rng(0)
    normalization = Normalization.fit(*(generator.uniform(-1.0, 1.0, (50, 14)).astype(np.float32) for _ in range(2)))
    described = {"config": experiment.to_dict(), "objects": []}
    save_encoders(folder / "encoders.safetensors", encoders, 0, described, normalization)
    record = {"step": 0, "experiment": described, "normalization": statistics(normalization)}
    checkpoint.save(folder / "policy.safetensors", {"policy": policy}, record)
    pinholes = [Pinhole.from_fovy(848, 480, 0.73) for _ in experiment.cameras]
    cameras: Any = SimpleNamespace(cameras=experiment.cameras, episodes=[SimpleNamespace(pinholes=pinholes)])
    out = folder / "artifact"
    export(experiment, folder / "encoders.safetensors", folder / "policy.safetensors", cameras, out, {})
    return Artifact.load(out), Objective(policy, encoders).eval(), normalization


def observation(experiment: Experiment) -> Observation:
    """Random input in which every patch shows points."""
    rng = np.random.default_rng(1)
    views = rng.uniform(0.1, 0.5, experiment.fusion.tiled_shape).astype(np.float32)
    colors = {camera: rng.integers(0, 256, (480, 848, 3), np.uint8) for camera in experiment.policy.rgb.cameras}
    history = np.tile(REST_POSE, (CHUNK_SIZE, 1)).astype(np.float32)
    return Observation(0, views, colors, REST_POSE.astype(np.float32), history)


@torch.no_grad()
def eager(
    objective: Objective,
    experiment: Experiment,
    normalization: Normalization,
    seen: Observation,
    steps: int,
    naive: bool,
) -> np.ndarray:
    """A normalised chunk (1, 50, 14) by torch, without cached keys and values."""
    policy, rgb = cast(DiffusionPolicy, objective.policy), experiment.policy.rgb
    data = {
        "views": torch.from_numpy(seen.views)[None],
        "history": torch.from_numpy(normalization.history(seen.action_history))[None],
        "proprio": torch.from_numpy(normalization.proprio(seen.joint_positions))[None],
        "rgb": {c: torch.from_numpy(preprocess_rgb(i, rgb.height, rgb.width))[None] for c, i in seen.colors.items()},
    }
    image, history = objective._tokens(data)

    def context() -> tuple[torch.Tensor, torch.Tensor]:
        return policy.latents(image, history, data["rgb"], data["proprio"])

    once = None if naive else context()

    def denoise(noisy: np.ndarray, step: int) -> np.ndarray:
        latents, valid = once or context()
        pairs = [cast(DecoderBlock, block).cross_attention.keys_values(latents) for block in policy.decoder]
        keys, values = zip(*pairs, strict=True)  # the decoder takes a layer's by its number, from a list as well
        memory = Context(cast(Any, keys), cast(Any, values), valid)
        return policy.denoise(torch.from_numpy(noisy), torch.tensor([step]), memory).numpy()

    schedule, sampler = experiment.diffusion.noise_schedule(), experiment.diffusion.sampler
    shape = (1, CHUNK_SIZE, policy.action_width)
    return sample(denoise, shape, np.random.default_rng(7), schedule, steps, sampler)


def main() -> None:
    """Runs the ways in turn and prints medians, ratios and the largest difference between their chunks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="mug_on_plate_easy")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps, of DDIM (default 10)")
    parser.add_argument("--chunks", type=int, default=20, help="of each way (default 20)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    experiment = load_experiment(args.experiment)
    experiment = dataclasses.replace(  # the text encoder is of pretraining alone
        experiment,
        encoders=dataclasses.replace(experiment.encoders, text=False, grounding=0.0),
        diffusion=dataclasses.replace(experiment.diffusion, sampler="ddim", inference_steps=args.steps),
    )
    with tempfile.TemporaryDirectory() as folder:
        artifact, objective, normalization = exported(experiment, Path(folder))
        runtime, seen = PolicyRuntime(artifact, threads=args.threads), observation(experiment)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "robot": lambda: runtime.infer(seen, np.random.default_rng(7)).actions,
            "no cache": lambda: eager(objective, experiment, normalization, seen, args.steps, naive=False),
            "naive": lambda: eager(objective, experiment, normalization, seen, args.steps, naive=True),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        chunks: dict[str, np.ndarray] = {}
        for repeat in range(args.chunks + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                chunks[name] = way()
                if repeat > 0:
                    times[name].append(1e3 * (time.perf_counter() - started))
        stages = runtime.timings
    counts = sum(p.numel() for p in objective.parameters())
    print(f"{experiment.name}: {counts / 1e6:.1f}M parameters, {args.steps} DDIM steps, {args.threads} threads, CPU")
    robot = float(np.median(times["robot"]))
    for name, values in times.items():
        print(f"{name:10}{np.median(values):10.1f} ms{np.median(values) / robot:8.2f} times the robot's")
    print("of the robot's last: " + ", ".join(f"{k[:-3]} {v:.1f}" for k, v in vars(stages).items()) + " ms")
    for name in ("no cache", "naive"):
        off = np.abs(normalization.actions_inverse(chunks[name][0]) - chunks["robot"]).max()
        print(f"largest difference of its chunk, {name}: {off:.1e} rad or m")
    print("on a GPU: " + ("not measured by this command" if torch.cuda.is_available() else "not measured (no GPU)"))


if __name__ == "__main__":
    main()
