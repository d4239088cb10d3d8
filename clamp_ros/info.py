"""What `clamp info` tells: about a policy artifact, a bag, a folder of bags, or the machine it runs on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import clamp_ros
from clamp_ros.contract.errors import ClampError, RecordError
from clamp_ros.policy.artifact import MANIFEST_NAME, Artifact, Manifest
from clamp_ros.record.audit import audit
from clamp_ros.record.metadata import METADATA_FILE
from clamp_ros.record.writer import PARTIAL_SUFFIX
from clamp_ros.ros.environment import DEFAULTS

_PACKAGES = {
    "runtime": ("numpy", "numba", "onnxruntime", "opencv-python-headless", "mcap", "rosbags"),
    "simulation": ("mujoco", "robosuite-models", "imageio-ffmpeg"),
    "ROS by pip": ("ros-rclpy", "ros-sensor-msgs"),
    "training": ("torch", "onnx", "onnxscript", "safetensors"),
    "datasets": ("h5py", "pyarrow"),
}


def about(path: Path) -> tuple[str, bool]:
    """What is at a path, in words, and whether it is good.

    Raises:
        ClampError: there is nothing that can be told about.
    """
    if path.name == MANIFEST_NAME or (path / MANIFEST_NAME).is_file():
        return _artifact(Artifact.load(path)), True
    if (path / METADATA_FILE).is_file() or path.name.endswith(PARTIAL_SUFFIX):
        report = audit(path)
        return report.text(), report.ok
    bags = sorted(p.parent for p in path.rglob(METADATA_FILE)) if path.is_dir() else []
    if not bags:
        raise ClampError(f"{path} is neither a policy (a folder with {MANIFEST_NAME}) nor a bag, nor a folder of bags")
    return _bags(path, bags)


def _space(manifest: Manifest) -> str:
    if manifest.cartesian is None:
        return ""
    return f", from {'relative' if manifest.cartesian.relative else 'absolute'} poses of the grippers"


def _sampler(manifest: Manifest) -> str:
    d = manifest.diffusion
    return "none: a chunk at once" if d is None else f"{d.sampler}, {d.inference_steps} of {d.train_steps} steps"


def _artifact(artifact: Artifact) -> str:
    m = artifact.manifest
    size = sum(artifact.file(part).stat().st_size for part in m.files)
    cameras = ", ".join(f"{n} {c.width}x{c.height}{' with colour' if c.rgb else ''}" for n, c in m.cameras.items())
    lines = [
        f"policy {m.name} in {artifact.folder}: {size / 1e6:.1f} MB, files as in the manifest",
        f"  task      {m.task}",
        f"  cameras   {cameras}, at {m.image_rate_hz:g} Hz",
        f"  fusion    voxel {1e3 * m.fusion.voxel_m:g} mm, at most {m.fusion.max_points:,} points",
        f"  reads     the {m.scene}",
        f"  precision {m.precision}",
        f"  actions   chunks of {m.chunk_size} at {m.control_rate_hz} Hz; {len(m.joint_names)} joints{_space(m)}",
        f"  sampler   {_sampler(m)}",
    ]
    if m.prefix:
        lines.append(f"  prefix    continues up to {m.prefix} committed actions (real-time chunking)")
    lines += [f"  score     {key}: {_score(value)}" for key, value in m.score.items()]
    for key, value in m.training.items():
        lines += [f"  training  {key}: {line}" for line in _told(key, value)]
    return "\n".join(lines)


def _score(value: Any) -> str:
    """A score as `clamp eval` writes it; others as they are."""
    try:
        low, high = value["wilson_95"]
        return f"{value['successes']} of {value['episodes']}, 95 % interval {low:.0%} to {high:.0%}"
    except (KeyError, TypeError, ValueError):
        return str(value)


def _told(key: str, value: Any) -> list[str]:
    """A fact of an artifact's training, in a line or several."""
    if key == "experiment" and isinstance(value, dict):
        return [f"{value.get('name', '')} (all its settings are in manifest.json)"]
    if key == "seeds" and isinstance(value, dict):
        ranges = {task: ", ".join(f"{first} to {last}" for first, last in parts) for task, parts in value.items()}
        return [f"{task} {text}" for task, text in ranges.items()]
    if isinstance(value, dict):
        return [", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in value.items())]
    return [str(line) for line in value] if isinstance(value, list) else [str(value)]


def _bags(folder: Path, bags: list[Path]) -> tuple[str, bool]:
    seconds, lines = 0.0, []
    for bag in bags:
        try:
            report = audit(bag)
        except RecordError as error:
            lines.append(f"  {bag.relative_to(folder)}: {error}")
            continue
        seconds += report.duration_s
        lines += [f"  {bag.relative_to(folder)}: {problem}" for problem in report.problems]
    size = sum(f.stat().st_size for bag in bags for f in bag.iterdir() if f.is_file())
    verdict = "no problems" if not lines else f"{len(lines)} problems:"
    head = f"{folder}: {len(bags)} bags, {seconds / 60.0:.1f} minutes, {size / 1e6:.1f} MB; {verdict}"
    return "\n".join([head, *lines]), not lines


def environment() -> str:
    """Versions, hardware and what is missing here."""
    gb = 1e9
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gb
    lines = [
        f"clamp_ros {clamp_ros.__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"  {os.cpu_count()} cores, {memory:.0f} GB memory, {shutil.disk_usage(Path.cwd()).free / gb:.0f} GB free here",
    ]
    for group, packages in _PACKAGES.items():
        found = {name: _version(name) for name in packages}
        words = ", ".join(f"{name} {version}" if version else f"{name} MISSING" for name, version in found.items())
        lines.append(f"  {group + ':':<13}{words}")
    lines.append(f"  {'ROS:':<13}{_ros()}")
    lines.append(f"  {'OpenGL:':<13}{_opengl()}")
    lines.append(f"  {'devices:':<13}{_providers()}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _ros() -> str:
    if importlib.util.find_spec("rclpy") is None:
        return "rclpy MISSING: source /opt/ros/*/setup.bash, or pip install 'clamp_ros[ros]'"
    origin = f"of {os.environ['ROS_DISTRO']}" if "ROS_DISTRO" in os.environ else "from PyPI"
    missing = "" if importlib.util.find_spec("tf2_msgs") else "; tf2_msgs will be generated"
    own = any(name in os.environ for name in DEFAULTS)
    scope = "as your Fast DDS profile says" if own else "within this host"
    if os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "LOCALHOST":
        scope += "; ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST makes images late or lost: unset it"
    return f"rclpy {origin}{missing}; domain {os.environ.get('ROS_DOMAIN_ID', '0')}, discovery {scope}"


def _opengl() -> str:
    if importlib.util.find_spec("mujoco") is None:
        return "not needed: no simulation here"
    from clamp_ros.sim.render import choose_backend

    try:
        return choose_backend()
    except ClampError as error:
        return f"MISSING: {error}"


def _providers() -> str:
    if not _version("onnxruntime") and not _version("onnxruntime-gpu"):
        return "onnxruntime MISSING"
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())
