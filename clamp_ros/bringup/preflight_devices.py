"""The devices of `clamp preflight`, by the code that will drive them: followers, leaders and cameras.

Motors are pinged and read, never written to; cameras are opened and read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clamp_ros.arm.aloha2 import LEADER_MODELS
from clamp_ros.arm.arm_node import ArmsConfig
from clamp_ros.arm.bus import Bus
from clamp_ros.arm.registers import Model, hardware_errors
from clamp_ros.arm.settings import BusDeadlines, LeaderMotors, LeaderSide, Side, SideConfig
from clamp_ros.arm.units import VOLT_PER_UNIT
from clamp_ros.camera.camera_node import CameraNodeConfig, Opening
from clamp_ros.camera.device import Device
from clamp_ros.camera.realsense import CameraFrame, RealSense
from clamp_ros.camera.settings import CameraSettings
from clamp_ros.contract.errors import ArmError, ClampError
from clamp_ros.policy.artifact import Manifest
from clamp_ros.preflight import Check, Verdict, failed, fine, serial_port

VOLTS = (11.0, 14.0)
"""Of ALOHA 2's 12 V supplies, at the motors."""
_FRAME_S = 5.0
_LISTED = "firmware_version", "torque_enable", "hardware_error_status", "present_input_voltage", "present_temperature"


@dataclass(frozen=True)
class _Arm:
    """What the checks of an arm's motors need to know of it.

    Attributes:
        name: for the report.
        side: its parameters.
        deadlines: of its bus.
        angle: where the angle is shown that its gripper's calibration asks for.
        also: models that are as good as the expected ones.
        hot_c: where a motor is too hot.
        error: what a motor's hardware error is, and the line that mends it.
    """

    name: str
    side: Side
    deadlines: BusDeadlines
    angle: str
    also: Sequence[Model]
    hot_c: int
    error: tuple[Verdict, str]


def follower(name: str, side: SideConfig, config: ArmsConfig, root: Path) -> list[Check]:
    """One follower: its port, its gripper's calibration, and every motor on it.

    Args:
        name: left or right.
        side: its parameters.
        config: of both.
        root: of the file system in which the port is looked up.
    """
    angle = f"{name}.gripper.angle_rad; docs/hardware.md, Arms, First start, 4"
    fix = "ros2 service call /arms/reboot std_srvs/srv/Trigger  # limp for a second: support the arm"
    return _checks(_Arm(name, side, config.motors, angle, (), config.hot_c, (Verdict.FAILED, fix)), root)


def leader(name: str, side: LeaderSide, motors: LeaderMotors, root: Path) -> list[Check]:
    """One leader, as `follower`; its motors may be of any of a leader's models, and its node restarts a faulty one.

    Args:
        name: left or right.
        side: its parameters.
        motors: parameters of both.
        root: of the file system in which the port is looked up.
    """
    angle = f"{name}.gripper.angle_rad of teleop_node; docs/hardware.md, Teleoperation, First start, 3"
    error = Verdict.WARNING, "clamp teleop  # restarts it, and lets go of the leader to do so"
    return _checks(_Arm(f"{name} leader", side, motors, angle, LEADER_MODELS, ArmsConfig.hot_c, error), root)


def _checks(arm: _Arm, root: Path) -> list[Check]:
    side, name = arm.side, arm.name
    checks = serial_port(name, side.port, root)
    reachable = all(check.verdict is not Verdict.FAILED or check.name != f"{name} port" for check in checks)
    try:
        side.units()
    except ClampError as error:
        checks.append(failed("arms", f"{name} gripper", str(error), f"ros2 topic echo /diagnostics  # {arm.angle}"))
    if side.borrowed:
        found = f"the angles {side.angles_rad} are those of the robot whose file ships"
        checks.append(Check("arms", f"{name} gripper", Verdict.WARNING, found, f"measure yours  # {arm.angle}"))
    if not reachable:
        return [*checks, Check("arms", f"{name} motors", Verdict.SKIPPED, "its port cannot be opened")]
    specs = dict(zip(side.ids, side.SPECS, strict=True))
    bus = Bus(
        str(root / side.port.lstrip("/")), {motor: spec.model for motor, spec in specs.items()},
        reply_s=arm.deadlines.reply_s, retry_s=arm.deadlines.retry_s,
    )  # fmt: skip
    try:
        bus.open()
        with bus.patient():
            for motor, spec in specs.items():
                checks.append(_motor(bus, motor, f"{name} {spec.name}", arm))
    except ArmError as error:
        checks.append(failed("arms", f"{name} bus", str(error), f"fuser -v {bus.device}"))
    finally:
        bus.close()
    return checks


def _motor(bus: Bus, motor: int, name: str, arm: _Arm) -> Check:
    """One motor: there, alone, of its model, without errors, with its voltage, and not hot."""
    if (problem := bus.examine(motor, arm.also)) is not None:
        return failed("arms", name, problem, f"ls -l {bus.device}  # check power and cables; ids with Dynamixel Wizard")
    found = bus.read_many(motor, _LISTED)
    volts, degrees = found["present_input_voltage"] * VOLT_PER_UNIT, found["present_temperature"]
    text = (
        f"{bus.models[motor].name}, id {motor}, firmware {found['firmware_version']}, {volts:.1f} V, {degrees} C, "
        f"torque {'on' if found['torque_enable'] else 'off'}"
    )
    if error := hardware_errors(found["hardware_error_status"]):
        verdict, fix = arm.error
        return Check("arms", name, verdict, f"{error}; {text}", fix)
    if not VOLTS[0] <= volts <= VOLTS[1]:
        return failed("arms", name, f"{text}; expected {VOLTS[0]:g} to {VOLTS[1]:g} V",
                      "clamp preflight  # after checking the 12 V supply and its plugs")  # fmt: skip
    if degrees >= arm.hot_c:
        return failed("arms", name, f"{text}; hotter than hot_c {arm.hot_c}", "sleep 600; clamp preflight")
    return fine("arms", name, text)


def camera(name: str, config: CameraNodeConfig, manifest: Manifest | None) -> list[Check]:
    """One camera: opened as the node will open it, and read once; its link, its lens, its pose.

    Args:
        name: of the camera.
        config: of all.
        manifest: of the policy that will get its images, if any.
    """
    checks, settings = [], config.settings()[name]
    if settings.frame_from_camera() is None:
        found, verdict = "no pose: its images cannot be fused", Verdict.WARNING if manifest is None else Verdict.FAILED
        checks.append(Check("cameras", f"{name} pose", verdict, found, "clamp calibrate  # docs/hardware_cameras.md"))
    try:
        device, frame = _one_frame(name, settings, config.sdk_deadline_s)
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


def _one_frame(name: str, settings: CameraSettings, deadline_s: float) -> tuple[Device | None, CameraFrame | None]:
    """What a camera says of itself, and its first frame, if one comes in time."""
    source = RealSense(name, replace(settings, warmup_frames=0), lambda *_: None, Opening(deadline_s))
    try:
        source.open()
        for _ in range(round(_FRAME_S / 0.1)):
            if (frame := source.read(0.1)) is not None:
                return source.device, frame
        return source.device, None
    finally:
        source.close()


def _link(name: str, device: Device) -> Check:
    if device.slow_link:
        fix = "lsusb -t  # move it to a port of 5000M"
        return failed("cameras", f"{name} USB", f"USB {device.usb}, expected 3", fix)
    return fine("cameras", f"{name} USB", device.usb)
