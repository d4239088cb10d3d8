"""Checkpoints in safetensors: written atomically, resumed exactly, refused when they belong to another experiment.

Every random number of a training step is drawn from generators seeded by (seed, step), so weights, optimiser state and
the step number are all there is to save: a run killed and started again computes the same losses. Nothing in it tells
of the number of processes, or of how the model lies on them, which may change: tensors are saved whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clamp_ros.contract.errors import ArtifactError, ConfigError, ContractError
from clamp_ros.policy.preprocess import Normalization
from clamp_training.sharding import gathered, like

NAME = "checkpoint.safetensors"
"""Of the file in a run's folder."""
_INPUTS = {"encoders": "encoders", "initial": "weights to start from", "normalization": "statistics"}
"""What a run reads beside its store, in words."""


def seed_torch(*key: int) -> None:
    """Seeds torch's global generators (dropout) for a part of a step, by the run's seed, the step and the part."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def flat(batch: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors and arrays of a batch, within dicts and dataclasses, by the path of their names."""
    if isinstance(batch, np.ndarray):
        return {prefix: torch.from_numpy(batch)}
    if isinstance(batch, Tensor):
        return {prefix: batch}
    items = batch if isinstance(batch, dict) else vars(batch) if is_dataclass(batch) else {}
    found = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in items.items()]
    return {key: value for part in found for key, value in part.items()}


def save(
    path: Path,
    modules: dict[str, nn.Module],
    metadata: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    tensors: dict[str, Tensor] | None = None,
    write: bool = True,
) -> None:
    """Writes modules (by name), optionally an optimiser and further tensors, and JSON metadata.

    Of sharded modules the tensors are gathered: every process calls this alike, and one with `write`.
    """
    saved = dict(tensors or {})
    for name, module in modules.items():
        saved.update({f"{name}/{key}": value for key, value in module.state_dict().items()})
    if optimizer is not None:
        for place, parameter in _places(optimizer):
            state = optimizer.state.get(parameter, {})
            saved.update({f"optimizer/{place}/{key}": torch.as_tensor(value) for key, value in state.items()})
    copies = gathered(saved, write)  # tensors that share memory are refused
    if not write:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(copies, temporary, metadata={"clamp": json.dumps(metadata)})
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
            prefix, now = f"{name}/", module.state_dict()
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict({k: like(now[k], v) if k in now else v for k, v in found.items()})
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"checkpoint {path} cannot be loaded: {error}") from error
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for i, (place, parameter) in enumerate(_places(optimizer)):
            prefix = f"optimizer/{place}/"
            found = {k.removeprefix(prefix): like(parameter, v) for k, v in tensors.items() if k.startswith(prefix)}
            if found:
                state[i] = found
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return metadata


def _places(optimizer: torch.optim.Optimizer) -> list[tuple[int, nn.Parameter]]:
    """An optimiser's parameters in its own order, each with its number among all that are trained."""
    found: list[tuple[int, nn.Parameter]] = []
    for group in optimizer.param_groups:
        found += zip(group["places"], group["params"], strict=True)
    return found


def resume(
    path: Path, experiment: dict[str, Any], modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> int:
    """The step to go on from: 0 without a checkpoint. Refuses as `check`, or if it cannot be loaded."""
    if not path.exists():
        return 0
    check(path, experiment)
    return int(load(path, modules, optimizer)["step"])


def check(path: Path, experiment: dict[str, Any]) -> None:
    """Refuses to go on from a checkpoint, if there is one, that another run has made.

    Args:
        path: of the checkpoint.
        experiment: what the run is, as plain values; `inputs` in it tells what it reads, by name.

    Raises:
        ConfigError: it was made by another experiment, or from other inputs.
        ArtifactError: it is damaged.
    """
    if not path.exists():
        return
    record = metadata(path)
    before, now = record["experiment"], json.loads(json.dumps(experiment))
    changed = sorted(key for key in {*before, *now} - {"inputs"} if before.get(key) != now.get(key))
    if changed:
        raise ConfigError(f"{path} was made with other settings of {changed}; choose another --out, or restore them")
    _check_inputs(path, before.get("inputs", {}), now.get("inputs", {}))


def _check_inputs(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with other inputs; what a checkpoint does not tell, as an older one, is taken to be right."""
    changed = sorted(key for key in before if key in now and before[key] != now[key])
    if not changed:
        return
    if "store" not in changed:
        what = f"other {' and '.join(_INPUTS[key] for key in changed)}"
    else:
        then, is_now = ({key: x["store"][key] for key in ("episodes", "rows")} for x in (before, now))
        counts = f"{then['episodes']} episodes of {then['rows']} rows, and now {is_now['episodes']} of {is_now['rows']}"
        if then == is_now:
            what = "another store, or another order of stores"
        elif is_now["rows"] > then["rows"]:
            what = f"a store that has grown since, or another --held-out: {counts}"
        else:
            what = f"another store or --held-out: {counts}"
    raise ConfigError(f"{path} was made with {what}; choose another --out, or give what it was made with")


def metadata(path: Path) -> dict[str, Any]:
    """What was saved beside the weights.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["clamp"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def weights(path: Path, part: str) -> dict[str, Any]:
    """What was saved beside the weights of a finished training.

    Args:
        path: of the file.
        part: what was trained: 'policy' or 'encoders'.

    Raises:
        ArtifactError: the file is missing, damaged, or holds something else.
    """
    found = metadata(path)
    with safe_open(path, framework="pt") as file:
        parts = {key.split("/")[0] for key in file.keys()}  # noqa: SIM118 (not a mapping)
    if "optimizer" in parts:
        raise ArtifactError(f"{path} is a run's checkpoint; give {part}.safetensors, which lies beside it at the end")
    if parts != {part}:
        raise ArtifactError(
            f"{path} holds {', '.join(sorted(parts)) or 'nothing'}, expected {part}: give the {part}.safetensors that "
            f"`clamp train {part}` wrote"
        )
    normalization(path)
    return found


def tensors_of(path: Path, part: str) -> dict[str, Tensor]:
    """The tensors of a file's part, by their names within it.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            mine = [key for key in file.keys() if key.startswith(f"{part}/")]  # noqa: SIM118 (not a mapping)
            return {key.removeprefix(f"{part}/"): file.get_tensor(key) for key in mine}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def normalization(path: Path) -> Normalization:
    """The statistics that a file of trained weights was made with.

    Raises:
        ArtifactError: it is missing, damaged, or has none.
    """
    try:
        return Normalization(**metadata(path)["normalization"])
    except (KeyError, TypeError, ContractError) as error:
        raise ArtifactError(f"{path} has no statistics of joints and actions ({error}); train it again") from error
