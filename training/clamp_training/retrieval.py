"""Cross-modal retrieval: how well pretrained encoders find each other's match on held-out episodes (Appendix B).

Recall@k asks whether a sample's partner in another modality is among the k that score highest. Figure 7 is recall over
all six directions, Figure 8 the matching probabilities ``sigmoid(t x.y + b)`` of a few examples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.contract.views import FusionConfig
from clamp_ros.policy.preprocess import Normalization
from clamp_training.agreement import check_store
from clamp_training.config import Experiment
from clamp_training.contrastive import recall
from clamp_training.pretrain import embed, load_encoders
from clamp_training.store import Store

STEP_MULTIPLE = 10
"""Examples are taken where the control step is a multiple of this."""
GRID = 3
KS = (1, 5)
DIRECTIONS = (
    ("image", "text"), ("text", "image"), ("image", "action"), ("action", "image"), ("text", "action"),
    ("action", "text"),
)  # fmt: skip
"""What asks, and what is found."""
_EXAMPLES = 10
"""Shown in a matrix of probabilities."""


def cell(position: NDArray[Any], fusion: FusionConfig) -> tuple[int, int]:
    """Which of the workspace's 3 x 3 cells (along x, along y) a world position (3,) in metres is in.

    The workspace is the fusion's crop box; what lies outside belongs to the nearest cell.
    """
    low, high = np.array(fusion.crop_min_m[:2]), np.array(fusion.crop_max_m[:2])
    x, y = np.clip(np.floor(GRID * (position[:2] - low) / (high - low)), 0, GRID - 1).astype(int)
    return int(x), int(y)


def first_object(text: str, names: list[str]) -> str | None:
    """The object that a text names first; None if it names none."""
    places = {name: text.find(f"{name} at ") for name in names}
    named = [name for name, place in places.items() if place >= 0]
    return min(named, key=lambda name: places[name], default=None)


def select(store: Store, fusion: FusionConfig) -> NDArray[np.int64]:
    """Rows of the paper's rule: diverse episodes, and of each every tenth control step.

    An episode is taken if no earlier one of its task began with the first object in the same cell. Control steps are
    counted from the episode's first observation.

    Raises:
        RecordError: no episode knows where its objects are.
    """
    rows, seen = [], set()
    start = 0
    for e, data in enumerate(store.episodes):
        stamps = data.tensors["stamps_ns"]
        name = first_object(data.texts[0], data.objects) if data.texts else None
        if name is not None:
            where = (store.tasks[e], cell(data.tensors["objects"][0, data.objects.index(name)], fusion))
            if where not in seen:
                seen.add(where)
                steps = np.rint((stamps - stamps[0]) / CONTROL_PERIOD_NS).astype(np.int64)
                rows.append(start + np.flatnonzero(steps % STEP_MULTIPLE == 0))
        start += len(stamps)
    if not rows:
        raise RecordError("no held-out episode has a text that names an object; retrieval needs simulated bags")
    return np.concatenate(rows)


def score(
    experiment: Experiment, store: Store, encoders: Path, out: Path, device: torch.device | None = None
) -> dict[str, Any]:
    """Scores encoders on held-out episodes; writes retrieval.json, recall.png and matching.png to `out`.

    Returns:
        What retrieval.json holds: examples, episodes, chance and recall by direction and k.

    Raises:
        ArtifactError: the encoders cannot be read, or do not fit the experiment.
        ConfigError: the store does not fit the experiment.
        RecordError: the episodes have no depth or no text.
    """
    check_store(store, experiment, depth=True)
    model, metadata = load_encoders(encoders, experiment)
    model.to(device or torch.device("cpu"))
    rows = select(store, experiment.fusion)
    found = embed(model, experiment, store, Normalization(**metadata["normalization"]), rows)
    directions = [(a, b) for a, b in DIRECTIONS if a in found and b in found]
    recalls = {f"{a} to {b}": {f"@{k}": recall(found[a] @ found[b].T, k) for k in KS} for a, b in directions}
    episodes = [store.rows[int(row)][0] for row in rows]
    t, b = float(model.loss.log_t.exp()), float(model.loss.b)
    result = {
        "encoders": str(encoders),
        "steps": metadata["step"],
        "examples": len(rows),
        "episodes": [store.bags[e] for e in sorted(set(episodes))],
        "chance": {f"@{k}": min(1.0, k / len(rows)) for k in KS},
        "recall": recalls,
        "temperature": t,
        "bias": b,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "retrieval.json").write_text(json.dumps(result, indent=2) + "\n")
    draw_recall(result, out / "recall.png")
    shown = examples(rows, episodes)
    probabilities = {
        f"{x} to {y}": torch.sigmoid(t * found[x][shown] @ found[y][shown].T + b)
        for x, y in directions
        if (x, y) in (("image", "action"), ("action", "image"))
    }
    draw_matching(probabilities, [store.rows[int(rows[i])][1] for i in shown], out / "matching.png")
    return result


def examples(rows: NDArray[np.int64], episodes: list[int]) -> list[int]:
    """Places within `rows` of the examples in the matrices: spread over the episode that has most."""
    fullest = max(sorted(set(episodes)), key=episodes.count)
    mine = [i for i in range(len(rows)) if episodes[i] == fullest]
    spread = np.linspace(0, len(mine) - 1, min(_EXAMPLES, len(mine)))
    return [mine[int(i)] for i in spread]


def describe(result: dict[str, Any]) -> str:
    """A small table, with chance beside it."""
    lines = [
        f"{result['examples']} examples of {len(result['episodes'])} held-out episodes",
        f"{'':<18}{'@1':>8}{'@5':>8}",
    ]
    for name, by_k in result["recall"].items():
        lines.append(f"{name:<18}" + "".join(f"{100.0 * by_k[f'@{k}']:>7.1f}%" for k in KS))
    lines.append(f"{'chance':<18}" + "".join(f"{100.0 * result['chance'][f'@{k}']:>7.1f}%" for k in KS))
    return "\n".join(lines)


def draw_recall(result: dict[str, Any], path: Path) -> None:
    """Figure 7: bars of recall by direction, chance as a dashed line in the bar's colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(result["recall"])
    figure, axis = plt.subplots(figsize=(1.4 * len(names) + 2.0, 3.6))
    for i, k in enumerate(KS):
        heights = [100.0 * result["recall"][name][f"@{k}"] for name in names]
        places = np.arange(len(names)) + 0.4 * (i - 0.5)
        bars = axis.bar(places, heights, width=0.38, color=f"C{i}", label=f"recall@{k}")
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
        chance = 100.0 * result["chance"][f"@{k}"]
        axis.axhline(chance, color=f"C{i}", linestyle="--", linewidth=1.2, label=f"chance@{k} {chance:.1f}%")
    axis.set_xticks(np.arange(len(names)), [name.replace(" to ", "\nto ") for name in names])
    axis.set_ylabel("recall (%)")
    axis.set_ylim(0.0, 109.0)
    axis.set_title(f"Retrieval among {result['examples']} held-out examples")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_matching(probabilities: dict[str, Tensor], times: list[int], path: Path) -> None:
    """Figure 8: matrices of matching probabilities of examples at given rows of an episode; boxes mark the maxima."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(1, len(probabilities), figsize=(5.2 * len(probabilities), 4.8), squeeze=False)
    for axis, (name, matrix) in zip(axes[0], probabilities.items(), strict=True):
        asks, is_found = name.split(" to ")
        picture = axis.imshow(matrix.numpy(), vmin=0.0, vmax=1.0, cmap="Blues")
        for row, values in enumerate(matrix.tolist()):
            for column, value in enumerate(values):
                colour = "white" if value > 0.6 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
            best = int(np.argmax(values))
            edge = "tab:green" if best == row else "tab:red"
            axis.add_patch(Rectangle((best - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=edge, linewidth=1.5))
        correct = int((matrix.argmax(dim=1) == torch.arange(len(matrix))).sum())
        axis.set_title(f"{name}: {correct} of {len(matrix)} found", fontsize=10)
        axis.set_xlabel(f"{is_found} at row")
        axis.set_ylabel(f"{asks} at row")
        axis.set_xticks(range(len(times)), times)
        axis.set_yticks(range(len(times)), times)
        figure.colorbar(picture, ax=axis, fraction=0.046, label="matching probability")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
