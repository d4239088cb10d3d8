"""`clamp preflight`: everything that can be known before the arms move, checked with the code that will drive them.

The same system and launch arguments as `clamp up`, so that what is checked is what will run. The devices themselves are
`clamp_ros.bringup.preflight_devices`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clamp_ros.arm.arm_node import ArmsConfig
from clamp_ros.arm.teleop_node import TeleopNodeConfig
from clamp_ros.bringup import graph, up
from clamp_ros.bringup.preflight_devices import camera, follower, leader
from clamp_ros.camera.camera_node import CameraNodeConfig
from clamp_ros.camera.settings import CameraSettings
from clamp_ros.contract.errors import ClampError, ConfigError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.contract.robot import ARMS, CONTROL_PERIOD_NS
from clamp_ros.control.control_node import ControlConfig
from clamp_ros.fusion.fusion_node import FusionNodeConfig
from clamp_ros.policy.artifact import Artifact, Manifest
from clamp_ros.policy.policy_node import PolicyConfig
from clamp_ros.policy.runtime import PolicyRuntime
from clamp_ros.preflight import (
    ROOT,
    Check,
    Verdict,
    any_failed,
    as_json,
    camera_access,
    clocks,
    disk,
    failed,
    fine,
    groups,
    real_time,
    receive_buffers,
    shared_memory,
    table,
    udev_rules,
)
from clamp_ros.record.recorder_node import RecorderConfig
from clamp_ros.ros.params import configure
from clamp_ros.sim.simulation import SimulationConfig

CONFIGS: Mapping[str, type[Any]] = {
    "arm_node": ArmsConfig,
    "camera_node": CameraNodeConfig,
    "control_node": ControlConfig,
    "fusion_node": FusionNodeConfig,
    "mujoco_node": SimulationConfig,
    "policy_node": PolicyConfig,
    "recorder_node": RecorderConfig,
    "teleop_node": TeleopNodeConfig,
}
"""What each node of the graphs declares its parameters from."""
_FASTER = (
    "nvidia-smi; pip install 'onnxruntime-gpu[cuda,cudnn]'"
    "  # and policy_node's providers: [CUDAExecutionProvider, CPUExecutionProvider]"
)
_BYTES_A_PIXEL = 5


@dataclass(frozen=True)
class _System:
    """What would be started, as far as it can be: configurations by node name, and the policy."""

    configs: Mapping[str, Any]
    artifact: Artifact | None


def preflight(given: Mapping[str, str], root: Path = ROOT, name: str = "policy") -> list[Check]:
    """Every check of what `clamp up` would start with these launch arguments.

    Args:
        given: launch arguments by name; ``sim`` leaves followers and cameras out, but not the leaders, which are real.
        root: of the file system in which the system's files are looked up.
        name: of the system, of `graph.GRAPHS`.

    Raises:
        ConfigError: a launch argument is unknown or impossible.
    """
    values = graph.resolve(given, graph.GRAPHS[name][0])
    checks: list[Check] = []
    system = _configure(name, values, checks)
    checks += _policy(system)
    checks += _devices(system, values["sim"] == "false", root)
    checks += _machine(values, system, root)
    order = ("config", "policy", "arms", "cameras", "machine")
    return sorted(checks, key=lambda check: order.index(check.group))


def _configure(name: str, values: Mapping[str, str], checks: list[Check]) -> _System:
    """Loads the policy, where there is one, and every parameter file; what cannot be loaded is a failed check."""
    artifact = None
    acts = name == "policy" or values.get("by") == "policy"
    try:
        if acts:
            artifact = Artifact.load(graph.artifact_folder(values["policy"] or values["task"]))
        nodes = graph.GRAPHS[name][1](values)
    except ClampError as error:
        if acts and artifact is None:
            checks.append(failed("policy", "artifact", str(error), "clamp info models/*"))
            nodes = _without_policy(values, checks)
        else:
            checks.append(failed("config", "launch", str(error), f"clamp up {name} --show-args"))
            nodes = ()
    configs = {}
    for node in nodes:
        files = ", ".join(str(path) for path in node.files)
        try:
            configs[node.name] = configure(CONFIGS[node.name], _overrides(node), node.name)
        except ClampError as error:
            editor = os.environ.get("EDITOR", "nano")
            fix = f"{editor} {node.files[-1]}" if node.files else f"clamp up {name} --show-args"
            checks.append(failed("config", node.name, str(error), fix))
        else:
            checks.append(fine("config", node.name, files or "defaults"))
    return _System(configs, artifact)


def _without_policy(values: Mapping[str, str], checks: list[Check]) -> tuple[graph.Node, ...]:
    """The drivers, which can be checked without a policy."""
    cameras = [name.strip() for name in values["cameras"].split(",") if name.strip()] or list(CAMERAS)
    try:
        return graph.drivers(values, cameras)
    except ConfigError as error:
        checks.append(failed("config", "launch", str(error), "clamp up --show-args"))
        return ()


def _overrides(node: graph.Node) -> dict[str, Any]:
    """A node's parameters as rcl would make them: those of the graph, then each file's, by full name."""
    merged = dict(node.parameters)
    for path in node.files:
        for section, content in graph.load_parameter_file(path).items():
            if section.lstrip("/") in ("**", node.name):
                if not isinstance(content, dict) or not isinstance(content.get("ros__parameters"), dict):
                    raise ConfigError(f"{path}: {section} must hold the one key ros__parameters")
                merged |= dict(_flat("", content["ros__parameters"]))
    return merged


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _policy(system: _System) -> list[Check]:
    """The policy against the cameras it will get, and how long a chunk takes on this machine."""
    if system.artifact is None:
        return []
    manifest = system.artifact.manifest
    checks = [fine("policy", "artifact", f"{manifest.name} for {manifest.task}: files as in the manifest, joints as "
                   "this robot's")]  # fmt: skip
    fusion: FusionNodeConfig | None = system.configs.get("fusion_node")
    if fusion is not None and set(fusion.cameras) != set(manifest.cameras):
        wanted = ",".join(manifest.cameras)
        found = f"fusion would get {', '.join(fusion.cameras)}; the policy was trained on {', '.join(manifest.cameras)}"
        checks.append(failed("policy", "cameras", found, f"clamp up cameras:={wanted}"))
    cameras: CameraNodeConfig | None = system.configs.get("camera_node")
    for name, settings in cameras.settings().items() if cameras is not None else ():
        checks += _camera_fits(name, settings, manifest)
    config: PolicyConfig | None = system.configs.get("policy_node")
    if config is not None:
        checks.append(_inference(system.artifact, config))
    return checks


def _camera_fits(name: str, settings: CameraSettings, manifest: Manifest) -> list[Check]:
    spec = manifest.cameras.get(name)
    if spec is None:
        return []
    if (settings.width, settings.height) != (spec.width, spec.height):
        found = f"{settings.width}x{settings.height}; the policy was trained on {spec.width}x{spec.height}"
        fix = f"grep -n -A12 {name}: config/cameras.yaml  # set width: {spec.width} and height: {spec.height}"
        return [failed("policy", f"{name} size", found, fix)]
    if settings.rate_hz < manifest.image_rate_hz:
        found = f"{settings.rate_hz} Hz; the policy was trained at {manifest.image_rate_hz:g} Hz"
        return [Check("policy", f"{name} rate", Verdict.WARNING, found)]
    return [fine("policy", f"{name} size", f"{spec.width}x{spec.height} at {settings.rate_hz} Hz")]


def _inference(artifact: Artifact, config: PolicyConfig) -> Check:
    """Loads the policy on its providers and makes a chunk of nothing, twice: the first one also warms up."""
    name, providers = "onnxruntime", ", ".join(config.providers)
    try:
        runtime = PolicyRuntime(
            artifact, threads=config.threads, providers=config.providers, sampler=config.sampler or None,
            inference_steps=config.inference_steps or None,
        )  # fmt: skip
        runtime.warm_up()
        start_s = time.monotonic()
        runtime.warm_up()
        took_ms = 1e3 * (time.monotonic() - start_s)
    except ClampError as error:
        return failed("policy", name, f"{providers}: {error}", _FASTER)
    limit_ms = config.execute_steps * CONTROL_PERIOD_NS / 1e6
    if took_ms > limit_ms:
        found = f"{providers}: a chunk takes {took_ms:.0f} ms, wanted every {limit_ms:.0f} ms: the arms would stop"
        return failed("policy", name, found, _FASTER)
    if artifact.manifest.precision == "fp16" and config.providers[0] == "CPUExecutionProvider":
        found = f"{providers}: a chunk takes {took_ms:.0f} ms; the artifact is fp16, which a CPU computes in fp32"
        return Check("policy", name, Verdict.WARNING, found)
    return fine("policy", name, f"{providers}: a chunk takes {took_ms:.0f} ms, wanted every {limit_ms:.0f} ms")


def _devices(system: _System, robot: bool, root: Path) -> list[Check]:
    """Arms, leaders and cameras of the nodes that would drive them, and the rights to them."""
    checks: list[Check] = []
    arms: ArmsConfig | None = system.configs.get("arm_node")
    leaders: TeleopNodeConfig | None = system.configs.get("teleop_node")
    cameras: CameraNodeConfig | None = system.configs.get("camera_node")
    if robot:
        checks += [udev_rules(root), groups()]
    for name in ARMS:
        if arms is not None:
            checks += follower(name, getattr(arms, name), arms, root)
        if leaders is not None:
            checks += leader(name, getattr(leaders, name), leaders.motors, root)
    if cameras is not None:
        settings = cameras.settings()
        if any(not one.recording for one in settings.values()):
            checks += [groups(("video",), group="cameras"), camera_access(root)]
        for name in settings:
            checks += camera(name, cameras, system.artifact and system.artifact.manifest)
    return checks


def _machine(values: Mapping[str, str], system: _System, root: Path) -> list[Check]:
    recorder: RecorderConfig = system.configs.get("recorder_node") or RecorderConfig(folder=values["record_to"])
    checks = [shared_memory(root), receive_buffers(root), *clocks(root)]
    priority = max(
        getattr(system.configs.get(name), "realtime_priority", 0) for name in ("arm_node", "control_node")
    )
    right = real_time(priority or ControlConfig().realtime_priority)
    if values["sim"] == "true" and right.verdict is Verdict.FAILED:
        right = replace(right, verdict=Verdict.WARNING)  # a simulation waits for its commands
    checks.append(right)
    checks += disk(Path(recorder.folder).expanduser(), _raw_mb_s(system), recorder.min_free_gb)
    if os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "LOCALHOST":
        found = "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST makes images late or lost"
        checks.append(failed("machine", "ROS discovery", found, "unset ROS_AUTOMATIC_DISCOVERY_RANGE"))
    return checks


def _raw_mb_s(system: _System) -> float:
    """What the cameras send: colour and depth."""
    cameras: CameraNodeConfig | None = system.configs.get("camera_node")
    simulation: SimulationConfig | None = system.configs.get("mujoco_node")
    if cameras is not None:
        streams = [(c.width, c.height, float(c.rate_hz)) for c in cameras.settings().values()]
    elif simulation is not None:
        streams = [(simulation.width, simulation.height, simulation.image_rate_hz)] * len(simulation.cameras)
    elif system.artifact is not None:
        manifest = system.artifact.manifest
        streams = [(c.width, c.height, manifest.image_rate_hz) for c in manifest.cameras.values()]
    else:
        streams = []
    return sum(width * height * _BYTES_A_PIXEL * rate for width, height, rate in streams) / 1e6


def main(words: Sequence[str]) -> int:
    """The command; returns 1 if a check failed.

    Raises:
        ConfigError: the command line is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="clamp preflight",
        usage=f"clamp preflight [-h] [--sim] [--json] [{'|'.join(graph.GRAPHS)}] [name:=value ...]",
        description="Checks everything that `clamp up` with the same words needs, before the arms move. Each failure\n"
        "comes with a line that mends it. Exit code 1 if any check failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sim", action="store_true", help="leave followers and cameras out, as sim:=true")
    parser.add_argument("--json", action="store_true", help="for a program")
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="as for `clamp up`, after the system's name"
                        " where it is not the policy's")  # fmt: skip
    args = parser.parse_intermixed_args(list(words))
    name, arguments = up.graph_name(args.arguments)
    given = up.parse_arguments(arguments)
    if args.sim:
        given["sim"] = "true"
    checks = preflight(given, name=name)
    print(as_json(checks) if args.json else table(checks))
    return 1 if any_failed(checks) else 0
