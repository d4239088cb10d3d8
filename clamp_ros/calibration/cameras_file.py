"""Writes poses into config/cameras.yaml, where `camera_node` reads them: in place, comments and order kept.

The node sends them on /tf_static, and everything that needs a camera's pose looks it up there. Only the lines of
`position_m` and `quat_xyzw` change. The file is replaced at once or not at all, and the old one is kept beside it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clamp_ros.calibration.problem import Matrix
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.geometry.transforms import make, quat_xyzw_from_rotation, rotation_from_quat_xyzw

_KEYS = ("position_m", "quat_xyzw")


@dataclass(frozen=True, eq=False)
class Mounted:
    """One camera's entry: what it is mounted on, and its pose there where it has one."""

    frame: str
    frame_from_camera: Matrix | None


def read_cameras(path: Path) -> dict[str, Mounted]:
    """The cameras of a parameter file of `camera_node`, by name.

    Raises:
        ConfigError: it is not such a file, or a pose in it is none.
    """
    _, text = _load(path)
    out = {}
    for name, section in _sections(yaml.safe_load(text)):
        position, quat = (section.get(key) or () for key in _KEYS)
        pose = None
        if len(position) or len(quat):
            try:
                pose = make(rotation_from_quat_xyzw(quat), np.asarray(position, dtype=np.float64))
            except Exception as error:
                raise ConfigError(f"{name} in {path} has no pose: position_m {position}, quat_xyzw {quat}") from error
        out[name] = Mounted(str(section.get("frame", "world")), pose)
    if not out:
        raise ConfigError(f"{path} names none of {', '.join(CAMERAS)}; expected a parameter file of camera_node")
    return out


def write_poses(path: Path, poses: Mapping[str, Matrix], mounts: Mapping[str, str], note: str) -> Path:
    """Puts poses into a parameter file.

    Args:
        path: the file; what a symbolic link points to is replaced, not the link.
        poses: camera name to (4, 4) frame_from_camera.
        mounts: camera name to the frame of its pose, which must be the file's.
        note: goes into a comment beside each position.

    Returns:
        The backup of the file as it was.

    Raises:
        ConfigError: a camera has no section, or one that cannot be edited line by line; the file is as it was.
    """
    for name, mounted in read_cameras(path).items():
        if name in poses and mounted.frame != mounts[name]:
            raise ConfigError(f"{name} is mounted on {mounted.frame} in {path}, and was calibrated on {mounts[name]}")
    path, text = _load(path)
    new = text
    for name, pose in poses.items():
        new = _with_pose(path, new, name, pose, note)
    _check_nothing_else_changed(path, text, new, poses)
    stem = f"{path.name}.{time.strftime('%Y-%m-%dT%H-%M-%S')}"
    tries = (path.with_name(f"{stem}{suffix}.bak") for suffix in ("", *(f"_{i}" for i in range(1, 100))))
    backup = next(candidate for candidate in tries if not candidate.exists())  # never over an older one
    scratch = path.with_name(f".{path.name}.partial")
    try:
        shutil.copy2(path, backup)
        with scratch.open("w") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, scratch)
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}; it is as it was") from None
    return backup


def _load(path: Path) -> tuple[Path, str]:
    try:
        path = path.resolve(strict=True)
        text = path.read_text()
        yaml.safe_load(text)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from None
    return path, text


def _sections(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each camera's mapping, whatever node name it stands under."""
    for node in content.values() if isinstance(content, dict) else ():
        parameters = node.get("ros__parameters") if isinstance(node, dict) else None
        for name in CAMERAS:
            section = parameters.get(name) if isinstance(parameters, dict) else None
            if isinstance(section, dict):
                yield name, section


def _with_pose(path: Path, text: str, name: str, pose: Matrix, note: str) -> str:
    lines = text.splitlines(keepends=True)
    section = _section_node(path, text, name)
    drop: set[int] = set()
    after = section.value[0][1].end_mark.line if section.value else section.start_mark.line
    for key, value in section.value:
        if key.value == "frame":
            after = value.end_mark.line
        if key.value in _KEYS:
            last = value if value.flow_style or not value.value else value.value[-1]
            drop.update(range(key.start_mark.line, last.end_mark.line + 1))
    indent = " " * section.value[0][0].start_mark.column
    # never 1e-05, which YAML 1.1 takes for text
    position = ", ".join(f"{v:.6f}" for v in pose[:3, 3])
    quat = ", ".join(f"{v:.8f}" for v in quat_xyzw_from_rotation(pose[:3, :3]))
    added = [f"{indent}position_m: [{position}] # {note}\n", f"{indent}quat_xyzw: [{quat}]\n"]
    kept = []
    for number, line in enumerate(lines):
        if number not in drop:
            kept.append(line if line.endswith("\n") else line + "\n")
        if number == after:
            kept += added
    return "".join(kept)


def _section_node(path: Path, text: str, name: str) -> yaml.MappingNode:
    """The YAML node of a camera's mapping, which knows its lines."""
    found = []
    root = yaml.compose(text)
    for _, node in root.value if isinstance(root, yaml.MappingNode) else ():
        for key, parameters in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value == "ros__parameters" and isinstance(parameters, yaml.MappingNode):
                found += [value for camera, value in parameters.value if camera.value == name]
    if len(found) != 1:
        raise ConfigError(
            f"{path} has {len(found)} sections for {name}, expected one under <node>: ros__parameters: {name}:"
        )
    section = found[0]
    if not isinstance(section, yaml.MappingNode) or section.flow_style or not section.value:
        raise ConfigError(f"{name} in {path} must be written over several lines, one key each, to be edited")
    return section


def _check_nothing_else_changed(path: Path, old: str, new: str, poses: Mapping[str, Matrix]) -> None:
    """Reads the new text back: the poses are there, and everything else is as it was."""
    before, after = yaml.safe_load(old), yaml.safe_load(new)
    for name, section in _sections(after):
        if name in poses:
            read = make(rotation_from_quat_xyzw(section["quat_xyzw"]), section["position_m"])
            if not np.allclose(read, poses[name], atol=2e-6):
                raise ConfigError(f"the pose of {name} would not be read back from {path} as it is; write it by hand")
    for content in (before, after):
        for name, section in _sections(content):
            if name in poses:
                for key in _KEYS:
                    section.pop(key, None)
    if before != after:
        raise ConfigError(f"{path} cannot be edited without changing something else; write the poses by hand")
