"""Contrastive pretraining of the image, text and action encoders (paper Section III-B, Appendix C)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from clamp_ros.contract.errors import ArtifactError
from clamp_ros.policy.preprocess import Normalization
from clamp_training import checkpoint
from clamp_training.config import Experiment
from clamp_training.contrastive import SigmoidLoss
from clamp_training.loop import Batch, Loop, cosine_warmup, rows_for_step
from clamp_training.networks.action import ActionEncoder
from clamp_training.networks.image import ImageEncoder, ImageTokens
from clamp_training.networks.layers import Attention, Mlp, key_mask
from clamp_training.networks.text import TextEncoder, Tokenizer
from clamp_training.store import Store, new_fusion


class Grounding(nn.Module):
    """Reads each named object's position from the image tokens: one learnt query an object, one cross-attention.

    An auxiliary of small-scale pretraining, discarded afterwards. The paper has none.
    """

    def __init__(self, objects: list[str], width: int, heads: int) -> None:
        super().__init__()
        self.objects = objects
        self.queries = nn.Parameter(torch.randn(len(objects), width) / width**0.5)
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, 2 * width)
        self.head = nn.Linear(width, 3)

    def forward(self, image: ImageTokens) -> Tensor:
        """(B, K, 3) positions in metres."""
        queries = self.queries.expand(len(image.tokens), -1, -1)
        x = self.attention(queries, image.tokens, mask=key_mask(image.valid))
        return self.head(x + self.mlp(self.norm(x)))


class Encoders(nn.Module):
    """The three encoders, their loss, and the optional grounding head."""

    def __init__(self, experiment: Experiment, objects: list[str]) -> None:
        super().__init__()
        self.image = ImageEncoder(experiment.image)
        self.action = ActionEncoder(experiment.action)
        self.text = TextEncoder(experiment.text)
        self.loss = SigmoidLoss()
        self.grounding = Grounding(objects, experiment.image.width, experiment.image.heads)


def fill_start(
    history: NDArray[np.float32], first: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Half of the histories that reach back before their episode get its first command in place of zeros.

    A robot that stood still under the control loop before the policy was enabled has such a history.
    """
    missing = ~history.any(axis=-1)
    missing &= (rng.random(len(history)) < 0.5)[:, None]
    return np.where(missing[..., None], first[:, None, :], history)


def pretrain(
    experiment: Experiment,
    store: Store,
    validation: Store | None,
    out: Path,
    normalization: Normalization | None = None,
    save_every_s: float = 60.0,
) -> Path:
    """Trains the encoders into `out/encoders.safetensors`, going on from `out/checkpoint.safetensors` if there is one.

    Ctrl-C ends it after the step: the weights so far are written, and the same command goes on.

    Raises:
        ConfigError: the checkpoint belongs to other settings.
        NonFiniteLossError: the loss is not finite.
    """
    settings = experiment.encoders
    normalization = normalization or store.normalization()
    objects = sorted({name for data in store.episodes for name in data.objects})
    torch.manual_seed(settings.seed)
    model = Encoders(experiment, objects)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=(0.9, settings.beta2))
    described = {"config": experiment.to_dict(), "objects": objects}
    tokenizer = Tokenizer(experiment.text)
    fusion = new_fusion(experiment.fusion)
    history, firsts = store.stacked("history"), first_commands(store)

    def batch(rng: np.random.Generator) -> Batch:
        rows = rows_for_step(rng, len(store), settings.batch)
        past = normalization.history(fill_start(history[rows], firsts[rows], rng))
        return {
            "rows": rows,
            "views": torch.from_numpy(np.stack([store.views(int(r), fusion) for r in rows])),
            "history": torch.from_numpy(past),
            "text": tokenizer.batch([store.text(int(r)) for r in rows]),
            "objects": torch.from_numpy(_positions(store, rows, objects)),
        }

    def loss(data: Batch) -> tuple[Tensor, dict[str, float]]:
        image = model.image(data["views"], pack=True)
        action = model.action.pooled(model.action(data["history"]))
        contrastive = model.loss(model.image.pooled(image), model.text(data["text"]), action)
        grounding = _grounding_loss(model.grounding(image), data["objects"])
        scalars = {"contrastive": contrastive.item(), "grounding_cm": 100.0 * grounding.item()}
        return contrastive + settings.grounding * grounding, scalars

    done = Loop(
        out=out,
        description="encoders",
        described=described,
        modules={"encoders": model},
        optimizer=optimizer,
        steps=settings.steps,
        samples=settings.batch,
        seed=settings.seed,
        learning_rate=lambda step: (
            settings.learning_rate * cosine_warmup(step, settings.steps, settings.warmup * settings.steps)
        ),
        batch=batch,
        loss=loss,
        evaluate=None if validation is None else lambda: evaluate(model, experiment, validation, normalization),
        save_every_s=save_every_s,
    ).run()
    final = out / "encoders.safetensors"
    metadata = {"step": done, "experiment": described, "normalization": statistics(normalization)}
    checkpoint.save(final, {"encoders": model}, metadata)
    return final


