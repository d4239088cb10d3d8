"""Records what a running system publishes, one bag an episode, as the bytes that were on the wire.

Start, stop, discard and keep are services; `auto_start` records from the first moment until the node is stopped.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.subscription import Subscription
from std_srvs.srv import SetBool, Trigger

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import RECORD_DISCARD, RECORD_KEEP, RECORD_START, RECORD_STOP, Qos, Topic
from clamp_ros.record.disk import write_speed
from clamp_ros.record.recording import Look, Recorder
from clamp_ros.record.settings import RecorderConfig
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import SMALL_DEPTH, Health, interface_type, qos_profile, run_node, serve

_WATCH_S = 1.0
_IMAGES = 10
"""Images of a topic that wait for this node: unlike others it wants every one, not the newest. Of the small ones
`SMALL_DEPTH` wait."""
_COUNTERS = ("episodes", "messages", "dropped")


class RecorderNode(Node):
    """Subscribes to serialised messages and hands them to a `Recorder`, whose writer has a thread of its own."""

    def __init__(self, show: Callable[[Look], None] | None = None, **options: Any) -> None:
        """Subscribes; `show` is given a look at the recording once a second, for a terminal."""
        super().__init__("recorder_node", **options)
        config = declare(self, RecorderConfig)
        self.recorder = Recorder(config)
        self._show = show
        self._health = Health(self)
        for counter in _COUNTERS:
            self._health.count(counter, 0)
        self._reported = dict.fromkeys(_COUNTERS, 0)
        self._warned: dict[str, str] = {}
        self._waiting: list[tuple[Subscription, Callable[[bytes], None], int]] = []
        for topic in self.recorder.topics:
            profile = qos_profile(topic.qos)
            profile.depth = _IMAGES if topic.qos is Qos.IMAGE else SMALL_DEPTH
            kind = interface_type(topic.type)
            receive = self._receiver(topic)
            subscription = self.create_subscription(kind, topic.name, receive, profile, raw=True)
            self._waiting.append((subscription, receive, profile.depth))
        serve(self, RECORD_START, self._on_start)
        serve(self, RECORD_STOP, self._on_stop)
        serve(self, RECORD_DISCARD, self._on_discard)
        serve(self, RECORD_KEEP, self._on_keep)
        self.create_timer(_WATCH_S, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if config.disk_check_s:
            threading.Thread(target=self._measure_disk, name="measure the disk", daemon=True).start()
        if config.auto_start:
            self._start()

    def _measure_disk(self) -> None:
        config = self.recorder.config
        try:
            self.recorder.disk_bytes_s = write_speed(Path(config.folder).expanduser(), config.disk_check_s)
        except RecordError as error:
            self._health.hold("disk_check", str(error), error=True)

    def _receiver(self, topic: Topic) -> Callable[[bytes], None]:
        def receive(cdr: bytes) -> None:
            try:
                self.recorder.take(topic, self.get_clock().now().nanoseconds, cdr)
            except RecordError as error:
                self._health.fault("failures", str(error))
                self._watch()

        return receive

    def _take_waiting(self) -> None:
        """Takes what has come and waits: after a time in which this node was starved, that is seconds of an episode."""
        for subscription, receive, depth in self._waiting:
            with subscription.handle:
                for _ in range(depth):
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                    if taken is None:
                        break
                    receive(taken[0])

    def _start(self) -> Path:
        path = self.recorder.start(self.get_clock().now().nanoseconds)
        self.get_logger().info(f"recording {path}")
        return path

    def _ended(self, path: Path) -> Path:
        verdict = self.recorder.verdict
        log = self.get_logger()
        log.info(f"wrote {path}: {verdict['verdict']}")
        for problem in verdict["problems"]:
            log.warning(problem)
        return path

    def _watch(self) -> None:
        """Says on /diagnostics, in the log and on the terminal what there is to say."""
        look = self.recorder.look(self.get_clock().now().nanoseconds)
        for counter in _COUNTERS:
            new = getattr(self.recorder, counter) - self._reported[counter]
            self._reported[counter] += new
            self._health.count(counter, new)
        for name, value in look.gauges.items():
            self._health.gauge(name, value)
        for row in look.figures:
            if row.count:
                figures = f"{row.rate_hz:.1f} Hz, {row.gaps} gaps, {row.lost} lost, {row.dropped} dropped"
                self._health.gauge(row.name, figures)
        for name, text in look.warnings.items():
            self._health.hold(name, text, error=name in ("recording", "keep"))
            if text and name not in self._warned:
                log = self.get_logger()
                log.error(text) if name in ("recording", "keep") else log.warning(text)
        self._warned = {name: text for name, text in look.warnings.items() if text}
        if self._show is not None:
            self._show(look)

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, self._start)

    def _on_stop(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        outcome = "success" if request.data else "failure"
        self._take_waiting()
        return self._answer(response, lambda: self._ended(self.recorder.stop(outcome)))

    def _on_discard(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, lambda: self._ended(self.recorder.discard()))

    def _on_keep(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, self.recorder.keep)

    def _answer(self, response: Any, action: Callable[[], Path]) -> Any:
        try:
            response.success, response.message = True, str(action())
        except (RecordError, OSError) as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(str(error))
        return response

    def close(self) -> None:
        """Finishes the bag in progress, with outcome unknown; `run_node` calls it before the node is destroyed."""
        self._take_waiting()
        path = self.recorder.recording
        self.recorder.close()
        if path is not None:
            self._ended(path)


def main() -> int:
    """Entry point of the executable `recorder_node`."""
    return run_node(RecorderNode)


if __name__ == "__main__":
    sys.exit(main())
