"""The control loop as a ROS 2 node: targets and joint states in, one safe joint command every 20 ms out.

The targets are the policy's action chunks, or those of a person or a recording (`control.sources`); the parameter
`source` says whose, and may be set at any time.

It shares its process with nothing. Until the arms have been measured it sends nothing; from then on it sends a command
every tick, whatever fails: the action that is due, or the command before. /control/status and the log say which, and
why. It runs on ROS time, so with use_sim_time it follows /clock. The emergency stop comes by service, by the signal of
`clamp up`'s space bar, and by the silence or the death of a node that the arms' motion depends on.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, JumpThreshold
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    ARMS_STATUS,
    CONTROL_ENABLE,
    CONTROL_ESTOP,
    CONTROL_RESET,
    CONTROL_SOURCE,
    CONTROL_STATUS,
    DIAGNOSTICS,
    ESTOP_SIGNAL,
    JOINT_COMMANDS,
    JOINT_STATES,
    REPLAY_TARGETS,
    TELEOP_TARGETS,
)
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS
from clamp_ros.control.alive import AliveConfig, Heartbeats
from clamp_ros.control.chunks import FUTURE_TOLERANCE_NS, MODES, ChunkExecutor
from clamp_ros.control.safety import GateResult, SafetyConfig, SafetyGate, State
from clamp_ros.control.sources import SOURCES, Sources
from clamp_ros.control.ticks import TickGrid
from clamp_ros.ros.convert import (
    chunk_from_message,
    joint_efforts_from_message,
    joint_state_message,
    joints_from_message,
    time_message,
)
from clamp_ros.ros.convert import stamp_ns as stamp_of
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import PROCESS, Health, advertise, run_node, serve, subscribe

_LEVELS = {
    State.IDLE: DiagnosticStatus.WARN,
    State.RUNNING: DiagnosticStatus.OK,
    State.HOLDING: DiagnosticStatus.WARN,
    State.STOPPED: DiagnosticStatus.ERROR,
}
_DISABLED = "disabled; /control/enable begins"


@dataclass(frozen=True)
class ControlConfig:
    """Parameters of the control node."""

    mode: str = param("open_loop", "how chunks become commands", choices=MODES)
    execute_steps: int = param(
        25, "open loop: actions of a chunk that are sent before the next takes over", unit="ticks",
        minimum=1, maximum=CHUNK_SIZE,
    )  # fmt: skip
    source: str = param("policy", "whose targets are followed; may be set while it runs", choices=SOURCES)
    stale_after_s: float = param(
        0.1, "a target of a person or a recording counts for this long", unit="s", minimum=0.02, maximum=1.0
    )
    enabled: bool = param(True, "follow targets from the start; else /control/enable begins")
    realtime_priority: int = param(
        20, "SCHED_FIFO priority where the user may set it; 0 leaves the scheduler alone", minimum=0, maximum=90
    )
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    alive: AliveConfig = field(default_factory=AliveConfig)

    def __post_init__(self) -> None:
        check(self)


class ControlNode(Node):
    """A timer, the sources of targets and the safety gate."""

    def __init__(self, **options: Any) -> None:
        super().__init__("control_node", **options)
        self._config = declare(self, ControlConfig, settable=("source",))
        self._health = Health(self)
        chunks = ChunkExecutor(self._config.mode, self._config.execute_steps)
        self._sources = Sources(chunks, self._config.source, self._config.stale_after_s)
        self._gate = SafetyGate(self._config.safety)
        self._grid = TickGrid()
        self._enabled = self._config.enabled
        self._measured: tuple[Any, int] | None = None
        self._efforts: Any = None
        self._heartbeats = Heartbeats(self._config.alive)
        self._arms_ready = True
        self._due_ns = 0
        self._ticked_s: float | None = None
        self._said = ""
        self._commands = advertise(self, JOINT_COMMANDS)
        self._status = advertise(self, CONTROL_STATUS)
        self._source = advertise(self, CONTROL_SOURCE)
        self._told_source = ""
        subscribe(self, ACTION_CHUNK, self._on_chunk)
        subscribe(self, TELEOP_TARGETS, lambda message: self._on_target("teleop", message))
        subscribe(self, REPLAY_TARGETS, lambda message: self._on_target("replay", message))
        subscribe(self, JOINT_STATES, self._on_joints)
        subscribe(self, ARMS_STATUS, self._on_arms)
        self._hung = ""
        if self._config.alive.required or self._config.alive.watched or self._config.alive.mourned:
            subscribe(self, DIAGNOSTICS, self._on_diagnostics)
            self.create_timer(0.25, self._mind_deaths, clock=Clock(clock_type=ClockType.STEADY_TIME))
        serve(self, CONTROL_ENABLE, self._on_enable)
        serve(self, CONTROL_ESTOP, self._on_estop)
        serve(self, CONTROL_RESET, self._on_reset)
        self.add_on_set_parameters_callback(_check_source)
        self.add_post_set_parameters_callback(self._on_parameters)
        self._tell(GateResult(None, State.IDLE, "no joint states yet"))
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        self._jump = self.get_clock().create_jump_callback(threshold, post_callback=lambda _jump: self._restart())
        self.create_timer(CONTROL_PERIOD_NS / 1e9, self._tick)

    def close(self) -> None:
        """Stops listening to the clock; `run_node` calls it before the node is destroyed."""
        self._jump.unregister()

    @property
    def realtime_priority(self) -> int:
        """The parameter."""
        return self._config.realtime_priority

    def stop(self, reason: str) -> None:
        """Latches the emergency stop; any thread may call it."""
        self._gate.stop(f"{reason}; {CONTROL_RESET.name} releases it")
        self.get_logger().error(reason)

    def _tick(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if now_ns == 0:  # simulated time has not begun
            return
        due_ns = self._grid.next(now_ns)
        if due_ns is None:
            return
        if due_ns < self._due_ns:
            self._restart()  # the system's clock was set back
        self._due_ns = due_ns
        action, reason = self._sources.at(due_ns) if self._enabled else (None, _DISABLED)
        measured, measured_ns = self._measured or (None, None)
        result = self._gate.check(action, due_ns, measured, measured_ns, reason, efforts=self._efforts)
        if self._sources.followed != self._told_source:
            self._told_source = self._sources.followed
            self._source.publish(Header(stamp=time_message(due_ns), frame_id=self._told_source))
        if result.command is not None:
            self._commands.publish(joint_state_message(result.command, due_ns))
        if result.limited:
            self._health.count("limited")
            self._health.gauge("limited_joints", " ".join(result.limited))
        self._health.gauge("skipped", self._grid.skipped)
        started_s = time.monotonic()
        if self._ticked_s is not None:
            self._health.sample("period_ms", 1e3 * (started_s - self._ticked_s))
        self._ticked_s = started_s
        self._tell(result)

    def _restart(self) -> None:
        """A new episode: what was measured, planned and commanded before it is void. A latched stop stays."""
        self.get_logger().info("time ran back: a new episode; targets and commands before it are void")
        self._due_ns = 0
        self._measured = None
        self._told_source = ""
        if self.get_parameter("use_sim_time").value:  # the arms are elsewhere; where a clock was set back they are not
            self._gate.restart()
        self._sources.void(self._idle_reason("time ran back"), None)

    def _idle_reason(self, why: str) -> str:
        """Why there is no target after something made them void."""
        if not self._enabled:
            return _DISABLED
        return "no action chunk yet" if self._sources.selected == "policy" else why

    def _on_joints(self, message: JointState) -> None:
        stamp_ns = stamp_of(message.header.stamp)
        now_ns = self.get_clock().now().nanoseconds
        if stamp_ns - now_ns > FUTURE_TOLERANCE_NS:  # left over from before a simulation's reset
            if now_ns:
                ahead_s = (stamp_ns - now_ns) / 1e9
                self._health.fault("joint_state_from_the_future", f"joint state is {ahead_s:.2f} s ahead of the clock")
            return
        try:
            self._efforts = joint_efforts_from_message(message, "joint state")
            self._measured = joints_from_message(message, "joint state"), stamp_ns
        except ContractError as error:
            self._health.fault("bad_joint_state", str(error))

    def _on_arms(self, message: DiagnosticStatus) -> None:
        """The robot's arms went home, were limp or in fault: commands begin anew from where they are now."""
        ready = any(value.key == "state" and value.value in ("holding", "following") for value in message.values)
        if ready and not self._arms_ready:
            self._gate.restart()
            self._void("the arms were moved or let go of")
        self._arms_ready = ready

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            process = next((value.value for value in status.values if value.key == PROCESS), "")
            self._heartbeats.beat(status.name, time.monotonic(), process)

    def _mind_deaths(self) -> None:
        now_s = time.monotonic()
        self._heartbeats.watch(now_s)
        dead, hung = self._heartbeats.dead(now_s) or self._heartbeats.died(), self._heartbeats.hung(now_s)
        if dead and not self._gate.stopped:
            self.stop(f"emergency stop: {dead}")
        if hung != self._hung:
            self._hung = hung
            self._health.hold("hung", hung or None)
            log = self.get_logger()
            log.warning(hung) if hung else log.info("every node is heard again")

    def _on_chunk(self, message: JointTrajectory) -> None:
        if not self._enabled or self._gate.stopped or self._sources.selected != "policy":
            return
        try:
            refused = self._sources.add_chunk(chunk_from_message(message))
        except ContractError as error:
            # Its sender is not to be trusted with what it sent before, either.
            self._sources.chunks.clear(f"bad action chunk: {error}")
            self._health.fault("bad_chunk", str(error))
            return
        if refused is None:
            self._health.count("chunks")
        else:
            self._health.fault("refused_chunk", refused)

    def _on_target(self, source: str, message: JointState) -> None:
        if not self._enabled or self._gate.stopped or self._sources.selected != source:
            return
        now_ns = self.get_clock().now().nanoseconds
        try:
            target = joints_from_message(message, f"{source} target")
            refused = self._sources.add_target(source, target, stamp_of(message.header.stamp), now_ns)
        except ContractError as error:
            self._sources.void(f"bad target: {error}", now_ns)
            self._health.fault("bad_target", str(error))
            return
        if refused is None:
            self._health.count("targets")
        else:
            self._health.fault("refused_target", refused)

    def _on_parameters(self, parameters: list[Parameter[Any]]) -> None:
        for parameter in parameters:
            if parameter.name == "source":
                self._sources.select(str(parameter.value), self.get_clock().now().nanoseconds)
                self._told_source = ""  # whoever asked for it again hears of it again

    def _void(self, why: str) -> None:
        self._sources.void(self._idle_reason(why), self.get_clock().now().nanoseconds)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        self._void("holding was asked for")
        response.success = True
        response.message = "following targets" if request.data else "holding"
        return response

    def _on_estop(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._gate.stop(f"emergency stop by {CONTROL_ESTOP.name}; {CONTROL_RESET.name} releases it")
        self._void("emergency stop")
        response.success = True
        response.message = "stopped: holding until reset"
        return response

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = "released" if self._gate.stopped else "there was no emergency stop"
        self._gate.reset()
        self._void("emergency stop")
        response.success = True
        return response

    def _tell(self, result: GateResult) -> None:
        """Publishes and logs what the loop does, when that changes; a changing number alone is no change."""
        text = f"{result.state.value}{': ' if result.reason else ''}{result.reason}"
        said = re.sub(r"-?\d+(\.\d+)?", "#", text)
        if said == self._said:
            return
        self._said = said
        level = _LEVELS[result.state]
        values = [KeyValue(key="state", value=result.state.value), KeyValue(key="reason", value=result.reason)]
        self._status.publish(DiagnosticStatus(level=level, name=self.get_name(), message=text, values=values))
        running = result.state is State.RUNNING
        self._health.hold("control", None if running else text, error=result.state is State.STOPPED)
        log = self.get_logger()
        log.info(text) if running else log.warning(text)


def _check_source(parameters: list[Parameter[Any]]) -> SetParametersResult:
    for parameter in parameters:
        if parameter.name == "source" and parameter.value not in SOURCES:
            reason = f"source is {parameter.value!r}, expected one of {', '.join(SOURCES)}"
            return SetParametersResult(successful=False, reason=reason)
    return SetParametersResult(successful=True)


class _StopBySignal:
    """The emergency stop by signal, whichever thread the kernel gives it to, and whether the node is there yet.

    A thread waits for it, where every other holds it back. Libraries may have started some before this process could
    tell them to; what reaches those runs as a handler, in the main thread, at the loop's next wake-up.
    """

    def __init__(self) -> None:
        self._node: ControlNode | None = None
        self._asked = False
        signal.signal(ESTOP_SIGNAL, lambda *_: self._stop())  # before it is said, by the mask, that it is waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, {ESTOP_SIGNAL})  # in every thread to come

    def make(self) -> ControlNode:
        """The node, and the thread that waits."""
        self._node = ControlNode()
        if self._asked:
            self._stop()
        threading.Thread(target=self._wait, daemon=True).start()
        return self._node

    def _wait(self) -> None:
        while signal.sigwait({ESTOP_SIGNAL}):
            self._stop()

    def _stop(self) -> None:
        self._asked = True
        if self._node is not None:
            self._node.stop("emergency stop by the space bar or `clamp stop`")


def main() -> int:
    """The executable `control_node`."""
    return run_node(_StopBySignal().make, shared_memory=False)


if __name__ == "__main__":
    sys.exit(main())
