"""Contrastive pretraining of the image, text and action encoders (paper Section III-B, Appendix C)."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from clamp_ros.contract.errors import ArtifactError
from clamp_ros.policy.preprocess import Normalization
from clamp_training import checkpoint
from clamp_training.agreement import check_encoders, check_store, digest_of_statistics
from clamp_training.config import Experiment
from clamp_training.contrastive import SigmoidLoss, blockwise, recall
from clamp_training.features import new_renderer, scenes
from clamp_training.loop import Batch, Check, Loop, Part, cosine_warmup, rows_for_step
from clamp_training.networks.action import ActionEncoder
from clamp_training.networks.build import scene_encoder
from clamp_training.networks.image import ImageTokens
from clamp_training.networks.layers import Attention, Mlp, compile_blocks, key_mask
from clamp_training.networks.text import TextEncoder, Tokenizer
from clamp_training.processes import ALONE, Processes, moved
from clamp_training.render import rendered
from clamp_training.sharding import groups
from clamp_training.store import Store

log = logging.getLogger(__name__)


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
    """The encoders, their loss's temperature and bias, and the grounding head where it is trained."""

    def __init__(self, experiment: Experiment, objects: list[str]) -> None:
        super().__init__()
        self.image = scene_encoder(experiment)
        self.action = ActionEncoder(experiment.action)
        self.text = TextEncoder(experiment.text) if experiment.encoders.text else None
        self.loss = SigmoidLoss()
        self.grounding = None
        if experiment.encoders.grounding:
            self.grounding = Grounding(objects, experiment.image.width, experiment.image.heads)

    def forward(self, data: Batch) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """A batch's embeddings (image, text where it is trained, action), log t, b, and the grounding loss."""
        image = self.image(rendered(data["views"]), pack=True)
        embeddings = [self.image.pooled(image), self.action.pooled(self.action(data["history"]))]
        if self.text is not None:
            embeddings.insert(1, self.text(data["text"]))
        grounding = embeddings[0].new_zeros(())
        if self.grounding is not None:
            grounding = grounding_loss(self.grounding(image).float(), data["objects"], data["coordinates"])
        return embeddings, self.loss.log_t * 1.0, self.loss.b * 1.0, grounding


def contrastive_gradients(
    model: Encoders,
    wrapped: nn.Module,
    parts: list[Part],
    check: Check,
    processes: Processes,
    grounding: float,
    bf16: bool,
) -> dict[str, float]:
    """Gradients of the whole batch's loss, though no more than one part's activations are held at a time.

    Every sample is compared with all others, so the loss of a batch is no mean over its parts. With several parts, all
    are embedded first, without activations; the loss gives the gradient of each embedding; then each part is embedded
    once more, with the same dropout, and its embeddings' gradients are carried back (GradCache, arXiv 2101.06983).

    Args:
        model: the encoders.
        wrapped: the same, by `Processes.average_gradients`.
        parts: this process's.
        check: of the loop.
        processes: of the run.
        grounding: weight of the auxiliary loss.
        bf16: whether matrices are multiplied in bfloat16.
    """

    def computed(module: nn.Module, part: Part) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        part.seed_torch()
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            return module(moved(part.batch, processes.device))

    first = None
    if len(parts) == 1:
        first = computed(wrapped, parts[0])
        embedded = [first[0]]
    else:
        with torch.no_grad():
            embedded = [computed(model, part)[0] for part in parts]
    leaves = [torch.cat(e).detach().float().requires_grad_() for e in zip(*embedded, strict=True)]
    log_t, b = (p.detach().clone().requires_grad_() for p in (model.loss.log_t, model.loss.b))
    contrastive = blockwise(leaves, log_t, b, processes)
    check(contrastive, "contrastive loss")
    *by_embedding, by_log_t, by_b = torch.autograd.grad(contrastive, [*leaves, log_t, b])
    # averaging over the processes divides by their number what should be summed
    per_part = [(g * processes.count).split(len(embedded[0][0])) for g in by_embedding]

    total = 0.0
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        with ExitStack() as stack:
            if not last and isinstance(wrapped, DistributedDataParallel):
                stack.enter_context(wrapped.no_sync())
            embeddings, log_t, b, auxiliary = first if first is not None else computed(wrapped, part)
            mean = processes.total(auxiliary) / processes.count
            check(mean, "grounding loss")
            outputs = [*embeddings, log_t, b]
            share = 1.0 if last else 0.0  # these two are the whole batch's
            gradients = [g[i].to(e.dtype) for g, e in zip(per_part, embeddings, strict=True)]
            gradients += [share * by_log_t, share * by_b]
            if auxiliary.requires_grad:
                outputs.append(auxiliary)
                gradients.append(torch.full_like(auxiliary, grounding / len(parts)))
            torch.autograd.backward(outputs, gradients)
        total += mean.item() / len(parts)
    scalars = {"contrastive": contrastive.item()}
    return scalars if model.grounding is None else {**scalars, "grounding_cm": 100.0 * total}


