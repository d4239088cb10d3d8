"""Runs a policy artifact with onnxruntime: one observation in, one action chunk out.

The images and the history are encoded once a chunk and the decoder's cross-attention keys and values are computed once
and kept on the device; only the decoder runs in every denoising step (the noised actions enter nothing else).
"""

from __future__ import annotations

import difflib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from clamp_ros.contract.errors import ArtifactError, ConfigError, ContractError
from clamp_ros.contract.observation import ActionChunk, Observation
from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.artifact import Artifact, DiffusionSpec, Manifest
from clamp_ros.policy.cartesian import CARTESIAN_WIDTH
from clamp_ros.policy.diffusion import sample
from clamp_ros.policy.preprocess import pad_cloud, preprocess_rgb

_FLOAT, _BOOL, _INT64 = "tensor(float)", "tensor(bool)", "tensor(int64)"
_NUMPY = {_FLOAT: np.float32, _BOOL: np.bool_, _INT64: np.int64}
_ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_WARM_UP_STAMP_NS = 0

Tensor = tuple[str, tuple[int | str, ...]]
"""An ONNX input or output: its type, and its shape with a name for every size that the artifact chooses."""


@dataclass(frozen=True)
class Timings:
    """Wall time of each stage of one inference, milliseconds."""

    preprocess_ms: float
    encode_ms: float
    context_ms: float
    denoise_ms: float

    @property
    def total_ms(self) -> float:
        """All stages."""
        return self.preprocess_ms + self.encode_ms + self.context_ms + self.denoise_ms


def expected_tensors(manifest: Manifest) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """(inputs, outputs) that each ONNX file of an artifact must have, by file and name."""
    encoded: dict[str, Tensor] = {
        "image_tokens": (_FLOAT, (1, "T", "D")),
        "image_valid": (_BOOL, (1, "T")),
        "action_tokens": (_FLOAT, (1, CHUNK_SIZE, "D")),
    }
    memory: dict[str, Tensor] = {
        "keys": (_FLOAT, ("L", 1, "H", "S", "d")),
        "values": (_FLOAT, ("L", 1, "H", "S", "d")),
        "memory_valid": (_BOOL, (1, "S")),
    }
    history: Tensor = (_FLOAT, (1, CHUNK_SIZE, NUM_JOINTS))
    actions: Tensor = (_FLOAT, (1, CHUNK_SIZE, NUM_JOINTS if manifest.cartesian is None else CARTESIAN_WIDTH))
    shape = manifest.fusion.tiled_shape if manifest.scene == "views" else (manifest.fusion.max_points, 3)
    rgb = {} if manifest.rgb is None else {
        f"rgb_{camera}": (_FLOAT, (1, 3, manifest.rgb.height, manifest.rgb.width)) for camera in manifest.rgb_cameras
    }  # fmt: skip
    continued: dict[str, Tensor] = {"prefix": (_INT64, (1,))} if manifest.prefix else {}
    tensors: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {
        "encoders": ({manifest.scene: (_FLOAT, (1, *shape)), "action_history": history}, encoded),
        "context": ({**encoded, "proprio": (_FLOAT, (1, NUM_JOINTS)), **rgb}, memory),
        "denoise": ({"noisy_actions": actions, "step": (_INT64, (1,)), **continued, **memory}, {"noise": actions}),
        "decode": (memory, {"actions": actions}),
    }
    return {part: tensors[part] for part in manifest.parts}


