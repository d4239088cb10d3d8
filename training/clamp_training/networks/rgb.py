"""The colour backbones: one ResNet a camera, stage-four feature maps, one shared projection (paper Section III-C).

The ResNet is Hugging Face's. ImageNet weights are read from a local file when a training from scratch starts and the
config names one (a safetensors file of `microsoft/resnet-50`, say); nothing is downloaded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from clamp_ros.contract.errors import ConfigError
from clamp_training.config import RgbConfig

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_state(weights: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a Hugging Face ResNet's safetensors file, without its classifier, named as `ResNetModel` does.

    Args:
        weights: a file, or a folder holding model.safetensors.
        wanted: the state that they are to replace.

    Raises:
        ConfigError: there is no such file, it is no safetensors file, or its tensors are not those wanted.
    """
    path = Path(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"policy.rgb.weights is {weights!r}: no such safetensors file or folder holding model.safetensors"
        )
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"policy.rgb.weights names {path}, which is no safetensors file: {error}") from error
    state = {key.removeprefix("resnet."): value for key, value in loaded.items() if not key.startswith("classifier")}
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    sizes = [
        f"{key} {tuple(value.shape)} in place of {tuple(wanted[key].shape)}"
        for key, value in state.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of other sizes": sizes}
    if any(wrong.values()):
        found = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in wrong.items() if names)
        raise ConfigError(
            f"{path} does not fit the ResNet of policy.rgb ({found}); name a file of its embedding, hidden, depths and "
            "layer, or set these to the file's"
        )
    return state


def sine_position(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D sine embedding (rows * columns, D), half the width for each axis, as DETR's and ACT's."""
    quarter = width // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter) / quarter)
    axes = []
    for count in (rows, columns):
        angles = (torch.arange(count) + 1)[:, None] / count * 2.0 * math.pi * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    y, x = axes
    grid = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], dim=-1)
    return grid.reshape(rows * columns, width)


class RgbBackbones(nn.Module):
    """Colour images of each camera, (B, 3, h, w) in 0..1, to tokens (B, cameras * h/32 * w/32, D).

    Each token carries a fixed 2-D sine embedding of its place and a learnt embedding of its camera.
    """

    position: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: RgbConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.backbones = nn.ModuleDict()
        for camera in config.cameras:
            model = ResNetModel(
                ResNetConfig(
                    embedding_size=config.embedding,
                    hidden_sizes=list(config.hidden),
                    depths=list(config.depths),
                    layer_type=config.layer,
                )
            )
            self.backbones[camera] = model
        self.project = nn.Linear(config.hidden[-1], width)
        height, width_px = config.cropped
        self.rows, self.columns = -(-height // 32), -(-width_px // 32)
        self.camera = nn.Parameter(torch.randn(len(config.cameras), 1, width) / width**0.5)
        self.register_buffer("position", sine_position(self.rows, self.columns, width), persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1), persistent=False)

    def start(self) -> None:
        """Every backbone begins from the weights that the config names; without, they stay random, which is said.

        For a training from scratch: what comes after it loads what it trained.

        Raises:
            ConfigError: see `imagenet_state`.
        """
        if not self.config.cameras:
            return
        if not self.config.weights:
            log.warning("policy.rgb.weights is empty: the colour backbones start from random weights, not ImageNet's")
            return
        first = next(iter(self.backbones.values()))
        state = imagenet_state(self.config.weights, first.state_dict())
        for backbone in self.backbones.values():
            backbone.load_state_dict(state, strict=False)

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Tokens of all cameras in the config's order; images that are not cropped yet are, about the centre."""
        maps = []
        height, width = self.config.cropped
        for i, (camera, backbone) in enumerate(self.backbones.items()):
            image = images[camera]
            top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
            image = image[:, :, top : top + height, left : left + width]
            features = backbone((image - self.mean) / self.std).last_hidden_state
            maps.append(self.project(features.flatten(2).transpose(1, 2)) + self.position + self.camera[i])
        return torch.cat(maps, dim=1)
