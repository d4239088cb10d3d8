"""Training of the diffusion policy on frozen CLAMP encoders (paper Section III-C, Appendix C)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.preprocess import Normalization
from clamp_training import checkpoint
from clamp_training.config import Experiment
from clamp_training.features import ImageFeatures, extract
from clamp_training.loop import Batch, Loop, cosine_warmup, rows_for_step
from clamp_training.networks.image import ImageTokens
from clamp_training.networks.policy import Context, DiffusionPolicy
from clamp_training.pretrain import Encoders, fill_start, first_commands, load_encoders, statistics
from clamp_training.store import Store, new_fusion

M = TypeVar("M", bound=nn.Module)


class PolicyData:
    """Batches of a store for the policy: cached image tokens, colour, joints, history, actions."""

    def __init__(self, experiment: Experiment, store: Store, encoders: Encoders, normalization: Normalization) -> None:
        self.experiment = experiment
        self.normalization = normalization
        self.rows = len(store)
        self.features: ImageFeatures = extract(encoders.image, store, new_fusion(experiment.fusion))
        self.joints = normalization.proprio(store.stacked("joint_positions"))
        self.history = store.stacked("history")
        self.firsts = first_commands(store)
        self.actions = normalization.actions(store.stacked("actions"))
        self.rgb = {camera: store.stacked(f"rgb_{camera}") for camera in experiment.policy.rgb.cameras}

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> dict[str, Any]:
        """One batch; with `rng` as training sees it, without as the robot does."""
        settings = self.experiment.training
        history, proprio = self.history[rows], self.joints[rows]
        if rng is not None:
            history = fill_start(history, self.firsts[rows], rng)
            proprio = proprio + settings.state_noise * rng.standard_normal(proprio.shape).astype(np.float32)
        rgb = {c: torch.from_numpy(a[rows]).permute(0, 3, 1, 2).float() / 255.0 for c, a in self.rgb.items()}
        if rng is not None:
            rgb = {c: photometric(image, rng) for c, image in rgb.items()}
        return {
            "rows": rows,
            "image": self.features.batch(rows),
            "history": torch.from_numpy(self.normalization.history(history)),
            "proprio": torch.from_numpy(proprio),
            "rgb": rgb,
            "actions": torch.from_numpy(self.actions[rows]),
        }


def photometric(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Random brightness, contrast and colour balance of (B, 3, h, w) in 0..1 (paper: photometric distortions)."""
    b = len(images)
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (b, 3, 1, 1)) * rng.uniform(0.8, 1.2, (b, 1, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.1, 0.1, (b, 1, 1, 1))).float()
    return ((images - 0.5) * gain + 0.5 + offset).clamp(0.0, 1.0)


def noise_loss(policy: DiffusionPolicy, context: Context, actions: Tensor, draws: int) -> Tensor:
    """The training objective at random steps (Section III-C).

    `actions` (B, 50, 14) are normalised; `draws` noise samples share each observation's context.
    """
    clean = actions.repeat_interleave(draws, dim=0)
    steps = torch.randint(policy.train_steps, (len(clean),), device=clean.device)
    return policy.noise_loss(clean, torch.randn_like(clean), steps, context.repeat(draws))


class Average(Generic[M]):
    """Exponential moving average of a module's weights, warmed up so that the first steps do not linger."""

    def __init__(self, module: M, decay: float) -> None:
        self.decay = decay
        self.module: M = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the module."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        for mean, value in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1.0 - decay)
            else:
                mean.copy_(value)


def learning_rate(experiment: Experiment, step: int) -> float:
    """The step's learning rate."""
    settings = experiment.training
    if settings.decay == "cosine":
        return settings.learning_rate * cosine_warmup(step, settings.steps, settings.warmup_steps)
    return settings.learning_rate * min(1.0, (step + 1) / settings.warmup_steps)


def encode(policy: DiffusionPolicy, encoders: Encoders, data: dict[str, Any]) -> Context:
    """A batch's context; the encoders stay frozen."""
    with torch.no_grad():
        history = encoders.action(data["history"])
    image: ImageTokens = data["image"]
    return policy.context(image, history, data["rgb"], data["proprio"])


