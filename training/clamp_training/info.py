"""Parameter counts of an experiment, beside the paper's."""

from __future__ import annotations

import torch

from clamp_training.config import Experiment
from clamp_training.networks.action import ActionEncoder
from clamp_training.networks.build import new_policy, scene_encoder
from clamp_training.networks.text import TextEncoder

PAPER_MILLIONS = {"image encoder": 94, "text encoder": 277, "action encoder": 18, "policy": 192}
"""Section III-B and III-C."""


def parameter_counts(experiment: Experiment) -> dict[str, int]:
    """Parameters of each network; nothing is allocated."""
    with torch.device("meta"):
        networks = {
            "image encoder": scene_encoder(experiment),
            "text encoder": TextEncoder(experiment.text),
            "action encoder": ActionEncoder(experiment.action),
            "policy": new_policy(experiment),
        }
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def describe(experiment: Experiment) -> str:
    """A small table."""
    rows = [f"{'network':<16}{experiment.name:>20}{'paper':>10}"]
    for name, count in parameter_counts(experiment).items():
        rows.append(f"{name:<16}{count:>20,}{PAPER_MILLIONS[name]:>9}M")
    return "\n".join(rows)
