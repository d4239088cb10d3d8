"""The main of every node, its health report, and topics and services made from the interface table.

A node is started by ``run_node(FactoryOrClass)``, which owns signals, the executor and the exit code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, JumpHandle, JumpThreshold
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.service import Service as RosService
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future
from rclpy.utilities import remove_ros_args

from clamp_ros.contract.errors import ClampError, ConfigError
from clamp_ros.contract.interfaces import DIAGNOSTICS, Qos, Service, Topic
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.ros import environment, messages

EXIT_USER_ERROR = 2
"""Exit code after a `ClampError`: the user can mend it, and a restart would not."""

FUTURE_TOLERANCE_NS = 5 * CONTROL_PERIOD_NS
"""How far a stamp may be ahead of a node's clock: the jitter of two processes."""

_PROFILES: dict[Qos, tuple[ReliabilityPolicy, DurabilityPolicy, int]] = {
    Qos.IMAGE: (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 2),
    Qos.STATE: (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 50),
    Qos.COMMAND: (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 1),
    Qos.LATCHED: (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL, 1),
    Qos.CLOCK: (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE, 1),
    Qos.TF: (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 100),
    Qos.TF_STATIC: (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL, 100),
}
PROCESS = "process"
"""What of a node's health is the number of its process: another one, and it has died and was started again."""
_SMALL = (Qos.STATE, Qos.COMMAND, Qos.TF)
SMALL_DEPTH = 500
"""Small messages that wait at their sender, and in the recorder, for a reader that is kept from running: seconds."""


def qos_profile(qos: Qos) -> QoSProfile:
    """rclpy's profile of a reader for one of the table's."""
    reliability, durability, depth = _PROFILES[qos]
    return QoSProfile(
        reliability=reliability, durability=durability, history=HistoryPolicy.KEEP_LAST, depth=depth
    )


def interface_type(name: str) -> Any:
    """The class of an interface, say "sensor_msgs/msg/Image"; tf2_msgs is generated first where it is not installed."""
    package, kind, cls = name.split("/")
    if package == "tf2_msgs":
        messages.ensure()
    return getattr(importlib.import_module(f"{package}.{kind}"), cls)


def sender_profile(qos: Qos) -> QoSProfile:
    """rclpy's profile of a sender: it forgets nothing small that a reader has not had yet.

    How much of it a reader takes in is the reader's own depth: a control loop's, of 1, finds the newest alone.
    """
    profile = qos_profile(qos)
    if qos in _SMALL:
        profile.depth = SMALL_DEPTH
    return profile


def advertise(node: Node, topic: Topic) -> Publisher:
    """A publisher with the table's name, type and quality of service."""
    return node.create_publisher(interface_type(topic.type), topic.name, sender_profile(topic.qos))


def subscribe(node: Node, topic: Topic, callback: Callable[[Any], None], **options: Any) -> Subscription:
    """A subscription with the table's name, type and quality of service; options go to `create_subscription`."""
    return node.create_subscription(
        interface_type(topic.type), topic.name, callback, qos_profile(topic.qos), **options
    )


def serve(node: Node, service: Service, callback: Callable[[Any, Any], Any], **options: Any) -> RosService:
    """A service with the table's name and type; options go to `create_service`."""
    return node.create_service(interface_type(service.type), service.name, callback, **options)


def on_time_jump_back(node: Node, callback: Callable[[], None]) -> JumpHandle:
    """Calls back when the node's clock jumps into the past or changes its source; hold on to what is returned."""
    threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
    return node.get_clock().create_jump_callback(threshold, post_callback=lambda _: callback())


def ahead_of_clock_s(node: Node, stamp: int) -> float:
    """How many seconds a stamp in ns is ahead of the node's clock by more than jitter, else 0.

    Such a message is left over from before simulated time jumped back, or its sender has another clock. Refuse it:
    taken in, it would make everything after it look late.
    """
    now = node.get_clock().now().nanoseconds
    ahead = stamp - now
    return ahead * 1e-9 if now > 0 and ahead > FUTURE_TOLERANCE_NS else 0.0  # at 0, simulated time has not begun


class NodeDone(Exception):  # noqa: N818 (it is no error)
    """Raised by a callback of a node that has done its work: its process ends as after a stop that was asked for."""


