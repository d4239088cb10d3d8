"""The arm node with real publishers and emulated servos, in this process and as one that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from hardware_emulation.rig import GRIPPER, MOTORS, TOGETHER, wait
from hardware_emulation.servos import Emulator, ServoBus, follower
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from clamp_ros.arm.aloha2 import HOME_RAD, SLEEP_RAD
from clamp_ros.arm.arm_node import ArmNode
from clamp_ros.contract.interfaces import (
    ARMS_HOME,
    ARMS_REBOOT,
    ARMS_STATUS,
    ARMS_TORQUE,
    CONTROL_STATUS,
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    TF,
    gripper_frame,
)
from clamp_ros.contract.robot import ARM_SLICES, ARMS, JOINT_NAMES
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.ros.convert import joint_state_message, joints_from_message, stamp_ns, transform_from_message
from clamp_ros.ros.run import advertise, subscribe


@pytest.fixture
def buses() -> Iterator[dict[str, ServoBus]]:
    left, right = follower(), follower()
    with Emulator(left, right):
        yield {"left": left, "right": right}


def _parameters(buses: dict[str, ServoBus], **values: Any) -> dict[str, Any]:
    sides = {f"{arm}.{name}": value for arm in ARMS for name, value in {**GRIPPER, "port": buses[arm].port}.items()}
    return sides | {f"motors.{name}": value for name, value in MOTORS.items()} | TOGETHER | values


class Cell:
    """The node, and what it publishes."""

    def __init__(self, ros: Any, buses: dict[str, ServoBus], **values: Any) -> None:
        self.ros, self.buses = ros, buses
        self.peer = ros.node("control_node")
        self.joints: list[Any] = []
        self.frames: list[Any] = []
        self.status: list[Any] = []
        self.diagnostics: list[Any] = []
        self._due_s = 0.0
        subscribe(self.peer, JOINT_STATES, self.joints.append)
        subscribe(self.peer, TF, self.frames.append)
        subscribe(self.peer, ARMS_STATUS, self.status.append)
        subscribe(self.peer, DIAGNOSTICS, lambda message: self.diagnostics.extend(message.status))
        self.commands = advertise(self.peer, JOINT_COMMANDS)
        parameters = _parameters(buses, **values)
        self.node = ros.add(
            ArmNode(parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()])
        )
        ros.spin_until(lambda: self.joints and self.state() == "holding", what="the arms")
        ros.spin_until(self.commands.get_subscription_count, what="discovery")
        ros.spin_until(lambda: set(buses["left"].values("torque_enable").values()) == {1}, what="torque")

    def state(self) -> str:
        return self.status[-1].values[0].value if self.status else ""

    def send(self, target: np.ndarray, age_s: float = 0.0, by: Any = None, names: Sequence[str] = JOINT_NAMES) -> None:
        """Publishes, 20 ms after the time before, as a control loop does: a test looks at its condition more often."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + 0.02
        message = joint_state_message(target, self.peer.get_clock().now().nanoseconds - int(age_s * 1e9))
        message.name = list(names)
        (by or self.commands).publish(message)

    def keep_sending(self) -> None:
        """As a control loop does, if slower, whatever the arms do with it."""
        self.peer.create_timer(0.05, lambda: self.send(self.positions()))
        self.ros.spin_until(lambda: self.state() == "following", what="a command")

    def positions(self) -> np.ndarray:
        return joints_from_message(self.joints[-1])

    def shown(self) -> dict[str, str]:
        """The node's newest report on /diagnostics."""
        reports = [status for status in self.diagnostics if status.name == "arm_node"]
        return {pair.key: pair.value for pair in reports[-1].values} if reports else {}


