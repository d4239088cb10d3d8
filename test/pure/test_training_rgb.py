"""The colour backbones: a Hugging Face ResNet's weights, in safetensors, and which trainings start from them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_store
import torch
from clamp_training import config
from clamp_training.info import describe
from clamp_training.networks.build import new_policy
from clamp_training.networks.rgb import IMAGENET_MEAN, IMAGENET_STD, RgbBackbones
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification

from clamp_ros.contract.errors import ConfigError

pytestmark = pytest.mark.training

RGB = config.RgbConfig(("front_left", "wrist_left"), 64, 96, 8, (16, 16, 24, 32), (1, 2, 1, 1))


def resnet(folder: Path, rgb: config.RgbConfig) -> ResNetForImageClassification:
    """A random classifier, saved in a folder as Hugging Face does; its batch norms have seen images."""
    torch.manual_seed(1)
    model = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=rgb.embedding, hidden_sizes=list(rgb.hidden), depths=list(rgb.depths), layer_type=rgb.layer
        )
    )
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64) + 0.5)
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("layer", ["bottleneck", "basic"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_features_are_those_of_transformers(layer: str, named: str, tmp_path: Path) -> None:
    rgb = dataclasses.replace(RGB, layer=layer)
    model = resnet(tmp_path, rgb)
    path = tmp_path if named == "folder" else tmp_path / "model.safetensors"
    backbones = RgbBackbones(dataclasses.replace(rgb, weights=str(path)), 32).eval()
    with torch.no_grad():
        backbones.project.weight.copy_(torch.eye(32))  # so that tokens are the features
        backbones.project.bias.zero_()
        backbones.camera.zero_()
        images = {camera: torch.rand(1, 3, 64, 96) for camera in rgb.cameras}
        before = backbones(images)
        backbones.start()
        mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        maps = [model.resnet((images[c] - mean) / std).last_hidden_state for c in rgb.cameras]
        expected = torch.cat([x.flatten(2).transpose(1, 2) + backbones.position for x in maps], dim=1)
        torch.testing.assert_close(backbones(images), expected, atol=1e-5, rtol=1e-4)
    assert (before - expected).abs().max() > 0.01


def test_a_file_that_does_not_fit_is_a_clear_error(tmp_path: Path) -> None:
    resnet(tmp_path, RGB)
    good = load_file(tmp_path / "model.safetensors")
    conv = "resnet.embedder.embedder.convolution.weight"
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    (tmp_path / "empty").mkdir()
    save_file({k: v for k, v in good.items() if k != conv}, tmp_path / "missing.safetensors")
    save_file({**good, "resnet.further": torch.zeros(1)}, tmp_path / "further.safetensors")
    for name, rgb, message in (
        ("nowhere", RGB, "nowhere'.*no such safetensors file or folder holding"),
        ("empty", RGB, "no such safetensors file or folder holding"),
        ("damaged.safetensors", RGB, "damaged.safetensors, which is no safetensors file"),
        ("missing.safetensors", RGB, r"missing: embedder.embedder.convolution.weight\)"),
        ("further.safetensors", RGB, r"unexpected: further\)"),
        (".", dataclasses.replace(RGB, embedding=12), r"convolution.weight \(8, 3, 7, 7\) in place of \(12, 3, 7, 7\)"),
        (".", dataclasses.replace(RGB, depths=(2, 2, 1, 1)), "missing: encoder.*, or set these to the file's"),
    ):
        backbones = RgbBackbones(dataclasses.replace(rgb, weights=str(tmp_path / name)), 32)
        with pytest.raises(ConfigError, match=message):
            backbones.start()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store([tiny_store.write_store(tmp_path / "store", [(0.1, 0.1)], rows=4)])


def experiment(weights: Path | None = None, **training: Any) -> config.Experiment:
    rgb = {**tiny_store.EXPERIMENT["policy"]["rgb"], "weights": str(weights or "")}
    sections = {"policy": {"tokens": "none", "rgb": rgb}, "training": {"steps": 1, "ema": 0.0, **training}}
    return tiny_store.experiment(**sections)


def test_random_weights_are_said_where_a_training_starts_from_them(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> bool:
        found = "start from random weights" in caplog.text
        caplog.clear()
        return found

    caplog.set_level(logging.INFO)
    describe(experiment())
    new_policy(experiment())  # as an export begins
    assert not said()
    pretrained = train_policy(experiment(), store, None, None, tmp_path / "scratch")
    assert said()
    train_policy(experiment(), store, None, None, tmp_path / "tuned", pretrained)
    assert not said()
    train_policy(experiment(initial="decoder"), store, None, None, tmp_path / "decoder", pretrained)
    assert said()


def test_a_training_from_scratch_starts_from_the_weights_and_nothing_else_reads_them(
    store: Store, tmp_path: Path
) -> None:
    """One step at the schedule's learning rate of 0 shows where a run starts from; batch norms' statistics go on."""
    rgb = experiment().policy.rgb
    model = resnet(tmp_path / "resnet", rgb)
    named = experiment(tmp_path / "resnet", warmup_steps=5000)
    pretrained = train_policy(named, store, None, None, tmp_path / "scratch")
    key = "encoder.stages.3.layers.0.layer.0.convolution.weight"
    found = load_file(pretrained)[f"policy/rgb.backbones.{tiny_store.CAMERA}.{key}"]
    torch.testing.assert_close(found, model.resnet.state_dict()[key])
    gone = experiment(tmp_path / "gone")
    describe(gone)
    new_policy(gone)  # as an export begins
    train_policy(gone, store, None, None, tmp_path / "tuned", pretrained)
    with pytest.raises(ConfigError, match="no such safetensors file"):
        train_policy(gone, store, None, None, tmp_path / "again")