def train_policy(
    experiment: Experiment,
    store: Store,
    validation: Store | None,
    encoders_path: Path,
    out: Path,
    initial: Path | None = None,
    save_every_s: float = 60.0,
) -> Path:
    """Trains into `out/policy.safetensors`, going on from `out/checkpoint.safetensors` if there is one.

    Ctrl-C ends it after the step: the weights so far are written, and the same command goes on.

    Args:
        experiment: sizes and schedules.
        store: demonstrations.
        validation: held-out demonstrations for the curves.
        encoders_path: pretrained encoders; frozen.
        out: folder of the run.
        initial: a policy to start from, as the paper's fine-tuning does.
        save_every_s: time between checkpoints.

    Raises:
        ArtifactError, ConfigError: encoders or checkpoint do not fit the experiment.
        NonFiniteLossError: the loss is not finite.
    """
    settings = experiment.training
    encoders, metadata = load_encoders(encoders_path, experiment)
    normalization = Normalization(**metadata["normalization"])
    data = PolicyData(experiment, store, encoders, normalization)
    held_out = PolicyData(experiment, validation, encoders, normalization) if validation is not None else None

    torch.manual_seed(settings.seed)
    policy = DiffusionPolicy(experiment.policy, experiment.diffusion, encoders.image.num_tokens)
    if initial is not None:
        checkpoint.load(initial, {"policy": policy})
    average = Average(policy, settings.ema)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    described = {"config": experiment.to_dict(), "encoders": encoders_path.name}

    def loss(item: Batch) -> tuple[Tensor, dict[str, float]]:
        value = noise_loss(policy, encode(policy, encoders, item), item["actions"], settings.draws)
        return value, {"noise_loss": value.item()}

    done = Loop(
        out=out,
        description="policy",
        described=described,
        modules={"policy": policy, "average": average.module},
        optimizer=optimizer,
        steps=settings.steps,
        samples=settings.batch,
        seed=settings.seed,
        learning_rate=lambda step: learning_rate(experiment, step),
        batch=lambda rng: data.batch(rows_for_step(rng, data.rows, settings.batch), rng),
        loss=loss,
        after_step=lambda step: average.update(policy, step),
        evaluate=None if held_out is None else lambda: evaluate(average.module, encoders, held_out),
        save_every_s=save_every_s,
    ).run()
    final = out / "policy.safetensors"
    exported = average.module if settings.ema > 0.0 else policy
    metadata = {"step": done, "experiment": described, "normalization": statistics(normalization)}
    checkpoint.save(final, {"policy": exported}, metadata)
    return final


@torch.no_grad()
def evaluate(policy: DiffusionPolicy, encoders: Encoders, data: PolicyData, samples: int = 64) -> dict[str, float]:
    """Held-out scalars: the mean absolute error of sampled chunks over their first 25 actions, in milliradians."""
    policy.eval()
    diffusion = data.experiment.diffusion
    schedule = diffusion.noise_schedule()
    rows = np.random.default_rng(0).choice(data.rows, size=min(samples, data.rows), replace=False)
    item = data.batch(rows, None)
    context = encode(policy, encoders, item)

    def denoise(noisy: NDArray[np.float32], step: int) -> NDArray[np.float32]:
        steps = torch.full((len(rows),), step, dtype=torch.int64)
        return policy.denoise(torch.from_numpy(noisy), steps, context).numpy()

    shape = (len(rows), CHUNK_SIZE, NUM_JOINTS)
    chunk = sample(denoise, shape, np.random.default_rng(0), schedule, diffusion.inference_steps, diffusion.sampler)
    truth = data.normalization.actions_inverse(item["actions"].numpy())
    error = np.abs(data.normalization.actions_inverse(chunk) - truth)[:, :25, [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]]
    return {"held_out_action_error_mrad": 1000.0 * float(error.max(axis=2).mean())}
