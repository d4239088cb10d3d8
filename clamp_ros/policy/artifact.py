"""The policy artifact: a folder of ONNX files and the manifest that says what they were trained for.

The manifest fixes joints, rates, horizons, cameras, fusion, normalisation and diffusion; whoever runs the artifact
chooses only the device and the path. Everything is checked when it is loaded, and a mismatch names both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clamp_ros.contract.errors import ArtifactError, ConfigError, ContractError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_RATE_HZ, JOINT_NAMES
from clamp_ros.contract.views import FusionConfig
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.policy.cartesian import CartesianActions
from clamp_ros.policy.diffusion import PREDICTION, SAMPLERS, SCHEDULE, DiffusionSchedule
from clamp_ros.policy.preprocess import Normalization

FORMAT = 1
MANIFEST_NAME = "manifest.json"
PARTS = ("encoders", "context", "denoise")
"""The ONNX files: frozen image and action encoders; policy encoder and cross-attention K/V; one denoising step."""
PARTS_AT_ONCE = ("encoders", "context", "decode")
"""Those of a policy that does not denoise: the last gives the chunk."""
SCENES = ("views", "cloud")
PRECISIONS = ("fp32", "fp16")
INTRINSICS_TOLERANCE = 0.05
"""Cameras of one model differ by a few per cent; the cloud is computed from the live intrinsics in any case."""


@dataclass(frozen=True)
class CameraSpec:
    """One physical camera as it was in training; `rgb` says whether the policy sees its colour image."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    rgb: bool

    def __post_init__(self) -> None:
        Pinhole(self.width, self.height, self.fx, self.fy, self.cx, self.cy)


@dataclass(frozen=True)
class RgbSpec:
    """Size that colour images are resized to."""

    height: int
    width: int


@dataclass(frozen=True)
class DiffusionSpec:
    """The schedule of training and how to sample from it."""

    train_steps: int
    schedule: str
    prediction: str
    clip: float
    sampler: str
    inference_steps: int

    def __post_init__(self) -> None:
        for what, value, known in (
            ("schedule", self.schedule, (SCHEDULE,)),
            ("prediction", self.prediction, (PREDICTION,)),
            ("sampler", self.sampler, SAMPLERS),
        ):
            if value not in known:
                raise ConfigError(f"diffusion.{what} is {value!r}, expected one of {', '.join(known)}")
        self.noise_schedule().steps(self.inference_steps)

    def noise_schedule(self) -> DiffusionSchedule:
        """The schedule itself."""
        return DiffusionSchedule(self.train_steps, self.clip)


