"""Policies that read pooled embeddings, fresh encoders, or nothing of them, run on the robot as in training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config
from clamp_training.export import ContextGraph, EncodersGraph, export
from clamp_training.networks.image import ImageEncoder
from clamp_training.networks.policy import DiffusionPolicy
from clamp_training.policy_data import PolicyData
from clamp_training.pretrain import Encoders, load_encoders, pretrain, statistics
from clamp_training.store import Store, new_fusion
from clamp_training.train_policy import Objective, train_policy

from clamp_ros.contract.errors import ArtifactError
from clamp_ros.contract.observation import Observation
from clamp_ros.policy.artifact import Artifact
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.runtime import PolicyRuntime

pytestmark = [pytest.mark.slow, pytest.mark.training]


def small(tokens: str) -> tuple[config.Experiment, DiffusionPolicy]:
    """An experiment with cropped colour images and without wrist views, and an untrained policy of it."""
    rgb = {**tiny_store.EXPERIMENT["policy"]["rgb"], "crop": 0.75}
    sections = {"policy": {"tokens": tokens, "rgb": rgb}, "image": {"tiles": [0, 1, 2]}, "training": {"cache": False}}
    experiment = tiny_store.experiment(**sections)
    torch.manual_seed(0)
    tokens_of_grid = ImageEncoder.count_tokens(experiment.image)
    return experiment, DiffusionPolicy(experiment.policy, experiment.diffusion, tokens_of_grid).eval()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store([tiny_store.write_store(tmp_path / "store", [(0.1, 0.1)], rows=2)])


def observed(store: Store, experiment: config.Experiment) -> Observation:
    return Observation(
        stamp_ns=0,
        views=store.views(0, new_fusion(experiment.fusion)),
        colors={tiny_store.CAMERA: store.colors(tiny_store.CAMERA, [0])[0]},
        joint_positions=store.stacked("joint_positions")[0],
        action_history=store.stacked("history")[0],
    )


def test_graphs_of_pooled_embeddings_compute_what_training_does(store: Store) -> None:
    experiment, policy = small("pooled")
    encoders = Encoders(experiment, []).eval()
    data = PolicyData(experiment, store, encoders, store.normalization()).batch(np.array([0]))
    with torch.no_grad():
        expected = Objective(policy, encoders).context(data)
        image, valid, action = EncodersGraph(encoders, "pooled")(data["views"], data["history"])
        assert image.shape == (1, 1, 16) and action.shape == (1, 50, 16)  # rows as the runtime expects them
        keys, values, seen = ContextGraph(policy, 1)(image, valid, action, data["proprio"], list(data["rgb"].values()))
    torch.testing.assert_close(keys, expected.keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values, expected.values, atol=1e-5, rtol=1e-4)
    assert torch.equal(seen, expected.valid)


def test_a_policy_without_tokens_runs_on_the_robot(store: Store, tmp_path: Path) -> None:
    experiment, policy = small("none")
    normalization, weights = store.normalization(), tmp_path / "policy.safetensors"
    checkpoint.save(weights, {"policy": policy}, {"step": 1, "normalization": statistics(normalization)})
    with pytest.raises(ArtifactError, match="--encoders"):
        export(small("pooled")[0], None, weights, store, tmp_path / "artifact", {})
    export(experiment, None, weights, store, tmp_path / "artifact", {})

    runtime = PolicyRuntime(Artifact.load(tmp_path / "artifact"), threads=1)
    chunk = runtime.infer(observed(store, experiment), np.random.default_rng(7))

    data = PolicyData(experiment, store, None, normalization)
    with torch.no_grad():
        context = Objective(policy, None).context(data.batch(np.array([0])))

        def denoise(noisy: np.ndarray, step: int) -> np.ndarray:
            return policy.denoise(torch.from_numpy(noisy), torch.tensor([step]), context).numpy()

        schedule = experiment.diffusion.noise_schedule()
        expected = sample(denoise, (1, 50, 14), np.random.default_rng(7), schedule, 5)
    np.testing.assert_allclose(chunk.actions, normalization.actions_inverse(expected[0]), atol=1e-4)


def test_encoders_that_were_never_pretrained_go_from_training_to_the_robot(store: Store, tmp_path: Path) -> None:
    """They are those of the seed, in the policy's training as in the artifact; pretrained ones are refused."""
    values = tiny_store.changed(tiny_store.EXPERIMENT, encoders={"steps": 0, "seed": 3})
    experiment = config.from_dict(config.Experiment, values)
    pretraining = dataclasses.replace(experiment.encoders, steps=2)
    trained = pretrain(dataclasses.replace(experiment, encoders=pretraining), store, None, tmp_path / "trained")
    with pytest.raises(ArtifactError, match=r"encoders\.steps is 0.*pretrained for 2 steps.*clamp train encoders"):
        train_policy(experiment, store, None, trained, tmp_path / "refused")

    fresh = pretrain(experiment, store, None, tmp_path / "fresh")
    encoders, metadata = load_encoders(fresh, experiment)
    torch.manual_seed(3)
    for key, value in Encoders(experiment, ["block"]).state_dict().items():
        assert torch.equal(encoders.state_dict()[key], value), key
    assert metadata["step"] == 0

    policy = train_policy(experiment, store, None, fresh, tmp_path / "policy")
    manifest = export(experiment, fresh, policy, store, tmp_path / "artifact", {})
    assert manifest.training["steps"] == {"encoders": 0, "policy": 4}
    assert "| encoder pretraining | none, fresh from seed 3 |" in (tmp_path / "artifact" / "README.md").read_text()
    views = torch.from_numpy(store.views(0, new_fusion(experiment.fusion)))[None]
    session = onnxruntime.InferenceSession(tmp_path / "artifact" / "encoders.onnx", providers=["CPUExecutionProvider"])
    feeds = {"views": views.numpy(), "action_history": np.ones((1, 50, 14), np.float32)}
    found = session.run(["image_tokens", "action_tokens"], feeds)
    with torch.no_grad():
        expected = [encoders.image(views).tokens, encoders.action(torch.ones(1, 50, 14))]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.numpy(), atol=1e-4)
    runtime = PolicyRuntime(Artifact.load(tmp_path / "artifact"), threads=1)
    chunk = runtime.infer(observed(store, experiment), np.random.default_rng(7))
    assert np.isfinite(chunk.actions).all()
