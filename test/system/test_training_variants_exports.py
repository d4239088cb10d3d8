"""Every variant of the policy computes on the robot what it does in training, from its exported files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config
from clamp_training.export import export
from clamp_training.networks.image import ImageEncoder
from clamp_training.networks.policy import DiffusionPolicy
from clamp_training.pretrain import statistics
from clamp_training.store import Store, new_fusion
from clamp_training.train_policy import Objective, PolicyData

from clamp_ros.contract.observation import Observation
from clamp_ros.policy.artifact import Artifact
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.runtime import PolicyRuntime

pytestmark = [pytest.mark.slow, pytest.mark.training]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store([tiny_store.write_store(tmp_path / "store", [(0.1, 0.1)], rows=2)])


def observed(store: Store, experiment: config.Experiment) -> Observation:
    return Observation(
        stamp_ns=0,
        views=store.views(0, new_fusion(experiment.fusion)),
        colors={tiny_store.CAMERA: store.stacked(f"rgb_{tiny_store.CAMERA}")[0]},
        joint_positions=store.stacked("joint_positions")[0],
        action_history=store.stacked("history")[0],
    )


def exported(experiment: config.Experiment, policy: Any, store: Store, folder: Path) -> PolicyRuntime:
    weights = folder / "policy.safetensors"
    checkpoint.save(weights, {"policy": policy}, {"step": 1, "normalization": statistics(store.normalization())})
    export(experiment, None, weights, store, folder / "artifact", {})
    return PolicyRuntime(Artifact.load(folder / "artifact"), threads=1)


def test_a_policy_that_continues_committed_actions(store: Store, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"policy": {"tokens": "none", "prefix": 5}}
    experiment = config.from_dict(config.Experiment, tiny_store.changed(tiny_store.EXPERIMENT, **sections))
    torch.manual_seed(0)
    policy = DiffusionPolicy(experiment.policy, experiment.diffusion, ImageEncoder.count_tokens(experiment.image))
    runtime = exported(experiment, policy.eval(), store, tmp_path)
    assert runtime.artifact.manifest.prefix == 5
    normalization = store.normalization()
    prefix = store.stacked("actions")[0, :3].astype(np.float64)
    chunk = runtime.infer(observed(store, experiment), np.random.default_rng(7), prefix)
    np.testing.assert_allclose(chunk.actions[:3], prefix, atol=1e-6)

    data = PolicyData(experiment, store, None, normalization)
    with torch.no_grad():
        context = Objective(policy, None).context(data.batch(np.array([0])))

        def denoise(noisy: np.ndarray, step: int) -> np.ndarray:
            return policy.denoise(torch.from_numpy(noisy), torch.tensor([step]), context, torch.tensor([3])).numpy()

        schedule = experiment.diffusion.noise_schedule()
        committed = normalization.actions(prefix)[None]
        expected = sample(denoise, (1, 50, 14), np.random.default_rng(7), schedule, 5, prefix=committed)
    np.testing.assert_allclose(chunk.actions, normalization.actions_inverse(expected[0]), atol=1e-4)
