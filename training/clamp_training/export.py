"""From trained weights to the artifact the robot loads: three ONNX files, the manifest, and a model card."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clamp_ros.contract.errors import ArtifactError
from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.artifact import CameraSpec, Manifest, RgbSpec, write_manifest
from clamp_ros.policy.cartesian import CartesianActions
from clamp_ros.policy.preprocess import Normalization
from clamp_training import checkpoint
from clamp_training.agreement import check_policy, check_store, digest_of_encoders
from clamp_training.card import model_card
from clamp_training.config import Experiment
from clamp_training.half import halve
from clamp_training.networks.act import ActPolicy
from clamp_training.networks.build import Policy, new_policy
from clamp_training.networks.image import ImageTokens
from clamp_training.networks.policy import Context, DiffusionPolicy
from clamp_training.pretrain import Encoders, load_encoders
from clamp_training.store import Store, new_fusion
from clamp_training.train_policy import KEPT, pooled_tokens

RELATIVE_TOLERANCE = 1e-4
"""Largest difference between torch and onnxruntime, relative to the largest value of an output."""


class EncodersGraph(nn.Module):
    """encoders.onnx: what the policy reads of the encoders.

    Pooled embeddings stand in place of the tokens; the action's is repeated, since the robot expects as many rows. A
    policy that reads nothing gets a row of zeros that is not valid.
    """

    def __init__(self, encoders: Encoders | None, tokens: str) -> None:
        super().__init__()
        self.image = None if encoders is None else encoders.image.for_inference()
        self.action = None if encoders is None else encoders.action
        self.tokens = tokens

    def forward(self, scene: Tensor, action_history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image tokens, which of them are valid, and action tokens; `scene` is the views, or DP3's cloud."""
        if self.image is None or self.action is None:
            nothing = 0.0 * action_history[..., :1]
            return nothing[:, :1], scene.flatten(1)[:, :1] < -1e9, nothing
        image, action = self.image(scene), self.action(action_history)
        if self.tokens == "pooled":
            only = pooled_tokens(self.image.pooled(image))
            return only.tokens, only.valid, self.action.pooled(action)[:, None].repeat(1, CHUNK_SIZE, 1)
        return image.tokens, image.valid, action


class ContextGraph(nn.Module):
    """context.onnx."""

    index: Tensor

    def __init__(self, policy: Policy, tokens: int) -> None:
        super().__init__()
        self.policy = policy
        self.register_buffer("index", torch.arange(tokens)[None], persistent=False)

    def forward(
        self, image_tokens: Tensor, image_valid: Tensor, action_tokens: Tensor, proprio: Tensor, rgb: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and which of the memory is valid."""
        images = dict(zip(self.policy.config.rgb.cameras, rgb, strict=True))
        image, action = ImageTokens(image_tokens, image_valid, self.index), action_tokens
        if self.policy.config.tokens == "pooled":
            action = action_tokens[:, :1]
        if self.policy.config.tokens == "none":
            image = action = None
        context = self.policy.context(image, action, images, proprio)
        return context.keys, context.values, context.valid


class DenoiseGraph(nn.Module):
    """denoise.onnx; a policy that continues committed actions reads how many as well."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self,
        noisy_actions: Tensor,
        step: Tensor,
        keys: Tensor,
        values: Tensor,
        memory_valid: Tensor,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """The predicted noise."""
        return self.policy.denoise(noisy_actions, step, Context(keys, values, memory_valid), prefix)


class DecodeGraph(nn.Module):
    """decode.onnx: the chunk of a policy that answers at once."""

    def __init__(self, policy: ActPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, keys: Tensor, values: Tensor, memory_valid: Tensor) -> Tensor:
        """The normalised chunk."""
        return self.policy.actions(Context(keys, values, memory_valid))


def strip(path: Path) -> None:
    """Takes out what torch notes beside each node: stack traces, and with them the paths of the exporting machine."""
    model = onnx.load(path)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    onnx.save(model, path)


def _export(
    module: nn.Module, inputs: tuple[Any, ...], path: Path, input_names: list[str], output_names: list[str]
) -> dict[str, np.ndarray]:
    """Writes one ONNX file and compares it with torch on the given inputs, which it returns by name.

    Raises:
        ArtifactError: onnxruntime's outputs differ from torch's.
    """
    import onnxruntime

    module = module.eval()
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about torch's internals
        torch.onnx.export(
            module, inputs, path, input_names=input_names, output_names=output_names, dynamo=True, external_data=False,
            verbose=False,
        )  # fmt: skip
    strip(path)
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    flat = [t for value in inputs for t in (value if isinstance(value, list) else [value])]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: t.numpy() for name, t in zip(input_names, flat, strict=True)}
    found = session.run(output_names, feeds)
    for name, a, b in zip(output_names, expected, found, strict=True):
        reference = a.numpy().astype(np.float64)
        error = np.abs(reference - np.asarray(b, dtype=np.float64)).max() / max(np.abs(reference).max(), 1e-12)
        if error > RELATIVE_TOLERANCE:
            raise ArtifactError(f"{path.name}: {name} differs between torch and onnxruntime by {error:.1e} (relative)")
    return feeds


