"""A training store written by hand, and an experiment that trains on it in a second: no simulation, no bags.

One camera looks down at a table on which a block stands, elsewhere in every episode; text, actions and the block's
position go together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zstandard
from clamp_training.config import Experiment, from_dict
from clamp_training.store import FORMAT, INDEX, packed, png
from safetensors.numpy import save_file

from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import look_at, make

CAMERA = "front_left"
RGB = (64, 64)
STEPS_PER_ROW = 5
_PINHOLE = Pinhole(64, 48, 60.0, 60.0, 31.5, 23.5)
_EYE = np.array([0.0, 0.0, 0.8])
_WORLD_FROM_CAMERA = look_at(_EYE, np.zeros(3), np.array([0.0, 1.0, 0.0]))

EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "task": "mug_on_plate",
    "cameras": [CAMERA],
    "image": {"patch": 56, "width": 16, "depth": 1, "heads": 2, "mlp": 16},
    "action": {"width": 16, "depth": 1, "heads": 2, "mlp": 16, "pool_mlp": 16, "dropout": 0.0},
    "text": {"width": 16, "depth": 1, "heads": 2, "mlp": 16, "tokens": 80, "vocabulary": 259},
    "policy": {
        "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "mlp": 16, "dropout": 0.0,
        "rgb": {"cameras": [CAMERA], "height": RGB[0], "width": RGB[1], "embedding": 8, "hidden": [8, 8, 8, 8],
                "depths": [1, 1, 1, 1], "layer": "basic"},
    },
    "diffusion": {"train_steps": 20, "sampler": "ddim", "inference_steps": 5},
    "encoders": {"steps": 4, "batch": 8, "learning_rate": 0.001, "clip_norm": 1.0},
    "training": {"steps": 4, "batch": 4, "learning_rate": 0.001, "warmup_steps": 2, "draws": 2, "ema": 0.9,
                 "state_noise": 0.1, "clip_norm": 1.0},
}  # fmt: skip


def changed(base: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """An experiment with some settings of some sections changed."""
    return {
        **base, **{k: {**base[k], **v} if isinstance(v, dict) and k in base else v for k, v in sections.items()}
    }  # fmt: skip


def experiment(**sections: Any) -> Experiment:
    """`EXPERIMENT` with some settings of some sections changed."""
    return from_dict(Experiment, changed(EXPERIMENT, **sections))


def write_experiment(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def _depth(block: np.ndarray) -> np.ndarray:
    """(48, 64) uint16 millimetres: the table, and a block 6 cm wide and 10 cm high."""
    v, u = np.mgrid[: _PINHOLE.height, : _PINHOLE.width]
    depth = np.full(u.shape, 800, np.uint16)
    top = (np.stack([(u - _PINHOLE.cx) / _PINHOLE.fx, (v - _PINHOLE.cy) / _PINHOLE.fy]) * 0.7).transpose(1, 2, 0)
    world = top @ _WORLD_FROM_CAMERA[:2, :2].T + _EYE[:2]
    depth[(np.abs(world - block[:2]) < 0.03).all(axis=2)] = 700
    return depth


def write_store(
    folder: Path,
    blocks: list[tuple[float, float]],
    rows: int = 6,
    text: bool = True,
    steps: int = STEPS_PER_ROW,
    depth: bool = True,
) -> Path:
    """Writes a store of one episode for every block's position (x, y) in metres; `steps` of 20 ms lie between rows."""
    folder.mkdir(parents=True, exist_ok=True)
    compress = zstandard.ZstdCompressor().compress
    rng = np.random.default_rng(0)
    episodes = []
    for e, (x, y) in enumerate(blocks):
        block = np.array([x, y, 0.05])
        time = np.arange(rows, dtype=np.float32)[:, None]
        target = np.asarray(REST_POSE, np.float32) + 0.05 * time * np.array([x, y, *[0.1] * 12], np.float32)
        tensors = {
            "stamps_ns": np.arange(rows, dtype=np.int64) * steps * CONTROL_PERIOD_NS,
            "joint_positions": target,
            "history": np.where(np.arange(50)[:, None] < 10 * time[..., None], target[:, None], 0.0).astype(np.float32),
            "actions": np.repeat(target[:, None], 50, axis=1)
            + np.linspace(0, 0.1, 50, dtype=np.float32)[None, :, None],
            "world_from_camera": np.tile(_WORLD_FROM_CAMERA, (rows, 1, 1, 1)),
            "world_from_gripper": np.tile(make(translation=(0.0, 0.0, 0.3)), (rows, 2, 1, 1)),
            "objects": np.tile(block.astype(np.float32), (rows, 1, 1)),
            **packed("rgb", [png(image) for image in rng.integers(0, 255, (rows, *RGB, 3), dtype=np.uint8)]),
        }
        if depth:
            tensors |= packed("depth", [compress(_depth(block).tobytes())] * rows)
        texts = [f"Move it. Objects: block at {x:.2f} {y:.2f} 0.05. Progress: {t}" for t in range(rows)]
        metadata = {
            "cameras": [CAMERA], "pinholes": {CAMERA: vars(_PINHOLE)}, "objects": ["block"],
            "texts": texts if text else [],
        }  # fmt: skip
        name = f"episode_{e:03d}"
        save_file(tensors, folder / f"{name}.safetensors", metadata={"clamp": json.dumps(metadata)})
        episodes.append({"file": f"{name}.safetensors", "rows": rows, "task": "move", "seed": e, "bag": name})
    index = {"format": FORMAT, "cameras": [CAMERA], "rgb_size": list(RGB), "episodes": episodes}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def grid(count: int) -> list[tuple[float, float]]:
    """Positions spread over the table."""
    return [(round(-0.2 + 0.1 * (i % 5), 2), round(-0.12 + 0.08 * (i // 5 % 4), 2)) for i in range(count)]
