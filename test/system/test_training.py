"""Bags to a policy that runs, at a size that trains in seconds: convert, encoders, policy, export, infer, resume."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clamp_training import checkpoint, config
from clamp_training.export import export, record_score
from clamp_training.loop import NonFiniteLossError, Part, check_finite
from clamp_training.policy_data import PolicyData
from clamp_training.pretrain import load_encoders, pretrain
from clamp_training.store import Store, convert, new_fusion
from clamp_training.train_policy import Objective, train_policy
from safetensors.torch import load_file

from clamp_ros.contract.errors import ArtifactError, ConfigError, RecordError
from clamp_ros.contract.observation import Observation
from clamp_ros.demos import DemoConfig, Demonstrator
from clamp_ros.policy.artifact import Artifact
from clamp_ros.policy.runtime import PolicyRuntime

pytestmark = [pytest.mark.slow, pytest.mark.training]

CAMERAS = ("front_left", "back_right")
EXPERIMENT = config.Experiment(
    name="tiny",
    task="mug_on_plate_easy",
    image=config.ImageEncoderConfig(patch=56, width=32, depth=1, heads=2, mlp=32),
    action=config.ActionEncoderConfig(width=32, depth=1, heads=2, mlp=32, pool_mlp=32),
    text=config.TextEncoderConfig(width=32, depth=1, heads=2, mlp=32, tokens=160, vocabulary=259),
    policy=config.PolicyConfig(
        width=32, heads=2, encoder_layers=1, decoder_layers=2, mlp=32, dropout=0.1,
        rgb=config.RgbConfig(("front_left",), 64, 96, 8, (8, 8, 16, 16), (1, 1, 1, 1), "basic"),
    ),
    diffusion=config.DiffusionConfig(train_steps=20, sampler="ddim", inference_steps=5, parametrization="velocity"),
    encoders=config.EncoderTraining(steps=6, batch=6, learning_rate=1e-3, grounding=1.0),
    training=config.PolicyTraining(
        steps=6, batch=6, learning_rate=1e-3, warmup_steps=2, draws=2, ema=0.9, state_noise=0.1,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bags")
    demonstrator = Demonstrator(DemoConfig("mug_on_plate_easy", CAMERAS, image_rate_hz=2, look="primitive"))
    for seed in (3, 4):
        assert demonstrator.demonstrate(seed, folder / f"episode_{seed}")["success"]
    return folder


@pytest.fixture(scope="module")
def store_folder(bags: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    convert([bags], folder, CAMERAS, (64, 96), workers=1)
    return folder


@pytest.fixture(scope="module")
def encoders(store_folder: Path, tmp_path_factory) -> Path:
    return pretrain(EXPERIMENT, Store([store_folder]), None, tmp_path_factory.mktemp("encoders"))


def losses(folder: Path, key: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def test_from_store_to_an_artifact_that_infers_like_torch(store_folder: Path, encoders: Path, tmp_path: Path) -> None:
    train, held_out = Store.split([store_folder], 1)
    assert held_out is not None and len(train.bags) == len(held_out.bags) == 1 and train.bags != held_out.bags
    seeded = dataclasses.replace(EXPERIMENT, training=dataclasses.replace(EXPERIMENT.training, seed=9))
    weights = train_policy(seeded, train, held_out, encoders, tmp_path / "policy")
    assert (tmp_path / "policy" / "curves.png").stat().st_size > 1000
    export(EXPERIMENT, encoders, weights, train, tmp_path / "artifact", {"data": "two episodes"})
    artifact = Artifact.load(tmp_path / "artifact")
    assert artifact.manifest.rgb_cameras == ("front_left",)
    assert artifact.manifest.fusion == EXPERIMENT.fusion
    assert artifact.manifest.training["experiment"]["training"]["seed"] == 9, "what the weights were trained by"
    for part in artifact.manifest.files:
        assert b"stack_trace" not in artifact.file(part).read_bytes(), "the exporting machine's paths"

    fusion, row = new_fusion(EXPERIMENT.fusion), 3
    observation = Observation(
        stamp_ns=int(train.episodes[0].tensors["stamps_ns"][row]),
        views=train.views(row, fusion),
        colors={"front_left": train.colors("front_left", [row])[0]},
        joint_positions=train.stacked("joint_positions")[row],
        action_history=train.stacked("history")[row],
    )
    runtime = PolicyRuntime(artifact, threads=1)
    chunk = runtime.infer(observation, np.random.default_rng(7))

    frozen, metadata = load_encoders(encoders, EXPERIMENT)
    data = PolicyData(EXPERIMENT, train, frozen, artifact.manifest.normalization)
    from clamp_training.networks.policy import DiffusionPolicy

    from clamp_ros.policy.diffusion import sample

    policy = DiffusionPolicy(EXPERIMENT.policy, EXPERIMENT.diffusion, frozen.image.num_tokens)
    checkpoint.load(weights, {"policy": policy})
    policy.eval()
    with torch.no_grad():
        context = Objective(policy, frozen).context(data.batch(np.array([row])))

        def denoise(noisy: np.ndarray, step: int) -> np.ndarray:
            return policy.denoise(torch.from_numpy(noisy), torch.tensor([step]), context).numpy()

        assert artifact.manifest.diffusion is not None
        schedule = artifact.manifest.diffusion.noise_schedule()
        expected = sample(denoise, (1, 50, 14), np.random.default_rng(7), schedule, 5)
    # the cached tokens of training are float16
    np.testing.assert_allclose(chunk.actions, data.normalization.actions_inverse(expected[0]), atol=5e-3)
    assert metadata["experiment"]["objects"] == ["mug", "plate"]

    record_score(tmp_path / "artifact", "in process", {"successes": 3, "episodes": 4})
    assert '"successes": 3' in (tmp_path / "artifact" / "README.md").read_text()
    assert Artifact.load(tmp_path / "artifact").manifest.score["in process"]["episodes"] == 4


def test_a_run_killed_and_started_again_is_the_same_run(store_folder: Path, encoders: Path, tmp_path: Path) -> None:
    """Stopped after every checkpoint and resumed, weights equal those of the run that was left alone."""
    store = Store([store_folder])

    class KilledError(Exception):
        pass

    whole = train_policy(EXPERIMENT, store, None, encoders, tmp_path / "whole")
    real_save, saved = checkpoint.save, []

    def save_then_die(path: Path, *arguments, **keywords) -> None:
        real_save(path, *arguments, **keywords)
        saved.append(path)
        if len(saved) in (2, 3):
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        for _ in range(2):
            with pytest.raises(KilledError):
                train_policy(EXPERIMENT, store, None, encoders, tmp_path / "broken", save_every_s=0.0)
        broken = train_policy(EXPERIMENT, store, None, encoders, tmp_path / "broken", save_every_s=0.0)
    assert len(saved) > 4
    assert whole.read_bytes() == broken.read_bytes()


def test_pretraining_resumes_exactly(store_folder: Path, encoders: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    short = dataclasses.replace(EXPERIMENT, encoders=dataclasses.replace(EXPERIMENT.encoders, steps=6))
    real_save, saved = checkpoint.save, []

    def save_then_die(path: Path, *arguments, **keywords) -> None:
        real_save(path, *arguments, **keywords)
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(short, Store([store_folder]), None, out, save_every_s=0.0)
        assert pretrain(short, Store([store_folder]), None, out).read_bytes() == encoders.read_bytes()


def test_training_learns(store_folder: Path, tmp_path: Path) -> None:
    """Sixty steps bring both the contrastive loss and the object positions down."""
    longer = dataclasses.replace(EXPERIMENT.encoders, steps=60, batch=12)
    pretrain(dataclasses.replace(EXPERIMENT, encoders=longer), Store([store_folder]), None, tmp_path / "run")
    for key in ("contrastive", "grounding_cm"):
        values = losses(tmp_path / "run", key)
        assert values[59] < 0.8 * values[19], key


def test_checkpoint_of_another_experiment_is_refused(store_folder: Path, encoders: Path) -> None:
    other = dataclasses.replace(EXPERIMENT, encoders=dataclasses.replace(EXPERIMENT.encoders, learning_rate=5e-4))
    with pytest.raises(ConfigError, match="made with other settings"):
        pretrain(other, Store([store_folder]), None, encoders.parent)


def test_experiments_that_differ_in_the_policy_share_encoders(store_folder: Path, encoders: Path) -> None:
    before = encoders.read_bytes()
    other = dataclasses.replace(EXPERIMENT, name="other", training=dataclasses.replace(EXPERIMENT.training, steps=99))
    assert pretrain(other, Store([store_folder]), None, encoders.parent).read_bytes() == before


def test_damaged_weights_are_a_clear_error(encoders: Path, tmp_path: Path) -> None:
    path = tmp_path / "encoders.safetensors"
    path.write_bytes(encoders.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"encoders\.safetensors"):
        load_encoders(path, EXPERIMENT)
    wider = dataclasses.replace(EXPERIMENT, image=dataclasses.replace(EXPERIMENT.image, mlp=64))
    with pytest.raises(ArtifactError, match=r"image\.mlp 32, and the experiment .* has 64"):
        load_encoders(encoders, wider)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    parts = [Part(0, {"rows": np.array([1, 2]), "rgb": {"front_left": torch.ones(2, 3)}}, (0, 3))]
    check_finite(torch.tensor(1.0), tmp_path, 3, parts, {"m": module})
    with pytest.raises(NonFiniteLossError, match="step 3"):
        check_finite(torch.tensor(float("nan")), tmp_path, 3, parts, {"m": module})
    path = tmp_path / "nonfinite_step_3.safetensors"
    assert checkpoint.load(path, {"m": module})["step"] == 3
    saved = load_file(path)
    assert saved["part_0/rows"].tolist() == [1, 2] and saved["part_0/rgb.front_left"].shape == (2, 3)


def test_conversion_continues_and_refuses_bad_bags(bags: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bags"
    shutil.copytree(bags, folder)
    damaged = folder / "episode_4"
    data = next(damaged.glob("*.mcap"))
    data.write_bytes(data.read_bytes()[:2000])
    with pytest.raises(RecordError, match="episode_4"):
        convert([folder], tmp_path / "store", CAMERAS, (64, 96), workers=1)
    assert Store([tmp_path / "store"]).bags == ["episode_3"]  # the good one is in
    shutil.rmtree(damaged)
    shutil.copytree(bags / "episode_4", damaged)
    assert convert([folder], tmp_path / "store", CAMERAS, (64, 96), workers=1).bags == ["episode_3", "episode_4"]
    with pytest.raises(RecordError, match="new folder"):
        convert([folder], tmp_path / "store", ("front_left",), (64, 96), workers=1)


def test_missing_store_and_bags_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="clamp train convert"):
        Store([tmp_path])
    with pytest.raises(RecordError, match="no bag"):
        convert([tmp_path], tmp_path / "store", CAMERAS, (64, 96))
