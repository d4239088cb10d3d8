"""The manifest's round trip, and every way in which an artifact may be wrong, each with an error that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_artifact import TINY_CAMERA, build_tiny_artifact

from clamp_ros.contract.errors import ArtifactError
from clamp_ros.contract.robot import JOINT_NAMES
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.policy.artifact import MANIFEST_NAME, Artifact, Manifest, RgbSpec, write_manifest

LIVE = Pinhole(424, 240, 312.6, 312.6, 211.5, 119.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_tiny_artifact(tmp_path / "tiny").folder


def edit(folder: Path, change: Any) -> None:
    path = folder / MANIFEST_NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_round_trip(folder: Path) -> None:
    manifest = Artifact.load(folder).manifest
    again = Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())))
    assert again.to_dict() == manifest.to_dict()
    assert again.fusion == manifest.fusion
    np.testing.assert_array_equal(again.normalization.action_min, manifest.normalization.action_min)
    assert again.cameras == {"front_left": TINY_CAMERA, "back_right": TINY_CAMERA}
    assert again.joint_names == JOINT_NAMES
    assert again.rgb_cameras == ()


def test_an_older_artifact_lacks_what_came_later(folder: Path) -> None:
    edit(folder, lambda m: m.pop("prefix"))
    assert Artifact.load(folder).manifest.prefix == 0


def test_the_manifest_itself_may_be_named(folder: Path) -> None:
    assert Artifact.load(folder / MANIFEST_NAME).folder == folder


MISMATCHES = [
    (lambda m: m.update(format=2), ["format is 2", "this stack's is 1"]),
    (lambda m: m.update(joint_names=["a", *m["joint_names"][1:]]), ["joint_names", "'a'", "left/waist"]),
    (lambda m: m.update(control_rate_hz=30), ["control_rate_hz is 30", "50"]),
    (lambda m: m.update(chunk_size=100), ["chunk_size is 100", "50"]),
    (lambda m: m.update(history_size=10), ["history_size is 10", "50"]),
    (lambda m: m.update(image_rate_hz=0), ["image_rate_hz is 0"]),
    (lambda m: m.update(cameras={}), ["cameras are []", "front_left"]),
    (lambda m: m["cameras"].update(top=m["cameras"]["front_left"]), ["'top'", "wrist_left"]),
    (lambda m: m.update(rgb={"height": 60, "width": 80}), ["rgb", "give both or none"]),
    (lambda m: m.update(prefix=50), ["prefix is 50", "0 to 49"]),
    (lambda m: m.update(prefix="long"), ["manifest.prefix is 'long'", "int"]),
    (lambda m: m.update(colour=True), ["unknown keys ['colour']"]),
    (lambda m: m.pop("normalization"), ["lacks the keys ['normalization']"]),
    (lambda m: m["normalization"].pop("proprio_std"), ["normalization lacks the keys ['proprio_std']"]),
    (lambda m: m["normalization"].update(proprio_std=[0.0] * 14), ["proprio_std", "positive"]),
    (lambda m: m["normalization"].update(action_min=["x"] * 14), ["not valid", "'x'"]),
    (lambda m: m["cameras"]["front_left"].update(fx="wide"), ["cameras.front_left.fx is 'wide'", "int or float"]),
    (lambda m: m["cameras"]["front_left"].update(width=True), ["cameras.front_left.width is True", "int"]),
    (lambda m: m["cameras"]["front_left"].update(fx=-1.0), ["fx=-1.0"]),
    (lambda m: m["diffusion"].update(schedule="linear"), ["'linear'", "squared_cosine"]),
    (lambda m: m["diffusion"].update(sampler="euler"), ["'euler'", "ddim"]),
    (lambda m: m["diffusion"].update(inference_steps=500), ["500", "100 of training"]),
    (lambda m: m["fusion"].update(voxel_m=5.0), ["voxel_m is 5.0"]),
    (lambda m: m["fusion"].update(voxels=5.0), ["voxels"]),
    (lambda m: m["fusion"]["views"][0].pop("eye_m"), ["eye_m"]),
    (lambda m: m["files"].pop("denoise"), ["files are ['context', 'encoders']"]),
    (lambda m: m["files"]["denoise"].update(file="../denoise.onnx"), ["without a folder"]),
]


@pytest.mark.parametrize(("change", "says"), MISMATCHES, ids=[says[0] for _, says in MISMATCHES])
def test_a_bad_manifest_names_both_sides(folder: Path, change: Any, says: list[str]) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError) as error:
        Artifact.load(folder)
    for part in (*says, MANIFEST_NAME):
        assert part in str(error.value)


def test_what_is_not_there_or_not_json(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json in .*nowhere"):
        Artifact.load(tmp_path / "nowhere")
    (folder / MANIFEST_NAME).write_text("{")
    with pytest.raises(ArtifactError, match="is not JSON"):
        Artifact.load(folder)
    (folder / MANIFEST_NAME).write_text("[]")
    with pytest.raises(ArtifactError, match="manifest is list, expected an object"):
        Artifact.load(folder)


def test_a_corrupt_or_missing_file(folder: Path) -> None:
    path = folder / "context.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"context\.onnx is corrupt.*copy it again"):
        Artifact.load(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"context\.onnx is missing.*copy the artifact's whole folder"):
        Artifact.load(folder)


def test_a_manifest_is_not_written_without_its_files(folder: Path) -> None:
    manifest = Artifact.load(folder).manifest
    (folder / "denoise.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"denoise\.onnx is missing"):
        write_manifest(folder, manifest)


def test_live_cameras_that_fit(folder: Path) -> None:
    close = Pinhole(424, 240, 312.6 * 1.04, 312.6 * 0.97, 205.0, 125.0)
    Artifact.load(folder).manifest.check_cameras({"front_left": LIVE, "back_right": close, "wrist_left": LIVE})


@pytest.mark.parametrize(
    ("live", "says"),
    [
        ({"front_left": LIVE}, ["needs camera 'back_right'", "['front_left']"]),
        ({"front_left": LIVE, "back_right": Pinhole(848, 480, 625.0, 625.0, 423.5, 239.5)}, ["848x480", "424x240"]),
        ({"front_left": LIVE, "back_right": Pinhole(424, 240, 350.0, 312.6, 211.5, 119.5)}, ["fx 350.0", "312.6"]),
        ({"front_left": LIVE, "back_right": Pinhole(424, 240, 312.6, 312.6, 211.5, 140.0)}, ["cy 140.0", "119.5"]),
    ],
)
def test_live_cameras_that_do_not_fit_name_both_sides(folder: Path, live: Any, says: list[str]) -> None:
    with pytest.raises(ArtifactError) as error:
        Artifact.load(folder).manifest.check_cameras(live)
    for part in says:
        assert part in str(error.value)


def test_rgb_cameras_keep_their_order(tmp_path: Path) -> None:
    names = ("wrist_left", "back_right", "front_left")
    cameras = {name: replace(TINY_CAMERA, rgb=name != "back_right") for name in names}
    artifact = build_tiny_artifact(tmp_path / "rgb", cameras=cameras, rgb=RgbSpec(60, 80))
    assert artifact.manifest.rgb_cameras == ("wrist_left", "front_left")