def test_joint_states_and_frames_are_those_of_the_simulation(ros, buses):
    cell = Cell(ros, buses)
    message = cell.joints[-1]
    assert tuple(message.name) == JOINT_NAMES
    assert len(message.velocity) == 14 and len(message.effort) == 14
    assert cell.positions()[:6] == pytest.approx(SLEEP_RAD, abs=0.01)
    stamps = [stamp_ns(message.header.stamp) for message in cell.joints]
    assert stamps == sorted(set(stamps))
    ros.spin_until(lambda: cell.frames, what="frames")
    by_stamp = {stamp_ns(message.header.stamp): joints_from_message(message) for message in cell.joints}

    def matched() -> bool:
        by_stamp.update({stamp_ns(m.header.stamp): joints_from_message(m) for m in cell.joints})
        return stamp_ns(cell.frames[-1].transforms[0].header.stamp) in by_stamp

    ros.spin_until(matched, what="the joints of a frame")
    assert len(cell.frames[-1].transforms) == 2
    for arm, transform in zip(ARMS, cell.frames[-1].transforms, strict=True):
        parent, child, stamp, pose = transform_from_message(transform)
        assert (parent, child) == ("world", gripper_frame(arm))
        assert pose == pytest.approx(world_from_gripper(arm, by_stamp[stamp]), abs=1e-9)


def test_commands_move_the_arms_and_bad_ones_do_not(ros, buses):
    cell = Cell(ros, buses)
    target = cell.positions().copy()
    target[[5, 12]] = 0.3

    def arrived() -> bool:
        cell.send(target)
        return bool(np.abs(cell.positions() - target).max() < 0.005)

    ros.spin_until(arrived, what="the target")
    ros.spin_until(lambda: cell.state() == "holding", what="the hold after the last command")
    there = target.copy()
    target[[5, 12]] = 0.0

    def shown(key: str, send: Any) -> bool:
        send()
        return int(cell.shown().get(key, "0")) > 0

    ros.spin_until(lambda: shown("late_commands", lambda: cell.send(target, 5.0)), what="late commands to be refused")
    ros.spin_until(lambda: shown("late_commands", lambda: cell.send(target, -5.0)), what="early ones to be refused")
    wrong = ["elbow", *JOINT_NAMES[1:]]
    ros.spin_until(
        lambda: shown("refused_commands", lambda: cell.send(target, names=wrong)), what="wrong names to be refused"
    )
    assert cell.positions() == pytest.approx(there, abs=0.01)
    assert cell.state() == "holding"


def test_commands_of_two_senders_are_followed_by_nobody(ros, buses):
    """One of them has not passed the safety gate, however well-formed its commands are."""
    cell = Cell(ros, buses)
    cell.keep_sending()
    intruder = ros.node("intruder")
    commands = advertise(intruder, JOINT_COMMANDS)
    why = "/joint_commands is control_node's alone, but comes from control_node, intruder"
    ros.spin_until(lambda: cell.state() == "holding" and why in cell.status[-1].message, what="the hold")
    before = cell.positions()
    target = before.copy()
    target[[5, 12]] += 0.3

    def refused() -> bool:
        cell.send(target, by=commands)
        return int(cell.shown().get("foreign_commands", "0")) > 20

    ros.spin_until(refused, what="its commands to be refused")
    assert cell.state() == "holding" and cell.positions() == pytest.approx(before, abs=0.01)
    intruder.destroy_publisher(commands)
    ros.spin_until(lambda: cell.state() == "following", what="the control node to be alone again")


def test_services_and_what_a_fault_shows(ros, buses):
    cell = Cell(ros, buses)
    answer = ros.call(cell.peer, Trigger, ARMS_HOME.name)
    assert not answer.success and "no emergency stop would" in answer.message
    cell.keep_sending()
    answer = ros.call(cell.peer, Trigger, ARMS_HOME.name)
    assert answer.success and answer.message.startswith("going home")
    ros.spin_until(lambda: cell.state() == "moving", what="the motion")
    ros.spin_until(lambda: cell.state() == "following", what="its end")
    home = lambda: np.abs(cell.positions()[ARM_SLICES["left"]][:6] - HOME_RAD).max() < 0.02  # noqa: E731
    ros.spin_until(home, what="home")

    buses["right"][4].fail(0x20)
    ros.spin_until(lambda: cell.state() == "fault", what="the fault")
    assert cell.status[-1].level == DiagnosticStatus.ERROR
    assert "right elbow (motor 4): overload" in cell.status[-1].message
    ros.spin_until(
        lambda: any(s.level == DiagnosticStatus.ERROR and "overload" in s.message for s in cell.diagnostics),
        what="the fault on /diagnostics",
    )
    answer = ros.call(cell.peer, SetBool, ARMS_TORQUE.name, SetBool.Request(data=True))
    assert not answer.success and "/arms/reboot" in answer.message
    answer = ros.call(cell.peer, Trigger, ARMS_REBOOT.name, timeout_s=20.0)
    assert answer.success and "right elbow (motor 4)" in answer.message
    ros.spin_until(lambda: cell.state() == "following", what="the recovery")

    answer = ros.call(cell.peer, SetBool, ARMS_TORQUE.name, SetBool.Request(data=False))
    assert answer.success and set(buses["left"].values("torque_enable").values()) == {0}
    answer = ros.call(cell.peer, Trigger, ARMS_HOME.name)
    assert not answer.success and "off" in answer.message