def fill_start(
    history: NDArray[np.float32], first: NDArray[np.float32], rng: np.random.Generator, chance: float
) -> NDArray[np.float32]:
    """With a chance, a history that reaches back before its episode gets its first command in place of zeros.

    A robot that stood still under the control loop before the policy was enabled has such a history.
    """
    missing = ~history.any(axis=-1)
    missing &= (rng.random(len(history)) < chance)[:, None]
    return np.where(missing[..., None], first[:, None, :], history)


def pretrain(
    experiment: Experiment,
    store: Store,
    validation: Store | None,
    out: Path,
    normalization: Normalization | None = None,
    save_every_s: float = 60.0,
    processes: Processes = ALONE,
    loaders: int = 1,
) -> Path:
    """Trains the encoders into `out/encoders.safetensors`, going on from `out/checkpoint.safetensors` if there is one.

    Ctrl-C ends it after the step: the weights so far are written, and the same command goes on.

    Raises:
        ConfigError: the store or the checkpoint belongs to other settings, the checkpoint to another store or other
            statistics, or the batch cannot be shared out.
        RecordError: an episode has no depth, or no text where it is trained.
        NonFiniteLossError: the loss is not finite.
    """
    settings = experiment.encoders
    for data in (store, validation):
        if data is not None:
            check_store(data, experiment, depth=True, text=settings.text)
    normalization = normalization or store.normalization()
    objects = sorted({name for data in store.episodes for name in data.objects})
    torch.manual_seed(settings.seed)
    model = Encoders(experiment, objects)
    unsharded = processes.unsharded(model)
    if settings.compile:
        compile_blocks(model)
    wrapped = processes.average_gradients(model, partly_used=False)
    trained = groups(list(model.parameters()))
    optimizer = torch.optim.Adam(trained, lr=settings.learning_rate, betas=(0.9, settings.beta2))
    inputs = {"store": store.identity(), "normalization": digest_of_statistics(normalization)}
    described = {"config": settings_of_encoders(experiment), "objects": objects, "inputs": inputs}
    tokenizer = Tokenizer(experiment.text)
    if settings.text:
        warn_of_cut_text(store, tokenizer)
    renderer = new_renderer(experiment, processes.device)
    history, firsts = store.stacked("history"), first_commands(store)

    def batch(rng: np.random.Generator, samples: slice) -> Batch:
        rows = rows_for_step(rng, len(store), settings.batch)
        past = normalization.history(fill_start(history[rows], firsts[rows], rng, experiment.history_fill)[samples])
        mine = rows[samples]
        out = {
            "rows": mine,
            "views": scenes(store, mine, renderer, experiment),
            "history": torch.from_numpy(past),
        }
        if settings.text:
            out["text"] = tokenizer.batch([store.text(int(r)) for r in mine])
        if settings.grounding:
            positions = _positions(store, rows, objects)
            out["objects"] = torch.from_numpy(positions[samples])
            # of the whole batch, so that parts with few objects weigh no more than those with many
            out["coordinates"] = float((~np.isnan(positions)).sum()) * len(mine) / len(rows)
        return out

    def look() -> dict[str, float]:
        with processes.whole(model, unsharded) as whole:
            if validation is None or whole is None:
                return {}
            return evaluate(cast(Encoders, whole), experiment, validation, normalization)

    done = Loop(
        out=out,
        description="encoders",
        described=described,
        modules={"encoders": model},
        trained=model,
        optimizer=optimizer,
        steps=settings.steps,
        samples=settings.batch,
        accumulate=settings.accumulate,
        seed=settings.seed,
        learning_rate=lambda step: (
            settings.learning_rate * cosine_warmup(step, settings.steps, settings.warmup * settings.steps)
        ),
        batch=batch,
        gradients=lambda parts, check: contrastive_gradients(
            model, wrapped, parts, check, processes, settings.grounding, settings.bf16
        ),
        processes=processes,
        clip_norm=settings.clip_norm,
        bf16=settings.bf16,
        loaders=loaders,
        evaluate=None if validation is None else look,
        save_every_s=save_every_s,
    ).run()
    final = out / "encoders.safetensors"
    if processes.saves:
        save_encoders(final, model, done, described, normalization, processes.first)
    processes.wait()
    return final


def settings_of_encoders(experiment: Experiment) -> dict[str, Any]:
    """What the encoders' training depends on, so that experiments which differ in the policy alone share encoders."""
    others = ("name", "task", "policy", "diffusion", "training")
    return {key: value for key, value in experiment.to_dict().items() if key not in others}


