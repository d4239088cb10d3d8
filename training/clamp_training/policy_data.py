"""What the policy is trained on, batch by batch, and its augmentation (Appendix C)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.cartesian import CartesianActions
from clamp_ros.policy.preprocess import Normalization
from clamp_training.config import Experiment
from clamp_training.features import ImageFeatures, extract, kept, new_renderer, scenes
from clamp_training.pretrain import Encoders, fill_start, first_commands
from clamp_training.processes import ALONE, Processes
from clamp_training.store import Store


class PolicyData:
    """Batches of a store for the policy: image tokens or views, colour, joints, history, actions.

    `encoders` are None where the policy reads nothing of them; their tokens are computed here, once, where the
    experiment caches them, and kept in the folder `tokens`. `cartesian` scales the actions of a policy that acts in
    poses.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        encoders: Encoders | None,
        normalization: Normalization,
        processes: Processes = ALONE,
        cartesian: CartesianActions | None = None,
        tokens: Path | None = None,
    ) -> None:
        self.experiment = experiment
        self.normalization = normalization
        self.rows = len(store)
        self.store = store
        self.features: ImageFeatures | None = None
        if encoders is not None:
            self.renderer = new_renderer(experiment, processes.device)
            if experiment.training.cache:
                words = (encoders.image, experiment, store, self.renderer, processes)
                self.features = extract(*words) if tokens is None else kept(tokens, *words)
        self.joints = normalization.proprio(store.stacked("joint_positions"))
        self.history = store.stacked("history")
        self.firsts = first_commands(store)
        self.cartesian = cartesian
        actions = store.stacked("actions")
        if cartesian is None:
            self.actions = normalization.actions(actions)
        else:
            self.actions = cartesian.encode(actions, store.stacked("joint_positions"))

    def batch(
        self, rows: NDArray[np.int64], rng: np.random.Generator | None = None, samples: slice = slice(None)
    ) -> dict[str, Any]:
        """Some samples of a batch; with `rng` as training sees them, without as the robot does.

        Random numbers are drawn for all of the batch's rows, whichever of its samples are wanted.
        """
        settings, mine = self.experiment.training, rows[samples]
        history, proprio = self.history[mine], self.joints[mine]
        rgb = {
            camera: torch.from_numpy(self.store.colors(camera, mine)).permute(0, 3, 1, 2).float() / 255.0
            for camera in self.experiment.policy.rgb.cameras
        }
        out: dict[str, Any] = {}
        if rng is not None:
            history = fill_start(self.history[rows], self.firsts[rows], rng, self.experiment.history_fill)[samples]
            state_noise = settings.state_noise * rng.standard_normal((len(rows), NUM_JOINTS))
            proprio = proprio + state_noise[samples].astype(np.float32)
            for camera, images in rgb.items():
                corner = rng.random((len(rows), 2))[samples]
                distorted = photometric(images, *(x[samples] for x in colour_changes(len(rows), rng)))
                rgb[camera] = random_crop(distorted, self.experiment.policy.rgb.cropped, corner)
            out |= self._drawn(len(rows), rng, samples)
        if self.features is not None:
            out["image"] = self.features.batch(mine)
        elif self.experiment.policy.tokens != "none":
            out["views"] = scenes(self.store, mine, self.renderer, self.experiment)
        return {
            **out,
            "rows": mine,
            "history": torch.from_numpy(self.normalization.history(history)),
            "proprio": torch.from_numpy(proprio),
            "rgb": rgb,
            "actions": torch.from_numpy(self.actions[mine]),
        }

    def _drawn(self, count: int, rng: np.random.Generator, samples: slice) -> dict[str, Tensor]:
        """The random numbers of the objective."""
        policy = self.experiment.policy
        if policy.kind == "act":
            latent = rng.standard_normal((count, policy.act.latent), dtype=np.float32)
            return {"latent": torch.from_numpy(latent[samples])}
        shape = (count, self.experiment.training.draws)
        steps = rng.integers(self.experiment.diffusion.train_steps, size=shape)
        noise = rng.standard_normal((*shape, CHUNK_SIZE, self.actions.shape[2]), dtype=np.float32)
        out = {"steps": torch.from_numpy(steps[samples]), "noise": torch.from_numpy(noise[samples])}
        if policy.prefix:
            out["prefix"] = torch.from_numpy(rng.integers(policy.prefix + 1, size=shape)[samples])
        return out


def colour_changes(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Random gains (N, 3) and offsets (N, 1) for `photometric`."""
    gain = rng.uniform(0.8, 1.2, (count, 3)) * rng.uniform(0.8, 1.2, (count, 1))
    return gain.astype(np.float32), rng.uniform(-0.1, 0.1, (count, 1)).astype(np.float32)


def photometric(images: Tensor, gain: NDArray[np.float32], offset: NDArray[np.float32]) -> Tensor:
    """Changes brightness, contrast and colour balance of (B, 3, h, w) in 0..1 (paper: photometric distortions)."""
    scale, shift = (torch.from_numpy(x)[:, :, None, None] for x in (gain, offset))
    return ((images - 0.5) * scale + 0.5 + shift).clamp(0.0, 1.0)


def random_crop(images: Tensor, size: tuple[int, int], corner: NDArray[np.float64]) -> Tensor:
    """(B, 3, H, W) cut to (B, 3, h, w), each at its own corner (B, 2), given as a share of the room there is."""
    room = np.array(images.shape[2:]) - size
    if not room.any():
        return images
    top_left = np.floor(corner * (room + 1)).astype(int)
    return torch.stack([i[:, y : y + size[0], x : x + size[1]] for i, (y, x) in zip(images, top_left, strict=True)])
