"""A policy artifact in milliseconds, without torch: tiny ONNX graphs with the inputs and outputs of the real ones.

`build_tiny_artifact(folder, target=...)` writes a whole artifact whose policy is exact: its denoiser is the closed-form
noise of a known target trajectory, so that every sampler returns `target` (rad and m, within the normalised range) for
any seed. `gain` makes the target depend on what the policy sees: every normalised action is shifted by
``gain * mean(cross-attention values)``. Used by tests of the runtime, the nodes and the whole stack:

    artifact = build_tiny_artifact(tmp_path / "tiny")
    chunk = PolicyRuntime(artifact).infer(observation, np.random.default_rng(0))   # chunk.actions ~ target
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clamp_ros.contract.robot import CHUNK_SIZE, LOWER_LIMITS, NUM_JOINTS, REST_POSE, UPPER_LIMITS
from clamp_ros.contract.views import NUM_VIEWS, VIEW_SIZE, FusionConfig
from clamp_ros.policy.artifact import Artifact, CameraSpec, DiffusionSpec, Manifest, RgbSpec, write_manifest
from clamp_ros.policy.diffusion import DiffusionSchedule
from clamp_ros.policy.preprocess import Normalization

WIDTH, HEADS = 8, 2
TRAIN_STEPS = 100
# 424x240, fovy 42 degrees: the simulated corner cameras' defaults.
TINY_CAMERA = CameraSpec(424, 240, 312.6107, 312.6107, 211.5, 119.5, rgb=False)
TINY_CAMERAS: Mapping[str, CameraSpec] = {"front_left": TINY_CAMERA, "back_right": TINY_CAMERA}
NORMALIZATION = Normalization(REST_POSE, np.full(NUM_JOINTS, 0.5), LOWER_LIMITS, UPPER_LIMITS)


def rest_target() -> NDArray[np.float64]:
    """(50, 14): stay in the rest pose."""
    return np.tile(REST_POSE, (CHUNK_SIZE, 1))


def build_tiny_artifact(
    folder: Path,
    *,
    target: NDArray[np.float64] | None = None,
    gain: float = 0.0,
    cameras: Mapping[str, CameraSpec] = TINY_CAMERAS,
    rgb: RgbSpec | None = None,
    sampler: str = "ddim",
    inference_steps: int = 5,
    fusion: FusionConfig | None = None,
    image_rate_hz: float = 10.0,
    task: str = "mug_on_plate_easy",
    prefix: int = 0,
    scene: str = "views",
) -> Artifact:
    """Writes manifest and ONNX files into `folder` (made if need be) and loads the artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb_cameras = [name for name, camera in cameras.items() if camera.rgb]
    fusion = fusion or FusionConfig()
    _save(folder / "encoders.onnx", _encoders() if scene == "views" else _cloud_encoders(fusion.max_points))
    _save(folder / "context.onnx", _context(rgb_cameras, rgb))
    goal = NORMALIZATION.actions(rest_target() if target is None else target)
    _save(folder / "denoise.onnx", _denoise(goal[None], gain, continues=prefix > 0))
    manifest = Manifest(
        name=folder.name,
        task=task,
        cameras=cameras,
        image_rate_hz=image_rate_hz,
        rgb=rgb,
        fusion=fusion,
        normalization=NORMALIZATION,
        diffusion=DiffusionSpec(TRAIN_STEPS, "squared_cosine", "epsilon", 1.0, sampler, inference_steps),
        prefix=prefix,
        scene=scene,
        files={},
        training={"note": "no training: a closed-form policy for tests"},
        score={},
    )
    write_manifest(folder, manifest)
    return Artifact.load(folder)


