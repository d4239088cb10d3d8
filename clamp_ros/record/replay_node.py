"""Plays a bag's commands on the robot or its simulation: targets at 50 Hz, which pass the control node's safety gate.

It selects itself as the control node's source, sets out from the arms' last command, and leaves the arms holding the
recording's last pose. An emergency stop, or arms that do not follow, end it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from sensor_msgs.msg import JointState

from clamp_ros.contract.errors import ContractError, RecordError
from clamp_ros.contract.interfaces import (
    CONTROL_PARAMETERS,
    CONTROL_STATUS,
    JOINT_COMMANDS,
    JOINT_STATES,
    REPLAY_TARGETS,
)
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.record.replay import Player, ReplayConfig, load_commands
from clamp_ros.ros.convert import joint_state_message, joints_from_message, stamp_ns
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, NodeDone, advertise, run_node, subscribe

_FRESH_NS = 500_000_000
"""A pose older than this does not tell where the arms are."""
_WAIT_LOG_S = 5.0


def _end_process(failure: RecordError | None) -> None:
    raise failure or NodeDone


class ReplayNode(Node):
    """A timer and a `Player`."""

    def __init__(self, on_end: Callable[[RecordError | None], None] = _end_process, **options: Any) -> None:
        """Reads the bag; `on_end` is called once: with None at the end, or with what ended it before."""
        super().__init__("replay_node", **options)
        self._config = declare(self, ReplayConfig)
        self.metadata, commands = load_commands(self._config.bag)
        self.player = Player(commands, self._config)
        self._on_end = on_end
        self._health = Health(self)
        self._state = ""
        self._poses: dict[str, tuple[Any, int]] = {}
        self._selected: Future[Any] | None = None
        self._phase = "waiting"
        self._ended = False
        self._targets = advertise(self, REPLAY_TARGETS)
        self._control = self.create_client(SetParameters, CONTROL_PARAMETERS.name)
        subscribe(self, CONTROL_STATUS, self._on_status)
        for topic in (JOINT_STATES, JOINT_COMMANDS):
            subscribe(self, topic, lambda message, name=topic.name: self._on_pose(name, message))
        self.create_timer(CONTROL_PERIOD_NS / 1e9, self._tick)

    def _on_status(self, message: DiagnosticStatus) -> None:
        self._state = next((value.value for value in message.values if value.key == "state"), "")

    def _on_pose(self, name: str, message: JointState) -> None:
        try:
            self._poses[name] = joints_from_message(message, name), stamp_ns(message.header.stamp)
        except ContractError as error:
            self._health.fault("bad_pose", str(error))

    def _tick(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if self._ended or now_ns == 0:
            return
        try:
            if self.player.phase == "waiting" and not self._set_out(now_ns):
                return
            if self._state == "stopped":
                raise RecordError("an emergency stop is latched, so the replay is given up; the arms hold")
            # until the first target has arrived the control node holds, which is no interruption
            target = self.player.tick(now_ns, self._state == "running")
            self._targets.publish(joint_state_message(target, now_ns))
        except RecordError as error:
            self._end(error)
            return
        if self.player.phase != self._phase:
            self._phase = self.player.phase
            self.get_logger().info(self._word())
        self._health.gauge("phase", self._phase)
        self._health.gauge("played_s", self.player.played_s)
        if self._phase == "done":
            self._end(None)

    def _word(self) -> str:
        player = self.player
        return {
            "approach": f"approaching the first pose, {player.approach_s:.1f} s",
            "play": f"playing {player.duration_s:.1f} s at {self._config.speed:g} times their speed",
            "hold": f"holding the last pose for {self._config.hold_s:g} s",
        }.get(player.phase, player.phase)

    def _set_out(self, now_ns: int) -> bool:
        """Selects the replay in the control node, then begins where the arms are; false as long as that takes."""
        if self._selected is None:
            if not self._control.service_is_ready():
                self._wait("the control node")
                return False
            request = SetParameters.Request(parameters=[Parameter("source", value="replay").to_parameter_msg()])
            self._selected = self._control.call_async(request)
        if not self._selected.done():
            return False
        answer: Any = self._selected.result()
        if not answer.results[0].successful:
            raise RecordError(f"the control node refuses to follow a replay: {answer.results[0].reason}")
        for name in (JOINT_COMMANDS.name, JOINT_STATES.name):  # what was commanded is where the arms are pulled to
            pose, stamp = self._poses.get(name, (None, 0))
            if pose is not None and abs(now_ns - stamp) < _FRESH_NS:
                self.player.begin(pose, now_ns)
                return True
        self._wait(f"fresh {JOINT_STATES.name}")
        return False

    def _wait(self, what: str) -> None:
        self.get_logger().info(f"waiting for {what}", throttle_duration_sec=_WAIT_LOG_S)

    def _end(self, failure: RecordError | None) -> None:
        self._ended = True
        self._on_end(failure)


def main() -> int:
    """Entry point of the executable `replay_node`."""
    return run_node(ReplayNode)


if __name__ == "__main__":
    sys.exit(main())