class Health:
    """A node's counters and gauges, published on /diagnostics once a second of wall time. Any thread may report.

    In its first second a node reports ten times, so that whoever watches hears of a new process at once.

    A node is OK until `fault` is called; it then shows WARN, and the fault's message, for `RECENT_S` after the last
    one. `hold` shows a lasting state instead, until it is released.
    """

    RECENT_S = 3.0
    LOG_PERIOD_S = 5.0

    def __init__(self, node: Node, name: str | None = None) -> None:
        """Starts reporting for a node under `name`, by default the node's own."""
        self._node = node
        self._name = name or node.get_name()
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._gauges: dict[str, float | str] = {}
        self._samples: dict[str, list[float]] = {}
        self._held: dict[str, tuple[bytes, str]] = {}
        self._fault = ("", -self.RECENT_S)
        self._logged: dict[str, float] = {}
        self._publisher = advertise(node, DIAGNOSTICS)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(1.0, self.publish, clock=steady)
        self._first = node.create_timer(0.1, self._publish_first, clock=steady)
        self._firsts = 0

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to a counter; a counter named at 0 is shown from the start."""
        with self._lock:
            self._counters[name] = self._counters.get(name, 0) + amount

    def gauge(self, name: str, value: float | str) -> None:
        """Sets a value; the newest is shown."""
        with self._lock:
            self._gauges[name] = value

    def sample(self, name: str, value: float) -> None:
        """Adds a sample, say a latency in ms; the median and the maximum since the last report are shown."""
        with self._lock:
            self._samples.setdefault(name, []).append(value)

    def fault(self, name: str, message: str, amount: int = 1) -> None:
        """Counts something that was skipped or refused, and warns in the log, at most once in `LOG_PERIOD_S` a name."""
        now = time.monotonic()
        with self._lock:
            self._counters[name] = count = self._counters.get(name, 0) + amount
            self._fault = (message, now)
            quiet = now - self._logged.get(name, -self.LOG_PERIOD_S) < self.LOG_PERIOD_S
            if not quiet:
                self._logged[name] = now
        if not quiet:
            self._node.get_logger().warning(f"{message} [{name}: {count}]")

    def hold(self, name: str, message: str | None, *, error: bool = False) -> None:
        """Shows a lasting WARN or ERROR until it is released with None."""
        with self._lock:
            if message is None:
                self._held.pop(name, None)
            else:
                self._held[name] = (DiagnosticStatus.ERROR if error else DiagnosticStatus.WARN, message)

    def status(self) -> DiagnosticStatus:
        """The state now; takes the samples gathered since the last call."""
        with self._lock:
            values: dict[str, Any] = {PROCESS: os.getpid(), **self._counters, **self._gauges}
            samples, self._samples = self._samples, {}
            levels = list(self._held.values())
            message, since = self._fault
            if time.monotonic() - since < self.RECENT_S:
                levels.append((DiagnosticStatus.WARN, message))
        for name, taken in samples.items():
            taken.sort()
            values |= {f"{name}.median": taken[len(taken) // 2], f"{name}.max": taken[-1], f"{name}.count": len(taken)}
        level, text = max(levels, key=lambda item: item[0], default=(DiagnosticStatus.OK, "ok"))
        shown = [KeyValue(key=k, value=f"{v:.3f}" if isinstance(v, float) else str(v)) for k, v in values.items()]
        return DiagnosticStatus(level=level, name=self._name, message=text, values=shown)

    def _publish_first(self) -> None:
        self._firsts += 1
        if self._firsts == 10:
            self._first.cancel()
        self.publish()

    def publish(self) -> None:
        """Publishes the state now, ahead of the timer."""
        array = DiagnosticArray(status=[self.status()])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


class _Stop:
    """SIGINT and SIGTERM as a future that the executor spins on, so that no callback is torn in the middle.

    rclpy's own handlers shut the context down under the running callback; here the node closes while it can still
    publish. A second signal ends the process at once.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {s: signal.signal(s, self._on_signal) for s in self._SIGNALS}
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    @staticmethod
    def _on_signal(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    def _wait(self) -> None:
        # Python runs its handlers in the main thread, which sits in the wait set: only another thread can wake it.
        while number := self._reader.recv(1):  # of any signal that has a handler
            if number[0] in self._SIGNALS and not self.future.done():
                self.future.set_result(None)

    def close(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._writer.close()
        self._thread.join()
        self._reader.close()


@runtime_checkable
class RealtimeNode(Protocol):
    """A node whose process is raised to SCHED_FIFO where the user may, once the node is made."""

    @property
    def realtime_priority(self) -> int:
        """1 to 90; 0 leaves the scheduler alone."""
        ...


def _prepare_realtime(node: Node, priority: int) -> None:
    """Raises this process to SCHED_FIFO where the user may, and keeps the garbage collector from what is there already.

    All threads are raised: a loop waits for locks that the middleware's threads hold while they are starved.

    Args:
        node: says so where there is no right to it.
        priority: 1 to 90; 0 leaves the scheduler alone.
    """
    gc.collect()
    gc.freeze()
    if not priority:
        return
    scheduling = os.sched_param(priority)
    try:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, scheduling)
    except PermissionError:
        node.get_logger().info("no right to real-time priority; under load the node may jitter more")


def run_node(
    factory: Callable[[], Node], args: Sequence[str] | None = None, *, shared_memory: bool = True
) -> int:
    """Runs a node in a single-threaded executor until it is told to stop, and returns the process's exit code.

    Sets the environment's defaults, starts ROS, builds the node, spins. On SIGINT or SIGTERM the callback in progress
    ends, then `node.close()`, where the node has one, stops its threads and children while ROS is still up. Whoever
    reads the node's log does not hold it up: lines that find no room are lost. (Not
    `destroy_node`: rclpy calls that on nodes whose constructor failed, too. And no MultiThreadedExecutor: it loses
    frames under load; heavy work belongs in a thread of its own.) A node with the attribute `realtime_priority` is a
    `RealtimeNode`: its process gets that priority.

    Args:
        factory: makes the node; usually its class.
        args: the command line; sys.argv by default.
        shared_memory: False for a node that must not wait for another process (`environment.participant`).

    Returns:
        0 after a stop that was asked for, or a `NodeDone`; 2 after a `ClampError` or a bad command line, with its
        message in one line on stderr. Any other error is a defect and keeps its traceback.
    """
    argv = list(sys.argv if args is None else args)
    program = Path(argv[0]).name if argv else "node"
    try:
        with _lossy_log():
            _run(factory, argv, shared_memory)
    except ClampError as error:
        print(f"{program}: error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except (ExternalShutdownException, NodeDone):
        return 0
    return 0


def _run(factory: Callable[[], Node], argv: list[str], shared_memory: bool) -> None:
    stop = _Stop()
    try:
        environment.prepare()
        _start_ros(argv)
        try:
            with environment.participant(shared_memory=shared_memory):
                node = factory()
            _spin(node, stop)
        finally:
            rclpy.try_shutdown()
    finally:
        stop.close()


@contextlib.contextmanager
def _lossy_log() -> Iterator[None]:
    """Standard output and error never wait where they are a launcher's pipe or pty; a user's own terminal is shared."""
    ours = [descriptor for descriptor in (1, 2) if _is_a_launchers(descriptor)]
    before = [os.get_blocking(descriptor) for descriptor in ours]
    for descriptor in ours:
        os.set_blocking(descriptor, False)
    try:
        yield
    finally:
        for descriptor, blocking in zip(ours, before, strict=True):
            os.set_blocking(descriptor, blocking)


def _is_a_launchers(descriptor: int) -> bool:
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return True
        if not os.isatty(descriptor):
            return False
    except OSError:  # closed
        return False
    try:
        os.tcgetpgrp(descriptor)
    except OSError:  # a terminal, but not the one that this process belongs to
        return True
    return False


def _start_ros(argv: list[str]) -> None:
    try:
        extra = remove_ros_args(argv)[1:]
        if extra:
            raise ConfigError(f"unexpected arguments {extra}; parameters are given as --ros-args -p name:=value")
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    except _rclpy.UnknownROSArgsError as error:
        raise ConfigError(f"unknown ROS arguments {error}; expected -p, -r or --params-file") from None
    except RuntimeError as error:  # the base of rcl's errors: a rule or a file that cannot be parsed
        raise ConfigError(f"ROS does not start: {str(error).splitlines()[0]}") from None


def _spin(node: Node, stop: _Stop) -> None:
    if isinstance(node, RealtimeNode):
        _prepare_realtime(node, node.realtime_priority)
    try:
        with SingleThreadedExecutor() as executor:
            executor.add_node(node)
            executor.spin_until_future_complete(stop.future)
    finally:
        close = getattr(node, "close", None)
        if close is not None:
            close()
        node.destroy_node()
