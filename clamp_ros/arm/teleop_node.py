"""Teleoperation as a ROS 2 node: two leader arms in, targets for the control node out, at its rate or faster.

The law is `clamp_ros.arm.teleop`, the leaders have threads of their own (`clamp_ros.arm.leaders`), and the targets go
the way of every other: through the control node's safety gate. Where `record` is set, each session is an episode.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from rcl_interfaces.srv import SetParameters
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from clamp_ros.arm.arm import gauges
from clamp_ros.arm.leaders import Leaders
from clamp_ros.arm.settings import LeaderMotors, LeaderSide
from clamp_ros.arm.teleop import State, Teleop, TeleopConfig
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.interfaces import (
    CONTROL_PARAMETERS,
    CONTROL_SOURCE,
    CONTROL_STATUS,
    JOINT_COMMANDS,
    LEADER_STATES,
    RECORD_DISCARD,
    RECORD_START,
    RECORD_STOP,
    TELEOP_DISCARD,
    TELEOP_START,
    TELEOP_STATUS,
    TELEOP_STOP,
    TELEOP_TARGETS,
    Service,
)
from clamp_ros.contract.robot import ARMS, CONTROL_PERIOD_NS
from clamp_ros.ros.convert import joint_state_message, joints_from_message, stamp_ns
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, advertise, interface_type, run_node, serve, subscribe

_LEVELS = {
    State.IDLE: DiagnosticStatus.OK,
    State.APPROACHING: DiagnosticStatus.OK,
    State.FOLLOWING: DiagnosticStatus.OK,
    State.STOPPED: DiagnosticStatus.ERROR,
}


@dataclass(frozen=True)
class TeleopNodeConfig:
    """Parameters of the teleoperation node."""

    left: LeaderSide = field(default_factory=lambda: LeaderSide(port="/dev/ttyDXL_leader_left"))
    right: LeaderSide = field(default_factory=lambda: LeaderSide(port="/dev/ttyDXL_leader_right"))
    motors: LeaderMotors = field(default_factory=LeaderMotors)
    law: TeleopConfig = field(default_factory=TeleopConfig)
    rate_hz: int = param(100, "how often leaders are read and targets sent", unit="Hz", minimum=50, maximum=200)
    hand_back: str = param(
        "policy", "who has the arms after a session; teleop: nobody else, they hold", choices=("policy", "teleop")
    )
    command_timeout_s: float = param(
        0.25, "a session ends when the control node has told the arms nothing for this long", unit="s",
        minimum=0.05, maximum=5.0,
    )  # fmt: skip
    answer_s: float = param(
        5.0, "how long the control node and the recorder may take to answer", unit="s", minimum=0.5, maximum=120.0
    )
    record: bool = param(False, "each session is an episode of the recorder")
    realtime_priority: int = param(
        20, "SCHED_FIFO priority where the user may set it; 0 leaves the scheduler alone", minimum=0, maximum=90
    )

    def __post_init__(self) -> None:
        check(self)


class TeleopNode(Node):
    """Hands the law what it asks for, and does what it says."""

    def __init__(self, **options: Any) -> None:
        super().__init__("teleop_node", **options)
        self._config = declare(self, TeleopNodeConfig)
        self._health = Health(self)
        config = self._config
        self._leaders = Leaders(config.left, config.right, config.motors, config.rate_hz)
        self._law = Teleop(config.law, config.motors.rest)
        self._command: tuple[NDArray[Any], int] | None = None
        self._source, self._source_ns, self._started_ns = "", 0, 0
        self._stopped = self._recording = False
        self._said: tuple[State, str] | None = None
        self._problem: str | None = None
        self._told: set[str] = set()
        self._asked: list[tuple[Future[Any], float, Service, Callable[[str], None]]] = []
        if config.left.borrowed or config.right.borrowed:
            text = "handles: the angles of the robot whose file ships; measure yours (docs/hardware.md, Teleoperation)"
            self.get_logger().warning(text)
        self._targets = advertise(self, TELEOP_TARGETS)
        self._states = advertise(self, LEADER_STATES)
        self._status = advertise(self, TELEOP_STATUS)
        subscribe(self, JOINT_COMMANDS, self._on_command)
        subscribe(self, CONTROL_SOURCE, self._on_source)
        subscribe(self, CONTROL_STATUS, self._on_control)
        services = (CONTROL_PARAMETERS, RECORD_START, RECORD_STOP, RECORD_DISCARD)
        self._clients_of = {row.name: self.create_client(interface_type(row.type), row.name) for row in services}
        serve(self, TELEOP_START, self._on_start)
        serve(self, TELEOP_STOP, self._on_stop)
        serve(self, TELEOP_DISCARD, self._on_discard)
        self.create_timer(1.0 / config.rate_hz, self._tick)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.1, self._watch, clock=steady)
        self.create_timer(1.0, self._report, clock=steady)
        self._leaders.start()

    @property
    def realtime_priority(self) -> int:
        """The parameter."""
        return self._config.realtime_priority

    def _tick(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if now_ns == 0:  # simulated time has not begun
            return
        if self._law.active and (problem := self._leaders.problem) is not None:
            self._law.fail(problem)
        if self._law.active and now_ns < self._started_ns:
            self._law.fail("time ran back: a new episode")
        positions, drive, settled = self._leaders.sample() or (None, None, False)
        step = self._law.tick(now_ns, self._told_now(now_ns), positions, self._followed(), drive, settled)
        self._leaders.wish(step.drive, step.pose)
        if positions is not None:
            self._states.publish(joint_state_message(positions, now_ns))
        if step.target is not None:
            self._targets.publish(joint_state_message(step.target, now_ns))
            self._health.count("targets")
        self._tell()

    def _told_now(self, now_ns: int) -> NDArray[Any] | None:
        """What the arms are told, where somebody still tells them."""
        if self._command is None or abs(now_ns - self._command[1]) > 1e9 * self._config.command_timeout_s:
            return None
        return self._command[0]

    def _on_command(self, message: JointState) -> None:
        try:
            self._command = joints_from_message(message, "joint command"), stamp_ns(message.header.stamp)
        except ContractError as error:
            self._health.fault("bad_command", str(error))

    def _on_source(self, message: Header) -> None:
        self._source, self._source_ns = message.frame_id, stamp_ns(message.stamp)

    def _followed(self) -> str:
        """Whose targets are followed, as far as is known since the start; a session before it may just be ending."""
        return self._source if self._source_ns >= self._started_ns - CONTROL_PERIOD_NS else ""

    def _on_control(self, message: DiagnosticStatus) -> None:
        self._stopped = any(value.key == "state" and value.value == "stopped" for value in message.values)

    # What is asked of this node.

    def _on_start(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        now_ns = self.get_clock().now().nanoseconds
        refusal = self._refusal(now_ns)
        if refusal is None:
            self._law.start(now_ns)
            self._started_ns = now_ns
            self._select("teleop", self._give_up)
            if self._config.record:
                self._ask(RECORD_START, Trigger.Request(), self._give_up, self._on_recording)
            self._tell()
        response.success, response.message = refusal is None, refusal or self._law.reason
        return response

    def _refusal(self, now_ns: int) -> str | None:
        """Why it cannot start now, or None."""
        if self._law.active:
            return f"already {self._law.state.value}"
        if (problem := self._leaders.problem) is not None:
            return problem
        if self._stopped:
            return "the arms are stopped; /control/reset releases them"
        if self._told_now(now_ns) is None:
            return "no joint commands; does control_node run, and are the arms measured?"
        needed = (CONTROL_PARAMETERS, RECORD_START) if self._config.record else (CONTROL_PARAMETERS,)
        for service in needed:
            if not self._clients_of[service.name].service_is_ready():
                return f"{service.name} is not there; does its node run?"
        return None

    def _on_stop(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        return self._end(response, RECORD_STOP, SetBool.Request(data=request.data))

    def _on_discard(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._end(response, RECORD_DISCARD, Trigger.Request())

    def _end(self, response: Any, recorder: Service, request: Any) -> Any:
        response.success = self._law.state is not State.IDLE
        response.message = f"handed back to {self._config.hand_back}" if response.success else "nothing is teleoperated"
        if response.success:
            self._law.stop()
            self._select(self._config.hand_back, lambda why: self._health.fault("not_handed_back", why))
        if self._recording:
            self._recording = False
            self._ask(recorder, request, lambda why: self._health.fault("recorder", why))
        self._tell()
        return response

    # What this node asks of others.

    def _select(self, source: str, failed: Callable[[str], None]) -> None:
        parameter = Parameter("source", value=source).to_parameter_msg()
        self._ask(CONTROL_PARAMETERS, SetParameters.Request(parameters=[parameter]), failed)

    def _give_up(self, why: str) -> None:
        if self._law.active:
            self._law.fail(why)
        else:
            self._health.fault("refused", why)

    def _on_recording(self) -> None:
        if self._law.state is State.IDLE:  # it was ended before the recorder had begun
            self._ask(RECORD_DISCARD, Trigger.Request(), lambda why: self._health.fault("recorder", why))
        else:
            self._recording = True

    def _ask(
        self, service: Service, request: Any, failed: Callable[[str], None], done: Callable[[], None] | None = None
    ) -> None:
        """Calls a service; nobody waits. `failed` hears why, where it refuses or does not answer in time."""

        def answered(future: Future[Any]) -> None:
            if future.cancelled() or (answer := future.result()) is None:
                return
            results = getattr(answer, "results", None)
            good = answer.success if results is None else results[0].successful
            if not good:
                failed(f"{service.name}: {answer.message if results is None else results[0].reason}")
            elif done is not None:
                done()

        future = self._clients_of[service.name].call_async(request)
        future.add_done_callback(answered)
        self._asked.append((future, time.monotonic() + self._config.answer_s, service, failed))

    def _watch(self) -> None:
        self._leaders.check()
        waiting = [asked for asked in self._asked if not asked[0].done()]
        late = [asked for asked in waiting if time.monotonic() > asked[1]]
        self._asked = [asked for asked in waiting if asked not in late]
        for _, _, service, failed in late:  # an answer that comes all the same is heard: the recorder may have begun
            failed(f"{service.name} has not answered in {self._config.answer_s:g} s")
        problem = self._leaders.problem
        if problem not in (None, self._problem) and problem not in self._law.reason:  # else the stop tells it
            self.get_logger().warning(problem)
        self._problem = problem
        self._health.hold("leaders", problem)
        self._tell()

    def _tell(self) -> None:
        """Publishes and logs what it does, when that changes."""
        law = self._law
        if (law.state, law.reason) == self._said:
            return
        self._said = (law.state, law.reason)
        text = f"{law.state.value}{': ' if law.reason else ''}{law.reason}"
        values = [KeyValue(key="state", value=law.state.value), KeyValue(key="reason", value=law.reason)]
        self._status.publish(
            DiagnosticStatus(level=_LEVELS[law.state], name=self.get_name(), message=text, values=values)
        )
        stopped = law.state is State.STOPPED
        self._health.hold("teleop", text if stopped else None, error=True)
        log = self.get_logger()
        log.error(text) if stopped else log.info(text)

    def _report(self) -> None:
        for name in ARMS:
            arm = self._leaders.arm(name)
            for key, value in gauges(arm).items():
                self._health.gauge(key, value)
            for note in arm.notes:
                if note not in self._told:
                    self._told.add(note)
                    self.get_logger().info(note)

    def close(self) -> None:
        """Lets go of the leaders; the control node holds the arms as soon as the targets are old."""
        self._leaders.close()


def main() -> int:
    """Entry point of the executable `teleop_node`."""
    return run_node(TeleopNode, shared_memory=False)


if __name__ == "__main__":
    sys.exit(main())
