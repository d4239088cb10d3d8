"""Transforms over /tf and /tf_static."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter

from clamp_ros.contract.errors import ClampError, UnknownFrameError
from clamp_ros.contract.interfaces import CLOCK
from clamp_ros.geometry.transforms import axis_angle, make
from clamp_ros.ros.convert import time_message
from clamp_ros.ros.run import Health, advertise, interface_type
from clamp_ros.ros.tf import TfBroadcaster, TfListener

S = 1_000_000_000
POSE = make(axis_angle((0, 0, 1), 0.5), (1.0, 2.0, 3.0))


def can_look_up(tf: TfListener, child: str, stamp: int) -> bool:
    try:
        tf.tree.lookup("world", child, stamp)
    except ClampError:
        return False
    return True


def test_what_is_sent_can_be_looked_up(ros: Any) -> None:
    node = ros.node()
    updates: list[None] = []
    tf = TfListener(node, Health(node), on_update=lambda: updates.append(None))
    broadcaster = TfBroadcaster(ros.node("sender"))
    ros.spin_until(lambda: broadcaster._publisher.get_subscription_count(), what="the listener")
    broadcaster.send([("world", "arm", POSE), ("arm", "hand", POSE)], 5 * S)
    broadcaster.send_static([("hand", "camera", POSE)], 0)
    ros.spin_until(lambda: can_look_up(tf, "camera", 5 * S), what="the transforms")
    np.testing.assert_allclose(tf.tree.lookup("world", "camera", 5 * S), POSE @ POSE @ POSE, atol=1e-9)
    assert len(updates) == 2


def test_a_late_joiner_gets_all_static_transforms(ros: Any) -> None:
    broadcaster = TfBroadcaster(ros.node("sender"))
    broadcaster.send_static([("world", "a", POSE), ("world", "b", POSE)], 0)
    broadcaster.send_static([("world", "c", POSE), ("world", "a", np.eye(4))], 0)
    node = ros.node("late")
    tf = TfListener(node, Health(node))
    ros.spin_until(lambda: all(can_look_up(tf, frame, 0) for frame in "abc"), what="the static transforms")
    np.testing.assert_allclose(tf.tree.lookup("world", "a", 0), np.eye(4), atol=1e-12)


def test_bad_and_too_old_transforms_are_counted_and_the_others_taken(ros: Any) -> None:
    node = ros.node()
    health = Health(node)
    tf = TfListener(node, health, history_s=1.0)
    broadcaster = TfBroadcaster(ros.node("sender"))
    ros.spin_until(lambda: broadcaster._publisher.get_subscription_count(), what="the listener")
    broadcaster.send([("world", "bad", np.full((4, 4), np.inf)), ("world", "good", POSE)], 5 * S)
    broadcaster.send([("world", "good", POSE)], 3 * S)

    def counted(name: str) -> bool:
        return any(value.key == name and value.value == "1" for value in health.status().values)

    ros.spin_until(lambda: counted("tf_refused") and counted("tf_too_old"), what="the counters")
    tf.tree.lookup("world", "good", 5 * S)
    with pytest.raises(UnknownFrameError):
        tf.tree.lookup("world", "bad", 5 * S)


def test_a_jump_of_simulated_time_into_the_past_clears_what_moves(ros: Any) -> None:
    node = ros.node(parameter_overrides=[Parameter("use_sim_time", value=True)])
    sender = ros.node("sender")
    tf = TfListener(node, Health(node))
    broadcaster, clock = TfBroadcaster(sender), advertise(sender, CLOCK)
    ros.spin_until(
        lambda: broadcaster._publisher.get_subscription_count() and clock.get_subscription_count(), what="the listener"
    )

    def set_time(stamp: int) -> None:
        clock.publish(interface_type(CLOCK.type)(clock=time_message(stamp)))
        ros.spin_until(lambda: node.get_clock().now().nanoseconds == stamp, what=f"time {stamp}")

    set_time(100 * S)
    broadcaster.send([("world", "arm", POSE)], 100 * S)
    broadcaster.send_static([("world", "camera", POSE)], 100 * S)
    ros.spin_until(lambda: can_look_up(tf, "arm", 100 * S) and can_look_up(tf, "camera", 0), what="the transforms")
    set_time(1 * S)
    assert not can_look_up(tf, "arm", 100 * S)
    assert can_look_up(tf, "camera", 0)
    broadcaster.send([("world", "arm", POSE)], 1 * S)
    ros.spin_until(lambda: can_look_up(tf, "arm", 1 * S), what="the new transform")
