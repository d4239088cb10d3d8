"""A running system with faults within reach, and everything it says and does written down.

`Stack` starts `clamp up` as a user does and watches it from a node of its own: commands, joint states, statuses,
/diagnostics, the log, and the motors' goals on the wire.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from faults.seen import QUIET_S, STILL_RAD, Joints, Mark, Seen, rows_has, spread, travel
from faults.system import WAISTS, System, SystemEndedError
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    ARMS_HOME,
    ARMS_STATUS,
    CLOCK,
    CONTROL_STATUS,
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    TELEOP_START,
    TELEOP_STATUS,
    TF,
    VIEWS,
    Qos,
    Service,
    Topic,
    depth_topic,
    topic,
)
from clamp_ros.contract.robot import REST_POSE
from clamp_ros.ros import environment, messages
from clamp_ros.ros.convert import joints_from_message, stamp_ns
from clamp_ros.ros.run import advertise, interface_type, qos_profile, subscribe

START_S, AGAIN_S = 240.0, 60.0
MOVING_RAD = 0.03
_FLOOD_S = 0.02
_KEPT_S = 60.0
_ATTEMPTS, _NEAR_RAD = 30, 0.4
_ANSWER_S = 10.0
_IS_ARM = [i for i in range(14) if i % 7 != 6]


class Stack(System):
    """One running system; a context manager. `spin` and what waits must be called from one thread.

    Attributes:
        seen: what was heard.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        """Prepares; `start` starts. `options` are those of `System`."""
        super().__init__(folder, **options)
        self.seen = Seen()
        self._floods: list[Any] = []
        self._passing: list[Any] = []

    def __enter__(self) -> Stack:
        environment.prepare()
        messages.ensure()
        if self.emulator is not None:
            self.emulator.__enter__()
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node("watcher")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        deep = qos_profile(Qos.STATE)
        for row, rows in ((JOINT_COMMANDS, self.seen.commands), (JOINT_STATES, self.seen.measured)):
            kind = interface_type(row.type)
            self.node.create_subscription(kind, row.name, self._joint_watcher(row.name, rows), deep)
        subscribe(self.node, CONTROL_STATUS, lambda m: self._say("control", m.message))
        subscribe(self.node, ARMS_STATUS, lambda m: self._say("arms", m.message))
        subscribe(self.node, TELEOP_STATUS, lambda m: self._say("teleop", m.message))
        subscribe(self.node, DIAGNOSTICS, self._on_diagnostics)
        rows = (ACTION_CHUNK, JOINT_STATES, TF, VIEWS, topic(depth_topic("front_left")))
        self._intruder = {row.name: advertise(self.node, row) for row in (*rows, *(() if self.robot else (CLOCK,)))}
        self._services: dict[str, Any] = {}
        _hurry()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()
        if self.emulator is not None:
            self.emulator.__exit__()

    def start(self) -> None:
        """Starts the system and waits until both arms move; tries again, since a busy machine may miss a deadline.

        Raises:
            SystemEndedError: they do not, three times.
        """
        for left in (2, 1, 0):
            try:
                self._start()
                return
            except SystemEndedError:
                self.stop()
                if not left:
                    raise

    def _start(self) -> None:
        self.seen.status.clear()
        for bus in self.followers:
            bus.goals.clear()
        self.launch()
        if self.robot:
            self._go_home()
        if self.teleop:
            self.teleoperate()
        self.until_moving(START_S)

    def _go_home(self) -> None:
        """From the cradles, or wherever they are, to where the policy's motion begins."""

        def arms(*states: str) -> bool:
            return self.ended or any(self.seen.status.get("arms", "").startswith(state) for state in states)

        for _ in range(_ATTEMPTS):  # a bus that is late once ends the motion
            self.spin(START_S, lambda: bool(self.seen.measured) and arms("holding", "following"))
            if self.ended or np.abs(self.seen.measured[-1][1] - REST_POSE)[_IS_ARM].max() < _NEAR_RAD:
                return
            with contextlib.suppress(SystemEndedError):
                self.call(ARMS_HOME)
            self.spin(2.0, lambda: arms("moving"))
            self.spin(AGAIN_S, lambda: arms("holding", "following", "fault"))

    def teleoperate(self) -> None:
        """Has the leaders move the arms, again where they do no more, as an operator does.

        Raises:
            SystemEndedError: they do not.
        """
        answer = ""

        def teleop(*states: str) -> bool:
            return self.ended or any(self.seen.status.get("teleop", "").startswith(state) for state in states)

        for _ in range(_ATTEMPTS):
            if not self.spin(START_S, lambda: teleop("idle", "stopped", "approaching", "following")) or self.ended:
                break
            if teleop("following"):
                return
            with contextlib.suppress(SystemEndedError):  # the answer of a node that has just been started may be lost
                answer = self.call(TELEOP_START, _ANSWER_S)
            if self.spin(2.0, lambda: teleop("approaching", "following")):  # else refused: a leader is not read yet
                self.spin(AGAIN_S, lambda: teleop("following", "stopped"))
        raise SystemEndedError(f"the arms are not teleoperated: {self.seen.status.get('teleop')}; {answer}")

    def stop(self) -> int | None:
        """Ends floods, and the system as Ctrl-C does, or kills it; its exit code."""
        self.quiet()
        return self.end()

    # Watching.

    def _joint_watcher(self, name: str, rows: list[tuple[float, Joints]]) -> Callable[[Any], None]:
        def watch(message: Any) -> None:
            if message.header.frame_id == "intruder":
                return
            with contextlib.suppress(ClampError):
                rows.append((time.monotonic(), joints_from_message(message)))
                self.seen.newest_ns = stamp_ns(message.header.stamp)
                self.seen.stamps[name].append(self.seen.newest_ns)

        return watch

    def _say(self, who: str, text: str) -> None:
        self.seen.status[who] = text
        self.seen.said.append((time.monotonic(), f"{who}: {text}"))

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.level != b"\0":
                self.seen.diagnostics.append((time.monotonic(), f"{status.name}: {status.message}"))

    @property
    def now_ns(self) -> int:
        """The system's time."""
        return time.time_ns() if self.robot else self.seen.newest_ns

    def spin(self, seconds: float = 0.0, until: Callable[[], object] = lambda: False) -> bool:
        """Handles messages for a time, or until something; whether that came."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() >= deadline:
                return False
            self._executor.spin_once(timeout_sec=0.01)
        return True

    def mark(self) -> Mark:
        """Now."""
        self.seen.forget(time.monotonic() - _KEPT_S)
        measured = self.seen.measured[-1][1] if self.seen.measured else np.zeros(14)
        return Mark(time.monotonic(), self.log.stat().st_size, measured)

    def told(self, since: Mark) -> str:
        """The log since a moment."""
        with self.log.open("rb") as file:
            file.seek(since.log)
            return file.read().decode(errors="replace")

    def goals(self, since_s: float) -> list[tuple[float, Joints]]:
        """What the arms were told: on the robot each motor's goal on the wire, in simulation the commands."""
        if not self.robot:
            return [row for row in self.seen.commands if row[0] >= since_s]
        rows: list[tuple[float, Joints]] = []
        for part, bus in zip((slice(0, 7), slice(7, 14)), self.followers, strict=True):
            before: Joints | None = None
            for at_s, goal in list(bus.goals):
                if at_s >= since_s:
                    if before is not None and not rows_has(rows, part):
                        rows.append((since_s, spread(before, part)))
                    rows.append((at_s, spread(goal, part)))
                before = goal
        return sorted(rows, key=lambda row: row[0])

    def still(self) -> bool:
        """Whether nothing told the arms to move for a while."""
        return travel(self.goals(time.monotonic() - QUIET_S)) < STILL_RAD

    def moving(self) -> bool:
        """Whether both arms were told to move just now, and do."""
        now_s = time.monotonic()
        recent = [row for at_s, row in self.seen.measured[-100:] if at_s > now_s - 0.6]
        return (
            len(recent) > 5
            and self.seen.status.get("control") == "running"
            and bool(np.ptp(np.array(recent)[:, WAISTS], axis=0).min() > MOVING_RAD)
            and travel(self.goals(now_s - 0.15)) > 5.0 * STILL_RAD
        )

    def complained(self, within_s: float) -> bool:
        """Whether a node has said on /diagnostics, lately, that something is not as it should be."""
        return any(at_s > time.monotonic() - within_s for at_s, _ in self.seen.diagnostics)

    def until_moving(self, timeout_s: float = AGAIN_S) -> None:
        """Waits until both arms move.

        Raises:
            SystemEndedError: they do not.
        """
        if not self.spin(timeout_s, lambda: self.ended or self.moving()) or self.ended:
            last = [text for _, text in self.seen.said[-3:]]
            tail = self.log.read_text(errors="replace")[-1500:]
            raise SystemEndedError(f"the arms do not move {'(the system ended) ' if self.ended else ''}{last}\n{tail}")

    # Acting.

    def call(self, service: Service, timeout_s: float = AGAIN_S, **fields: Any) -> str:
        """Calls a service; its message."""
        return self.call_type(interface_type(service.type), service.name, timeout_s, **fields).message

    def call_type(self, kind: Any, name: str, timeout_s: float = AGAIN_S, **fields: Any) -> Any:
        """Calls a service of any type and returns the response.

        Raises:
            SystemEndedError: there is no answer.
        """
        client = self._services.get(name)
        if client is None:
            client = self._services[name] = self.node.create_client(kind, name)
        if not self.spin(timeout_s, client.service_is_ready):
            raise SystemEndedError(f"there is no service {name}")
        future = client.call_async(kind.Request(**fields))
        if not self.spin(timeout_s, future.done):
            raise SystemEndedError(f"no answer of {name}")
        return future.result()

    def connect(self, service: Service) -> None:
        """Finds a service beforehand, so that a call to it is quick."""
        client = self._services.setdefault(
            service.name, self.node.create_client(interface_type(service.type), service.name)
        )
        self.spin(AGAIN_S, client.service_is_ready)

    def reopen(self) -> None:
        """Opens the cameras anew, by the camera node's lifecycle.

        Raises:
            SystemEndedError: the camera node does not do so.
        """
        for step in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            if not self.call_type(ChangeState, "/camera_node/change_state", transition=Transition(id=step)).success:
                raise SystemEndedError("the camera node does not open its cameras anew")

    def flood(self, row: Topic, make: Callable[[int], Any]) -> None:
        """Publishes beside the system's own publisher, at 50 Hz, beginning now. `make` is given the time in ns."""
        publisher = self._intruder.get(row.name)
        if publisher is None:  # to be there is to intrude
            publisher = advertise(self.node, row)
            self._passing.append(publisher)

        def send() -> None:
            publisher.publish(make(self.now_ns))

        send()
        self._floods.append(self.node.create_timer(_FLOOD_S, send))

    def quiet(self) -> None:
        """Ends floods and starving, and lets stopped nodes go on."""
        for timer in self._floods:
            self.node.destroy_timer(timer)
        self._floods.clear()
        for publisher in self._passing:
            self.node.destroy_publisher(publisher)
        self._passing.clear()
        self.release()


def _hurry() -> None:
    """Servos, and whoever takes times, do not wait for the computer's other work; nor does what holds their locks."""
    with contextlib.suppress(PermissionError):
        for thread in Path("/proc/self/task").iterdir():
            # not for the system under test, which is started from here
            os.sched_setscheduler(int(thread.name), os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(40))


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Stack]:
    """A stack that is started and, at the end, stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with Stack(folder, **options) as stack:
        yield stack
