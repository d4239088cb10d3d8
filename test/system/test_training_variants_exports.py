"""Every variant of the policy computes on the robot what it does in training, from its exported files alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config
from clamp_training.export import export
from clamp_training.networks.build import new_policy
from clamp_training.networks.image import ImageEncoder
from clamp_training.networks.policy import DiffusionPolicy
from clamp_training.policy_data import PolicyData
from clamp_training.pretrain import Encoders, save_encoders, statistics
from clamp_training.store import Store, new_fusion
from clamp_training.train_policy import Objective, draw_chunks, train_policy

from clamp_ros.contract.errors import ConfigError, ContractError
from clamp_ros.contract.observation import Observation
from clamp_ros.policy.artifact import Artifact
from clamp_ros.policy.cartesian import CartesianActions
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.runtime import PolicyRuntime

pytestmark = [pytest.mark.slow, pytest.mark.training]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store([tiny_store.write_store(tmp_path / "store", [(0.1, 0.1)], rows=2)])


def observed(store: Store, experiment: config.Experiment) -> Observation:
    fusion = new_fusion(experiment.fusion)
    return Observation(
        stamp_ns=0,
        views=store.views(0, fusion),
        cloud=fusion.fuser.fuse(store.frames(0)),
        colors={tiny_store.CAMERA: store.colors(tiny_store.CAMERA, [0])[0]},
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
    experiment = tiny_store.experiment(**sections)
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


VARIANTS: dict[str, dict[str, Any]] = {
    "ACT in relative poses": {"policy": {"tokens": "none", "kind": "act", "actions": "relative_cartesian"}},
    "DP3 in absolute poses": {
        "policy": {"actions": "cartesian", "prefix": 4}, "image": {"encoder": "dp3"}, "fusion": {"max_points": 2000},
    },
    "small views": {
        "image": {"patch": 24, "tiles": [0, 1, 2]},
        "fusion": {"view_px": 48, "views": config.load_experiment("ablation_dome_views").fusion.to_dict()["views"][:3]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_trained_and_exported_it_acts_as_in_training(name: str, store: Store, tmp_path: Path) -> None:
    """Encoders of random weights; a policy trained for two steps."""
    sections = {**VARIANTS[name], "training": {"steps": 2}, "diffusion": {"inference_steps": 2}}
    experiment = tiny_store.experiment(**sections)
    normalization, encoders, path = store.normalization(), None, None
    if experiment.policy.tokens != "none":
        torch.manual_seed(0)
        encoders, path = Encoders(experiment, []).eval(), tmp_path / "encoders.safetensors"
        save_encoders(path, encoders, 1, {"objects": []}, normalization)
    weights = train_policy(experiment, store, store, path, tmp_path / "run")
    export(experiment, path, weights, store, tmp_path / "artifact", {})
    runtime = PolicyRuntime(Artifact.load(tmp_path / "artifact"), threads=1)
    runtime.warm_up()
    seen = observed(store, experiment)
    chunk = runtime.infer(seen, np.random.default_rng(7))

    policy = new_policy(experiment)
    metadata = checkpoint.load(weights, {"policy": policy})
    cartesian = CartesianActions(**metadata["cartesian"]) if "cartesian" in metadata else None
    data = PolicyData(experiment, store, encoders, normalization, cartesian=cartesian)
    with torch.no_grad():
        context = Objective(policy.eval(), encoders).eval().context(data.batch(np.array([0])))
    drawn = draw_chunks(policy, context, experiment.diffusion, seed=7)[0]
    if cartesian is None:
        expected = normalization.actions_inverse(drawn)
    else:
        expected = cartesian.decode(drawn, seen.joint_positions)
    np.testing.assert_allclose(chunk.actions, expected, atol=2e-2)  # the cached tokens are float16
    assert np.median(np.abs(chunk.actions - expected)) < 1e-3
    if experiment.policy.prefix:
        prefix = store.stacked("actions")[0, :3].astype(np.float64)
        again = runtime.infer(seen, np.random.default_rng(7), prefix)
        np.testing.assert_array_equal(again.actions[:3], prefix)
    if experiment.policy.kind == "act":
        assert sorted(runtime.artifact.manifest.files) == ["context", "decode", "encoders"]
        with pytest.raises(ConfigError, match="answers at once"):
            PolicyRuntime(runtime.artifact, inference_steps=5)
    if experiment.image.encoder == "dp3":
        assert runtime.artifact.manifest.scene == "cloud"
        with pytest.raises(ContractError, match="no cloud"):
            runtime.infer(dataclasses.replace(seen, cloud=None), np.random.default_rng(0))
