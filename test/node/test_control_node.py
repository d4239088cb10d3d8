"""The control node with real publishers: chunks move the arms; whatever fails, they hold, and the status says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    ARMS_STATUS,
    CLOCK,
    CONTROL_ENABLE,
    CONTROL_ESTOP,
    CONTROL_PARAMETERS,
    CONTROL_RESET,
    CONTROL_SOURCE,
    CONTROL_STATUS,
    DIAGNOSTICS,
    ESTOP_SIGNAL,
    JOINT_COMMANDS,
    JOINT_STATES,
    TELEOP_TARGETS,
    Qos,
    Service,
)
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import ACCELERATION_LIMITS, CHUNK_SIZE, CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.control.control_node import ControlNode
from clamp_ros.control.stop_signal import send_stop_signal
from clamp_ros.ros.convert import chunk_message, joint_state_message, joints_from_message, stamp_ns, time_message
from clamp_ros.ros.run import advertise, qos_profile, subscribe

T = CONTROL_PERIOD_NS
BRAKED = 5
"""Ticks after which the chunk's waist, at 0.4 rad/s, has come to rest."""


class Cell:
    """A robot, a policy and a simulated clock around the node, all driven by the test; one `tick` is 20 ms."""

    def __init__(self, ros, **parameters) -> None:
        self.ros = ros
        self.node = ros.node("cell")
        self.clock = advertise(self.node, CLOCK)
        self.joints = advertise(self.node, JOINT_STATES)
        self.chunks = advertise(self.node, ACTION_CHUNK)
        self.commands: dict[int, np.ndarray] = {}
        self.status: list[Any] = []
        self.node.create_subscription(JointState, JOINT_COMMANDS.name, self._on_command, qos_profile(Qos.STATE))
        subscribe(self.node, CONTROL_STATUS, self.status.append)
        values = {"use_sim_time": True, "safety.startup_s": 0.0, **parameters}
        self.control = ros.add(
            ControlNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
        )
        self.now = 0
        publishers = (self.clock, self.joints, self.chunks)
        ros.spin_until(lambda: all(p.get_subscription_count() for p in publishers), what="discovery")
        ros.spin_until(lambda: self.control.count_subscribers(JOINT_COMMANDS.name), what="discovery of commands")
        ros.spin_until(lambda: self.status, what="the first status")

    def _on_command(self, message: JointState) -> None:
        self.commands[stamp_ns(message.header.stamp)] = joints_from_message(message)

    def measure(self, pose=REST_POSE, tick=None) -> None:
        stamp = (self.now if tick is None else tick) * T
        self.joints.publish(joint_state_message(pose, stamp))
        self.ros.spin_until(lambda: self.control._measured and self.control._measured[1] == stamp, what="a joint state")

    def advance(self, ticks: int = 1, measure: bool = True) -> Any:
        """Lets time pass; returns the command of the last tick."""
        for _ in range(ticks):
            self.now += 1
            self.clock.publish(Clock(clock=time_message(self.now * T)))
            self.ros.spin_until(lambda: self.control._due_ns == self.now * T, what=f"tick {self.now}")
            if self.control._gate._limiter is not None:
                self.ros.spin_until(lambda: self.now * T in self.commands, what=f"the command of tick {self.now}")
            if measure:
                self.measure()
        return self.commands.get(self.now * T)

    def send(self, message: JointTrajectory) -> None:
        """Publishes a chunk and waits until the node has counted it in some way."""
        counts = self.counts()
        self.chunks.publish(message)
        self.ros.spin_until(lambda: self.counts() != counts, what="the chunk")

    def wait_for_target(self, pose: np.ndarray) -> None:
        due = self.control._sources.at
        self.ros.spin_until(lambda: np.array_equal(due(self.now * T).action, pose), what="a target")

    def counts(self) -> dict[str, str]:
        names = ("chunks", "bad_chunk", "refused_chunk")
        return {v.key: v.value for v in self.control._health.status().values if v.key in names}

    def says(self, *parts: str) -> DiagnosticStatus:
        self.ros.spin_until(lambda: all(p in self.status[-1].message for p in parts), what=f"the status {parts}")
        return self.status[-1]

    def service(self, service: Service, kind: Any = Trigger, **request: Any) -> None:
        answer = self.ros.call(self.node, kind, service.name, kind.Request(**request))
        assert answer.success


def ramp(tick: int, to: float = 0.4) -> ActionChunk:
    """Moves the left waist from rest to `to`, observed at a tick."""
    actions = np.tile(REST_POSE, (CHUNK_SIZE, 1))
    actions[:, 0] = np.linspace(0.0, to, CHUNK_SIZE)
    return ActionChunk(tick * T, actions)


