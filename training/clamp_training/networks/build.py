"""From an experiment to its networks: which of the paper's variants they are, and their sizes."""

from __future__ import annotations

from clamp_training.config import Experiment
from clamp_training.networks.act import ActPolicy
from clamp_training.networks.image import ImageEncoder
from clamp_training.networks.points import PointEncoder
from clamp_training.networks.policy import DiffusionPolicy

SceneEncoder = ImageEncoder | PointEncoder
"""The image encoder f: the ViT over views, or DP3's over the cloud."""
Policy = DiffusionPolicy | ActPolicy


def scene_encoder(experiment: Experiment) -> SceneEncoder:
    """The image encoder of an experiment, untrained."""
    if experiment.image.encoder == "dp3":
        return PointEncoder(experiment.image)
    return ImageEncoder(experiment.image, experiment.fusion.tiled_shape)


def new_policy(experiment: Experiment) -> Policy:
    """The policy of an experiment, untrained."""
    dp3 = experiment.image.encoder == "dp3"
    tokens = 1 if dp3 else ImageEncoder.count_tokens(experiment.image, experiment.fusion.tiled_shape)
    if experiment.policy.kind == "act":
        return ActPolicy(experiment.policy, tokens)
    return DiffusionPolicy(experiment.policy, experiment.diffusion, tokens)