def export(
    experiment: Experiment,
    encoders_path: Path | None,
    policy_path: Path,
    store: Store,
    out: Path,
    training: dict[str, Any],
    precision: str = "fp32",
) -> Manifest:
    """Writes an artifact folder.

    Args:
        experiment: of both trainings.
        encoders_path, policy_path: their weights; no encoders for a policy that reads nothing of them.
        store: the demonstrations, for the cameras' intrinsics and an example observation.
        out: the artifact's folder; its name is the artifact's.
        training: record for the manifest and the card: data, seeds, steps, commands.
        precision: of the ONNX files' insides: fp32 or fp16.

    Raises:
        ArtifactError: weights do not fit the experiment, an ONNX file differs from torch, or float16 from float32.
        ConfigError: the store does not fit the experiment.
    """
    if precision == "fp32":
        return _export_full(experiment, encoders_path, policy_path, store, out, training)[0]
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".fp32") as folder:
        full = _export_full(experiment, encoders_path, policy_path, store, Path(folder), training)
        manifest = halve(Path(folder), out, *full, _example(experiment, store))
    (out / "README.md").write_text(model_card(manifest))
    return manifest


def _example(experiment: Experiment, store: Store) -> Observation:
    """The first observation of a store; without depth, which a policy of such a store does not read, empty views."""
    cameras, seen = experiment.policy.rgb.cameras, store.episodes[0].has_depth
    fusion = new_fusion(experiment.fusion)
    return Observation(
        stamp_ns=0,
        views=store.views(0, fusion) if seen else np.zeros(experiment.fusion.tiled_shape, np.float32),
        colors={camera: store.colors(camera, [0])[0] for camera in cameras},
        joint_positions=store.stacked("joint_positions")[0],
        action_history=store.stacked("history")[0],
        cloud=store.cloud(0, fusion) if seen else np.zeros((0, 3), np.float32),
    )