@dataclass(frozen=True)
class FileSpec:
    """A file of the artifact, by name within its folder and SHA-256 in hexadecimal."""

    file: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """What an artifact was trained for; see the module. `training` and `score` are free-form records for people.

    `prefix` is the largest number of committed actions that the policy can continue (real-time chunking); 0 for a
    policy that was not trained to. `diffusion` is None for a policy that answers at once (ACT): its third file is
    `decode` in place of `denoise`. `scene` is what the image encoder reads: the 'views', or the 'cloud' itself (DP3).
    `cartesian` converts the actions of a policy that acts in poses of the grippers. `precision` is that of the ONNX
    files' insides; their inputs and outputs are float32 in any case.
    """

    name: str
    task: str
    cameras: Mapping[str, CameraSpec]
    image_rate_hz: float
    rgb: RgbSpec | None
    fusion: FusionConfig
    normalization: Normalization
    diffusion: DiffusionSpec | None
    files: Mapping[str, FileSpec]
    training: Mapping[str, Any]
    score: Mapping[str, Any]
    prefix: int = 0
    scene: str = "views"
    cartesian: CartesianActions | None = None
    precision: str = "fp32"
    format: int = FORMAT
    joint_names: tuple[str, ...] = JOINT_NAMES
    control_rate_hz: int = CONTROL_RATE_HZ
    chunk_size: int = CHUNK_SIZE
    history_size: int = CHUNK_SIZE

    def __post_init__(self) -> None:
        for what, value, expected in (
            ("format", self.format, FORMAT),
            ("joint_names", tuple(self.joint_names), JOINT_NAMES),
            ("control_rate_hz", self.control_rate_hz, CONTROL_RATE_HZ),
            ("chunk_size", self.chunk_size, CHUNK_SIZE),
            ("history_size", self.history_size, CHUNK_SIZE),
        ):
            if value != expected:
                raise ArtifactError(
                    f"the artifact's {what} is {value}, this stack's is {expected}; "
                    "use an artifact exported for this robot and version"
                )
        if not self.cameras or not set(self.cameras) <= set(CAMERAS):
            raise ArtifactError(f"the artifact's cameras are {list(self.cameras)}, this stack's are {list(CAMERAS)}")
        if self.scene not in SCENES:
            raise ArtifactError(f"scene is {self.scene!r}, expected one of {', '.join(SCENES)}")
        if self.precision not in PRECISIONS:
            raise ArtifactError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if self.prefix and self.diffusion is None:
            raise ArtifactError(f"prefix is {self.prefix}, but an artifact without diffusion cannot continue actions")
        if not 0 <= self.prefix < CHUNK_SIZE:
            raise ArtifactError(f"prefix is {self.prefix}, expected 0 to {CHUNK_SIZE - 1}")
        if not self.image_rate_hz > 0.0:
            raise ArtifactError(f"image_rate_hz is {self.image_rate_hz}, expected a positive number")
        if (self.rgb is not None) != bool(self.rgb_cameras):
            raise ArtifactError(f"rgb size is {self.rgb}, rgb cameras are {list(self.rgb_cameras)}: give both or none")
        if self.rgb is not None and min(self.rgb.height, self.rgb.width) < 1:
            raise ArtifactError(f"rgb size is {self.rgb}, expected positive numbers")

    @property
    def parts(self) -> tuple[str, ...]:
        """The artifact's ONNX files."""
        return PARTS if self.diffusion is not None else PARTS_AT_ONCE

    @property
    def rgb_cameras(self) -> tuple[str, ...]:
        """Cameras whose colour image the policy sees, in the manifest's order."""
        return tuple(name for name, camera in self.cameras.items() if camera.rgb)

    def check_cameras(self, live: Mapping[str, Pinhole]) -> None:
        """Compares live intrinsics with those of training, for every camera of the manifest.

        Raises:
            ArtifactError: a camera is missing, its image has another size, or its intrinsics are not within 5 %.
        """
        for name in self.cameras:
            if name not in live:
                raise ArtifactError(f"the artifact needs camera {name!r}; live cameras are {sorted(live)}")
            self.check_camera(name, live[name])

    def check_camera(self, name: str, pinhole: Pinhole) -> None:
        """Compares one camera's live intrinsics; see `check_cameras`."""
        spec = self.cameras[name]
        size, live_size = (spec.width, spec.height), (pinhole.width, pinhole.height)
        if size != live_size:
            raise ArtifactError(
                f"camera {name!r} sends {live_size[0]}x{live_size[1]}, the artifact {self.name!r} was trained on "
                f"{size[0]}x{size[1]}; set the camera's size or use another artifact"
            )
        scales = {"fx": spec.fx, "fy": spec.fy, "cx": spec.width, "cy": spec.height}
        for key, scale in scales.items():
            trained, now = getattr(spec, key), getattr(pinhole, key)
            if abs(now - trained) > INTRINSICS_TOLERANCE * scale:
                raise ArtifactError(
                    f"camera {name!r} has {key} {now:.1f}, the artifact {self.name!r} was trained with {trained:.1f}; "
                    f"more than {INTRINSICS_TOLERANCE:.0%} apart: another lens, or another camera of this name"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in the order in which people read them."""
        return {
            "format": self.format,
            "name": self.name,
            "task": self.task,
            "joint_names": list(self.joint_names),
            "control_rate_hz": self.control_rate_hz,
            "chunk_size": self.chunk_size,
            "history_size": self.history_size,
            "cameras": {name: vars(camera) for name, camera in self.cameras.items()},
            "image_rate_hz": self.image_rate_hz,
            "rgb": None if self.rgb is None else vars(self.rgb),
            "fusion": self.fusion.to_dict(),
            "normalization": {key: value.tolist() for key, value in vars(self.normalization).items()},
            "diffusion": None if self.diffusion is None else vars(self.diffusion),
            "prefix": self.prefix,
            "scene": self.scene,
            "cartesian": None if self.cartesian is None else self.cartesian.to_dict(),
            "precision": self.precision,
            "files": {part: vars(spec) for part, spec in self.files.items()},
            "training": dict(self.training),
            "score": dict(self.score),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """The inverse of `to_dict`.

        Raises:
            ArtifactError: a key is missing, unknown, of the wrong type, or out of range.
        """
        try:
            top = {**_LATER, **_record(values, "manifest", _TOP, optional=_LATER)}
            return cls(
                **{key: top[key] for key in ("name", "task", "training", "score", "format", "control_rate_hz")},
                **{key: top[key] for key in ("chunk_size", "history_size", "image_rate_hz", "prefix", "scene")},
                precision=top["precision"],
                joint_names=tuple(top["joint_names"]),
                cameras={n: CameraSpec(**_record(c, f"cameras.{n}", _CAMERA)) for n, c in top["cameras"].items()},
                rgb=None if top["rgb"] is None else RgbSpec(**_record(top["rgb"], "rgb", _RGB)),
                fusion=FusionConfig.from_dict(top["fusion"]),
                normalization=Normalization(**_record(top["normalization"], "normalization", _NORMALIZATION)),
                diffusion=None
                if top["diffusion"] is None
                else DiffusionSpec(**_record(top["diffusion"], "diffusion", _DIFFUSION)),
                cartesian=None
                if top["cartesian"] is None
                else CartesianActions(**_record(top["cartesian"], "cartesian", _CARTESIAN)),
                files={p: FileSpec(**_record(f, f"files.{p}", _FILE)) for p, f in top["files"].items()},
            )
        except (ConfigError, ContractError, TypeError, ValueError) as error:
            raise ArtifactError(f"the manifest is not valid: {error}") from error


_NUMBER = (int, float)
_TOP: dict[str, tuple[type, ...]] = {
    "format": (int,), "name": (str,), "task": (str,), "joint_names": (list,), "control_rate_hz": (int,),
    "chunk_size": (int,), "history_size": (int,), "cameras": (dict,), "image_rate_hz": _NUMBER,
    "rgb": (dict, type(None)), "fusion": (dict,), "normalization": (dict,), "diffusion": (dict, type(None)),
    "files": (dict,), "training": (dict,), "score": (dict,), "prefix": (int,), "scene": (str,),
    "cartesian": (dict, type(None)), "precision": (str,),
}  # fmt: skip
_LATER: dict[str, Any] = {"prefix": 0, "scene": "views", "cartesian": None, "precision": "fp32"}
"""Keys that older artifacts lack, and what their absence means."""
_CAMERA = {"width": (int,), "height": (int,), **dict.fromkeys(("fx", "fy", "cx", "cy"), _NUMBER), "rgb": (bool,)}
_RGB = {"height": (int,), "width": (int,)}
_NORMALIZATION: dict[str, tuple[type, ...]] = {
    "proprio_mean": (list,), "proprio_std": (list,), "action_min": (list,), "action_max": (list,),
}  # fmt: skip
_DIFFUSION = {
    "train_steps": (int,), "schedule": (str,), "prediction": (str,), "clip": _NUMBER, "sampler": (str,),
    "inference_steps": (int,),
}  # fmt: skip
_CARTESIAN = {"relative": (bool,), "low": (list,), "high": (list,)}
_FILE = {"file": (str,), "sha256": (str,)}


def _record(
    values: Any, what: str, schema: Mapping[str, tuple[type, ...]], optional: Container[str] = ()
) -> dict[str, Any]:
    """Checks that `values` is an object with exactly the keys and types of the schema, but that some may be missing."""
    if not isinstance(values, dict):
        raise ArtifactError(f"{what} is {type(values).__name__}, expected an object")
    missing = sorted(key for key in schema if key not in values and key not in optional)
    unknown = sorted(set(values) - set(schema))
    if missing or unknown:
        raise ArtifactError(f"{what} lacks the keys {missing} and has unknown keys {unknown}; export it again")
    for key, value in values.items():
        types = schema[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(t.__name__ for t in types)
            raise ArtifactError(f"{what}.{key} is {value!r}, expected {expected}")
    return values


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes `manifest.json` beside the ONNX files of the manifest's `parts`, with their hashes.

    Args:
        folder: holds the three files already.
        manifest: its `files` are ignored.

    Returns:
        The manifest as written, `files` filled in.

    Raises:
        ArtifactError: an ONNX file is missing.
    """
    files = {}
    for part in manifest.parts:
        path = folder / f"{part}.onnx"
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; export the ONNX files before the manifest")
        files[part] = FileSpec(path.name, sha256(path))
    written = replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_text(json.dumps(written.to_dict(), indent=2) + "\n", encoding="utf-8")
    return written


@dataclass(frozen=True, eq=False)
class Artifact:
    """A loaded and verified artifact folder."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Reads the manifest and verifies every file's hash.

        Args:
            path: the artifact's folder, or its manifest.json.

        Raises:
            ArtifactError: the folder, manifest or a file is missing, corrupt, or not for this stack.
        """
        folder = Path(path).expanduser()
        if folder.name == MANIFEST_NAME:
            folder = folder.parent
        manifest_path = folder / MANIFEST_NAME
        if not manifest_path.is_file():
            raise ArtifactError(f"there is no {MANIFEST_NAME} in {folder}; give the folder of an exported policy")
        try:
            manifest = Manifest.from_dict(json.loads(manifest_path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{manifest_path} is not JSON ({error}); restore or export it again") from error
        except ArtifactError as error:
            raise ArtifactError(f"{manifest_path}: {error}") from error
        found, expected = sorted(manifest.files), sorted(manifest.parts)
        if found != expected:
            raise ArtifactError(f"{manifest_path}: files are {found}, expected {expected}")
        artifact = cls(folder, manifest)
        for part, spec in manifest.files.items():
            file = artifact.file(part)
            if Path(spec.file).name != spec.file:
                raise ArtifactError(f"{manifest_path}: files.{part} is {spec.file!r}, expected a name without a folder")
            if not file.is_file():
                raise ArtifactError(f"{file} is missing; copy the artifact's whole folder")
            if (found := sha256(file)) != spec.sha256:
                raise ArtifactError(
                    f"{file} is corrupt: its SHA-256 is {found}, the manifest says {spec.sha256}; copy it again"
                )
        return artifact

    def file(self, part: str) -> Path:
        """Path of one of the ONNX files, by its name in the manifest's `parts`."""
        return self.folder / self.manifest.files[part].file
