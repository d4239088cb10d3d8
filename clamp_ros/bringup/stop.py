"""`clamp stop`: the emergency stop from any terminal, and its release."""

from __future__ import annotations

import time

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from clamp_ros.contract.interfaces import CONTROL_ESTOP, CONTROL_RESET
from clamp_ros.ros import environment
from clamp_ros.ros.run import interface_type

ANSWER_S = 5.0
"""How long the control node is waited for."""


def stop(release: bool = False) -> tuple[bool, str]:
    """Calls the service; returns whether it was done, and what to say.

    Args:
        release: leaves the stop instead.
    """
    service = CONTROL_RESET if release else CONTROL_ESTOP
    environment.prepare()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Node("clamp_stop")
    try:
        deadline = time.monotonic() + ANSWER_S
        kind = interface_type(service.type)
        client = node.create_client(kind, service.name)
        if not client.wait_for_service(ANSWER_S):
            return False, f"nobody offers {service.name}: no control node runs here, so nothing commands the arms"
        answer = client.call_async(kind.Request())
        rclpy.spin_until_future_complete(node, answer, timeout_sec=max(deadline - time.monotonic(), 0.1))
        result = answer.result() if answer.done() else None
        if result is None:
            return False, f"{service.name} did not answer in {ANSWER_S:g} s: USE THE POWER SWITCH"
        return bool(result.success), str(result.message)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
