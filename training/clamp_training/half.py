"""An artifact in half precision: float16 inside the ONNX files, float32 at their inputs and outputs.

Half the memory and, on a GPU with tensor cores, a multiple of the speed. Nodes from which the rotations by position are
computed stay in float32: a coordinate in float16 is good to 0.5 mm at 1 m, and Cayley-STRING multiplies it by up to
hundreds of radians a metre before it takes the sine. The converter is onnxruntime's own.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.transformers.float16 import convert_float_to_float16

from clamp_ros.contract.errors import ArtifactError
from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import LOWER_LIMITS, UPPER_LIMITS
from clamp_ros.policy.artifact import Artifact, Manifest, write_manifest
from clamp_ros.policy.runtime import PolicyRuntime

OUTPUT_TOLERANCE = 1e-2
"""Largest difference between float16 and float32 in an output of a file, relative to its largest value."""
CHUNK_TOLERANCE = 1e-2
"""And of a whole chunk, from the same observation and noise, relative to the joints' ranges."""

log = logging.getLogger(__name__)


def halve(
    source: Path, out: Path, manifest: Manifest, inputs: dict[str, dict[str, NDArray[Any]]], observation: Observation
) -> Manifest:
    """Writes the artifact of a folder in half precision to another, and measures what that changes.

    Args:
        source: holds the files and manifest in float32.
        out: of the result.
        manifest: of `source`.
        inputs: examples of each file's, by file and name.
        observation: an example of the policy's.

    Returns:
        The manifest of the result; its `training` tells the differences.

    Raises:
        ArtifactError: a difference is beyond the tolerances.
    """
    differences = {}
    for part in manifest.parts:
        full, half = source / f"{part}.onnx", out / f"{part}.onnx"
        shutil.copyfile(full, half)
        to_half(half)
        for name, difference in _differences(full, half, inputs[part]).items():
            log.info("%s in float16: %s differs by %.1e (relative; at most %.0e)", half.name, name, difference,
                     OUTPUT_TOLERANCE)  # fmt: skip
            if not difference <= OUTPUT_TOLERANCE:
                raise ArtifactError(
                    f"{half.name} in float16: {name} differs from float32 by {difference:.1e} (relative), expected at"
                    f" most {OUTPUT_TOLERANCE:.0e}; export with --precision fp32"
                )
            differences[f"{part}.{name}"] = float(f"{difference:.2g}")
    halved = write_manifest(out, replace(manifest, name=out.name, precision="fp16"))
    chunk = _chunk_difference(source, out, observation)
    log.info("a chunk in float16 differs by %.1e of the joints' ranges (at most %.0e)", chunk, CHUNK_TOLERANCE)
    if not chunk <= CHUNK_TOLERANCE:
        raise ArtifactError(
            f"a chunk in float16 differs from float32 by {chunk:.1e} of the joints' ranges, expected at most"
            f" {CHUNK_TOLERANCE:.0e}; export with --precision fp32"
        )
    told = {"outputs": differences, "chunk": float(f"{chunk:.2g}")}
    return write_manifest(out, replace(halved, training={**manifest.training, "float16_differences": told}))


def to_half(path: Path) -> None:
    """Rewrites an ONNX file in float16, but for its inputs and outputs, and what computes rotations by position."""
    logging.getLogger(convert_float_to_float16.__module__).setLevel(logging.ERROR)  # it tells of every mask
    model = onnx.load(path)
    half = convert_float_to_float16(model, keep_io_types=True, node_block_list=_positions(model))
    _join(half.graph)
    del half.graph.value_info[:]  # some still tell of float32; whoever needs them infers them
    onnx.save(half, path)


def _positions(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes from which an angle is computed, and of those that take its sine or cosine."""
    makes = {output: node for node in model.graph.node for output in node.output}
    ahead = [node for node in model.graph.node if node.op_type in ("Sin", "Cos")]
    found: dict[str, None] = {}
    while ahead:
        node = ahead.pop()
        if node.name not in found:
            found[node.name] = None
            ahead += [makes[name] for name in node.input if name in makes]
    return list(found)


def _join(graph: onnx.GraphProto) -> None:
    """Takes out the way through float16 between two nodes that stay in float32, which the converter leaves in."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    kind = {name: node.attribute[0].i for name, node in casts.items()}
    halves = {name for name in casts if kind[name] == onnx.TensorProto.FLOAT16}
    whole = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if kind[name] == onnx.TensorProto.FLOAT and node.input[0] in halves
    }
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = whole.get(name, name)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [node for node in graph.node if node.output[0] not in whole or node.output[0] in used]
    used = {name for node in kept for name in node.input} | {output.name for output in graph.output}
    kept = [node for node in kept if node.output[0] not in halves or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def _differences(full: Path, half: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, float]:
    sessions = [onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (full, half)]
    names = [output.name for output in sessions[0].get_outputs()]
    expected, found = (session.run(names, inputs) for session in sessions)
    differences = {}
    for name, a, b in zip(names, expected, found, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        differences[name] = float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-12))
    return differences


def _chunk_difference(full: Path, half: Path, observation: Observation) -> float:
    chunks = [
        PolicyRuntime(Artifact.load(p)).infer(observation, np.random.default_rng(0)).actions for p in (full, half)
    ]
    return float((np.abs(chunks[0] - chunks[1]) / (UPPER_LIMITS - LOWER_LIMITS)).max())
