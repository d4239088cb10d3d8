"""`clamp preflight`: everything that can be known before the arms move, checked with the code that will drive them.

The same launch arguments as `clamp up`, so that what is checked is what will run. Motors are pinged and read, never
written to; cameras are opened and read once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clamp_ros.arm.aloha2 import FOLLOWER
from clamp_ros.arm.arm_node import ArmsConfig
from clamp_ros.arm.bus import Bus
from clamp_ros.arm.registers import hardware_errors
from clamp_ros.arm.settings import SideConfig
from clamp_ros.arm.units import VOLT_PER_UNIT
from clamp_ros.bringup import graph, up
from clamp_ros.camera.camera_node import CameraNodeConfig, Opening
from clamp_ros.camera.device import Device
from clamp_ros.camera.realsense import CameraFrame, RealSense
from clamp_ros.camera.settings import CameraSettings
from clamp_ros.contract.errors import ArmError, ClampError, ConfigError
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
    clocks,
    disk,
    failed,
    fine,
    groups,
    real_time,
    serial_port,
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
}
"""What each node of the graph declares its parameters from."""

VOLTS = (11.0, 14.0)
"""Of ALOHA 2's 12 V supplies, at the motors."""
_FASTER = (
    "nvidia-smi; pip install 'onnxruntime-gpu[cuda,cudnn]'"
    "  # and policy_node's providers: [CUDAExecutionProvider, CPUExecutionProvider]"
)
_FRAME_S = 5.0
_BYTES_A_PIXEL = 5
_LISTED = "firmware_version", "torque_enable", "hardware_error_status", "present_input_voltage", "present_temperature"


@dataclass(frozen=True)
class _System:
    """What would be started, as far as it can be: configurations by node name, and the policy."""

    configs: Mapping[str, Any]
    artifact: Artifact | None


def preflight(given: Mapping[str, str], root: Path = ROOT) -> list[Check]:
    """Every check of what `clamp up` would start with these launch arguments.

    Args:
        given: launch arguments by name; ``sim`` leaves the hardware out.
        root: of the file system in which the system's files are looked up.

    Raises:
        ConfigError: a launch argument is unknown or impossible.
    """
    values = graph.resolve(given)
    robot = values["sim"] == "false"
    checks: list[Check] = []
    system = _configure(values, checks)
    checks += _policy(system, robot)
    if robot:
        arms: ArmsConfig | None = system.configs.get("arm_node")
        checks += [udev_rules(root), groups()]
        if arms is not None:
            for name in ARMS:
                checks += _arm(name, getattr(arms, name), arms, root)
        cameras: CameraNodeConfig | None = system.configs.get("camera_node")
        if cameras is not None:
            for name, settings in cameras.settings().items():
                checks += _camera(name, settings, cameras, system.artifact and system.artifact.manifest)
    checks += _machine(values, system, robot, root)
    order = ("config", "policy", "arms", "cameras", "machine")
    return sorted(checks, key=lambda check: order.index(check.group))


def _configure(values: Mapping[str, str], checks: list[Check]) -> _System:
    """Loads the policy and every parameter file; what cannot be loaded is a failed check."""
    artifact = None
    try:
        artifact = Artifact.load(graph.artifact_folder(values["policy"] or values["task"]))
        nodes = graph.aloha_policy({**values, "record": "true"})
    except ClampError as error:
        if artifact is None:
            checks.append(failed("policy", "artifact", str(error), "clamp info models/*"))
            nodes = _without_policy(values, checks)
        else:
            checks.append(failed("config", "launch", str(error), "clamp up --show-args"))
            nodes = ()
    configs = {}
    for node in nodes:
        files = ", ".join(str(path) for path in node.files)
        try:
            configs[node.name] = configure(CONFIGS[node.name], _overrides(node), node.name)
        except ClampError as error:
            fix = f"{os.environ.get('EDITOR', 'nano')} {node.files[-1]}" if node.files else "clamp up --show-args"
            checks.append(failed("config", node.name, str(error), fix))
        else:
            checks.append(fine("config", node.name, files or "defaults"))
    return _System(configs, artifact)


def _without_policy(values: Mapping[str, str], checks: list[Check]) -> tuple[graph.Node, ...]:
    """The drivers, which can be checked without a policy."""
    if values["sim"] == "true":
        return ()
    cameras = [name.strip() for name in values["cameras"].split(",") if name.strip()] or list(CAMERAS)
    try:
        return graph.hardware(values, cameras)
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


def _policy(system: _System, robot: bool) -> list[Check]:
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
    cameras: CameraNodeConfig | None = system.configs.get("camera_node") if robot else None
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


def _arm(name: str, side: SideConfig, config: ArmsConfig, root: Path) -> list[Check]:
    """One arm: its port, and every motor on it; nothing is written to a motor."""
    checks = serial_port(name, side.port, root)
    try:
        side.units()
    except ClampError as error:
        fix = "ros2 topic echo /diagnostics  # left.gripper.angle_rad; docs/hardware.md, First start, 4"
        checks.append(failed("arms", f"{name} gripper", str(error), fix))
    if any(check.verdict is Verdict.FAILED and check.name == f"{name} port" for check in checks):
        return [*checks, Check("arms", f"{name} motors", Verdict.SKIPPED, "its port cannot be opened")]
    specs = dict(zip(side.ids, FOLLOWER, strict=True))
    bus = Bus(
        str(root / side.port.lstrip("/")), {motor: spec.model for motor, spec in specs.items()},
        reply_s=config.motors.reply_s, retry_s=config.motors.retry_s,
    )  # fmt: skip
    try:
        bus.open()
        with bus.patient():
            for motor, spec in specs.items():
                checks.append(_motor(bus, motor, f"{name} {spec.name}", config.hot_c))
    except ArmError as error:
        checks.append(failed("arms", f"{name} bus", str(error), f"fuser -v {bus.device}"))
    finally:
        bus.close()
    return checks