class PolicyRuntime:
    """The three sessions of an artifact. Not thread-safe: one inference at a time.

    Attributes:
        artifact: what it runs.
        timings: of the newest inference, None before the first.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        sampler: str | None = None,
        inference_steps: int | None = None,
    ) -> None:
        """Opens the sessions and checks their inputs and outputs against the manifest.

        Args:
            artifact: loaded and verified.
            threads: intra-op threads; 0 lets onnxruntime take every core.
            providers: onnxruntime execution providers, the preferred first.
            sampler: "ddim" or "ddpm" in place of the manifest's.
            inference_steps: denoising steps in place of the manifest's.

        Raises:
            ArtifactError: a file is no ONNX model, or its inputs or outputs are not those of a policy.
            ConfigError: the preferred provider cannot be had here, another is unknown, or a number is out of range.
        """
        manifest = artifact.manifest
        self.artifact = artifact
        self.timings: Timings | None = None
        self._normalization = manifest.normalization
        self._diffusion = manifest.diffusion
        if self._diffusion is None and (sampler is not None or inference_steps is not None):
            raise ConfigError(
                f"sampler is {sampler!r}, inference_steps {inference_steps}; the artifact {manifest.name!r} answers at "
                "once and samples nothing: leave both out"
            )
        if self._diffusion is not None:
            chosen = {"sampler": sampler, "inference_steps": inference_steps}
            self._diffusion = replace(self._diffusion, **{k: v for k, v in chosen.items() if v is not None})
        _check_providers(providers)
        if threads < 0:
            raise ConfigError(f"threads is {threads}, expected 0 (all cores) or more")
        self._device = "cuda" if providers[0] in _ON_GPU else "cpu"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Spinning threads take the cores from fusion and the control loop between two inferences.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {part: _open(artifact, part, options, list(providers)) for part in manifest.parts}
        if providers[0] not in self.providers:
            raise ConfigError(
                f"onnxruntime cannot open {providers[0]} here and took {', '.join(self.providers)}: the device or its"
                " libraries (CUDA, cuDNN) are missing, or of another version than onnxruntime was built for"
            )
        sizes: dict[str, tuple[int, str]] = {}
        for part, (inputs, outputs) in expected_tensors(manifest).items():
            _check(part, "input", self._sessions[part].get_inputs(), inputs, sizes)
            _check(part, "output", self._sessions[part].get_outputs(), outputs, sizes)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use; onnxruntime falls back without a word where a GPU's libraries are missing."""
        return tuple(self._sessions[self.artifact.manifest.parts[-1]].get_providers())

    def warm_up(self) -> None:
        """Runs one inference on an empty observation, so that the first real one is as fast as the rest."""
        manifest = self.artifact.manifest
        color = {n: np.zeros((c.height, c.width, 3), np.uint8) for n, c in manifest.cameras.items() if c.rgb}
        joints, history = np.zeros(NUM_JOINTS, np.float32), np.zeros((CHUNK_SIZE, NUM_JOINTS), np.float32)
        views, cloud = np.zeros(manifest.fusion.tiled_shape, np.float32), np.zeros((0, 3), np.float32)
        empty = Observation(_WARM_UP_STAMP_NS, views, color, joints, history, cloud)
        self.infer(empty, np.random.default_rng(0))
        self.timings = None

    def infer(
        self, observation: Observation, rng: np.random.Generator, prefix: NDArray[np.float64] | None = None
    ) -> ActionChunk:
        """Draws an action chunk.

        Args:
            observation: with the colour image of every rgb camera of the manifest.
            rng: source of the sampler's noise; an equal state gives an equal chunk.
            prefix: (d, 14) actions from the observation's stamp on that are committed already, rad and m: the chunk
                begins with them and goes on from there. At most as many as the manifest says.

        Returns:
            Chunk with the observation's stamp, every action within the range of the training data.

        Raises:
            ContractError: a colour image is missing, a network fails, its output is not finite, or the prefix is not
                one that this policy can continue.
        """
        started = time.perf_counter()
        if prefix is None:
            prefix = np.zeros((0, NUM_JOINTS))
        if prefix.ndim != 2 or prefix.shape[1] != NUM_JOINTS or not np.isfinite(prefix).all():
            raise ContractError(f"prefix is {prefix.shape}, expected (d, {NUM_JOINTS}) finite numbers")
        if len(prefix) > (longest := self.artifact.manifest.prefix):
            raise ContractError(f"prefix has {len(prefix)} actions; this policy was trained to continue {longest}")
        feeds, scene = self._feeds(observation), self.artifact.manifest.scene
        preprocessed = time.perf_counter()
        encoded = self._run("encoders", {name: feeds.pop(name) for name in (scene, "action_history")})
        encoded_at = time.perf_counter()
        memory = self._run("context", {**encoded, **feeds})
        context_at = time.perf_counter()
        actions = self._chunk(memory, observation.joint_positions, rng, prefix)
        ended = time.perf_counter()
        marks = (started, preprocessed, encoded_at, context_at, ended)
        self.timings = Timings(*(1e3 * (b - a) for a, b in itertools.pairwise(marks)))
        return ActionChunk(observation.stamp_ns, actions)

    def _feeds(self, observation: Observation) -> dict[str, ort.OrtValue]:
        manifest = self.artifact.manifest
        arrays = {
            manifest.scene: self._scene(observation),
            "action_history": self._normalization.history(observation.action_history),
            "proprio": self._normalization.proprio(observation.joint_positions),
        }
        if manifest.rgb is not None:
            for camera in manifest.rgb_cameras:
                if camera not in observation.colors:
                    seen = sorted(observation.colors)
                    raise ContractError(f"the observation lacks the colour image of {camera!r}; it has {seen}")
                size = (manifest.rgb.height, manifest.rgb.width)
                arrays[f"rgb_{camera}"] = preprocess_rgb(observation.colors[camera], *size)
        return {name: self._value(array[None]) for name, array in arrays.items()}

    def _scene(self, observation: Observation) -> NDArray[np.float32]:
        """The tiled views, or the cloud padded to its full size, as the artifact was trained on."""
        fusion = self.artifact.manifest.fusion
        if self.artifact.manifest.scene == "cloud":
            if observation.cloud is None:
                raise ContractError("the observation has no cloud, which this artifact reads in place of views")
            return pad_cloud(observation.cloud, fusion.max_points)
        if observation.views.shape != fusion.tiled_shape:
            raise ContractError(
                f"views are {observation.views.shape}, the artifact's are {fusion.tiled_shape}; give the artifact to "
                "the fusion node"
            )
        return observation.views

    def _value(self, array: NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)

    def _run(self, part: str, feeds: Mapping[str, ort.OrtValue]) -> dict[str, ort.OrtValue]:
        """Runs a session; its outputs stay on the device."""
        session = self._sessions[part]
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        names = [output.name for output in session.get_outputs()]
        for name in names:
            binding.bind_output(name, self._device)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors have no common base
            raise ContractError(f"{part}.onnx of {self.artifact.folder} failed: {error}") from error
        return dict(zip(names, binding.get_outputs(), strict=True))

    def _chunk(
        self,
        memory: Mapping[str, ort.OrtValue],
        joints: NDArray[np.float32],
        rng: np.random.Generator,
        prefix: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """(50, 14) joint targets, rad and m, that begin with the prefix."""
        cartesian = self.artifact.manifest.cartesian
        if self._diffusion is None:
            normalised = _finite(self._run("decode", memory)["actions"].numpy(), "the policy's chunk")
        else:
            known = self._normalization.actions(prefix)
            if cartesian is not None:
                known = cartesian.encode(prefix[None], joints[None])[0]
            normalised = self._denoise(memory, self._diffusion, rng, known.clip(-1.0, 1.0))
        if cartesian is None:
            return self._normalization.actions_inverse(normalised[0])
        actions = cartesian.decode(normalised[0], joints)
        actions[: len(prefix)] = prefix  # to the bit, whatever inverse kinematics leaves over
        return actions

    def _denoise(
        self,
        memory: Mapping[str, ort.OrtValue],
        diffusion: DiffusionSpec,
        rng: np.random.Generator,
        prefix: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        fixed = dict(memory)
        if self.artifact.manifest.prefix:
            fixed["prefix"] = self._value(np.array([len(prefix)], np.int64))

        def denoise(noisy: NDArray[np.float32], step: int) -> NDArray[np.float32]:
            inputs = {"noisy_actions": self._value(noisy), "step": self._value(np.array([step], np.int64))}
            noise = self._run("denoise", {**inputs, **fixed})["noise"].numpy()
            return _finite(noise, f"the policy's output at denoising step {step}")

        return sample(
            denoise, (1, CHUNK_SIZE, prefix.shape[1]), rng, diffusion.noise_schedule(), diffusion.inference_steps,
            diffusion.sampler, prefix[None],
        )  # fmt: skip


def _check_providers(providers: Sequence[str]) -> None:
    """Refuses what this build of onnxruntime does not have; it would fall back to the CPU."""
    have = ort.get_available_providers()
    if not providers:
        raise ConfigError(f"providers is empty, expected one or more of {', '.join(have)}")
    missing = [name for name in providers if name not in have]
    if not missing:
        return
    near = difflib.get_close_matches(missing[0], have, n=1)
    hint = f"did you mean {near[0]}?" if near else "see onnxruntime's list of execution providers"
    if missing[0] in (*_ON_GPU, "CUDA", "cuda"):
        hint = "CUDAExecutionProvider and TensorrtExecutionProvider come with onnxruntime-gpu, in place of onnxruntime"
    raise ConfigError(f"onnxruntime {ort.__version__} has no {', '.join(missing)}, it has {', '.join(have)}; {hint}")


def _finite(array: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    if not np.isfinite(array).all():
        raise ContractError(f"{what} is not finite; the chunk is dropped")
    return array


def _open(artifact: Artifact, part: str, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
    path = artifact.file(part)
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base
        raise ArtifactError(f"{path} is no ONNX model that onnxruntime {ort.__version__} can run: {error}") from error


def _check(
    part: str, kind: str, found: Sequence[Any], expected: Mapping[str, Tensor], sizes: dict[str, tuple[int, str]]
) -> None:
    """Compares a session's inputs or outputs with the expected ones; named sizes must agree throughout `sizes`."""
    by_name = {tensor.name: tensor for tensor in found}
    if set(by_name) != set(expected):
        raise ArtifactError(f"{part}.onnx has {kind}s {sorted(by_name)}, the manifest asks for {sorted(expected)}")
    for name, (dtype, shape) in expected.items():
        tensor = by_name[name]
        label = f"{part}.onnx {kind} {name!r}"
        if tensor.type != dtype or len(tensor.shape) != len(shape):
            raise ArtifactError(f"{label} is {tensor.type} {tensor.shape}, expected {dtype} {list(shape)}")
        for size, wanted in zip(tensor.shape, shape, strict=True):
            if not isinstance(size, int):  # symbolic: known only when it runs
                continue
            if isinstance(wanted, str):
                wanted, where = sizes.setdefault(wanted, (size, label))
            else:
                where = "the manifest"
            if size != wanted:
                raise ArtifactError(f"{label} has shape {tensor.shape}, {where} asks for {wanted} in place of {size}")
