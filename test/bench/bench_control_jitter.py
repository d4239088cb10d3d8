"""How regular the 50 Hz command loop is while every core is busy, against bare sleep loops in the same run.

    python test/bench/bench_control_jitter.py [--seconds 20] [--load 2]
    python test/bench/bench_control_jitter.py --stack --seconds 600

The loops run beside `--load` busy processes (by default one a core), or beside the whole stack: simulation and its
cameras, fusion, policy and recorder, which take all of two cores. The control node executes chunks and is fed joint
states, both at their usual rates, by a further process; it runs on the real clock, since simulated time has no jitter.

Printed is how far the time between two commands strays from 20 ms. The sleep loop at the node's priority shows what the
machine itself allows. In a virtual machine the host withholds whole cores at times, from any priority: a watch on each
core, above every other process, notes when it could not run, and "awake" counts the ticks during which no core was
withheld.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

PERIOD_S = 0.02
START_S = 240.0
WATCH_S, STALL_S, WATCH_PRIORITY = 0.001, 0.003, 80


def spin(stop: Any) -> None:
    """Keeps a core busy with what a perception process does: array work that releases and takes the GIL."""
    array = np.random.default_rng(0).random((200, 200))
    while not stop.is_set():
        array = np.tanh(array @ array / 100.0)


def sleep_loop(seconds: float, answer: Connection) -> None:
    """A peer: a loop that sleeps until each tick is due, at the priority that any process has."""
    times, due = [], time.monotonic()
    for _ in range(int(seconds / PERIOD_S)):
        due += PERIOD_S
        time.sleep(max(0.0, due - time.monotonic()))
        times.append(time.monotonic())
    answer.send(times)


def urgent_sleep_loop(seconds: float, answer: Connection) -> None:
    """The same at the control node's default priority, where this user may have it."""
    from clamp_ros.control.control_node import ControlConfig

    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(ControlConfig().realtime_priority))
    sleep_loop(seconds, answer)


def watch(core: int, stop: Any, answer: Connection) -> None:
    """Spans, in s, during which the core ran nothing at all, of whatever priority."""
    spans: list[tuple[float, float]] = []
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(WATCH_PRIORITY))
        last = time.monotonic()
        while not stop.is_set():
            time.sleep(WATCH_S)
            now = time.monotonic()
            if now - last > STALL_S:
                spans.append((last, now))
            last = now
    answer.send(spans)


@contextlib.contextmanager
def whole_stack(folder: Path) -> Iterator[None]:
    """`clamp up` in simulation with its recorder, once the policy drives the arms."""
    environment = {**os.environ, "ROS_DOMAIN_ID": "88"}
    words = ["sim:=true", "record:=true", f"record_to:={folder / 'episodes'}", "task:=mug_on_plate_easy"]
    log = folder / "log.txt"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "clamp_ros.cli", "up", *words],
            env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while b"running" not in log.read_bytes():
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the stack does not run:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)
        yield
        if child.poll() is not None:
            raise SystemExit(f"the stack ended meanwhile:\n{log.read_text(errors='replace')[-2000:]}")
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(60.0)
        except subprocess.TimeoutExpired:
            child.kill()


def control_loop(seconds: float, answer: Connection) -> None:
    """The control node, its commands' times taken where they are published."""
    from rclpy.node import Node

    from clamp_ros.control.control_node import ControlNode
    from clamp_ros.ros.run import run_node

    times: list[float] = []

    class Publisher:
        def __init__(self, publisher: Any) -> None:
            self._publisher = publisher

        def publish(self, message: Any) -> None:
            self._publisher.publish(message)
            times.append(time.monotonic())

    def make() -> Node:
        node = ControlNode()
        node._commands = Publisher(node._commands)  # type: ignore[assignment]
        threading.Timer(seconds + 3.0, os.kill, (os.getpid(), 2)).start()
        return node

    run_node(make, ["control_node", "--ros-args", "--log-level", "error"])
    answer.send(times)


def feed(stop: Any) -> None:
    """A robot at 50 Hz and a policy at 2 Hz."""
    import rclpy
    from rclpy.node import Node

    from clamp_ros.contract.interfaces import ACTION_CHUNK, JOINT_STATES
    from clamp_ros.contract.observation import ActionChunk
    from clamp_ros.contract.robot import CHUNK_SIZE, REST_POSE
    from clamp_ros.ros.convert import chunk_message, joint_state_message
    from clamp_ros.ros.run import advertise

    rclpy.init()
    node = Node("feed")
    joints, chunks = advertise(node, JOINT_STATES), advertise(node, ACTION_CHUNK)
    actions, tick = np.tile(REST_POSE, (CHUNK_SIZE, 1)), 0
    while not stop.is_set():
        now = node.get_clock().now().nanoseconds
        joints.publish(joint_state_message(REST_POSE, now))
        if tick % 25 == 0:
            chunks.publish(chunk_message(ActionChunk(now, actions)))
        tick += 1
        time.sleep(PERIOD_S)
    node.destroy_node()
    rclpy.shutdown()


