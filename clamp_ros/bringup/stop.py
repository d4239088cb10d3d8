"""`clamp stop`: the emergency stop from any terminal, and its release."""

from __future__ import annotations

import time
from typing import Any

from clamp_ros.contract.interfaces import CONTROL_ESTOP, CONTROL_RESET, Service
from clamp_ros.control.stop_signal import send_stop_signal

FOUND_S = 5.0
"""How long a control node is looked for."""
ANSWER_S = 5.0
"""How long its answer may take then."""
_AGAIN_S = 0.5


def stop(release: bool = False) -> tuple[bool, str]:
    """Stops the arms, at once where their control node runs on this machine; returns whether that was confirmed, and
    what to say.

    Args:
        release: leaves the stop instead.
    """
    signalled = [] if release else send_stop_signal()
    done, text = _ask(CONTROL_RESET, ANSWER_S) if release else _ask(CONTROL_ESTOP, _AGAIN_S)
    if signalled and not done:
        text = f"the stop was sent to the control node on this machine, which has not confirmed it; {text}"
    return done, text


def _ask(service: Service, again_s: float) -> tuple[bool, str]:
    """Calls the service, again after a while: a request to a node that was just found may be lost. A stop can be asked
    for twice; a second release might be that of another stop.
    """
    import rclpy  # only now: the signal does not wait for it
    from rclpy.node import Node
    from rclpy.signals import SignalHandlerOptions

    from clamp_ros.ros import environment
    from clamp_ros.ros.run import interface_type

    environment.prepare()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    with environment.participant(shared_memory=False):
        node = Node("clamp_stop")
    try:
        kind = interface_type(service.type)
        client = node.create_client(kind, service.name)
        if not client.wait_for_service(FOUND_S):
            return False, f"nobody offers {service.name}: no control node is heard here, so nothing commands the arms"
        deadline, asked = time.monotonic() + ANSWER_S, []
        while time.monotonic() < deadline:
            asked.append(client.call_async(kind.Request()))
            result = _first(node, asked, again_s)
            if result is not None:
                return bool(result.success), str(result.message)
        return False, f"{service.name} did not answer in {ANSWER_S:g} s: USE THE POWER SWITCH"
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _first(node: Any, asked: list[Any], patience_s: float) -> Any:
    """The first answer there is, or None after a while."""
    import rclpy

    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        rclpy.spin_once(node, timeout_sec=0.05)
        for future in asked:
            if future.done() and future.result() is not None:
                return future.result()
    return None
