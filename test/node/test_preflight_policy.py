"""Preflight tells where a policy cannot run as configured, before the robot moves."""

from __future__ import annotations

from dataclasses import replace

from tiny_artifact import build_tiny_artifact

from clamp_ros.bringup.preflight import _inference
from clamp_ros.policy.artifact import Artifact, write_manifest
from clamp_ros.policy.policy_node import PolicyConfig
from clamp_ros.preflight import Verdict

GPU_FIRST = ("CUDAExecutionProvider", "CPUExecutionProvider")


def test_a_provider_that_is_not_installed_is_named(tmp_path):
    check = _inference(build_tiny_artifact(tmp_path / "tiny"), PolicyConfig(providers=GPU_FIRST))
    assert check.verdict is Verdict.FAILED
    assert "has no CUDAExecutionProvider, it has" in check.found and "come with onnxruntime-gpu" in check.found
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in check.fix and "CUDAExecutionProvider" in check.fix


def test_half_precision_on_a_cpu_is_a_warning(tmp_path):
    artifact = build_tiny_artifact(tmp_path / "tiny")
    assert _inference(artifact, PolicyConfig()).verdict is Verdict.OK
    write_manifest(artifact.folder, replace(artifact.manifest, precision="fp16"))
    check = _inference(Artifact.load(artifact.folder), PolicyConfig())
    assert check.verdict is Verdict.WARNING and "the artifact is fp16, which a CPU computes in fp32" in check.found
