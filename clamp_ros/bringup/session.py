"""A running system under remote control: starts `clamp up` as a child, talks to its services, and plays episodes.

The demonstration and the scoring through ROS stand on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.signals import SignalHandlerOptions

from clamp_ros.bringup.up import deaths, die_with_parent
from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.interfaces import POLICY_ENABLE, SIM_PAUSE, SIM_RESET, TASK_STATE, Service
from clamp_ros.ros import environment, messages
from clamp_ros.ros.run import interface_type, subscribe

START_TIMEOUT_S = 600.0
"""For the first start, which compiles kernels and prepares meshes, on a busy machine; later ones take seconds."""
STOP_S = 20.0
_LOG_TAIL = 12
SUCCESS_S = 0.2
"""The task must stay done for so much simulated time (`rollout.SUCCESS_TICKS`)."""


class SystemDiedError(ClampError):
    """The system ended by itself, or never came up; its log says why."""


@dataclass(frozen=True)
class Played:
    """How an episode ended: whether the task was done, simulated seconds, and the task's furthest progress."""

    success: bool
    seconds: float
    progress: int


class Session:
    """A system started by `clamp up`, and a node to talk to it. A context manager; it ends what it started.

    Attributes:
        node: spun by the methods that wait; subscribe with it as you like.
        task_state: the newest, as a dict; empty before the first.
        exit_code: of the system, once closed.
    """

    def __init__(self, words: Sequence[str], log: Path, name: str = "session") -> None:
        """Starts the system.

        Args:
            words: of `clamp up`: launch arguments, ``name:=value``, after the name of a graph but the policy's.
            log: file that takes its output.
            name: of the node.

        Raises:
            ClampError: ROS cannot start here.
        """
        environment.prepare()
        messages.ensure()
        self._log, self._read = log, 0
        self._deaths: list[str] = []
        self.task_state: dict[str, Any] = {}
        self.exit_code: int | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "clamp_ros.cli", "up", *words],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=die_with_parent,
            )
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        with environment.participant():
            self.node = Node(name, parameter_overrides=[Parameter("use_sim_time", value=True)])
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._nodes = [self.node]
        subscribe(self.node, TASK_STATE, self._on_task_state)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the system and the node."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
        try:
            self.exit_code = self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self.exit_code = self._child.wait()
        self._executor.shutdown()
        for node in self._nodes:
            node.destroy_node()
        rclpy.try_shutdown()

    def add(self, node: Node) -> None:
        """Spins another node too, and destroys it at the end."""
        self._nodes.append(node)
        self._executor.add_node(node)

    def _on_task_state(self, message: Any) -> None:
        self.task_state = json.loads(message.data)

    def spin_until(self, condition: Callable[[], object], timeout_s: float, what: str) -> None:
        """Handles messages until the condition holds.

        Raises:
            SystemDiedError: the system ended, or the time (of the wall) ran out; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._executor.spin_once(timeout_sec=0.05)
            if self._child.poll() is not None:
                raise SystemDiedError(
                    f"the system ended with exit code {self._child.returncode} before {what}{self._tail()}"
                )
            if time.monotonic() > deadline:
                raise SystemDiedError(f"waited {timeout_s:g} s in vain for {what}{self._tail()}")

    def deaths(self) -> list[str]:
        """The nodes that have died and were started again so far, in words: `policy_node was killed by SIGSEGV`."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        self._deaths += deaths(whole.decode(errors="replace"))
        return list(self._deaths)

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        return f"; the end of {self._log}:\n" + "\n".join(f"  {line}" for line in lines)

    def call(self, service: Service, timeout_s: float = 30.0, **fields: Any) -> str:
        """Calls a service with the request's fields and returns its response's message.

        Raises:
            SystemDiedError: no answer.
            ClampError: the service says that it failed.
        """
        kind = interface_type(service.type)
        client = self.node.create_client(kind, service.name)
        try:
            self.spin_until(client.service_is_ready, timeout_s, f"the service {service.name}")
            future = client.call_async(kind.Request(**fields))
            self.spin_until(future.done, timeout_s, f"the answer of {service.name}")
        finally:
            self.node.destroy_client(client)
        response: Any = future.result()
        if not response.success:
            raise ClampError(f"{service.name} failed: {response.message}")
        return response.message

    def reset(
        self, seed: int, timeout_s: float = 30.0, seeded: Sequence[str] = ("policy_node", "mujoco_node"),
        paused: bool = True,
    ) -> None:  # fmt: skip
        """Starts an episode: the simulation's layout and the policy's noise; returns once its state is told.

        Args:
            seed: of every node in `seeded`.
            timeout_s: of the wall, for each answer.
            seeded: nodes that draw from it.
            paused: time stands still until `play`, so that none of the episode passes before the policy acts.

        Raises:
            ClampError: the simulation or the policy refuses, or is gone.
        """
        self.call(SIM_PAUSE, timeout_s, data=True)
        for name in seeded:
            self.set_parameter(name, "seed", seed, timeout_s)
        self.task_state = {}
        used = json.loads(self.call(SIM_RESET, timeout_s))["seed"]

        def told() -> bool:
            return self.task_state.get("seed") == used and self.task_state["time_s"] == 0.0

        self.spin_until(told, timeout_s, "the task's state after the reset")
        if not paused:
            self.call(SIM_PAUSE, timeout_s, data=False)

    def set_parameter(self, name: str, parameter: str, value: Any, timeout_s: float = 30.0) -> None:
        """Sets a parameter of a node.

        Raises:
            SystemDiedError: no answer.
            ClampError: the node refuses.
        """
        parameters = AsyncParameterClient(self.node, name)
        self.spin_until(parameters.services_are_ready, timeout_s, f"the parameters of {name}")
        future = parameters.set_parameters([Parameter(parameter, value=value)])
        self.spin_until(future.done, timeout_s, f"{name} to take its {parameter}")
        response: Any = future.result()
        if not response.results[0].successful:
            raise ClampError(f"{name} refuses {parameter} {value}: {response.results[0].reason}")

    def play(self, max_seconds: float, on_state: Callable[[dict[str, Any]], None] | None = None) -> Played:
        """Lets the policy act until the task is done, or its simulated time is over.

        Args:
            max_seconds: of simulated time.
            on_state: called at every new state of the task.

        Raises:
            SystemDiedError: the system ended, or its time stands still.
        """
        self.call(POLICY_ENABLE, data=True)
        self.call(SIM_PAUSE, data=False)
        done_since: float | None = None
        progress, last = 0, -1.0
        while True:
            self.spin_until(lambda seen=last: self.task_state.get("time_s", seen) != seen, 60.0, "time to go on")
            state = self.task_state
            last = state["time_s"]
            progress = max(progress, state["progress"])
            if on_state is not None:
                on_state(state)
            done_since = (last if done_since is None else done_since) if state["success"] else None
            if done_since is not None and last - done_since >= SUCCESS_S - 1e-6:
                break
            if last >= max_seconds:
                break
        self.call(POLICY_ENABLE, data=False)
        return Played(done_since is not None and last - done_since >= SUCCESS_S - 1e-6, last, progress)


@contextlib.contextmanager
def own_domain() -> Iterator[int]:
    """A ROS domain for this process and its children, unless the user has set one; others on this host have theirs."""
    if "ROS_DOMAIN_ID" in os.environ:
        yield int(os.environ["ROS_DOMAIN_ID"])
        return
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    try:
        yield int(os.environ["ROS_DOMAIN_ID"])
    finally:
        del os.environ["ROS_DOMAIN_ID"]
