"""Training of the diffusion policy: pretraining without CLAMP tokens, fine-tuning with (Section III-C, Appendix C)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clamp_ros.contract.errors import ArtifactError, ConfigError
from clamp_ros.contract.robot import ARMS, CHUNK_SIZE
from clamp_ros.policy.cartesian import CartesianActions
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.preprocess import Normalization
from clamp_training import checkpoint
from clamp_training.agreement import (
    check_initial,
    check_store,
    digest,
    digest_of_encoders,
    digest_of_statistics,
)
from clamp_training.config import DiffusionConfig, Experiment
from clamp_training.loop import Check, Loop, Part, cosine_warmup, mean_gradients, rows_for_step
from clamp_training.networks.act import ActPolicy
from clamp_training.networks.action import ActionEncoder
from clamp_training.networks.build import Policy, SceneEncoder, new_policy
from clamp_training.networks.image import ImageTokens
from clamp_training.networks.layers import compile_blocks
from clamp_training.networks.policy import Context
from clamp_training.policy_data import PolicyData
from clamp_training.pretrain import Encoders, load_encoders, save_encoders, statistics
from clamp_training.processes import ALONE, Processes, moved, share_batch_norms
from clamp_training.render import rendered
from clamp_training.sharding import groups, local
from clamp_training.store import Store


class Objective(nn.Module):
    """A batch to the training objective (Section III-C): the policy, on encoders that are frozen or trained with it."""

    def __init__(self, policy: Policy, encoders: Encoders | None, bf16: bool = False, unfreeze: bool = False):
        super().__init__()
        self.policy = policy
        self.encoders = nn.ModuleDict({} if encoders is None else {"image": encoders.image, "action": encoders.action})
        self.encoders.requires_grad_(unfreeze)
        self.bf16 = bf16
        self.unfreeze = unfreeze

    def train(self, mode: bool = True) -> Objective:
        """Training mode; frozen encoders stay in evaluation mode."""
        super().train(mode)
        self.encoders.train(mode and self.unfreeze)
        return self

    def context(self, data: dict[str, Any]) -> Context:
        """What the denoiser reads of a batch."""
        image, history = self._tokens(data)
        return self.policy.context(image, history, data["rgb"], data["proprio"])

    def _tokens(self, data: dict[str, Any]) -> tuple[ImageTokens | None, Tensor | None]:
        if not self.encoders:
            return None, None
        image_encoder = cast(SceneEncoder, self.encoders["image"])
        action_encoder = cast(ActionEncoder, self.encoders["action"])
        with torch.set_grad_enabled(self.unfreeze and torch.is_grad_enabled()):
            history = action_encoder(data["history"])
            image: ImageTokens = data["image"] if "image" in data else image_encoder(rendered(data["views"]), pack=True)
            if self.policy.config.tokens == "pooled":
                return pooled_tokens(image_encoder.pooled(image)), action_encoder.pooled(history)[:, None]
            return image, history

    def forward(self, data: dict[str, Any]) -> Tensor:
        """The policy's mean loss."""
        with torch.autocast(data["actions"].device.type, torch.bfloat16, enabled=self.bf16):
            return self.policy.loss(data, *self._tokens(data))


def pooled_tokens(embedding: Tensor) -> ImageTokens:
    """The pooled embedding (B, D) as the only token."""
    index = torch.zeros(len(embedding), 1, dtype=torch.int64, device=embedding.device)
    return ImageTokens(embedding[:, None], torch.ones_like(index, dtype=torch.bool), index)


