"""Keys and pedal: each asks for its service, and a person reads what came of it."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node
from std_srvs.srv import Trigger

from clamp_ros.bringup import keys
from clamp_ros.contract.interfaces import (
    CONTROL_ESTOP,
    CONTROL_RESET,
    TELEOP_DISCARD,
    TELEOP_START,
    TELEOP_STATUS,
    TELEOP_STOP,
)
from clamp_ros.ros.run import advertise, serve


@pytest.mark.parametrize(
    ("key", "state", "service", "data"),
    [
        ("\n", "idle", TELEOP_START, None), ("\r", "stopped", TELEOP_START, None),
        ("\n", "approaching", TELEOP_STOP, True), ("\r", "following", TELEOP_STOP, True),
        ("s", "idle", TELEOP_STOP, True), ("f", "following", TELEOP_STOP, False),
        ("d", "following", TELEOP_DISCARD, None), (" ", "idle", CONTROL_ESTOP, None),
        (" ", "following", CONTROL_ESTOP, None),
        ("r", "stopped", CONTROL_RESET, None),
    ],
)  # fmt: skip
def test_what_a_key_asks_for(key, state, service, data):
    asked = keys.call_of(key, state)
    assert asked is not None
    assert asked[0] is service
    assert getattr(asked[1], "data", None) == data


def test_other_keys_ask_for_nothing():
    assert [keys.call_of(key, "following") for key in ("x", "e", "\x1b", "")] == [None] * 4


def test_a_pedal_starts_and_stops(ros):
    peer = ros.node("peer")
    asked: list[str] = []
    said: list[str] = []
    status = advertise(peer, TELEOP_STATUS)

    def answer(what: str, response: Any, state: str) -> Any:
        asked.append(what)
        response.success, response.message = True, what
        values = [KeyValue(key="state", value=state)]
        status.publish(DiagnosticStatus(message=state, values=values))
        return response

    serve(peer, TELEOP_START, lambda _, response: answer("start", response, "following"))
    serve(peer, TELEOP_STOP, lambda request, response: answer(f"stop {request.data}", response, "idle"))
    reader, writer = os.pipe()
    stop = threading.Event()
    thread = threading.Thread(target=keys.run, args=(Node("clamp_keys"), reader, stop, said.append))
    thread.start()
    try:
        client = peer.create_client(Trigger, TELEOP_START.name)
        ros.spin_until(lambda: client.service_is_ready() and status.get_subscription_count(), 30.0, "discovery")

        def press(expected: str) -> None:
            # until the reader has found the service, it says that it is not there, and the pedal is pressed again
            missing = sum("is not there" in text for text in said)
            os.write(writer, b"\n")
            ros.spin_until(
                lambda: expected in asked or sum("is not there" in text for text in said) > missing, 30.0, expected
            )
            if expected not in asked:
                press(expected)

        press("start")
        ros.spin_until(lambda: "teleoperation: following" in said, 30.0, "the state")
        press("stop True")
        ros.spin_until(lambda: "/teleop/stop: stop True" in said, 30.0, "the answer")
        os.write(writer, b"q")
        ros.spin_until(lambda: not thread.is_alive(), 30.0, "the end")
        assert asked == ["start", "stop True"]
        assert said[0] == keys.HELP
    finally:
        stop.set()
        thread.join()
        os.close(reader)
        os.close(writer)
