"""The two follower arms as a ROS 2 node, with the topics of the simulation: joint commands in, joint states and TF out.

Each arm's bus has a thread of its own (`clamp_ros.arm.arms`), which no callback waits for; what they measure is
published by one more. Commands are those of the control node, and of nobody else: they have passed the safety gate, and
are checked again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger

from clamp_ros.arm.arm import gauges
from clamp_ros.arm.arms import Arms, ArmsSample, State
from clamp_ros.arm.settings import ArmsConfig
from clamp_ros.contract.errors import ArmError, ContractError
from clamp_ros.contract.interfaces import (
    ARMS_HOME,
    ARMS_REBOOT,
    ARMS_SLEEP,
    ARMS_STATUS,
    ARMS_TORQUE,
    CONTROL_RESET,
    CONTROL_STATUS,
    JOINT_COMMANDS,
    JOINT_STATES,
    gripper_frame,
)
from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.ros.convert import joint_state_message, joints_from_message, stamp_ns
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, advertise, run_node, serve, subscribe
from clamp_ros.ros.sender import SoleSender
from clamp_ros.ros.tf import TfBroadcaster
from clamp_ros.ros.worker import NewestWorker

_LEVELS = {
    State.STARTING: DiagnosticStatus.WARN,
    State.OFF: DiagnosticStatus.WARN,
    State.HOLDING: DiagnosticStatus.OK,
    State.FOLLOWING: DiagnosticStatus.OK,
    State.MOVING: DiagnosticStatus.OK,
    State.FAULT: DiagnosticStatus.ERROR,
}


class ArmNode(Node):
    """Publishes what `Arms` measures, and hands it what is asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__("arm_node", **options)
        self._config = declare(self, ArmsConfig)
        self._health = Health(self)
        self._status = advertise(self, ARMS_STATUS)
        self._joints = advertise(self, JOINT_STATES)
        self._broadcaster = TfBroadcaster(self)
        self._arms = Arms(self._config, lambda: self.get_clock().now().nanoseconds, self._on_sample, self._on_state)
        self._on_state(self._arms.state, self._arms.reason)
        self._publisher = NewestWorker(self._publish)
        self._stopped = False
        self._sender = SoleSender(self, JOINT_COMMANDS, "control_node")
        subscribe(self, JOINT_COMMANDS, self._on_command)
        subscribe(self, CONTROL_STATUS, self._on_control)
        serve(self, ARMS_TORQUE, self._on_torque)
        serve(self, ARMS_REBOOT, self._on_reboot)
        serve(self, ARMS_HOME, lambda _, response: self._move("home", response))
        serve(self, ARMS_SLEEP, lambda _, response: self._move("sleep", response))
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.1, self._check, clock=steady)
        self.create_timer(1.0, self._report, clock=steady)
        self._told: set[str] = set()
        self._warn_of_latency()
        self._warn_of_borrowed_angles()
        self._arms.start()

    @property
    def realtime_priority(self) -> int:
        """The parameter."""
        return self._config.realtime_priority

    # The arms' threads.

    def _on_sample(self, sample: ArmsSample) -> None:
        self._publisher.submit(sample)

    def _on_state(self, state: State, reason: str) -> None:
        text = f"{state.value}{': ' if reason else ''}{reason}"
        level = _LEVELS[state]
        values = [KeyValue(key="state", value=state.value), KeyValue(key="reason", value=reason)]
        self._status.publish(DiagnosticStatus(level=level, name=self.get_name(), message=text, values=values))
        self._health.hold("arms", None if level == DiagnosticStatus.OK else text, error=state is State.FAULT)
        log = self.get_logger()
        if state is State.FAULT:
            log.error(text)
        else:
            log.info(text)

    def _publish(self, sample: ArmsSample) -> None:
        message = joint_state_message(sample.positions, sample.stamp_ns, sample.velocities, sample.efforts)
        self._joints.publish(message)
        frames = [(WORLD_FRAME, gripper_frame(arm), world_from_gripper(arm, sample.positions)) for arm in ARMS]
        self._broadcaster.send(frames, sample.stamp_ns)
        self._health.count("joint_states")

    # The executor's thread.

    def _on_command(self, message: JointState) -> None:
        if self._sender.fault():
            self._mind_senders()
            self._health.count("foreign_commands")
            return
        age_s = (self.get_clock().now().nanoseconds - stamp_ns(message.header.stamp)) / 1e9
        limit_s = self._config.command_timeout_s
        if not -limit_s <= age_s <= limit_s:
            self._health.fault("late_commands", f"joint command is {age_s:.2f} s old, limit {limit_s:.2f} s; arms hold")
            return
        try:
            refused = self._arms.submit(joints_from_message(message, "joint command"))
        except ContractError as error:
            refused = str(error)
        if refused is None:
            self._health.count("commands")
        elif self._arms.takes_commands:
            self._health.fault("refused_commands", refused)
        else:
            self._health.count("ignored_commands")  # the state says why

    def _mind_senders(self) -> None:
        """With a second sender the arms follow neither: one of the two has not passed the gate."""
        fault = self._sender.fault()
        self._health.hold("sender", fault or None, error=True)
        if fault:
            self._arms.hold(fault)

    def _on_control(self, message: DiagnosticStatus) -> None:
        """The emergency stop is for the arms' own motions, too."""
        self._stopped = any(value.key == "state" and value.value == "stopped" for value in message.values)
        if self._stopped:
            self._arms.stop("emergency stop")

    def _on_torque(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        def torque() -> str:
            self._arms.torque(request.data)
            return "holding" if request.data else "torque is off"

        return self._answer(torque, response)

    def _on_reboot(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def reboot() -> str:
            motors = self._arms.reboot()
            return f"restarted {', '.join(motors)}" if motors else "no motor reports an error"

        return self._answer(reboot, response)

    def _move(self, pose: str, response: Trigger.Response) -> Trigger.Response:
        def move() -> str:
            if self._stopped:
                raise ArmError(f"the emergency stop is latched: release it by {CONTROL_RESET.name} first")
            return f"going {pose}: {self._arms.move(pose):.1f} s"

        return self._answer(move, response)

    def _answer(self, request: Callable[[], str], response: Any) -> Any:
        try:
            response.message, response.success = request(), True
        except ArmError as error:
            response.message, response.success = str(error), False
        return response

    def _check(self) -> None:
        self._sender.look()
        self._mind_senders()
        self._arms.check()
        self._publisher.check()

    def _report(self) -> None:
        """Each motor's temperature, voltage and error, each bus's losses: gauges on /diagnostics."""
        hot = []
        for name in ARMS:
            arm = self._arms.arm(name)
            self._health.gauge(f"{name}.slowest_cycle_ms", 1e3 * self._arms.slowest_cycle_s(name))
            for key, value in gauges(arm).items():
                self._health.gauge(key, value)
            for motor, health in list(arm.health.items()):
                if health.temperature >= self._config.hot_c:
                    hot.append(f"{arm.label(motor)} {health.temperature} C")
            for note in arm.notes:
                if note not in self._told:
                    self._told.add(note)
                    self.get_logger().info(note)
        self._health.hold("hot", f"hot motors: {', '.join(hot)}" if hot else None)
        self._health.gauge("unpublished", self._publisher.dropped)

    def _warn_of_latency(self) -> None:
        """The USB adapter's latency timer, 16 ms out of the box, is what makes 100 Hz impossible."""
        slow = []
        for side in (self._config.left, self._config.right):
            timer = Path("/sys/class/tty") / Path(side.port).resolve().name / "device/latency_timer"
            try:
                milliseconds = int(timer.read_text())
            except (OSError, ValueError):
                continue  # no FTDI adapter
            if milliseconds > 1:
                slow.append(f"{side.port} has {milliseconds} ms")
        if slow:
            advice = "install config/99-aloha.rules for 1 ms"
            self._health.hold("latency", f"USB latency timer: {', '.join(slow)}; {advice}")

    def _warn_of_borrowed_angles(self) -> None:
        sides = {"left": self._config.left, "right": self._config.right}
        borrowed = [name for name, side in sides.items() if side.borrowed]
        if borrowed:
            which = " and ".join(borrowed)
            text = f"{which} gripper: the angles of the robot whose file ships; measure yours (docs/hardware.md, Arms)"
            self._health.hold("gripper", text)
            self.get_logger().warning(text)

    def close(self) -> None:
        """Ends as the parameter `at_exit` says; the motors' watchdogs then see to it that the arms stay."""
        self._arms.close()
        self._publisher.close()


def main() -> int:
    """Entry point of the executable `arm_node`."""
    return run_node(ArmNode, shared_memory=False)


if __name__ == "__main__":
    sys.exit(main())