def _save(path: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _tensor(name: str, dtype: int, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _constant(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def _encoders() -> onnx.GraphProto:
    """One token a view (its mean depth, X, Y, Z, projected) and one a history row."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    return helper.make_graph(
        [
            node("Reshape", ["views", "split"], ["tiles"]),  # (1, 224, 5, 224, 4)
            node("ReduceMean", ["tiles", "pixels"], ["means"], keepdims=0),  # (1, 5, 4)
            node("MatMul", ["means", "image_weights"], ["image_tokens"]),
            node("Slice", ["means", "zero", "one", "last"], ["depths"]),
            node("Greater", ["depths", "nothing"], ["seen"]),
            node("Squeeze", ["seen", "last"], ["image_valid"]),
            node("MatMul", ["action_history", "action_weights"], ["action_tokens"]),
        ],
        "encoders",
        [
            _tensor("views", TensorProto.FLOAT, (1, VIEW_SIZE, VIEW_SIZE * NUM_VIEWS, 4)),
            _tensor("action_history", TensorProto.FLOAT, (1, CHUNK_SIZE, NUM_JOINTS)),
        ],
        [
            _tensor("image_tokens", TensorProto.FLOAT, (1, NUM_VIEWS, WIDTH)),
            _tensor("image_valid", TensorProto.BOOL, (1, NUM_VIEWS)),
            _tensor("action_tokens", TensorProto.FLOAT, (1, CHUNK_SIZE, WIDTH)),
        ],
        [
            _constant("split", (1, VIEW_SIZE, NUM_VIEWS, VIEW_SIZE, 4), np.int64),
            _constant("pixels", (1, 3), np.int64),
            _constant("zero", (0,), np.int64),
            _constant("one", (1,), np.int64),
            _constant("last", (2,), np.int64),
            _constant("nothing", 0.0),
            _constant("image_weights", rng.uniform(0.1, 1.0, (4, WIDTH))),
            _constant("action_weights", rng.uniform(0.1, 1.0, (NUM_JOINTS, WIDTH))),
        ],
    )


def _cloud_encoders(max_points: int) -> onnx.GraphProto:
    """The mean of all points, padding included, projected, as every image token."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    return helper.make_graph(
        [
            node("ReduceMean", ["cloud", "points"], ["mean"], keepdims=1),  # (1, 1, 3)
            node("Expand", ["mean", "tokens"], ["means"]),
            node("MatMul", ["means", "image_weights"], ["image_tokens"]),
            node("Identity", ["always"], ["image_valid"]),
            node("MatMul", ["action_history", "action_weights"], ["action_tokens"]),
        ],
        "encoders",
        [
            _tensor("cloud", TensorProto.FLOAT, (1, max_points, 3)),
            _tensor("action_history", TensorProto.FLOAT, (1, CHUNK_SIZE, NUM_JOINTS)),
        ],
        [
            _tensor("image_tokens", TensorProto.FLOAT, (1, NUM_VIEWS, WIDTH)),
            _tensor("image_valid", TensorProto.BOOL, (1, NUM_VIEWS)),
            _tensor("action_tokens", TensorProto.FLOAT, (1, CHUNK_SIZE, WIDTH)),
        ],
        [
            _constant("points", (1,), np.int64),
            _constant("tokens", (1, NUM_VIEWS, 3), np.int64),
            _constant("always", np.ones((1, NUM_VIEWS)), np.bool_),
            _constant("image_weights", rng.uniform(0.1, 1.0, (3, WIDTH))),
            _constant("action_weights", rng.uniform(0.1, 1.0, (NUM_JOINTS, WIDTH))),
        ],
    )


def _context(rgb_cameras: list[str], rgb: RgbSpec | None) -> onnx.GraphProto:
    """Memory: the tokens, one of proprioception, one a colour image; keys and values are the memory, split in heads."""
    rng = np.random.default_rng(1)
    node = helper.make_node
    length = NUM_VIEWS + CHUNK_SIZE + 1 + len(rgb_cameras)
    inputs = [
        _tensor("image_tokens", TensorProto.FLOAT, (1, NUM_VIEWS, WIDTH)),
        _tensor("image_valid", TensorProto.BOOL, (1, NUM_VIEWS)),
        _tensor("action_tokens", TensorProto.FLOAT, (1, CHUNK_SIZE, WIDTH)),
        _tensor("proprio", TensorProto.FLOAT, (1, NUM_JOINTS)),
    ]
    nodes = [
        node("MatMul", ["proprio", "proprio_weights"], ["proprio_features"]),
        node("Unsqueeze", ["proprio_features", "first"], ["proprio_token"]),
    ]
    tokens = ["image_tokens", "action_tokens", "proprio_token"]
    for camera in rgb_cameras:
        if rgb is None:
            raise ValueError("rgb cameras need an rgb size")
        inputs.append(_tensor(f"rgb_{camera}", TensorProto.FLOAT, (1, 3, rgb.height, rgb.width)))
        nodes += [
            node("ReduceMean", [f"rgb_{camera}", "pixels"], [f"mean_{camera}"], keepdims=0),
            node("MatMul", [f"mean_{camera}", "rgb_weights"], [f"features_{camera}"]),
            node("Unsqueeze", [f"features_{camera}", "first"], [f"token_{camera}"]),
        ]
        tokens.append(f"token_{camera}")
    nodes += [
        node("Concat", tokens, ["memory"], axis=1),
        node("Reshape", ["memory", "split"], ["heads"]),
        node("Transpose", ["heads"], ["keys"], perm=[0, 1, 3, 2, 4]),
        node("Identity", ["keys"], ["values"]),
        node("Concat", ["image_valid", "always"], ["memory_valid"], axis=1),
    ]
    shape = (1, 1, HEADS, length, WIDTH // HEADS)
    return helper.make_graph(
        nodes,
        "context",
        inputs,
        [
            _tensor("keys", TensorProto.FLOAT, shape),
            _tensor("values", TensorProto.FLOAT, shape),
            _tensor("memory_valid", TensorProto.BOOL, (1, length)),
        ],
        [
            _constant("proprio_weights", rng.uniform(0.1, 1.0, (NUM_JOINTS, WIDTH))),
            _constant("rgb_weights", rng.uniform(0.1, 1.0, (3, WIDTH))),
            _constant("first", (1,), np.int64),
            _constant("pixels", (2, 3), np.int64),
            _constant("split", (1, 1, length, HEADS, WIDTH // HEADS), np.int64),
            _constant("always", np.ones((1, length - NUM_VIEWS)), np.bool_),
        ],
    )


def _denoise(goal: NDArray[np.float32], gain: float, continues: bool = False) -> onnx.GraphProto:
    """noise = (x - sqrt(alpha_bar) * target) / sqrt(1 - alpha_bar), target = goal + gain * mean(values)."""
    alpha_bar = DiffusionSchedule(TRAIN_STEPS).alpha_bar
    node = helper.make_node
    chunk = (1, CHUNK_SIZE, NUM_JOINTS)
    shape = ("L", 1, HEADS, "S", None)
    memory = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("keys", "values")]
    return helper.make_graph(
        [
            node("ReduceMean", ["values"], ["mean"], keepdims=0),
            node("Mul", ["mean", "gain"], ["shift"]),
            node("Add", ["goal", "shift"], ["target"]),
            node("Gather", ["signal", "step"], ["signal_now"]),
            node("Gather", ["noise_share", "step"], ["noise_now"]),
            node("Mul", ["signal_now", "target"], ["clean"]),
            node("Sub", ["noisy_actions", "clean"], ["scaled"]),
            node("Div", ["scaled", "noise_now"], ["noise"]),
        ],
        "denoise",
        [
            _tensor("noisy_actions", TensorProto.FLOAT, chunk),
            _tensor("step", TensorProto.INT64, (1,)),
            *([_tensor("prefix", TensorProto.INT64, (1,))] if continues else []),
            *memory,
            helper.make_tensor_value_info("memory_valid", TensorProto.BOOL, (1, "S")),
        ],
        [_tensor("noise", TensorProto.FLOAT, chunk)],
        [
            _constant("goal", goal),
            _constant("gain", gain),
            _constant("signal", np.sqrt(alpha_bar)),
            _constant("noise_share", np.sqrt(1.0 - alpha_bar)),
        ],
    )
