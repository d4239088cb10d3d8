"""A tiny artifact whose policy fails for real in some episodes: by the noise it draws, it stalls or answers nonsense.

Its denoiser reads the first number of the noisy chunk. Above LIMIT it enters an ONNX loop that does not end; below
-LIMIT its answer is not a number. `kind(seed, chunks)` tells what an episode of so many chunks comes to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from tiny_artifact import build_tiny_artifact

from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.artifact import Artifact, write_manifest
from clamp_ros.policy.noise import episode_noise

LIMIT = 2.0


def kind(seed: int, chunks: int) -> str:
    """'stalls', 'nonsense', or 'good'; '' where a number is too near the limit to be sure."""
    rng = episode_noise(seed)
    first = [float(rng.standard_normal((1, CHUNK_SIZE, NUM_JOINTS))[0, 0, 0]) for _ in range(chunks)]
    if first[0] > 1.1 * LIMIT:
        return "stalls"
    if first[0] < -1.1 * LIMIT:
        return "nonsense"
    return "good" if max(map(abs, first)) < 0.6 * LIMIT else ""


def build_faulty_artifact(folder: Path) -> Artifact:
    artifact = build_tiny_artifact(folder)
    path = artifact.file("denoise")
    model = onnx.load(path)
    graph, node = model.graph, helper.make_node

    def scalar(name: str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, [])

    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Add", ["value", "value"], ["doubled"])],
        "for_ever",
        [
            scalar("i", TensorProto.INT64),
            scalar("go", TensorProto.BOOL),
            scalar("value"),
        ],
        [scalar("go_on", TensorProto.BOOL), scalar("doubled")],
    )
    stall = helper.make_graph(
        [node("Loop", ["", "true", "zero"], ["never"], body=body)],
        "stall",
        [],
        [scalar("never")],
    )
    calm = helper.make_graph([node("Identity", ["zero"], ["calm"])], "calm", [], [scalar("calm")])
    for output in graph.node:
        if output.output[0] == "noise":
            output.output[0] = "good_noise"
    graph.node.extend([
        node("Reshape", ["noisy_actions", "flat"], ["numbers"]),
        node("Gather", ["numbers", "zero_index"], ["first"]),
        node("Greater", ["first", "limit"], ["stalls"]),
        node("If", ["stalls"], ["waited"], then_branch=stall, else_branch=calm),
        node("Less", ["first", "minus_limit"], ["fails"]),
        node("Where", ["fails", "nan", "waited"], ["added"]),
        node("Add", ["good_noise", "added"], ["noise"]),
    ])  # fmt: skip
    for name, value in (
        ("flat", np.array([-1], np.int64)), ("zero_index", np.array(0, np.int64)), ("limit", np.float32(LIMIT)),
        ("minus_limit", np.float32(-LIMIT)), ("nan", np.float32(np.nan)), ("zero", np.float32(0.0)),
        ("true", np.array(True)),
    ):  # fmt: skip
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    write_manifest(folder, replace(artifact.manifest, files={}))
    return Artifact.load(folder)
