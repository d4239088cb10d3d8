"""What an experiment, trained weights and a store must agree on before they are used together.

The shapes of tensors tell little of it: encoders of other views, or a policy of another parametrization, load as well
as the right ones, and are wrong. So weights carry the settings that they were trained by, and digests of what they were
trained on. What an older file does not tell is taken to be right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clamp_ros.contract.errors import ArtifactError, ConfigError, RecordError
from clamp_ros.policy.preprocess import Normalization
from clamp_training.config import Experiment
from clamp_training.store import Store

_DP3 = ("encoder", "points", "width")
_DECODER = ("kind", "actions", "width", "heads", "mlp", "decoder_layers")


def differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of plain JSON values differ, and both values there; a key that one lacks is passed over."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before:
            if key in now:
                yield from differences(before[key], now[key], f"{where}.{key}" if where else key)
    elif _of_mappings(before) and _of_mappings(now):
        if len(before) != len(now):
            yield f"the number of {where}", len(before), len(now)
            return
        for i, (a, b) in enumerate(zip(before, now, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif before != now:
        yield where, before, now


def _of_mappings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def check_encoders(path: Path, trained: Mapping[str, Any], experiment: Experiment) -> None:
    """Refuses encoders that an experiment would use otherwise than they were trained.

    Args:
        path: of their file, for the message.
        trained: the settings they were trained by, as `settings_of_encoders` gives them; empty if not known.
        experiment: that reads them.

    Raises:
        ArtifactError: a setting that their output depends on is another; the message names it, and both values.
    """
    _refuse(path, _of_encoders(trained), _of_encoders(_plain(experiment)), experiment, "encoders")


def check_initial(path: Path, trained: Mapping[str, Any], experiment: Experiment) -> None:
    """Refuses a pretrained policy that an experiment's cannot start from; as `check_encoders`.

    What it reads of the encoders, and how many committed actions it continues, may change.
    """
    decoder = experiment.training.initial == "decoder"

    def compared(values: Mapping[str, Any]) -> dict[str, Any]:
        found = _of_policy(values)
        if decoder:
            found["policy"] = {key: value for key, value in found["policy"].items() if key in _DECODER}
        found["policy"] = _without(found["policy"], "tokens", "prefix")
        return found

    _refuse(path, compared(trained), compared(_plain(experiment)), experiment, "policy")


def check_policy(path: Path, trained: Mapping[str, Any], experiment: Experiment) -> None:
    """Refuses to export a policy by another experiment than it was trained by; as `check_encoders`.

    Only how it is sampled may change.
    """

    def compared(values: Mapping[str, Any]) -> dict[str, Any]:
        found = _of_policy(values)
        if experiment.policy.tokens != "none":
            found |= _without(_of_encoders(values), "text", "encoders")
        return found

    _refuse(path, compared(trained), compared(_plain(experiment)), experiment, "policy")


def check_store(store: Store, experiment: Experiment, depth: bool, text: bool = False) -> None:
    """Refuses a store that was not converted for an experiment.

    Args:
        store: training or held-out episodes.
        experiment: that reads it.
        depth, text: whether every episode's depth, or privileged text, is needed.

    Raises:
        ConfigError: it has other cameras, or colour images of another size.
        RecordError: an episode came without what is needed.
    """
    again = f"convert the bags again, elsewhere, by `clamp train convert --experiment {experiment.name}`"
    if sorted(store.cameras) != sorted(experiment.cameras):  # each is found by its name
        raise ConfigError(
            f"the store has the cameras {', '.join(store.cameras)}, the experiment {experiment.name!r} fuses "
            f"{', '.join(experiment.cameras)}; {again}"
        )
    rgb = experiment.policy.rgb
    if rgb.cameras and store.rgb_size != (rgb.height, rgb.width):
        raise ConfigError(
            f"the store's colour images are {' x '.join(map(str, store.rgb_size))} pixels high and wide, policy.rgb of "
            f"the experiment {experiment.name!r} is {rgb.height} x {rgb.width}; {again}"
        )
    for needed, has, what, mend in (
        (depth, store.has_depth, "depth", "only policy.tokens 'none' trains without: give a store of the others"),
        (text, store.has_text, "privileged text", "set encoders.text: false, or give a store of simulated bags"),
    ):
        lacking = [bag for bag, has_it in zip(store.bags, has, strict=True) if not has_it]
        if needed and lacking:
            named = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            counts = f"{len(lacking)} of the store's {len(store.bags)} episodes"
            raise RecordError(f"{counts} have no {what} ({named}); {mend}")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors in hexadecimal, whatever file they lie in."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), *tensor.shape]).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_encoders(image: nn.Module, action: nn.Module) -> str:
    """Digest of the encoders that a policy reads."""
    parts = (("image", image), ("action", action))
    return digest({f"{name}/{key}": x for name, module in parts for key, x in module.state_dict().items()})


def digest_of_statistics(normalization: Normalization) -> str:
    """Digest of the statistics that joints and actions are scaled by."""
    return digest({key: torch.tensor(value) for key, value in vars(normalization).items()})


def _plain(experiment: Experiment) -> dict[str, Any]:
    return json.loads(json.dumps(experiment.to_dict()))


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _of_encoders(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of an experiment's settings those that the encoders' outputs depend on."""
    found: dict[str, Any] = {}
    if "cameras" in values:
        found["cameras"] = sorted(values["cameras"])  # clouds are fused in any order
    if "encoders" in values:
        found["encoders"] = {key: bool(x) for key, x in values["encoders"].items() if key in ("text", "grounding")}
    found["fusion"] = values.get("fusion", {})
    found["image"] = _without(values.get("image", {}), "checkpoint", "dropout", "points")
    if found["image"].get("encoder") == "dp3":
        found["image"] = {key: values["image"][key] for key in _DP3 if key in values["image"]}
    found["action"] = _without(values.get("action", {}), "dropout")
    text = values.get("text", {})
    if text and found.get("encoders", {}).get("text", True):
        found["text"] = {**text, "tokenizer": Path(text["tokenizer"]).name}  # a file may have moved
    return found


def _of_policy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of an experiment's settings those that the policy's weights were trained for."""
    policy = _without(values.get("policy", {}), "dropout")
    policy["rgb"] = _without(policy.get("rgb", {}), "weights")
    policy["act"] = _without(policy.get("act", {}), "kl_weight")
    if policy.get("kind") == "act":
        return {"policy": policy}
    sampling = _without(values.get("diffusion", {}), "sampler", "inference_steps")
    return {"policy": _without(policy, "act"), "diffusion": sampling}


def _refuse(path: Path, trained: dict[str, Any], asked: dict[str, Any], experiment: Experiment, verb: str) -> None:
    found = list(differences(trained, asked))
    if found:
        where, before, now = found[0]
        others = f" (and {', '.join(name for name, _, _ in found[1:])} differ)" if found[1:] else ""
        raise ArtifactError(
            f"{path} was trained with {where} {before!r}, and the experiment {experiment.name!r} has {now!r}{others}; "
            f"give the experiment that it was trained by, or train it again by `clamp train {verb}`"
        )