def _motor(bus: Bus, motor: int, name: str, hot_c: int) -> Check:
    """One motor: there, alone, of its model, without errors, with its voltage, and not hot."""
    if (problem := bus.examine(motor)) is not None:
        return failed("arms", name, problem, f"ls -l {bus.device}  # check power and cables; ids with Dynamixel Wizard")
    found = bus.read_many(motor, _LISTED)
    volts, degrees = found["present_input_voltage"] * VOLT_PER_UNIT, found["present_temperature"]
    text = (
        f"{bus.models[motor].name}, id {motor}, firmware {found['firmware_version']}, {volts:.1f} V, {degrees} C, "
        f"torque {'on' if found['torque_enable'] else 'off'}"
    )
    if error := hardware_errors(found["hardware_error_status"]):
        fix = "ros2 service call /arms/reboot std_srvs/srv/Trigger  # limp for a second: support the arm"
        return failed("arms", name, f"{error}; {text}", fix)
    if not VOLTS[0] <= volts <= VOLTS[1]:
        return failed("arms", name, f"{text}; expected {VOLTS[0]:g} to {VOLTS[1]:g} V",
                      "clamp preflight  # after checking the 12 V supply and its plugs")  # fmt: skip
    if degrees >= hot_c:
        return failed("arms", name, f"{text}; hotter than hot_c {hot_c}", "sleep 600; clamp preflight")
    return fine("arms", name, text)


def _camera(
    name: str, settings: CameraSettings, config: CameraNodeConfig, manifest: Manifest | None
) -> list[Check]:
    """One camera: opened as the node will open it, and read once; its link, its lens, its pose."""
    checks = []
    if settings.frame_from_camera() is None:
        found = "no pose: its images cannot be fused"
        checks.append(failed("cameras", f"{name} pose", found, "clamp calibrate  # docs/hardware_cameras.md"))
    try:
        device, frame = _one_frame(name, settings, config)
    except ClampError as error:
        return [*checks, failed("cameras", name, str(error), "python -m clamp_ros.camera.device; lsusb -d 8086:")]
    if frame is None:
        found = f"{device}: no frame within {_FRAME_S:g} s"
        return [*checks, failed("cameras", name, found, "rs-enumerate-devices -s  # then plug it in again")]
    checks.append(fine("cameras", name, f"{device}"))
    if device is not None:
        checks.append(_link(name, device))
    if manifest is not None and name in manifest.cameras:
        try:
            manifest.check_camera(name, frame.pinhole)
        except ClampError as error:
            checks.append(failed("cameras", f"{name} lens", str(error), f"clamp info {manifest.name}"))
        else:
            checks.append(fine("cameras", f"{name} lens", "as in training, within 5 %"))
    return checks


def _one_frame(
    name: str, settings: CameraSettings, config: CameraNodeConfig
) -> tuple[Device | None, CameraFrame | None]:
    """What a camera says of itself, and its first frame, if one comes in time."""
    camera = RealSense(name, replace(settings, warmup_frames=0), lambda *_: None, Opening(config.sdk_deadline_s))
    try:
        camera.open()
        for _ in range(round(_FRAME_S / 0.1)):
            if (frame := camera.read(0.1)) is not None:
                return camera.device, frame
        return camera.device, None
    finally:
        camera.close()


def _link(name: str, device: Device) -> Check:
    if device.slow_link:
        fix = "lsusb -t  # move it to a port of 5000M"
        return failed("cameras", f"{name} USB", f"USB {device.usb}, expected 3", fix)
    return fine("cameras", f"{name} USB", device.usb)


def _machine(values: Mapping[str, str], system: _System, robot: bool, root: Path) -> list[Check]:
    recorder: RecorderConfig = system.configs.get("recorder_node") or RecorderConfig(folder=values["record_to"])
    checks = [shared_memory(root), *clocks(root)]
    priority = max(
        getattr(system.configs.get(name), "realtime_priority", 0) for name in ("arm_node", "control_node")
    )
    right = real_time(priority or ControlConfig().realtime_priority)
    if not robot and right.verdict is Verdict.FAILED:
        right = replace(right, verdict=Verdict.WARNING)  # a simulation waits for its commands
    checks.append(right)
    checks += disk(Path(recorder.folder).expanduser(), _raw_mb_s(system, robot), recorder.min_free_gb)
    if os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "LOCALHOST":
        found = "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST makes images late or lost"
        checks.append(failed("machine", "ROS discovery", found, "unset ROS_AUTOMATIC_DISCOVERY_RANGE"))
    return checks


def _raw_mb_s(system: _System, robot: bool) -> float:
    """What the cameras send: colour and depth."""
    cameras: CameraNodeConfig | None = system.configs.get("camera_node")
    if robot and cameras is not None:
        streams = [(c.width, c.height, float(c.rate_hz)) for c in cameras.settings().values()]
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
        description="Checks everything that `clamp up` with the same arguments needs, before the arms move. Each\n"
        "failure comes with a line that mends it. Exit code 1 if any check failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sim", action="store_true", help="leave the hardware out, as sim:=true")
    parser.add_argument("--json", action="store_true", help="for a program")
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="as for `clamp up`")
    args = parser.parse_args(list(words))
    given = up.parse_arguments(args.arguments)
    if args.sim:
        given["sim"] = "true"
    checks = preflight(given)
    print(as_json(checks) if args.json else table(checks))
    return 1 if any_failed(checks) else 0