@pytest.fixture
def cell(ros) -> Cell:
    return Cell(ros)


def running(cell: Cell) -> None:
    cell.advance(1)
    cell.measure()
    cell.advance(2)
    cell.send(chunk_message(ramp(cell.now)))
    cell.advance(3)
    cell.says("running")


def test_it_is_silent_until_the_arms_are_measured_then_holds(cell: Cell) -> None:
    cell.says("idle", "no joint states yet")
    cell.advance(3, measure=False)
    assert not cell.commands
    pose = REST_POSE.copy()
    pose[1] += 0.2
    cell.measure(pose)
    for _ in range(3):
        np.testing.assert_allclose(cell.advance(measure=False), pose, atol=1e-9)
    cell.says("holding", "no action chunk yet")


def test_a_chunk_is_executed_by_its_stamps(cell: Cell) -> None:
    cell.advance(2)
    cell.measure()
    cell.advance(5)
    chunk = ramp(cell.now - 3)  # inference took three ticks
    cell.send(chunk_message(chunk))
    for row in range(4, CHUNK_SIZE):
        command = cell.advance()
        if row >= 20:  # by then the way that inference took is made good, within the acceleration limit
            np.testing.assert_allclose(command, chunk.actions[row], atol=1e-6)
    speed = 0.4 / (CHUNK_SIZE - 1) / 0.02
    assert 0.0 < (cell.advance(5) - chunk.actions[-1])[0] < 0.5 * speed**2 / ACCELERATION_LIMITS[0], "it brakes"
    status = cell.says("holding", "run out")
    assert status.level == DiagnosticStatus.WARN
    assert set(cell.commands) == {t * T for t in range(min(cell.commands) // T, cell.now + 1)}  # none missing


def malformed(change: Any) -> JointTrajectory:
    message = chunk_message(ramp(0))
    change(message)
    return message


def set_nan(message: Any) -> None:
    message.points[7].positions = [float("nan")] * 14


def rename(message: Any) -> None:
    message.joint_names = ["elbow", *message.joint_names[1:]]


def cut(message: Any) -> None:
    message.points = message.points[:20]


@pytest.mark.parametrize(
    ("change", "says"), [(set_nan, "not finite"), (rename, "'elbow'"), (cut, "20 points")], ids=["nan", "name", "short"]
)
def test_a_bad_chunk_holds_the_arms(cell: Cell, change: Any, says: str) -> None:
    running(cell)
    message = malformed(change)
    message.header.stamp = time_message(cell.now * T)
    cell.send(message)
    held = cell.advance(BRAKED)
    for _ in range(5):
        np.testing.assert_array_equal(cell.advance(), held)
    cell.says("holding", "bad action chunk", says)
    cell.send(chunk_message(ramp(cell.now)))  # the next good one goes on
    cell.advance(3)
    cell.says("running")


def test_a_chunk_from_the_future_holds_and_names_the_likely_cause(cell: Cell) -> None:
    cell.advance(2)
    cell.measure()
    held = cell.advance(2)
    cell.send(chunk_message(ramp(cell.now + 500)))
    np.testing.assert_array_equal(cell.advance(), held)
    cell.says("holding", "in the future", "clock")


def test_a_chunk_from_the_past_holds(cell: Cell) -> None:
    cell.advance(60)
    cell.measure()
    held = cell.advance(2)
    cell.send(chunk_message(ramp(1)))
    np.testing.assert_array_equal(cell.advance(), held)
    cell.says("holding", "run out")


def test_without_joint_states_the_watchdog_holds(cell: Cell) -> None:
    running(cell)
    cell.advance(10, measure=False)
    before = cell.advance(1 + BRAKED, measure=False)
    np.testing.assert_array_equal(cell.advance(3, measure=False), before)
    cell.says("holding", "joint states are", "old")


def test_a_bad_joint_state_is_refused(cell: Cell) -> None:
    cell.advance(1, measure=False)
    message = joint_state_message(REST_POSE, T)
    message.position = [float("inf")] * 14
    cell.joints.publish(message)
    counters = lambda: {v.key for v in cell.control._health.status().values}  # noqa: E731
    cell.ros.spin_until(lambda: "bad_joint_state" in counters(), what="the refusal")
    assert cell.advance(measure=False) is None


def test_an_emergency_stop_is_latched_and_released(cell: Cell) -> None:
    running(cell)
    cell.service(CONTROL_ESTOP)
    held = cell.advance(BRAKED)
    assert cell.says("stopped", "emergency stop").level == DiagnosticStatus.ERROR
    cell.chunks.publish(chunk_message(ramp(cell.now)))
    np.testing.assert_array_equal(cell.advance(10), held)
    seen = cell.now
    cell.service(CONTROL_RESET)
    np.testing.assert_array_equal(cell.advance(), held)
    cell.says("holding", "no action chunk yet")
    cell.send(chunk_message(ramp(seen - 1)))  # inferred from an observation of before the release
    np.testing.assert_array_equal(cell.advance(), held)
    cell.send(chunk_message(ramp(cell.now)))
    cell.advance(3)
    cell.says("running")


def test_disabled_means_hold(ros) -> None:
    cell = Cell(ros, enabled=False)
    cell.advance(1)
    cell.measure()
    held = cell.advance(2)
    cell.says("holding", "disabled")
    cell.chunks.publish(chunk_message(ramp(cell.now)))
    np.testing.assert_array_equal(cell.advance(5), held)
    cell.service(CONTROL_ENABLE, SetBool, data=True)
    cell.send(chunk_message(ramp(cell.now)))
    cell.advance(3)
    cell.says("running")
    cell.service(CONTROL_ENABLE, SetBool, data=False)
    held = cell.advance(BRAKED)
    np.testing.assert_array_equal(cell.advance(5), held)
    cell.says("holding", "disabled")


def test_when_simulated_time_runs_back_everything_before_is_void(cell: Cell) -> None:
    running(cell)
    cell.advance(20)
    old = joint_state_message(REST_POSE + 0.001, cell.now * T)
    cell.commands.clear()
    cell.now = 1
    cell.clock.publish(Clock(clock=time_message(cell.now * T)))
    cell.ros.spin_until(lambda: cell.control._measured is None, what="the new episode")
    cell.joints.publish(old)  # still on its way when the reset came
    counters = lambda: {v.key for v in cell.control._health.status().values}  # noqa: E731
    cell.ros.spin_until(lambda: "joint_state_from_the_future" in counters(), what="the refusal")
    assert cell.advance(2, measure=False) is None
    cell.says("idle")
    cell.measure()
    np.testing.assert_array_equal(cell.advance(2), REST_POSE)
    cell.says("holding", "no action chunk yet")


def test_speed_is_limited(ros) -> None:
    cell = Cell(ros, **{"safety.velocity_scale": 0.1})
    cell.advance(1)
    cell.measure()
    cell.advance(1)
    cell.send(chunk_message(ramp(cell.now, to=1.0)))
    cell.advance(30)
    waist = np.array([cell.commands[t][0] for t in sorted(cell.commands)])
    assert np.diff(waist).max() == pytest.approx(0.1 * 3.1416 * 0.02)


def test_on_the_wall_clock_every_due_time_is_on_the_grid_once(ros) -> None:
    cell_node = ros.node("cell")
    stamps: list[int] = []
    joints = advertise(cell_node, JOINT_STATES)
    cell_node.create_subscription(
        JointState, JOINT_COMMANDS.name, lambda m: stamps.append(stamp_ns(m.header.stamp)), qos_profile(Qos.STATE)
    )
    ros.add(ControlNode())
    ros.spin_until(joints.get_subscription_count, what="discovery")
    now = cell_node.get_clock().now().nanoseconds
    joints.publish(joint_state_message(REST_POSE, now))
    ros.spin_until(lambda: len(stamps) > 20, what="commands")
    assert stamps[0] > now - T
    assert all(s % T == 0 for s in stamps)
    assert stamps == sorted(set(stamps))


def test_bad_parameters_are_refused(ros) -> None:
    for name, value, says in (
        ("execute_step", 10, "execute_steps"),
        ("mode", "rtc", "temporal_ensemble"),
        ("safety.max_jump_rad", 100.0, "max_jump_rad"),
        ("safety.workspace.min_m", [0.0, 0.0], "three numbers"),
        ("safety.clearance.arm_arm", 0.1, "arm_arm_m"),
    ):
        with pytest.raises(ConfigError, match=says):
            ControlNode(parameter_overrides=[Parameter(name, value=value)])


def test_after_the_arms_went_by_themselves_commands_begin_from_where_they_are(ros):
    cell = Cell(ros)
    cell.measure()
    cell.advance()
    arms = advertise(cell.node, ARMS_STATUS)
    ros.spin_until(arms.get_subscription_count, what="discovery")
    moved = REST_POSE + 0.001
    moved[0] += 1.0
    cell.measure(moved)
    cell.now += 1
    cell.measure(moved)
    assert cell.advance(measure=False) == pytest.approx(REST_POSE), "until then it is the command before"
    for state, ready in (("moving", False), ("holding", True)):
        arms.publish(DiagnosticStatus(values=[KeyValue(key="state", value=state)]))
        ros.spin_until(lambda r=ready: cell.control._arms_ready is r, what=state)
    assert cell.advance(measure=False) == pytest.approx(moved)


def select(cell: Cell, source: str) -> Any:
    request = SetParameters.Request(parameters=[Parameter("source", value=source).to_parameter_msg()])
    return cell.ros.call(cell.node, SetParameters, CONTROL_PARAMETERS.name, request).results[0]


def test_a_person_takes_over_and_hands_back_and_the_arms_follow_whoever_is_selected(cell: Cell) -> None:
    targets = advertise(cell.node, TELEOP_TARGETS)
    told: list[Any] = []
    subscribe(cell.node, CONTROL_SOURCE, told.append)
    running(cell)
    cell.ros.spin_until(lambda: told and targets.get_subscription_count(), what="discovery")
    cell.advance()
    taken = cell.now
    assert select(cell, "teleop").successful
    held = cell.advance(10)  # the policy's chunk is void, and no target is there yet: it brakes, and stays
    for _ in range(3):
        np.testing.assert_array_equal(cell.advance(), held)
    cell.says("holding", "no teleop target yet")
    pose = held.copy()
    for _ in range(10):
        pose[1] += 0.005
        targets.publish(joint_state_message(pose, cell.now * T))
        cell.wait_for_target(pose)
        np.testing.assert_allclose(cell.advance(), pose, atol=0.003)  # behind, as long as it gains speed
    cell.says("running")
    last = cell.advance(8)
    np.testing.assert_allclose(last, pose, atol=1e-9)
    cell.says("holding", "the newest teleop target is", "limit 0.10 s")
    assert select(cell, "policy").successful
    chunk = ramp(cell.now)
    chunk.actions[:] = last
    cell.send(chunk_message(chunk))
    np.testing.assert_allclose(cell.advance(3), last, atol=1e-9)
    cell.says("running")
    cell.ros.spin_until(lambda: len(told) > 2, what="the sources")
    assert [message.frame_id for message in told] == ["policy", "teleop", "policy"]
    assert stamp_ns(told[1].stamp) == (taken + 1) * T  # the first tick after it was selected


def test_a_stream_that_was_stopped_is_not_followed_again_by_itself(cell: Cell) -> None:
    targets = advertise(cell.node, TELEOP_TARGETS)
    told: list[Any] = []
    subscribe(cell.node, CONTROL_SOURCE, told.append)
    running(cell)
    assert select(cell, "teleop").successful
    cell.ros.spin_until(targets.get_subscription_count, what="discovery")
    held = cell.advance()
    cell.service(CONTROL_ESTOP)
    cell.service(CONTROL_RESET)
    faults = cell.control._health
    targets.publish(joint_state_message(held + 0.01, cell.now * T))
    cell.ros.spin_until(lambda: "refused_target" in str(faults.status().values), what="the refusal")
    np.testing.assert_array_equal(cell.advance(3), held)
    cell.says("holding", "select teleop again")
    cell.ros.spin_until(lambda: told and told[-1].frame_id == "nobody", what="the end of the intervention")


def test_an_unknown_source_is_refused_and_the_one_before_stays(cell: Cell) -> None:
    running(cell)
    answer = select(cell, "telepathy")
    assert not answer.successful
    assert "expected one of policy, teleop, replay" in answer.reason
    cell.advance(3)
    cell.says("running")


def test_an_arm_that_strains_is_held(cell: Cell) -> None:
    cell.advance(1)
    efforts = np.zeros(14)
    efforts[2] = 20.0  # of 21.2 N m
    cell.measure()
    cell.advance(2)
    cell.send(chunk_message(ramp(cell.now, to=0.1)))
    for _ in range(40):
        cell.advance(measure=False)
        stamp = cell.now * T
        cell.joints.publish(joint_state_message(REST_POSE, stamp, np.zeros(14), efforts))
        cell.ros.spin_until(lambda at=stamp: cell.control._measured[1] == at, what="a joint state")
    cell.says("holding", "left/elbow has strained", "20.0 N m")


def test_an_arm_that_comes_near_the_table_is_held(cell: Cell) -> None:
    cell.advance(1)
    cell.measure()
    cell.advance(2)
    down = np.tile(REST_POSE, (CHUNK_SIZE, 1))
    down[:, 1] = np.linspace(REST_POSE[1], REST_POSE[1] + 1.1, CHUNK_SIZE)
    cell.send(chunk_message(ActionChunk(cell.now * T, down)))
    for _ in range(CHUNK_SIZE - 3):
        cell.measure(cell.advance(measure=False))
    cell.says("holding", "from table, limit")


def test_a_required_node_that_falls_silent_latches_the_stop(ros) -> None:
    cell = Cell(ros, **{"alive.required": ["arm_node"], "alive.silence_s": 2.0})
    running(cell)
    diagnostics = advertise(cell.node, DIAGNOSTICS)
    ros.spin_until(diagnostics.get_subscription_count, what="discovery")
    diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(name="arm_node")]))
    ros.spin_until(lambda: cell.control._gate.stopped, what="the stop")
    cell.advance()
    cell.says("stopped", "arm_node has been silent for", "limit 2.0 s")
    diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(name="arm_node")]))
    ros.spin_until(lambda: not cell.control._heartbeats.dead(time.monotonic()), what="the node's return")
    cell.service(CONTROL_RESET)
    cell.advance()
    cell.says("holding", "no action chunk yet")