def test_an_emergency_stop_ends_the_arms_own_motions(ros, buses):
    cell = Cell(ros, buses, speed_rad_s=0.2)
    control = advertise(cell.peer, CONTROL_STATUS)
    ros.spin_until(control.get_subscription_count, what="discovery")
    cell.keep_sending()
    assert ros.call(cell.peer, Trigger, ARMS_HOME.name).success
    ros.spin_until(lambda: cell.state() == "moving", what="the motion")
    control.publish(DiagnosticStatus(values=[KeyValue(key="state", value="stopped")]))
    ros.spin_until(lambda: any("emergency stop" in status.message for status in cell.status), what="the stop")
    answer = ros.call(cell.peer, Trigger, ARMS_HOME.name)
    assert not answer.success and "/control/reset" in answer.message
    control.publish(DiagnosticStatus(values=[KeyValue(key="state", value="holding")]))
    ros.spin_until(lambda: not cell.node._stopped, what="the release")
    assert ros.call(cell.peer, Trigger, ARMS_HOME.name).success


def test_each_motor_is_on_diagnostics(ros, buses):
    cell = Cell(ros, buses)
    with buses["left"].lock:
        buses["left"][2].put(present_temperature=71, present_input_voltage=118)
    buses["right"].drop = 1
    ros.spin_until(lambda: cell.shown().get("left.shoulder.temperature_c") == "71", what="the temperature")
    ros.spin_until(lambda: int(cell.shown().get("right.lost", "0")) >= 1, what="the loss")
    shown = cell.shown()
    assert shown["left.shoulder.voltage"] == "11.800"
    assert shown["left.shoulder.error"] == "none"
    assert 0.0 < float(shown["right.loss"]) < 0.1
    hot = "hot motors: left shoulder (motor 2) 71 C"
    ros.spin_until(lambda: any(hot in status.message for status in cell.diagnostics), what="the warning")


def _process(buses: dict[str, ServoBus], **values: Any) -> subprocess.Popen[str]:
    arguments = [word for name, value in _parameters(buses, **values).items() for word in ("-p", f"{name}:={value}")]
    command = [sys.executable, "-m", "clamp_ros.arm.arm_node", "--ros-args", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_a_node_that_ends_leaves_the_arms_holding(buses, number, code):
    process = _process(buses)
    try:
        for bus in buses.values():
            wait(lambda b=bus: set(b.values("bus_watchdog").values()) == {125}, "the node to hold the arms", 60.0)
        process.send_signal(number)
        process.communicate(timeout=30.0)
        assert process.returncode == code
        positions = {arm: bus.positions() for arm, bus in buses.items()}
        for bus in buses.values():
            wait(lambda b=bus: set(b.values("bus_watchdog").values()) == {255}, "the motors' watchdogs")
        for arm, bus in buses.items():
            assert set(bus.values("torque_enable").values()) == {1}
            moved = [abs(ticks - positions[arm][motor]) for motor, ticks in bus.positions().items()]
            assert max(moved) <= 2
    finally:
        process.kill()
        process.communicate()


def test_a_missing_arm_ends_the_node_with_advice(buses):
    process = _process(buses, **{"left.port": "/dev/ttyDXL_nowhere"})
    try:
        _, errors = process.communicate(timeout=60.0)
    finally:
        process.kill()
    assert process.returncode == 2
    assert "error: /dev/ttyDXL_nowhere cannot be opened: it does not exist; connect the arm" in errors
    assert set(buses["right"].values("torque_enable").values()) == {0}