class Average:
    """Exponential moving average of what is trained, warmed up so that the first steps do not linger.

    Frozen encoders are shared, not copied.
    """

    def __init__(self, objective: Objective, decay: float) -> None:
        self.decay = decay
        frozen = {} if objective.unfreeze else {id(objective.encoders): objective.encoders}
        self.module: Objective = copy.deepcopy(objective, frozen).requires_grad_(False)

    @torch.no_grad()
    def update(self, objective: Objective, step: int) -> None:
        """Moves the average towards the objective."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        for target, source in zip(self.module.state_dict().values(), objective.state_dict().values(), strict=True):
            mean, value = local(target), local(source)
            if mean.is_floating_point() and mean.data_ptr() != value.data_ptr():
                mean.lerp_(value, 1.0 - decay)
            else:
                mean.copy_(value)


def learning_rate(experiment: Experiment, step: int) -> float:
    """The step's learning rate; 'constant' is the paper's: linear from 0, then constant."""
    settings = experiment.training
    if settings.decay == "cosine":
        return settings.learning_rate * cosine_warmup(step, settings.steps, settings.warmup_steps)
    return settings.learning_rate * min(1.0, step / max(1, settings.warmup_steps))


KEPT = "kept"
"""Folder of a run in which weights of its way are kept, as `policy_STEP.safetensors`."""


def train_policy(
    experiment: Experiment,
    store: Store,
    validation: Store | None,
    encoders_path: Path | None,
    out: Path,
    initial: Path | None = None,
    save_every_s: float = 60.0,
    processes: Processes = ALONE,
    normalization: Normalization | None = None,
    keep_every: int = 0,
    loaders: int = 1,
) -> Path:
    """Trains into `out/policy.safetensors`, going on from `out/checkpoint.safetensors` if there is one.

    Ctrl-C ends it after the step: the weights so far are written, and the same command goes on. Encoders that were
    trained as well are in `out/encoders.safetensors`.

    Args:
        experiment: sizes and schedules.
        store: demonstrations.
        validation: held-out demonstrations for the curves.
        encoders_path: pretrained encoders; None if and only if the policy reads nothing of them. What they say of the
            store is kept beside them, in a folder of their name with the suffix `.tokens`.
        out: folder of the run.
        initial: a pretrained policy to start from.
        save_every_s: time between checkpoints.
        processes: of the run.
        normalization: the statistics to scale by; by default the encoders', the initial policy's, or the store's.
        keep_every: steps between weights that are kept in the folder KEPT, to be exported and scored; 0 keeps none.
            The paper scores every 40,000 steps.
        loaders: threads that prepare batches.

    Raises:
        ArtifactError, ConfigError: store, encoders, initial policy or checkpoint do not fit the experiment, or each
            other; the checkpoint is of other data or weights.
        RecordError: an episode has no depth, for encoders to read.
        NonFiniteLossError: the loss is not finite.
    """
    settings = experiment.training
    if (encoders_path is None) != (experiment.policy.tokens == "none"):
        raise ConfigError(
            f"policy.tokens is {experiment.policy.tokens!r} and --encoders is {encoders_path}: a policy that reads "
            "CLAMP tokens needs encoders, and one that reads 'none' takes none"
        )
    for data in (store, validation):
        if data is not None:
            check_store(data, experiment, depth=encoders_path is not None)
    encoders, metadata = None, {}
    if encoders_path is not None:
        encoders, metadata = load_encoders(encoders_path, experiment)
    if initial is not None:
        trained = checkpoint.weights(initial, "policy").get("experiment", {}).get("config", {})
        check_initial(initial, trained, experiment)
    normalization = agreed_normalization(store, encoders_path, initial, normalization)
    cartesian = cartesian_actions(experiment, store, initial)
    reads = None if encoders is None else digest_of_encoders(encoders.image, encoders.action)
    described: dict[str, Any] = {"config": experiment.to_dict()}
    described["encoders"] = encoders_path.name if encoders_path else ""
    inputs = {"store": store.identity(), "normalization": digest_of_statistics(normalization)}
    if reads is not None:
        inputs["encoders"] = reads
    if initial is not None:
        described["initial"] = initial.name
        inputs["initial"] = digest(checkpoint.tensors_of(initial, "policy"))
    described["inputs"] = inputs
    checkpoint.check(out / checkpoint.NAME, described)  # before the store is encoded, which takes its time
    tokens = None if encoders_path is None else encoders_path.with_suffix(".tokens")
    data = PolicyData(experiment, store, encoders, normalization, processes, cartesian, tokens)
    held_out = None
    if validation is not None:
        held_out = PolicyData(experiment, validation, encoders, normalization, processes, cartesian, tokens)

    pretrained = copy.deepcopy(encoders) if settings.unfreeze else None
    torch.manual_seed(settings.seed)
    policy = new_policy(experiment)
    if initial is None or settings.initial != "all":
        policy.rgb.start()
    if initial is not None:
        start_from(policy, initial, settings.initial)
    share_batch_norms(policy, processes)
    objective = Objective(policy, encoders, settings.bf16, settings.unfreeze).to(processes.device)
    unsharded = cast(Objective, processes.unsharded(objective))
    average = Average(objective, settings.ema) if settings.ema > 0.0 else None
    exported = objective if average is None else average.module
    if settings.compile:
        compile_blocks(objective)
    partly_used = encoders is None or settings.unfreeze or not experiment.policy.rgb.cameras
    frozen = [] if settings.unfreeze else list(objective.encoders.parameters())
    wrapped = processes.average_gradients(objective, partly_used, frozen)
    if processes.sharded and average is not None:
        processes.average_gradients(average.module, partly_used, frozen)
    trained = groups([p for p in objective.parameters() if p.requires_grad])
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    modules: dict[str, nn.Module] = {"policy": policy}
    if settings.unfreeze:
        modules["encoders"] = objective.encoders
    if average is not None:
        modules["average"] = average.module.policy
        if settings.unfreeze:
            modules["average_encoders"] = average.module.encoders

    loss_name = "noise_loss" if experiment.policy.kind == "diffusion" else "act_loss"

    def gradients(parts: list[Part], check: Check) -> dict[str, float]:
        return {loss_name: mean_gradients(wrapped, parts, check, processes)["loss"]}

    def save_weights(path: Path, steps: int) -> None:
        record = {"step": steps, "experiment": described, "normalization": statistics(normalization)}
        if cartesian is not None:
            record["cartesian"] = cartesian.to_dict()
        record["seeds"] = store.seed_ranges()
        record["reads"] = reads
        if pretrained is not None:
            beside = path.with_name(path.name.replace("policy", "encoders"))
            record["reads"] = save_trained_encoders(beside, pretrained)
        checkpoint.save(path, {"policy": exported.policy}, record, write=processes.first)

    def save_trained_encoders(path: Path, pretrained: Encoders) -> str | None:
        """Writes the encoders, and gives their digest, on the first process."""
        with processes.whole(exported, unsharded) as whole:
            if whole is None:
                return None
            trained_too = copy.deepcopy(pretrained)  # the run's own go on being trained
            for name, module in (("image", trained_too.image), ("action", trained_too.action)):
                module.load_state_dict(cast(Objective, whole).encoders[name].state_dict())
            save_encoders(path, trained_too, metadata["step"], metadata["experiment"], normalization)
            return digest_of_encoders(trained_too.image, trained_too.action)

    def look() -> dict[str, float]:
        with processes.whole(exported, unsharded) as whole:
            if held_out is None or whole is None:
                return {}
            return evaluate(cast(Objective, whole), held_out)

    def after_step(step: int) -> None:
        if average is not None:
            average.update(objective, step)
        if processes.saves and keep_every and (step + 1) % keep_every == 0:
            save_weights(out / KEPT / f"policy_{step + 1:08d}.safetensors", step + 1)

    done = Loop(
        out=out,
        description="policy",
        described=described,
        modules=modules,
        trained=objective,
        optimizer=optimizer,
        steps=settings.steps,
        samples=settings.batch,
        accumulate=settings.accumulate,
        seed=settings.seed,
        learning_rate=lambda step: learning_rate(experiment, step),
        batch=lambda rng, samples: data.batch(rows_for_step(rng, data.rows, settings.batch), rng, samples),
        gradients=gradients,
        processes=processes,
        clip_norm=settings.clip_norm,
        bf16=settings.bf16,
        loaders=loaders,
        after_step=after_step,
        evaluate=None if held_out is None else look,
        save_every_s=save_every_s,
    ).run()
    final = out / "policy.safetensors"
    if processes.saves:
        save_weights(final, done)
    processes.wait()
    return final


def agreed_normalization(
    store: Store, encoders: Path | None, initial: Path | None, given: Normalization | None = None
) -> Normalization:
    """The statistics that encoders, initial policy and training share: those of the pretraining data (Appendix C).

    Raises:
        ArtifactError: they were made with different ones.
    """
    found = {str(path): checkpoint.normalization(path) for path in (encoders, initial) if path is not None}
    if given is not None:
        found["--normalization"] = given
    for name, statistic in found.items():
        first, expected = next(iter(found.items()))
        if any(not np.allclose(getattr(expected, key), value) for key, value in vars(statistic).items()):
            raise ArtifactError(
                f"{first} and {name} were trained with different statistics of joints and actions; pretrain the "
                f"policy again with `--normalization {first}`"
            )
    return next(iter(found.values())) if found else store.normalization()


def cartesian_actions(experiment: Experiment, store: Store, initial: Path | None) -> CartesianActions | None:
    """The conversion of a policy that acts in poses, with the initial policy's statistics, or the store's.

    Raises:
        ArtifactError: the initial policy acts in another space.
    """
    space = experiment.policy.actions
    if initial is not None:
        found = checkpoint.metadata(initial).get("cartesian")
        if (found is None) != (space == "joint"):
            acts = "joint targets" if found is None else "poses of the grippers"
            raise ArtifactError(f"{initial} acts in {acts}, policy.actions is {space!r}; pretrain it anew")
        return None if found is None else CartesianActions(**found)
    if space == "joint":
        return None
    actions, joints = store.stacked("actions"), store.stacked("joint_positions")
    return CartesianActions.fit(space == "relative_cartesian", actions, joints)


def start_from(policy: Policy, initial: Path, part: str) -> None:
    """Loads a pretrained policy: 'all' of it, or the 'decoder' alone, whose K/V projections of the latents included.

    Raises:
        ArtifactError: the file is missing, damaged, or of other sizes.
    """
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    checkpoint.load(initial, {"policy": policy})
    if part == "decoder":
        kept = tuple(f"{name}." for name in ("decoder", "decoder_norm", "action", "step", "head"))
        state = {k: v for k, v in policy.state_dict().items() if k.startswith(kept) or k == "position_action"}
        policy.load_state_dict({**before, **state})


@torch.no_grad()
def draw_chunks(policy: Policy, context: Context, diffusion: DiffusionConfig, seed: int = 0) -> NDArray[np.float32]:
    """Normalised chunks (B, 50, A) of encoded observations, as on the robot."""
    if isinstance(policy, ActPolicy):
        return policy.actions(context).clamp(-1.0, 1.0).cpu().numpy()
    count, device = len(context.valid), context.valid.device

    def denoise(noisy: NDArray[np.float32], step: int) -> NDArray[np.float32]:
        steps = torch.full((count,), step, dtype=torch.int64, device=device)
        return policy.denoise(torch.from_numpy(noisy).to(device), steps, context).cpu().numpy()

    return sample(
        denoise, (count, CHUNK_SIZE, policy.action_width), np.random.default_rng(seed), diffusion.noise_schedule(),
        diffusion.inference_steps, diffusion.sampler,
    )  # fmt: skip


@torch.no_grad()
def evaluate(objective: Objective, data: PolicyData, samples: int = 64) -> dict[str, float]:
    """Held-out scalars: the mean absolute error of sampled chunks over their first 25 actions.

    In milliradians, of each instant's worst joint; for actions in poses in millimetres, of the grippers' positions.
    """
    objective.eval()
    device = next(objective.policy.parameters()).device
    rows = np.random.default_rng(0).choice(data.rows, size=min(samples, data.rows), replace=False)
    item = data.batch(rows)
    chunk = draw_chunks(objective.policy, objective.context(moved(item, device)), data.experiment.diffusion)
    if data.cartesian is not None:
        poses = data.cartesian.poses(np.stack([chunk, item["actions"].numpy()]))
        positions = poses.reshape(*poses.shape[:3], len(ARMS), -1)[:, :, :25, :, :3]
        off = np.linalg.norm(positions[0] - positions[1], axis=-1)
        return {"held_out_gripper_error_mm": 1000.0 * float(off.mean())}
    truth = data.normalization.actions_inverse(item["actions"].numpy())
    error = np.abs(data.normalization.actions_inverse(chunk) - truth)[:, :25, [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]]
    return {"held_out_action_error_mrad": 1000.0 * float(error.max(axis=2).mean())}
