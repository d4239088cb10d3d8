"""Checkpoints in safetensors: written atomically, resumed exactly, refused when they belong to another experiment.

Every random number of a training step is drawn from generators seeded by (seed, step), so weights, optimiser state and
the step number are all there is to save: a run killed and started again computes the same losses.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clamp_ros.contract.errors import ArtifactError, ConfigError


def seed_step(seed: int, step: int) -> np.random.Generator:
    """Seeds torch's global generator (dropout, noise) for a step and returns numpy's (which rows)."""
    sequence = np.random.SeedSequence([seed, step])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
    return np.random.default_rng(sequence)


def save(
    path: Path, modules: dict[str, nn.Module], metadata: dict[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Writes modules (by name), optionally an optimiser, and JSON metadata."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors.update({f"{name}/{key}": value.detach().contiguous() for key, value in module.state_dict().items()})
    if optimizer is not None:
        for i, state in optimizer.state_dict()["state"].items():
            tensors.update(
                {f"optimizer/{i}/{key}": torch.as_tensor(value).contiguous() for key, value in state.items()}
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(
        {key: value.clone() for key, value in tensors.items()}, temporary, metadata={"clamp": json.dumps(metadata)}
    )
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Loads into modules and optimiser, strictly, and returns the metadata.

    Raises:
        ArtifactError: the file is missing, damaged, or holds tensors of other names or shapes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["clamp"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        for name, module in modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"checkpoint {path} cannot be loaded: {error}") from error
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, i, name = key.split("/")
                state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return metadata


def resume(
    path: Path, experiment: dict[str, Any], modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> int:
    """The step to go on from: 0 without a checkpoint.

    Raises:
        ConfigError: the checkpoint was made by another experiment.
        ArtifactError: it cannot be loaded.
    """
    if not path.exists():
        return 0
    metadata = load(path, modules, optimizer)
    before, now = metadata["experiment"], json.loads(json.dumps(experiment))
    if before != now:
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        raise ConfigError(f"{path} was made with other settings of {changed}; choose another --out, or restore them")
    return int(metadata["step"])