def test_a_node_that_died_and_came_back_latches_the_stop(ros) -> None:
    cell = Cell(ros, **{"alive.mourned": ["policy_node"]})
    running(cell)
    diagnostics = advertise(cell.node, DIAGNOSTICS)
    ros.spin_until(diagnostics.get_subscription_count, what="discovery")
    for process in ("10", "11"):
        assert not cell.control._gate.stopped
        values = [KeyValue(key="process", value=process)]
        diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(name="policy_node", values=values)]))
        ros.spin_until(lambda p=process: cell.control._heartbeats._process.get("policy_node") == p, what="the report")
    ros.spin_until(lambda: cell.control._gate.stopped, what="the stop")
    cell.advance()
    cell.says("stopped", "policy_node died and had to be started again")
    cell.service(CONTROL_RESET)
    cell.advance()
    cell.says("holding", "no action chunk yet")


def test_a_watched_node_that_falls_silent_is_said_and_stops_nothing(ros) -> None:
    cell = Cell(ros, **{"alive.watched": ["recorder_node"], "alive.silence_s": 2.0})
    running(cell)
    diagnostics = advertise(cell.node, DIAGNOSTICS)
    ros.spin_until(diagnostics.get_subscription_count, what="discovery")
    diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(name="recorder_node")]))
    told = "nothing heard of recorder_node for over 2.0 s"
    ros.spin_until(lambda: told in cell.control._health.status().message, what="the word")
    assert not cell.control._gate.stopped
    diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(name="recorder_node")]))
    ros.spin_until(lambda: told not in cell.control._health.status().message, what="the node's return")