def stolen_ms() -> float:
    """Processor time that a hypervisor has withheld from this machine since it started; 0 where there is none."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return 1e3 * int(fields[8]) / os.sysconf("SC_CLK_TCK")


def report(name: str, times: list[float], stalls: list[tuple[float, float]] | None = None) -> float:
    """Prints the percentiles of all ticks, or of those that no stall touches; returns that of 99.9 in ms."""
    ends = np.array(times[50:])  # the first second is start-up
    stray_ms = 1e3 * np.abs(np.diff(ends) - PERIOD_S)
    if stalls is not None:
        touched = np.zeros(stray_ms.size, bool)
        for begin, end in stalls:
            touched |= (ends[:-1] < end) & (ends[1:] > begin)
        stray_ms = stray_ms[~touched]
    if not stray_ms.size:
        raise SystemExit(f"{name}: no commands; is another ROS system on this domain?")
    p50, p99, p999 = np.percentile(stray_ms, [50.0, 99.0, 99.9])
    print(f"{name:26s} {p50:8.3f} {p99:8.3f} {p999:8.3f} {stray_ms.max():8.3f}   {stray_ms.size}")
    return float(p999)


def main() -> None:
    """Runs the loops at the same time and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    parser.add_argument("--load", type=int, default=os.cpu_count(), help="busy processes beside the loops")
    parser.add_argument("--stack", action="store_true", help="beside the whole stack in simulation instead")
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", "87")  # not the one that a robot in the room may use
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from clamp_ros.ros.environment import prepare

    prepare()
    with contextlib.ExitStack() as stack:
        if arguments.stack:
            stack.enter_context(whole_stack(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        measure(arguments.seconds, 0 if arguments.stack else arguments.load, arguments.stack)


def measure(seconds: float, load: int, beside_stack: bool) -> None:
    """Starts the loops, the watches and the load; prints the table."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    helpers = [context.Process(target=spin, args=(stop,)) for _ in range(load)]
    helpers.append(context.Process(target=feed, args=(stop,)))
    loops = {}
    ways = {"sleep loop": sleep_loop, "urgent sleep loop": urgent_sleep_loop, "control node": control_loop}
    for name, target in ways.items():
        receiver, sender = context.Pipe(duplex=False)
        loops[name] = receiver, context.Process(target=target, args=(seconds, sender))
    watches = []
    for core in sorted(os.sched_getaffinity(0)):
        receiver, sender = context.Pipe(duplex=False)
        watches.append((receiver, context.Process(target=watch, args=(core, stop, sender))))
    stolen = stolen_ms()
    processes = [*helpers, *(process for _, process in [*loops.values(), *watches])]
    for process in processes:
        process.start()
    beside = "the whole stack" if beside_stack else f"{load} busy processes"
    print(f"{seconds:g} s beside {beside} on {len(watches)} cores; ms from 20 ms")
    print(f"{'':26s} {'p50':>8s} {'p99':>8s} {'p99.9':>8s} {'max':>8s}   ticks")
    try:
        times = {name: receiver.recv() for name, (receiver, _) in loops.items()}
        stolen = stolen_ms() - stolen
        stop.set()
        stalls = [span for receiver, _ in watches for span in receiver.recv()]
        p999 = {name: report(name, ticks) for name, ticks in times.items()}
        for name in ("urgent sleep loop", "control node"):
            report(f"{name}, awake", times[name], stalls)
        print(f"control node, p99.9: {p999['sleep loop'] / p999['control node']:.1f} times steadier than a sleep loop")
        longest_ms = 1e3 * max((end - begin for begin, end in stalls), default=0.0)
        print(
            f"cores withheld for more than {1e3 * STALL_S:g} ms: {len(stalls)} times, at most {longest_ms:.0f} ms; "
            f"the host says that it took {stolen:.0f} ms in all"
        )
    finally:
        stop.set()
        for process in processes:
            process.join(10.0)
            process.kill()


if __name__ == "__main__":
    main()