def save_encoders(
    path: Path, model: Encoders, step: int, described: dict[str, Any], normalization: Normalization, write: bool = True
) -> None:
    """Writes what `load_encoders` reads; `write` as of `checkpoint.save`."""
    metadata = {"step": step, "experiment": described, "normalization": statistics(normalization)}
    checkpoint.save(path, {"encoders": model}, metadata, write=write)


def warn_of_cut_text(store: Store, tokenizer: Tokenizer) -> None:
    """Says so where texts are longer than the encoder reads: what is cut is their end, the progress."""
    texts = {text for data in store.episodes for text in data.texts}
    cut = sum(not tokenizer.fits(text) for text in texts)
    if cut:
        log.warning(
            "%d of %d texts are longer than text.tokens %d, and their end is not read; name an mT5 tokenizer "
            "in text.tokenizer, or raise text.tokens",
            cut, len(texts), tokenizer.length,
        )  # fmt: skip


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


def grounding_loss(predicted: Tensor, truth: Tensor, coordinates: float) -> Tensor:
    """Mean absolute error in metres over the objects that are there.

    Args:
        predicted: (B, K, 3).
        truth: (B, K, 3), NaN for an object that is not there.
        coordinates: that are there, as a part's even share of the whole batch's.
    """
    there = ~truth.isnan()
    error = torch.where(there, predicted - truth.nan_to_num(), 0.0).abs().sum()
    return error / max(coordinates, 1.0)


@torch.no_grad()
def embed(
    model: Encoders, experiment: Experiment, store: Store, normalization: Normalization, rows: NDArray[np.int64]
) -> dict[str, Tensor]:
    """Normalised embeddings (N, D) of a store's rows by modality (image, text where it was trained, action).

    With a grounding head, `objects` (N, K, 3) are the positions it reads, in metres. On the CPU.
    """
    model.eval()
    device = next(model.parameters()).device
    tokenizer, renderer = Tokenizer(experiment.text), new_renderer(experiment, device)
    history = torch.from_numpy(normalization.history(store.stacked("history")[rows]))
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        views = moved(scenes(store, part, renderer, experiment), device)
        tokens = model.image(rendered(views), pack=True)
        out = {
            "image": F.normalize(model.image.pooled(tokens), dim=-1),
            "action": F.normalize(model.action.pooled(model.action(history[start : start + 32].to(device))), dim=-1),
        }
        if model.text is not None:
            ids = tokenizer.batch([store.text(int(r)) for r in part]).to(device)
            out["text"] = F.normalize(model.text(ids), dim=-1)
        if model.grounding is not None:
            out["objects"] = model.grounding(tokens)
        for key, value in out.items():
            found.setdefault(key, []).append(value.cpu())
    return {key: torch.cat(values) for key, values in found.items()}


def evaluate(
    model: Encoders, experiment: Experiment, store: Store, normalization: Normalization, samples: int = 128
) -> dict[str, float]:
    """Held-out scalars: recall@5 of image to text and image to action, and the grounding error in centimetres."""
    rows = np.random.default_rng(0).choice(len(store), size=min(samples, len(store)), replace=False)
    found = embed(model, experiment, store, normalization, rows)
    scalars = {"held_out_image_action_recall5": recall(found["image"] @ found["action"].T, 5)}
    if "text" in found:
        scalars["held_out_image_text_recall5"] = recall(found["image"] @ found["text"].T, 5)
    if model.grounding is not None:
        truth = torch.from_numpy(_positions(store, rows, model.grounding.objects))
        distance = (found["objects"] - truth)[..., :2].norm(dim=-1)
        distance = distance[~distance.isnan()]
        scalars["held_out_position_error_cm"] = 100.0 * float(distance.mean()) if len(distance) else math.nan
    return scalars


def load_encoders(path: Path, experiment: Experiment) -> tuple[Encoders, dict[str, Any]]:
    """Pretrained encoders, frozen and in evaluation mode, and their metadata.

    Raises:
        ArtifactError: the file is missing, damaged, something else, of other settings than the experiment's, or trained
            though the experiment's pretraining is left out.
    """
    metadata = checkpoint.weights(path, "encoders")
    check_encoders(path, metadata["experiment"].get("config", {}), experiment)
    if experiment.encoders.steps == 0 and metadata["step"] > 0:
        raise ArtifactError(
            f"encoders.steps is 0, which is without pretraining, and {path} was pretrained for {metadata['step']} "
            "steps; make fresh encoders by `clamp train encoders` with this experiment"
        )
    model = Encoders(experiment, metadata["experiment"]["objects"])
    checkpoint.load(path, {"encoders": model})
    return model.eval().requires_grad_(False), metadata
