"""How regular the 50 Hz command loop is while every core is busy, against bare sleep loops in the same run.

    python test/bench/bench_control_jitter.py [--seconds 20] [--load 2]

The loops run beside `--load` busy processes (by default one a core), which stand for rendering, fusion and inference;
start the whole stack beside it for the real load. The control node executes chunks and is fed joint states, both at
their usual rates, by a further process. Printed is how far the time between two commands strays from 20 ms. The sleep
loop at the node's priority shows what the machine itself allows: in a virtual machine, what the host lets through.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

PERIOD_S = 0.02


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
        node.prepare_realtime()
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


def report(name: str, times: list[float]) -> float:
    """Prints the percentiles; returns that of 99.9 in ms."""
    stray_ms = 1e3 * np.abs(np.diff(times[50:]) - PERIOD_S)  # the first second is start-up
    if not stray_ms.size:
        raise SystemExit(f"{name}: no commands; is another ROS system on this domain?")
    p50, p99, p999 = np.percentile(stray_ms, [50.0, 99.0, 99.9])
    print(f"{name:14s} {p50:8.3f} {p99:8.3f} {p999:8.3f} {stray_ms.max():8.3f}   {stray_ms.size}")
    return float(p999)


def main() -> None:
    """Runs both loops at the same time and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    parser.add_argument("--load", type=int, default=os.cpu_count(), help="busy processes beside the loops")
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", "87")  # not the one that a robot in the room may use
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from clamp_ros.ros.environment import prepare

    prepare()
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    helpers = [context.Process(target=spin, args=(stop,)) for _ in range(arguments.load)]
    helpers.append(context.Process(target=feed, args=(stop,)))
    loops = {}
    ways = {"sleep loop": sleep_loop, "urgent sleep": urgent_sleep_loop, "control node": control_loop}
    for name, target in ways.items():
        receiver, sender = context.Pipe(duplex=False)
        loops[name] = receiver, context.Process(target=target, args=(arguments.seconds, sender))
    stolen = stolen_ms()
    for process in [*helpers, *(loop for _, loop in loops.values())]:
        process.start()
    print(f"{arguments.seconds:g} s beside {arguments.load} busy processes on {os.cpu_count()} cores; ms from 20 ms")
    print(f"{'':14s} {'p50':>8s} {'p99':>8s} {'p99.9':>8s} {'max':>8s}   samples")
    try:
        p999 = {name: report(name, receiver.recv()) for name, (receiver, _) in loops.items()}
        print(f"control node, p99.9: {p999['sleep loop'] / p999['control node']:.1f} times steadier than a sleep loop")
        print(f"the host withheld {stolen_ms() - stolen:.0f} ms of processor time meanwhile")
    finally:
        stop.set()
        for process in [*helpers, *(loop for _, loop in loops.values())]:
            process.join(10.0)
            process.kill()


if __name__ == "__main__":
    main()
