"""The model card of an artifact: what it is, how it was trained and how it scored, in Markdown, for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clamp_ros.policy.artifact import Manifest


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _image_encoder(image: dict[str, Any]) -> str:
    if image.get("encoder") == "dp3":
        return f"DP3, PointNet of {image['points']}, width {image['width']}"
    string = "on" if image["string"] else "off"
    return f"ViT, patch {image['patch']}, width {image['width']}, {image['depth']} layers, Cayley-STRING {string}"


def _precision(manifest: Manifest) -> str:
    if manifest.precision == "fp32":
        return "float32"
    changed = manifest.training["float16_differences"]
    return (
        "float16, float32 at inputs and outputs and in what rotates by position; a file's outputs differ from float32"
        f" by {max(changed['outputs'].values())} of their largest value, a chunk by {changed['chunk']} of the joints'"
        " ranges"
    )


def model_card(manifest: Manifest) -> str:
    """The model card in Markdown, from the manifest alone."""
    experiment = manifest.training["experiment"]
    image, policy = experiment["image"], experiment["policy"]
    parameters, steps = manifest.training["parameters"], manifest.training["steps"]
    encoders, training, diffusion = experiment["encoders"], experiment["training"], experiment["diffusion"]
    rows = [
        ("task", manifest.task),
        ("cameras", ", ".join(f"{n} {c.width}x{c.height}" for n, c in manifest.cameras.items())),
        ("image encoder", f"{_image_encoder(image)}, {parameters['image_encoder']:,} parameters"),
        ("action encoder", f"{experiment['action']['depth']} layers, {parameters['action_encoder']:,} parameters"),
        ("policy", f"{policy.get('kind', 'diffusion')}, {policy['encoder_layers']} + "
         f"{policy['decoder_layers']} layers, width {policy['width']}, "
         f"actions {policy.get('actions', 'joint')}, {parameters['policy']:,} parameters"),
        ("encoder pretraining", f"none, fresh from seed {encoders['seed']}" if encoders["steps"] == 0 else
         f"{steps['encoders']:,} of {encoders['steps']:,} steps of {encoders['batch']}, "
         f"learning rate {encoders['learning_rate']}, grounding weight {encoders['grounding']}, "
         f"seed {encoders['seed']}"),
        ("policy training", f"{steps['policy']:,} of {training['steps']:,} steps of {training['batch']} x "
         f"{training['draws']} noise draws, learning rate {training['learning_rate']}, EMA {training['ema']}, "
         f"seed {training['seed']}"),
        ("sampler", "none: a chunk at once" if manifest.diffusion is None else
         f"{diffusion['sampler']}, {diffusion['inference_steps']} of {diffusion['train_steps']} steps, "
         f"{diffusion['parametrization']} parametrization"),
    ]  # fmt: skip
    rows.append(("precision", _precision(manifest)))
    seeds = manifest.training.get("seeds")
    if seeds is not None:
        told = "; ".join(f"{task} {', '.join(f'{a} to {b}' for a, b in spans)}" for task, spans in seeds.items())
        rows.append(("seeds of its demonstrations", told))
    parts = [
        f"# {manifest.name}",
        "",
        _table(rows),
        "",
        "## Data",
        "",
        str(manifest.training.get("data") or "not recorded"),
    ]
    commands = manifest.training.get("commands", [])
    if commands:
        parts += ["", "## Commands", "", "```", *commands, "```"]
    parts += ["", "## Score", ""]
    if manifest.score:
        parts.append(_table([(name, json.dumps(score)) for name, score in manifest.score.items()]))
    else:
        parts.append("Not scored yet: `clamp eval --artifact <this folder> --task <task> --episodes 50`.")
    return "\n".join(parts) + "\n"
