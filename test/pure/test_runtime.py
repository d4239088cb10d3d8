"""The runtime on tiny closed-form networks: exact chunks, seeds, what it reads, and models it must refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tiny_artifact import NORMALIZATION, TINY_CAMERA, TINY_CAMERAS, build_tiny_artifact, rest_target

from clamp_ros.contract.errors import ArtifactError, ConfigError, ContractError
from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS, REST_POSE
from clamp_ros.contract.views import TILED_SHAPE
from clamp_ros.policy.artifact import PARTS, Artifact, RgbSpec, write_manifest
from clamp_ros.policy.runtime import PolicyRuntime

RGB_CAMERAS = {name: replace(TINY_CAMERA, rgb=name == "front_left") for name in TINY_CAMERAS}


def observation(**changes: Any) -> Observation:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "stamp_ns": 123,
        "views": rng.uniform(0.1, 1.0, TILED_SHAPE).astype(np.float32),
        "colors": {},
        "joint_positions": REST_POSE.astype(np.float32),
        "action_history": np.tile(REST_POSE, (CHUNK_SIZE, 1)).astype(np.float32),
    }
    return Observation(**(values | changes))


def infer(runtime: PolicyRuntime, seen: Observation, seed: int = 0) -> np.ndarray:
    return runtime.infer(seen, np.random.default_rng(seed)).actions


def moving_target() -> np.ndarray:
    ramp = np.linspace(0.0, 0.4, CHUNK_SIZE)[:, None]
    target = REST_POSE + ramp
    target[:, [6, 13]] = 0.02
    return target


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 10, 100])
def test_a_closed_form_policy_gives_its_target(tmp_path: Path, sampler: str, steps: int) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny", target=moving_target())
    runtime = PolicyRuntime(artifact, threads=1, sampler=sampler, inference_steps=steps)
    chunk = runtime.infer(observation(), np.random.default_rng(1))
    assert chunk.stamp_ns == 123
    assert chunk.actions.dtype == np.float64
    np.testing.assert_allclose(chunk.actions, moving_target(), atol=1e-4)


def test_every_stage_is_timed(tmp_path: Path) -> None:
    runtime = PolicyRuntime(build_tiny_artifact(tmp_path / "tiny"), threads=1)
    assert runtime.timings is None
    runtime.warm_up()
    assert runtime.timings is None
    infer(runtime, observation())
    assert runtime.timings is not None
    stages = vars(runtime.timings)
    assert min(stages.values()) > 0.0
    assert runtime.timings.total_ms == pytest.approx(sum(stages.values()))


def test_each_input_reaches_the_network(tmp_path: Path) -> None:
    """Every part of the observation moves the chunk, and the same observation and seed give it bit for bit."""
    artifact = build_tiny_artifact(tmp_path / "tiny", gain=0.05, cameras=RGB_CAMERAS, rgb=RgbSpec(60, 80))
    runtime = PolicyRuntime(artifact, threads=1)
    gray = np.full((240, 424, 3), 100, np.uint8)
    base = observation(colors={"front_left": gray})
    chunk = infer(runtime, base)
    np.testing.assert_array_equal(chunk, infer(runtime, base))
    for change in (
        {"views": base.views * np.float32(1.5)},
        {"joint_positions": base.joint_positions + np.float32(0.1)},
        {"action_history": np.zeros((CHUNK_SIZE, NUM_JOINTS), np.float32)},
        {"colors": {"front_left": gray + np.uint8(50)}},
    ):
        assert np.abs(infer(runtime, replace(base, **change)) - chunk).max() > 1e-4


def test_the_seed_draws_the_noise(tmp_path: Path) -> None:
    runtime = PolicyRuntime(build_tiny_artifact(tmp_path / "tiny", sampler="ddpm"), threads=1)
    seen = observation()
    a, b, c = (infer(runtime, seen, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, c, atol=1e-4)


def test_the_chunk_stays_within_the_range_of_training(tmp_path: Path) -> None:
    runtime = PolicyRuntime(build_tiny_artifact(tmp_path / "tiny", gain=1e3), threads=1)
    actions = infer(runtime, observation())
    assert (actions >= NORMALIZATION.action_min).all()
    assert (actions <= NORMALIZATION.action_max).all()


def test_a_network_that_gives_nan_gives_no_chunk(tmp_path: Path) -> None:
    target = rest_target()
    target[3, 2] = np.nan
    runtime = PolicyRuntime(build_tiny_artifact(tmp_path / "tiny", target=target), threads=1)
    with pytest.raises(ContractError, match=r"at denoising step .* is not finite"):
        infer(runtime, observation())


def test_a_missing_colour_image_is_named(tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny", cameras=RGB_CAMERAS, rgb=RgbSpec(60, 80))
    with pytest.raises(ContractError, match=r"lacks the colour image of 'front_left'; it has \['back_right'\]"):
        infer(PolicyRuntime(artifact), observation(colors={"back_right": np.zeros((240, 424, 3), np.uint8)}))


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_no_model(tmp_path: Path, part: str) -> None:
    """Hash and manifest agree, but the export itself was broken."""
    artifact = build_tiny_artifact(tmp_path / "tiny")
    (artifact.folder / f"{part}.onnx").write_bytes(b"not a model")
    write_manifest(artifact.folder, artifact.manifest)
    with pytest.raises(ArtifactError, match=rf"{part}\.onnx is no ONNX model"):
        PolicyRuntime(Artifact.load(artifact.folder))


def resaved(artifact: Artifact, part: str, model: onnx.ModelProto) -> Artifact:
    (artifact.folder / f"{part}.onnx").write_bytes(model.SerializeToString())
    write_manifest(artifact.folder, artifact.manifest)
    return Artifact.load(artifact.folder)


def test_a_model_with_other_inputs(tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny", cameras=RGB_CAMERAS, rgb=RgbSpec(60, 80))
    plain = build_tiny_artifact(tmp_path / "plain")
    mixed = resaved(artifact, "context", onnx.load(plain.file("context")))
    with pytest.raises(ArtifactError, match=r"context\.onnx has inputs .* asks for .*rgb_front_left"):
        PolicyRuntime(mixed)
    with pytest.raises(ArtifactError, match=r"encoders\.onnx has inputs"):
        PolicyRuntime(resaved(plain, "encoders", onnx.load(plain.file("denoise"))))


def test_a_model_with_other_shapes(tmp_path: Path) -> None:
    cameras, rgb = RGB_CAMERAS, RgbSpec(60, 80)
    artifact = build_tiny_artifact(tmp_path / "tiny", cameras=cameras, rgb=rgb)
    other = build_tiny_artifact(tmp_path / "other", cameras=cameras, rgb=RgbSpec(30, 40))
    with pytest.raises(ArtifactError, match=r"'rgb_front_left' has shape \[1, 3, 30, 40\], the manifest asks for 60"):
        PolicyRuntime(resaved(artifact, "context", onnx.load(other.file("context"))))


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny")
    model = onnx.load(artifact.file("denoise"))
    model.graph.input[2].type.tensor_type.shape.dim[2].dim_value = 4  # heads of the keys
    with pytest.raises(ArtifactError, match=r"denoise\.onnx input 'keys'.*context\.onnx output 'keys' asks for 2"):
        PolicyRuntime(resaved(artifact, "denoise", model))


def test_bad_settings(tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=r"no CUDAExec.*, it has .*CPUExec.*; .* come with onnxruntime-gpu"):
        PolicyRuntime(artifact, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=r"has no CPUExecutionProvder, .* did you mean CPUExecutionProvider\?"):
        PolicyRuntime(artifact, providers=["CPUExecutionProvder"])
    with pytest.raises(ConfigError, match="providers is empty"):
        PolicyRuntime(artifact, providers=[])
    with pytest.raises(ConfigError, match="sampler is 'euler'"):
        PolicyRuntime(artifact, sampler="euler")
    with pytest.raises(ConfigError, match="inference steps are 101"):
        PolicyRuntime(artifact, inference_steps=101)
    with pytest.raises(ConfigError, match="threads is -1"):
        PolicyRuntime(artifact, threads=-1)


def test_a_provider_that_does_not_open_is_not_replaced_without_a_word(tmp_path: Path, monkeypatch) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny")
    assert PolicyRuntime(artifact, threads=1).providers == ("CPUExecutionProvider",)
    # What onnxruntime-gpu does where CUDA's libraries are missing: it lists the provider, and opens on the CPU.
    lists = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: lists)
    opened = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: opened(path, options, lists[1:]))
    with pytest.raises(ConfigError, match=r"cannot open CUDAExecutionProvider here and took CPUExecutionProvider"):
        PolicyRuntime(artifact, providers=lists)


def test_a_chunk_begins_with_what_is_committed(tmp_path: Path) -> None:
    runtime = PolicyRuntime(build_tiny_artifact(tmp_path / "tiny", target=moving_target(), prefix=6), threads=1)
    prefix = np.tile(REST_POSE, (4, 1)) + 0.01
    chunk = runtime.infer(observation(), np.random.default_rng(0), prefix)
    np.testing.assert_allclose(chunk.actions[:4], prefix, atol=1e-6)
    np.testing.assert_allclose(chunk.actions[4:], moving_target()[4:], atol=1e-4)
    np.testing.assert_allclose(infer(runtime, observation()), moving_target(), atol=1e-4)


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        (np.zeros((7, NUM_JOINTS)), "7 actions; this policy was trained to continue 6"),
        (np.zeros((2, 13)), r"prefix is \(2, 13\)"),
        (np.full((2, NUM_JOINTS), np.nan), "finite"),
    ],
)
def test_a_prefix_that_cannot_be_continued_is_refused(tmp_path: Path, prefix: np.ndarray, says: str) -> None:
    runtime = PolicyRuntime(build_tiny_artifact(tmp_path / "tiny", prefix=6), threads=1)
    with pytest.raises(ContractError, match=says):
        runtime.infer(observation(), np.random.default_rng(0), prefix)


def test_the_network_must_read_the_prefix_that_the_manifest_promises(tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path / "tiny")
    write_manifest(artifact.folder, replace(artifact.manifest, prefix=6))
    with pytest.raises(ArtifactError, match=r"denoise\.onnx has inputs .*asks for .*'prefix'"):
        PolicyRuntime(Artifact.load(artifact.folder), threads=1)
