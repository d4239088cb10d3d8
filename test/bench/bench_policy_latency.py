"""How long an action chunk takes, stage by stage, and what caching the decoder's keys and values saves.

    python test/bench/bench_policy_latency.py [models/NAME] [--chunks 30] [--threads 2] [--steps 10]

Without an artifact the first one that comes with the package is taken. The peer is the same artifact in the same run,
its policy encoder run anew in every denoising step, as a decoder without a cache would have it. The two take turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import CHUNK_SIZE, REST_POSE
from clamp_ros.policy.artifact import Artifact, DiffusionSpec
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.runtime import PolicyRuntime
from clamp_ros.share import models_folder


class UncachedRuntime(PolicyRuntime):
    """The peer: images and history are still encoded once, but every step pays for the context."""

    def _denoise(
        self, memory: Any, diffusion: DiffusionSpec, rng: np.random.Generator, prefix: np.ndarray
    ) -> np.ndarray:
        def denoise(noisy: np.ndarray, step: int) -> np.ndarray:
            inputs = {"noisy_actions": self._value(noisy), "step": self._value(np.array([step], np.int64))}
            return self._run("denoise", {**inputs, **self._run("context", self.context_inputs)})["noise"].numpy()

        return sample(
            denoise, (1, CHUNK_SIZE, prefix.shape[1]), rng, diffusion.noise_schedule(), diffusion.inference_steps,
            diffusion.sampler,
        )  # fmt: skip

    def _run(self, part: str, feeds: Any) -> Any:
        if part == "context":
            self.context_inputs = feeds
        return super()._run(part, feeds)


def observation(artifact: Artifact) -> Observation:
    """Random but plausible input; what is in it does not change the time."""
    rng, cameras = np.random.default_rng(0), artifact.manifest.cameras
    views = rng.uniform(0.0, 1.0, artifact.manifest.fusion.tiled_shape).astype(np.float32)
    cloud = rng.uniform(-0.3, 0.3, (artifact.manifest.fusion.max_points, 3)).astype(np.float32)
    colors = {n: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for n, c in cameras.items() if c.rgb}
    history = np.tile(REST_POSE, (CHUNK_SIZE, 1)).astype(np.float32)
    return Observation(0, views, colors, REST_POSE.astype(np.float32), history, cloud)


def main() -> None:
    """Runs the two in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path, help="folder of a policy artifact")
    parser.add_argument("--chunks", type=int, default=30, help="chunks to time")
    parser.add_argument("--threads", type=int, default=0, help="threads of an inference; 0: every core")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps in place of the artifact's")
    arguments = parser.parse_args()
    shipped = sorted(path.parent for path in models_folder().glob("*/manifest.json"))
    if arguments.artifact is None and not shipped:
        raise SystemExit("no artifact comes with this checkout; name the folder of one")
    try:
        artifact = Artifact.load(arguments.artifact or shipped[0])
        options = {"threads": arguments.threads, "inference_steps": arguments.steps}
        cached, uncached = PolicyRuntime(artifact, **options), UncachedRuntime(artifact, **options)
    except ClampError as error:
        raise SystemExit(str(error)) from None
    diffusion = artifact.manifest.diffusion
    if diffusion is None:
        raise SystemExit(f"{artifact.folder} answers at once: it has no denoising steps to compare")
    seen, rng = observation(artifact), np.random.default_rng(0)
    for runtime in (cached, uncached):
        runtime.warm_up()
    stages: dict[str, list[float]] = {}
    totals: dict[str, list[float]] = {"cached": [], "uncached": []}
    for _ in range(arguments.chunks):
        for name, runtime in (("cached", cached), ("uncached", uncached)):
            started = time.perf_counter()
            runtime.infer(seen, rng)
            totals[name].append(1e3 * (time.perf_counter() - started))
        for stage, value in vars(cached.timings).items():
            stages.setdefault(stage, []).append(value)
    steps, sampler = arguments.steps or diffusion.inference_steps, diffusion.sampler
    print(f"{artifact.manifest.name}: {arguments.chunks} chunks of {steps} {sampler} steps; ms")
    print(f"{'':14s} {'median':>9s} {'p99':>9s}")
    for name, values in {**stages, **totals}.items():
        print(f"{name.removesuffix('_ms'):14s} {np.median(values):9.2f} {np.percentile(values, 99.0):9.2f}")
    print(f"cached keys and values: {np.median(totals['uncached']) / np.median(totals['cached']):.2f} times as fast")


if __name__ == "__main__":
    main()
