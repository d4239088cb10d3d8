"""What a sender of commands pays for a reader that is stopped: over shared memory, and over UDP.

    python test/bench/bench_stopped_reader.py [--stops 100]

A sender publishes joint commands at 500 Hz to two readers in processes of their own. One of them is stopped (SIGSTOP)
for 0.3 s again and again, as a starved process is; the other goes on and tells how old what it gets is. A reader of
shared memory may be stopped while it holds its port's lock. Printed are the commands that took the sender over 10 ms,
the longest, and the other reader's latencies; first with shared memory, as nodes that handle images have it, then
without, as control_node, arm_node and teleop_node are (`environment.participant`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection

import numpy as np

from clamp_ros.contract.interfaces import JOINT_COMMANDS
from clamp_ros.ros import environment

PERIOD_S = 0.002
STOPPED_S = 0.3
GOING_S = 0.1
DISCOVERY_S = 20.0


def read(connection: Connection, shared_memory: bool) -> None:
    """Collects ages in ms until asked for them."""
    import rclpy

    from clamp_ros.ros.convert import stamp_ns
    from clamp_ros.ros.run import subscribe

    rclpy.init()
    with environment.participant(shared_memory=shared_memory):
        node = rclpy.create_node(f"reader_{os.getpid()}")
    ages: list[float] = []
    subscribe(node, JOINT_COMMANDS, lambda m: ages.append((time.monotonic_ns() - stamp_ns(m.header.stamp)) / 1e6))
    connection.send("ready")
    while not connection.poll():
        rclpy.spin_once(node, timeout_sec=0.05)
    connection.send(ages)
    rclpy.shutdown()


def send(connection: Connection, shared_memory: bool, stops: int, reader: int) -> None:
    """Publishes, and stops one reader again and again; tells how long each command took, in ms."""
    import rclpy

    from clamp_ros.ros.convert import joint_state_message
    from clamp_ros.ros.run import advertise

    rclpy.init()
    with environment.participant(shared_memory=shared_memory):
        node = rclpy.create_node("sender")
    publisher = advertise(node, JOINT_COMMANDS)
    deadline = time.monotonic() + DISCOVERY_S
    while publisher.get_subscription_count() < 2:
        if time.monotonic() > deadline:
            raise SystemExit(f"the readers were not found within {DISCOVERY_S:.0f} s")
        rclpy.spin_once(node, timeout_sec=0.05)
    took: list[float] = []

    def publish() -> None:
        begun = time.monotonic()
        publisher.publish(joint_state_message(np.zeros(14), time.monotonic_ns()))
        took.append(1e3 * (time.monotonic() - begun))

    def publish_for(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            publish()
            time.sleep(PERIOD_S)

    rng = random.Random(0)
    for _ in range(stops):
        publish_for(GOING_S)
        publish()
        time.sleep(rng.uniform(0.0, 0.0003))  # while the reader takes it in
        os.kill(reader, signal.SIGSTOP)
        publish_for(STOPPED_S)
        os.kill(reader, signal.SIGCONT)
    connection.send(took)
    rclpy.shutdown()


def play(stops: int, shared_memory: bool) -> tuple[list[float], list[float]]:
    """The sender's times and the living reader's ages, in ms."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=read, args=(theirs, shared_memory), daemon=True))
        processes[-1].start()
        ours.recv()
        pipes.append(ours)
    ours, theirs = context.Pipe()
    sender = context.Process(target=send, args=(theirs, shared_memory, stops, processes[0].pid), daemon=True)
    sender.start()
    took = ours.recv()
    sender.join()
    ages = []
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send("end")
        ages.append(pipe.recv())
        process.join()
    return took, ages[1]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=100)
    arguments = parser.parse_args()
    environment.prepare()
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 100)))
    print(f"{arguments.stops} stops of one of two readers, {STOPPED_S:g} s each")
    print("transport      commands  over 10 ms  longest ms  other reader: median ms  99 %   longest")
    for name, shared_memory in (("shared memory", True), ("UDP", False)):
        took, ages = (np.array(values) for values in play(arguments.stops, shared_memory))
        print(
            f"{name:13}  {len(took):8}  {(took > 10).sum():10}  {took.max():10.1f}"
            f"  {np.median(ages):23.2f}  {np.percentile(ages, 99):5.2f}  {ages.max():8.1f}"
        )


if __name__ == "__main__":
    main()
