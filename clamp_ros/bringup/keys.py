"""`clamp keys`: teleoperation by single keys, in a terminal of its own or the one of `clamp teleop`.

A USB foot pedal is a keyboard with one key: have it type Enter. The terminal has to have the focus. The space bar
is the emergency stop, as in the terminal of `clamp up`.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool, Trigger

from clamp_ros.contract.interfaces import (
    CONTROL_ESTOP,
    CONTROL_RESET,
    TELEOP_DISCARD,
    TELEOP_START,
    TELEOP_STATUS,
    TELEOP_STOP,
    Service,
)
from clamp_ros.control.stop_signal import send_stop_signal
from clamp_ros.ros import environment, messages
from clamp_ros.ros.printer import telling
from clamp_ros.ros.run import interface_type, subscribe
from clamp_ros.ros.terminal import ENTER, STOP, single_keys

HELP = (
    "space: emergency stop   r: release it   Enter (pedal): start, or stop and keep   s: stop and keep   "
    "f: stop, a failure   d: discard   q: no more keys"
)
_ANSWER_S = 5.0
_CALLS: dict[str, tuple[Service, Any]] = {
    "s": (TELEOP_STOP, SetBool.Request(data=True)),
    "f": (TELEOP_STOP, SetBool.Request(data=False)),
    "d": (TELEOP_DISCARD, Trigger.Request()),
    STOP: (CONTROL_ESTOP, Trigger.Request()),
    "r": (CONTROL_RESET, Trigger.Request()),
}


def call_of(key: str, state: str) -> tuple[Service, Any] | None:
    """What a key asks for, or None.

    Args:
        key: one character.
        state: of teleoperation.
    """
    if key in ENTER:
        return _CALLS["s"] if state in ("approaching", "following") else (TELEOP_START, Trigger.Request())
    return _CALLS.get(key)


class Keys:
    """Calls services for keys, and says what they answer and what teleoperation does."""

    def __init__(self, node: Node, say: Callable[[str], None]) -> None:
        """Subscribes by `node`, which somebody spins; `say` takes one line."""
        self._say = say
        self._state = "idle"
        services = {service.name: service for service, _ in (*_CALLS.values(), (TELEOP_START, None))}
        self._clients = {
            name: node.create_client(interface_type(service.type), name) for name, service in services.items()
        }
        self._waiting: list[tuple[Any, str, float]] = []
        subscribe(node, TELEOP_STATUS, self._on_status)

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._waiting)

    def press(self, key: str) -> None:
        """A key was pressed."""
        if (call := call_of(key, self._state)) is None:
            return
        service, request = call
        client = self._clients[service.name]
        signalled = send_stop_signal() if service is CONTROL_ESTOP else []
        if not client.service_is_ready():
            sent = "the control node on this machine was told to stop, but " if signalled else ""
            self._say(f"{sent}{service.name} is not there; is the system up?")
            return
        self._waiting.append((client.call_async(request), service.name, time.monotonic() + _ANSWER_S))

    def look(self) -> None:
        """Says what was answered, and what was not in time."""
        for asked in list(self._waiting):
            future, name, deadline = asked
            if future.done() and (answer := future.result()) is not None:
                self._say(f"{name}: {'' if answer.success else 'refused: '}{answer.message}")
            elif time.monotonic() > deadline:
                self._say(f"{name} does not answer")
            else:
                continue
            self._waiting.remove(asked)

    def _on_status(self, message: Any) -> None:
        self._state = next((value.value for value in message.values if value.key == "state"), "idle")
        self._say(f"teleoperation: {message.message}")


def run(node: Node, descriptor: int, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Reads keys and calls services until q, the end of the input, or `stop`.

    Args:
        node: that calls, destroyed at the end.
        descriptor: where keys come from.
        stop: ends it.
        say: takes one line for the user.
    """
    try:
        with SingleThreadedExecutor() as executor, single_keys(descriptor):
            executor.add_node(node)
            keys = Keys(node, say)
            say(HELP)
            ended = False
            while not stop.is_set() and not (ended and not keys.busy):
                executor.spin_once(timeout_sec=0.05)
                keys.look()
                while not ended and select.select([descriptor], [], [], 0.0)[0]:
                    key = os.read(descriptor, 1).decode(errors="replace")
                    ended = key in ("", "q")
                    keys.press(key)
    finally:
        node.destroy_node()


@contextlib.contextmanager
def beside() -> Iterator[None]:
    """Reads the terminal's keys in a thread, beside what runs within; does nothing where there is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    node, stop = _start(), threading.Event()
    with telling(sys.stdout, "[keys] ") as say:
        thread = threading.Thread(target=run, args=(node, sys.stdin.fileno(), stop, say), name="keys")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            rclpy.try_shutdown()


def _start() -> Node:
    """ROS, and a node; before other threads start children, which must not inherit what is this process's own."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    with environment.participant(shared_memory=False):
        return Node("clamp_keys")


def main() -> int:
    """`clamp keys`."""
    environment.prepare()
    messages.ensure()
    node = _start()
    try:
        with telling(sys.stdout, "[keys] ") as say:
            run(node, sys.stdin.fileno(), threading.Event(), say)
    finally:
        rclpy.try_shutdown()
    return 0
