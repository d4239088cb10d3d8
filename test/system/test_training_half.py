"""Half precision: float16 inside the files, the same chunks within a stated bound, and the cards say so."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_store
import torch
from clamp_training import checkpoint, half
from clamp_training.export import export
from clamp_training.networks.build import new_policy
from clamp_training.pretrain import statistics
from clamp_training.store import Store

from clamp_ros import info
from clamp_ros.contract.errors import ArtifactError
from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import LOWER_LIMITS, REST_POSE, UPPER_LIMITS
from clamp_ros.policy.artifact import Artifact, Manifest
from clamp_ros.policy.runtime import PolicyRuntime

pytestmark = [pytest.mark.slow, pytest.mark.training]

SHIPPED = Path(__file__).parents[2] / "models/mug_on_plate_easy"


def observed(artifact: Artifact) -> Observation:
    """Something within the workspace, as the fusion would show it: points where there are any, zeros elsewhere."""
    rng = np.random.default_rng(0)
    views = np.zeros(artifact.manifest.fusion.tiled_shape, np.float32)
    views[60:160, 80:1000] = rng.uniform(-0.3, 0.3, (100, 920, 4))
    cameras = {n: c for n, c in artifact.manifest.cameras.items() if c.rgb}
    colors = {n: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for n, c in cameras.items()}
    joints = np.asarray(REST_POSE, np.float32)
    return Observation(0, views, colors, joints, np.tile(joints, (50, 1)))


def examples(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Inputs of every file, each file's outputs being inputs of the next."""
    rng, known = np.random.default_rng(1), {"views": observed(artifact).views[None], "step": np.array([3])}
    inputs: dict[str, dict[str, Any]] = {}
    for part in artifact.manifest.parts:
        session = onnxruntime.InferenceSession(str(artifact.file(part)), providers=["CPUExecutionProvider"])
        for wanted in session.get_inputs():
            if wanted.name not in known:
                known[wanted.name] = rng.uniform(-1.0, 1.0, wanted.shape).astype(np.float32)
        inputs[part] = {wanted.name: known[wanted.name] for wanted in session.get_inputs()}
        names = [output.name for output in session.get_outputs()]
        known |= dict(zip(names, session.run(names, inputs[part]), strict=True))
    return inputs


def test_the_shipped_policy_in_half_precision(tmp_path: Path, caplog) -> None:
    full = Artifact.load(SHIPPED)
    with caplog.at_level(logging.INFO):
        half.halve(SHIPPED, tmp_path, full.manifest, examples(full), observed(full))
    assert "denoise.onnx in float16: noise differs by" in caplog.text and "a chunk in float16 differs by" in caplog.text
    halved = Artifact.load(tmp_path)
    assert halved.manifest.precision == "fp16"
    told = halved.manifest.training["float16_differences"]
    assert 0.0 < max(told["outputs"].values()) <= half.OUTPUT_TOLERANCE and 0.0 < told["chunk"] <= half.CHUNK_TOLERANCE
    sizes = [sum(a.file(part).stat().st_size for part in a.manifest.parts) for a in (full, halved)]
    assert sizes[1] < 0.6 * sizes[0]
    chunks = [PolicyRuntime(a, threads=1).infer(observed(a), np.random.default_rng(3)).actions for a in (full, halved)]
    difference = np.abs(chunks[0] - chunks[1]) / (UPPER_LIMITS - LOWER_LIMITS)
    assert 0.0 < difference.max() <= half.CHUNK_TOLERANCE


def test_a_difference_beyond_the_bound_is_refused(tmp_path: Path, monkeypatch) -> None:
    full = Artifact.load(SHIPPED)
    inputs = examples(full)
    with monkeypatch.context() as patched:
        patched.setattr(half, "OUTPUT_TOLERANCE", 1e-6)
        with pytest.raises(
            ArtifactError, match=r"encoders\.onnx in float16: image_tokens differs from float32 by .*e-0"
        ):
            half.halve(SHIPPED, tmp_path, full.manifest, inputs, observed(full))
    monkeypatch.setattr(half, "CHUNK_TOLERANCE", 1e-9)
    with pytest.raises(ArtifactError, match=r"a chunk in float16 differs from float32 by .* of the joints' ranges"):
        half.halve(SHIPPED, tmp_path, full.manifest, inputs, observed(full))


def test_positions_stay_in_single_precision(tmp_path: Path) -> None:
    path = Path(shutil.copy(SHIPPED / "encoders.onnx", tmp_path / "encoders.onnx"))
    half.to_half(path)
    graph = onnx.load(path).graph
    weights = {w.name: w for w in graph.initializer}
    makes = {output: node for node in graph.node for output in node.output}
    ahead = [name for node in graph.node if node.op_type in ("Sin", "Cos") for name in node.input]
    assert ahead
    for name in ahead:  # grows meanwhile, by what a value is computed from
        half_weight = name in weights and weights[name].data_type == onnx.TensorProto.FLOAT16
        assert not half_weight or not weights[name].dims  # a zero that other nodes share is as good
        if name in makes:
            assert makes[name].op_type != "Cast" or makes[name].attribute[0].i != onnx.TensorProto.FLOAT16
            ahead += [other for other in makes[name].input if other not in ahead]
    halves = sum(len(w.raw_data) for w in weights.values() if w.data_type == onnx.TensorProto.FLOAT16)
    assert halves > 0.9 * sum(len(w.raw_data) for w in weights.values())


def test_export_in_half_precision(tmp_path: Path) -> None:
    store = Store([tiny_store.write_store(tmp_path / "store", [(0.1, 0.1)], rows=2)])
    sections: dict[str, Any] = {"policy": {"tokens": "none", "kind": "act"}}
    experiment = tiny_store.experiment(**sections)
    torch.manual_seed(0)
    weights, out = tmp_path / "policy.safetensors", tmp_path / "out"
    state = {"step": 1, "normalization": statistics(store.normalization())}
    checkpoint.save(weights, {"policy": new_policy(experiment)}, state)
    export(experiment, None, weights, store, out, {}, "fp16")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "context.onnx", "decode.onnx", "encoders.onnx", "manifest.json",
    ]  # fmt: skip
    runtime = PolicyRuntime(Artifact.load(out), threads=1)
    assert runtime.artifact.manifest.precision == "fp16" and runtime.artifact.manifest.name == "out"
    assert runtime.providers == ("CPUExecutionProvider",)
    assert "precision | float16" in (out / "README.md").read_text()
    assert "precision fp16" in info.about(out)[0]


def test_an_unknown_precision_is_refused() -> None:
    values = json.loads((SHIPPED / "manifest.json").read_text())
    older = {key: value for key, value in values.items() if key != "precision"}
    assert Manifest.from_dict(older).precision == "fp32"  # of a version before there was a choice
    with pytest.raises(ArtifactError, match="precision is 'int4', expected one of fp32, fp16"):
        Manifest.from_dict({**values, "precision": "int4"})
