"""A bag played through the real control node: what the arms are told is the recording, and a stop ends it."""

from __future__ import annotations

import numpy as np
import pytest
from rclpy.parameter import Parameter
from sample_bag import make_bag
from std_srvs.srv import Trigger

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import CONTROL_ESTOP, CONTROL_SOURCE, JOINT_COMMANDS, JOINT_STATES
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.control.control_node import ControlNode
from clamp_ros.record.replay_node import ReplayNode
from clamp_ros.ros.convert import joint_state_message, joints_from_message
from clamp_ros.ros.run import NodeDone, advertise, subscribe

TICKS = 40
FIRST = np.array(REST_POSE) + np.eye(14)[0] * 0.2
"""The recording begins 0.2 rad of the left waist from where the arms are."""


def joints(tick: int) -> np.ndarray:
    """Recorded commands are 0.01 more; see `sample_bag`."""
    return FIRST - 0.01 + np.eye(14)[0] * 0.002 * tick


class Arms:
    """Perfect arms: they are at once where they are told to be."""

    def __init__(self, ros) -> None:
        self.node = ros.node("arms")
        self.position = np.array(REST_POSE)
        self.commands: list[np.ndarray] = []
        self.source = ""
        self._states = advertise(self.node, JOINT_STATES)
        subscribe(self.node, JOINT_COMMANDS, self._on_command)
        subscribe(self.node, CONTROL_SOURCE, self._on_source)
        self.node.create_timer(1e-9 * CONTROL_PERIOD_NS, self._tell)

    def _on_command(self, message) -> None:
        self.position = joints_from_message(message)
        self.commands.append(self.position)

    def _on_source(self, message) -> None:
        self.source = message.frame_id

    def _tell(self) -> None:
        now_ns = self.node.get_clock().now().nanoseconds
        self._states.publish(joint_state_message(self.position, now_ns))


@pytest.fixture
def bag(tmp_path):
    return make_bag(tmp_path / "bag", joints=joints, ticks=range(TICKS))


def replayer(ros, bag, ended: list, **values) -> ReplayNode:
    values = {"bag": str(bag), "approach_rad_s": 0.5, "hold_s": 0.2, **values}
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return ros.add(ReplayNode(ended.append, parameter_overrides=overrides))


def test_a_bag_is_approached_smoothly_played_and_held(ros, bag):
    arms, ended = Arms(ros), []
    control = ros.add(ControlNode(parameter_overrides=[Parameter("realtime_priority", value=0)]))
    replay = replayer(ros, bag, ended)
    ros.spin_until(lambda: ended, 60.0, "the end of the replay")
    assert ended == [None]
    assert arms.source == "replay", "it selects itself"
    assert replay.player.phase == "done"
    way = np.array(arms.commands)[:, 0]
    assert way[0] == pytest.approx(REST_POSE[0], abs=1e-3), "from where the arms were"
    assert way[-1] == pytest.approx(FIRST[0] + 0.002 * (TICKS - 1)), "to the recording's end"
    # a tick that comes late may go two ticks' way, no tick more than that
    assert np.abs(np.diff(way)).max() <= 2 * 0.5 * 0.02 + 1e-9
    others = np.delete(np.array(arms.commands), 0, axis=1)
    assert np.ptp(others, axis=0).max() <= 0.0101, "the recording's offset, and nothing else"
    ros.executor.remove_node(replay)
    before = len(arms.commands)
    ros.spin_until(lambda: len(arms.commands) > before + 20)
    assert np.ptp(np.array(arms.commands[-5:]), axis=0).max() == 0.0, "and the arms hold"
    assert control.get_parameter("source").value == "replay"


def test_an_emergency_stop_ends_it_and_the_arms_hold(ros, bag):
    arms, ended = Arms(ros), []
    ros.add(ControlNode(parameter_overrides=[Parameter("realtime_priority", value=0)]))
    replay = replayer(ros, bag, ended, speed=0.05)
    ros.spin_until(lambda: replay.player.phase == "play", 60.0, "the replay to play")
    assert ros.call(arms.node, Trigger, CONTROL_ESTOP.name).success
    ros.spin_until(lambda: ended, 20.0, "the end of the replay")
    assert "emergency stop" in str(ended[0])
    before = len(arms.commands)
    ros.spin_until(lambda: len(arms.commands) > before + 10)
    assert np.ptp(np.array(arms.commands[-8:]), axis=0).max() == 0.0


def test_a_process_ends_well_at_the_end_and_with_an_error_before_it(bag):
    from clamp_ros.record.replay_node import _end_process

    with pytest.raises(NodeDone):
        _end_process(None)
    with pytest.raises(RecordError, match="stopped"):
        _end_process(RecordError("stopped"))
