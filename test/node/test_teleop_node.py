"""The teleoperation node beside the real control node: emulated leaders move commands; whatever fails, they hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hardware_emulation.leaders import HANDLE, Hands, leader
from hardware_emulation.servos import Emulator, ServoBus
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool, Trigger

from clamp_ros.arm.teleop_node import TeleopNode
from clamp_ros.contract.interfaces import (
    CLOCK,
    CONTROL_ESTOP,
    CONTROL_RESET,
    CONTROL_SOURCE,
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    LEADER_STATES,
    RECORD_DISCARD,
    RECORD_START,
    RECORD_STOP,
    TELEOP_DISCARD,
    TELEOP_START,
    TELEOP_STATUS,
    TELEOP_STOP,
)
from clamp_ros.contract.robot import ARMS, CONTROL_PERIOD_NS, REST_POSE, VELOCITY_LIMITS
from clamp_ros.control.control_node import ControlNode
from clamp_ros.ros.convert import joint_state_message, joints_from_message, stamp_ns, time_message
from clamp_ros.ros.run import advertise, serve, subscribe

TIMEOUT_S = 60.0
LEADERS = {f"{arm}.{name}": value for arm in ARMS for name, value in HANDLE.items()} | {
    "motors.reply_s": 0.1, "motors.retry_s": 0.5, "motors.watchdog_s": 2.5, "motors.fresh_s": 1.0,
    "motors.drive_rad_s": 0.6,
}  # fmt: skip
"""The leaders go so slowly that one which is read 0.5 s late does not seem to be held back."""
PATIENT = {
    "rate_hz": 50, "command_timeout_s": 5.0, "law.leader_lost_s": 5.0, "law.take_s": 30.0, "law.align_s": 120.0,
    "law.ramp_s": 0.1, "use_sim_time": True, "realtime_priority": 0,
}  # fmt: skip
"""Deadlines of a busy machine."""
CONTROL = {"stale_after_s": 1.0, "safety.startup_s": 0.0, "use_sim_time": True, "realtime_priority": 0}
SWING = np.array([0.3, 0.1, -0.1, 0.2, 0.1, 0.2, 0.0] * 2)


def node(kind: Any, values: dict[str, Any]) -> Any:
    return kind(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])


class Cell:
    """Emulated leaders, the node, the control node, arms that are where they are told to be, and a clock.

    The clock goes on only while the test waits, so that a busy machine makes nobody late but the leaders.
    """

    def __init__(self, ros: Any, buses: dict[str, ServoBus], **values: Any) -> None:
        self.ros, self.buses = ros, buses
        self.peer = ros.node("peer")
        self.said: list[str] = []
        self.sources: list[str] = []
        self.leads: list[np.ndarray] = []
        self.commands: list[tuple[int, np.ndarray]] = []
        self.joints = advertise(self.peer, JOINT_STATES)
        self.aligned: tuple[int, np.ndarray] | None = None
        subscribe(self.peer, TELEOP_STATUS, self._on_status)
        subscribe(self.peer, CONTROL_SOURCE, lambda message: self.sources.append(message.frame_id))
        subscribe(self.peer, LEADER_STATES, lambda message: self.leads.append(joints_from_message(message)))
        subscribe(self.peer, JOINT_COMMANDS, self._on_command)
        self.clock = advertise(self.peer, CLOCK)
        self.now_ns = 1_000_000_000
        self.pose = REST_POSE.copy()
        ports = {f"{arm}.port": bus.port for arm, bus in buses.items()}
        self.teleop = ros.add(node(TeleopNode, {**LEADERS, **PATIENT, **ports, **values}))
        self.control: Any = None
        ros.spin_until(self.clock.get_subscription_count, TIMEOUT_S, "the clock to be heard")

    def with_control(self) -> Cell:
        self.control = self.ros.add(node(ControlNode, CONTROL))
        heard = {self.clock: 2, self.joints: 1}
        self.ros.spin_until(
            lambda: all(p.get_subscription_count() >= n for p, n in heard.items()), TIMEOUT_S, "discovery"
        )
        self.until(lambda: self.commands and self.leads and self.sources, "commands and leaders")
        self.until(lambda: self.teleop._refusal(self.teleop.get_clock().now().nanoseconds) is None, "readiness")
        return self

    def _on_status(self, message: Any) -> None:
        self.said.append(message.message)
        if "the followers come to the leaders" in message.message:
            self.aligned = len(self.commands), self.leads[-1]

    def _on_command(self, message: Any) -> None:
        self.pose = joints_from_message(message)
        self.commands.append((stamp_ns(message.header.stamp), self.pose))

    def advance(self) -> None:
        """20 ms."""
        self.now_ns += CONTROL_PERIOD_NS
        self.clock.publish(Clock(clock=time_message(self.now_ns)))
        self.joints.publish(joint_state_message(self.pose, self.now_ns))
        if self.control is not None:
            self.ros.spin_until(lambda: self.control._due_ns == self.now_ns, TIMEOUT_S, "a tick of control")
        self.ros.spin_until(lambda: self.teleop._law._now_ns == self.now_ns, TIMEOUT_S, "a tick of teleoperation")

    def until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {TIMEOUT_S:g} s in vain for {what}")
            self.advance()
            self.ros.executor.spin_once(timeout_sec=0.01)

    def says(self, text: str) -> None:
        self.until(lambda: self.said and text in self.said[-1], f"{text!r}")

    def call(self, service: Any, kind: Any = Trigger, **request: Any) -> Any:
        return self.ros.call(self.peer, kind, service.name, kind.Request(**request), TIMEOUT_S)

    def follow(self) -> None:
        assert self.call(TELEOP_START).success
        self.says("following")

    def last(self, count: int) -> np.ndarray:
        """(count, 14) the newest commands."""
        return np.array([pose for _, pose in self.commands[-count:]])

    def no_jumps(self) -> None:
        times = np.array([stamp for stamp, _ in self.commands]) / 1e9
        steps = np.abs(np.diff([pose for _, pose in self.commands], axis=0))
        assert (steps <= VELOCITY_LIMITS * np.diff(times)[:, None] + 1e-9).all()


@pytest.fixture
def buses() -> Iterator[dict[str, ServoBus]]:
    both = {arm: leader() for arm in ARMS}
    with Emulator(*both.values()):
        yield both


def test_a_session_from_emulated_leaders(ros, buses):
    swing = [REST_POSE + SWING * np.sin(t) for t in np.linspace(0.0, 30.0, 1500)]
    cell = Cell(ros, buses).with_control()
    cell.follow()
    assert cell.sources == ["policy", "teleop"]
    assert cell.aligned is not None
    count, leads = cell.aligned
    np.testing.assert_allclose([pose for _, pose in cell.commands[:count]], np.tile(REST_POSE, (count, 1)), atol=1e-6)
    arms = np.delete(leads - REST_POSE, [6, 13])
    assert np.abs(arms).max() < 0.3, "the leaders came to the followers; from the sleep pose it is 1.3 rad"
    hands = Hands(np.array(swing))
    for arm, bus in buses.items():
        hands.take(arm, bus)
    hands.begin()
    cell.until(lambda: np.ptp([pose[0] for _, pose in cell.commands]) > 0.3, "the waist to follow")
    cell.until(lambda: abs(cell.leads[-1][7] - cell.pose[7]) < 0.1, "the right waist to follow")
    assert cell.call(TELEOP_STOP, SetBool, data=True).success
    cell.says("idle")
    cell.until(lambda: cell.sources[-1] == "policy", "the arms to be handed back")
    before, count = cell.pose, len(cell.commands)
    cell.until(lambda: len(cell.commands) > count + 6 and not np.ptp(cell.last(6), axis=0).any(), "the arms to rest")
    assert np.abs(cell.pose - before).max() < 0.1, "they brake, and the hands, which swing on, are not followed"
    cell.no_jumps()
    answer = cell.call(TELEOP_STOP, SetBool, data=True)
    assert (answer.success, answer.message) == (False, "nothing is teleoperated")


def test_it_says_why_it_cannot_start(ros, buses):
    cell = Cell(ros, buses)
    cell.until(lambda: cell.teleop._leaders.problem is None, "the leaders")
    answer = cell.call(TELEOP_START)
    assert not answer.success and "does control_node run" in answer.message, answer.message
    cell.with_control()
    assert cell.call(CONTROL_ESTOP).success
    cell.until(lambda: cell.teleop._stopped, "the stop")
    assert "/control/reset releases them" in cell.call(TELEOP_START).message
    assert cell.call(CONTROL_RESET).success
    cell.until(lambda: not cell.teleop._stopped, "the release")
    for servo in buses["left"].servos:
        servo.silent = True
    cell.until(lambda: cell.teleop._leaders.problem, "the silence")
    answer = cell.call(TELEOP_START)
    assert not answer.success and answer.message.startswith("left leader: ")
    found: list[Any] = []
    subscribe(cell.peer, DIAGNOSTICS, lambda message: found.extend(message.status))
    cell.until(lambda: any("left leader" in s.message for s in found if s.name == "teleop_node"), "/diagnostics")


def test_a_stop_of_the_arms_ends_it_and_so_does_a_leader_that_falls_silent(ros, buses):
    cell = Cell(ros, buses).with_control()
    cell.follow()
    assert cell.call(CONTROL_ESTOP).success
    cell.says("stopped: the arms were stopped, or moved by something else")
    assert cell.sources[-1] == "nobody"
    assert cell.call(CONTROL_RESET).success
    cell.until(lambda: not cell.teleop._stopped, "the release")
    cell.follow()
    held = cell.pose
    buses["right"].unplug()
    cell.says("stopped: right leader: ")
    assert cell.sources[-1] == "teleop", "the policy does not take over from a fault"
    count = len(cell.commands)
    cell.until(lambda: len(cell.commands) > count + 5, "commands")
    np.testing.assert_allclose(cell.pose, held, atol=0.01)
    assert cell.call(TELEOP_STOP, SetBool, data=False).success
    cell.until(lambda: cell.sources[-1] == "policy", "the arms to be handed back")


class Recorder:
    """The recorder's services, and what they were asked."""

    def __init__(self, peer: Any, refuses: str = "") -> None:
        self.asked: list[str] = []
        self._refuses = refuses
        serve(peer, RECORD_START, lambda _, response: self._answer("start", response))
        serve(peer, RECORD_STOP, lambda request, response: self._answer(f"stop {request.data}", response))
        serve(peer, RECORD_DISCARD, lambda _, response: self._answer("discard", response))

    def _answer(self, what: str, response: Any) -> Any:
        self.asked.append(what)
        response.success, response.message = not self._refuses, self._refuses
        return response


def test_sessions_are_episodes_where_it_records(ros, buses):
    cell = Cell(ros, buses, record=True)
    recorder = Recorder(cell.peer)
    cell.with_control()
    cell.follow()
    cell.until(lambda: cell.teleop._recording, "the recording")
    assert cell.call(TELEOP_STOP, SetBool, data=False).success
    cell.until(lambda: recorder.asked == ["start", "stop False"], "the end")
    cell.follow()
    cell.until(lambda: cell.teleop._recording, "the recording")
    assert cell.call(TELEOP_DISCARD).success
    cell.until(lambda: recorder.asked[2:] == ["start", "discard"], "the discarding")
    cell.says("idle")


def test_what_cannot_be_recorded_is_not_teleoperated(ros, buses):
    cell = Cell(ros, buses, record=True)
    Recorder(cell.peer, refuses="the disk is full")
    cell.with_control()
    assert cell.call(TELEOP_START).success
    cell.says("stopped: /record/start: the disk is full")