@pytest.mark.parametrize("held_back", [True, False], ids=["clamp up", "ros2 run"])
def test_the_stop_by_signal_and_by_command(ros, held_back: bool) -> None:
    """The node as a process of its own. `clamp up` holds the signal back until the node waits for it."""
    node = ros.node("cell")
    said: list[str] = []
    subscribe(node, CONTROL_STATUS, lambda message: said.append(message.message))
    process = subprocess.Popen(
        [sys.executable, "-m", "clamp_ros.control.control_node"],
        preexec_fn=lambda: held_back and signal.pthread_sigmask(signal.SIG_BLOCK, {ESTOP_SIGNAL}) and None,
    )
    joints = advertise(node, JOINT_STATES)

    def see(*parts: str) -> None:
        def seen() -> bool:
            joints.publish(joint_state_message(REST_POSE, node.get_clock().now().nanoseconds))
            return bool(said) and all(part in said[-1] for part in parts)

        ros.spin_until(seen, 30.0, f"the status {parts}")

    def clamp(*words: str) -> None:
        command = subprocess.Popen([sys.executable, "-m", "clamp_ros.cli", *words], env=os.environ)
        ros.spin_until(lambda: command.poll() is not None, 30.0, "clamp")
        assert command.returncode == 0

    try:
        if held_back:
            process.send_signal(ESTOP_SIGNAL)  # before it can hear it: it waits
        else:
            ros.spin_until(lambda: send_stop_signal() == [process.pid], 30.0, "the process to catch it")
        see("stopped", "emergency stop by the space bar", "/control/reset releases it")
        clamp("stop", "--release")
        see("holding")
        assert send_stop_signal({}) == []  # of another domain
        for _ in range(5):  # the kernel chooses a thread, and none may die of it
            clamp("stop")
        see("stopped", "or `clamp stop`", "/control/reset releases it")
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_without_a_control_node_the_command_says_so(ros_domain_id: int) -> None:
    code = "import sys; from clamp_ros.bringup import stop; stop.FOUND_S = 0.2; sys.exit(str(stop.stop()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "nobody offers /control/estop" in result.stderr