def statistics(normalization: Normalization) -> dict[str, list[float]]:
    """Plain JSON of a normalisation."""
    return {key: np.asarray(value).tolist() for key, value in vars(normalization).items()}


def first_commands(store: Store) -> NDArray[np.float32]:
    """(N, 14) the first command of each row's episode."""
    return np.concatenate(
        [np.repeat(d.tensors["actions"][:1, 0], len(d.tensors["stamps_ns"]), axis=0) for d in store.episodes]
    )


def _positions(store: Store, rows: NDArray[np.int64], objects: list[str]) -> NDArray[np.float32]:
    """(B, K, 3) positions in metres, NaN for an object that is not in the row's scene."""
    out = np.full((len(rows), len(objects), 3), np.nan, dtype=np.float32)
    for b, row in enumerate(rows):
        for name, position in store.objects(int(row)).items():
            if name in objects:
                out[b, objects.index(name)] = position
    return out


def _grounding_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error in metres over the objects that are there."""
    there = ~truth.isnan()
    return (predicted - truth)[there].abs().mean() if bool(there.any()) else predicted.sum() * 0.0


@torch.no_grad()
def evaluate(
    model: Encoders, experiment: Experiment, store: Store, normalization: Normalization, samples: int = 128
) -> dict[str, float]:
    """Held-out scalars: recall@5 of image to text and image to action, and the grounding error in centimetres."""
    model.eval()
    tokenizer, fusion = Tokenizer(experiment.text), new_fusion(experiment.fusion)
    rows = np.random.default_rng(0).choice(len(store), size=min(samples, len(store)), replace=False)
    history = torch.from_numpy(normalization.history(store.stacked("history")[rows]))
    image, text, action, errors = [], [], [], []
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        tokens = model.image(torch.from_numpy(np.stack([store.views(int(r), fusion) for r in part])), pack=True)
        image.append(model.image.pooled(tokens))
        text.append(model.text(tokenizer.batch([store.text(int(r)) for r in part])))
        action.append(model.action.pooled(model.action(history[start : start + 32])))
        predicted = model.grounding(tokens)
        truth = torch.from_numpy(_positions(store, part, model.grounding.objects))
        errors.append((predicted - truth)[..., :2].norm(dim=-1).flatten())
    x, y, z = (F.normalize(torch.cat(e), dim=-1) for e in (image, text, action))

    def recall(a: Tensor, b: Tensor, k: int) -> float:
        ranks = (a @ b.T).topk(min(k, len(b)), dim=1).indices
        return float((ranks == torch.arange(len(a))[:, None]).any(dim=1).float().mean())

    distance = torch.cat(errors)
    distance = distance[~distance.isnan()]
    return {
        "held_out_image_text_recall5": recall(x, y, 5),
        "held_out_image_action_recall5": recall(x, z, 5),
        "held_out_position_error_cm": 100.0 * float(distance.mean()) if len(distance) else math.nan,
    }


def load_encoders(path: Path, experiment: Experiment) -> tuple[Encoders, dict[str, Any]]:
    """Pretrained encoders, frozen and in evaluation mode, and their metadata.

    Raises:
        ArtifactError: the file is missing, damaged, or of other sizes than the experiment's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            objects = json.loads(file.metadata()["clamp"])["experiment"]["objects"]
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ArtifactError(f"encoders {path} cannot be read: {error}; train them by `clamp train encoders`") from error
    model = Encoders(experiment, objects)
    metadata = checkpoint.load(path, {"encoders": model})
    return model.eval().requires_grad_(False), metadata