def _export_full(
    experiment: Experiment,
    encoders_path: Path | None,
    policy_path: Path,
    store: Store,
    out: Path,
    training: dict[str, Any],
) -> tuple[Manifest, dict[str, dict[str, np.ndarray]]]:
    """Writes an artifact folder in float32; returns its manifest, and example inputs of each ONNX file."""
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    check_store(store, experiment, depth=False)
    encoders, pretraining = None, {"step": 0}
    if experiment.policy.tokens != "none":
        if encoders_path is None:
            raise ArtifactError(f"policy.tokens is {experiment.policy.tokens!r}: give --encoders")
        encoders, pretraining = load_encoders(encoders_path, experiment)
    metadata = checkpoint.weights(policy_path, "policy")
    check_policy(policy_path, metadata.get("experiment", {}).get("config", {}), experiment)
    reads = metadata.get("reads")
    if encoders is not None and reads not in (None, digest_of_encoders(encoders.image, encoders.action)):
        raise ArtifactError(
            f"{policy_path} was not trained on the encoders {encoders_path}: give those it was trained on, or, where "
            "they were trained with it (training.unfreeze), the encoders.safetensors beside it"
        )
    policy = new_policy(experiment)
    checkpoint.load(policy_path, {"policy": policy})
    policy = policy.eval()
    normalization = Normalization(**metadata["normalization"])
    cartesian = CartesianActions(**metadata["cartesian"]) if "cartesian" in metadata else None
    if (cartesian is None) != (experiment.policy.actions == "joint"):
        raise ArtifactError(f"policy.actions is {experiment.policy.actions!r}, {policy_path} was trained otherwise")

    out.mkdir(parents=True, exist_ok=True)
    rgb = experiment.policy.rgb
    generator = torch.Generator().manual_seed(0)
    reads_cloud = experiment.image.encoder == "dp3" and encoders is not None
    if reads_cloud:
        scene = torch.zeros(1, experiment.fusion.max_points, 3)
        scene[:, : experiment.fusion.max_points // 2] = torch.rand(1, experiment.fusion.max_points // 2, 3)
    else:
        height, width, _ = experiment.fusion.tiled_shape
        scene = torch.zeros(1, height, width, 4)
        top, left = height // 6, width // 10
        seen = scene[:, top : height - top, left : width - left]
        seen.copy_(torch.rand(seen.shape, generator=generator))
    history = torch.randn(1, CHUNK_SIZE, NUM_JOINTS, generator=generator)
    encoders_graph = EncodersGraph(encoders, experiment.policy.tokens)
    examples = {}
    examples["encoders"] = _export(
        encoders_graph,
        (scene, history),
        out / "encoders.onnx",
        ["cloud" if reads_cloud else "views", "action_history"],
        ["image_tokens", "image_valid", "action_tokens"],
    )
    with torch.no_grad():
        image_tokens, image_valid, action_tokens = encoders_graph(scene, history)
    proprio = torch.randn(1, NUM_JOINTS, generator=generator)
    colours = [torch.rand(1, 3, rgb.height, rgb.width, generator=generator) for _ in rgb.cameras]
    context_graph = ContextGraph(policy, image_tokens.shape[1])
    examples["context"] = _export(
        context_graph,
        (image_tokens, image_valid, action_tokens, proprio, colours),
        out / "context.onnx",
        ["image_tokens", "image_valid", "action_tokens", "proprio", *(f"rgb_{c}" for c in rgb.cameras)],
        ["keys", "values", "memory_valid"],
    )
    with torch.no_grad():
        keys, values, valid = context_graph.eval()(image_tokens, image_valid, action_tokens, proprio, colours)
    memory, names = (keys, values, valid), ["keys", "values", "memory_valid"]
    if isinstance(policy, ActPolicy):
        examples["decode"] = _export(DecodeGraph(policy), memory, out / "decode.onnx", names, ["actions"])
    else:
        examples["denoise"] = _export_denoiser(policy, memory, out / "denoise.onnx")
    sampling = experiment.diffusion.spec() if experiment.policy.kind == "diffusion" else None
    pinholes = dict(zip(store.cameras, store.episodes[0].pinholes, strict=True))
    parameters = {
        "image_encoder": count_parameters(encoders.image) if encoders else 0,
        "action_encoder": count_parameters(encoders.action) if encoders else 0,
        "policy": count_parameters(policy),
    }
    manifest = Manifest(
        name=out.name,
        task=experiment.task,
        cameras={c: CameraSpec(**vars(pinholes[c]), rgb=c in rgb.cameras) for c in experiment.cameras},
        image_rate_hz=experiment.image_rate_hz,
        rgb=RgbSpec(rgb.height, rgb.width) if rgb.cameras else None,
        fusion=experiment.fusion,
        normalization=normalization,
        diffusion=sampling,
        prefix=experiment.policy.prefix,
        scene="cloud" if reads_cloud else "views",
        cartesian=cartesian,
        files={},
        training={
            **training,
            "steps": {"encoders": pretraining["step"], "policy": metadata["step"]},
            "run": _run_folder(policy_path).name,
            "seeds": metadata.get("seeds"),
            "parameters": parameters,
            "experiment": _as_trained(experiment, metadata, pretraining),
        },
        score={},
    )
    manifest = write_manifest(out, manifest)
    (out / "README.md").write_text(model_card(manifest))
    return manifest, examples


def _as_trained(experiment: Experiment, policy: dict[str, Any], encoders: dict[str, Any]) -> dict[str, Any]:
    """The experiment, with the seeds and schedules that the weights were trained by: what an option changed, stands."""
    record = experiment.to_dict()
    for part, metadata in (("training", policy), ("encoders", encoders)):
        record[part] = {**record[part], **metadata.get("experiment", {}).get("config", {}).get(part, {})}
    return record


def export_all(
    experiment: Experiment,
    encoders: Path | None,
    policies: Sequence[Path],
    store: Store,
    out: Path,
    training: dict[str, Any],
    precision: str = "fp32",
) -> Iterator[Path]:
    """Exports one policy to `out`, or each of several to a folder in it that names its step; yields the folders.

    Encoders that were trained with a policy, and lie beside its kept weights, are taken in place of those given.

    Raises:
        ArtifactError: of `export`; or two policies have seen equally many steps.
    """
    folders: dict[Path, Path] = {}
    named, policies = policies, [path for path in policies if not path.name.startswith("encoders")]  # as of `kept/*`
    if not policies:
        raise ArtifactError(f"--policy names {', '.join(map(str, named))}: encoders, and no policy.safetensors")
    for path in policies:
        folder = out if len(policies) == 1 else out / f"{out.name}_{checkpoint.metadata(path)['step']:08d}"
        if folder in folders:
            raise ArtifactError(f"{folders[folder]} and {path} would both become {folder}; export them by themselves")
        folders[folder] = path
    for folder, path in folders.items():
        beside = path.with_name(path.name.replace("policy", "encoders"))
        own = beside if path.parent.name == KEPT and beside.exists() else encoders
        export(experiment, own, path, store, folder, training, precision)
        yield folder


def _run_folder(policy: Path) -> Path:
    """The folder of the run that weights are of."""
    folder = policy.resolve().parent
    return folder.parent if folder.name == KEPT else folder


def _export_denoiser(policy: DiffusionPolicy, memory: tuple[Tensor, ...], path: Path) -> dict[str, np.ndarray]:
    noisy = torch.randn(1, CHUNK_SIZE, policy.action_width, generator=torch.Generator().manual_seed(1))
    inputs, names = [noisy, torch.tensor([3]), *memory], ["noisy_actions", "step", "keys", "values", "memory_valid"]
    if policy.config.prefix:
        inputs.append(torch.tensor([policy.config.prefix]))
        names.append("prefix")
    return _export(DenoiseGraph(policy), tuple(inputs), path, names, ["noise"])


def count_parameters(module: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(p.numel() for p in module.parameters())


def record_score(folder: Path, name: str, score: dict[str, Any]) -> None:
    """Adds an evaluation's result to an artifact's manifest and rewrites its card; the ONNX files are untouched."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["score"][name] = score
    path.write_text(json.dumps(values, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(Manifest.from_dict(values)))
