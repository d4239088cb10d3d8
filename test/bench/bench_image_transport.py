"""How images travel between two processes: four RGB-D cameras, 848x480, 30 Hz, 244 MB/s, through rclpy.

    python test/bench/bench_image_transport.py [--seconds 10] [--size 848 480] [--rate 30]

A sender publishes colour and depth of every camera at each tick, as the camera node and the bridge do; a receiver turns
them into arrays, as the fusion node does. Printed are the images that were lost and the time from publishing to the
array, of single images and of the tick's last image; first with the environment that our nodes start with
(`clamp_ros.ros.environment`), then with Fast DDS's own defaults. Nothing else should keep the processor busy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from collections import defaultdict
from multiprocessing.connection import Connection

import numpy as np

from clamp_ros.contract.interfaces import CAMERAS, TOPICS, Topic, color_topic, depth_topic
from clamp_ros.ros import environment

WARM_UP_TICKS = 15
DISCOVERY_S = 30.0
SILENCE_S = 2.0


ENCODINGS = {
    topic: encoding
    for camera in CAMERAS
    for topic, encoding in ((color_topic(camera), "rgb8"), (depth_topic(camera), "16UC1"))
}
IMAGES = [topic for topic in TOPICS if topic.name in ENCODINGS]


def send(size: tuple[int, int], rate_hz: float, ticks: int, connection: Connection) -> None:
    """Publishes, each image stamped with the monotonic clock just before it is sent."""
    import rclpy

    from clamp_ros.ros.convert import image_message
    from clamp_ros.ros.run import advertise

    rclpy.init()
    node = rclpy.create_node("bench_sender")
    publishers = [advertise(node, topic) for topic in IMAGES]
    rng = np.random.default_rng(0)
    width, height = size
    images = {
        "rgb8": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "16UC1": rng.integers(0, 4000, (height, width), dtype=np.uint16),
    }
    deadline = time.monotonic() + DISCOVERY_S
    while not all(publisher.get_subscription_count() for publisher in publishers):
        if time.monotonic() > deadline:
            raise SystemExit(f"the receiver was not found within {DISCOVERY_S:.0f} s")
        rclpy.spin_once(node, timeout_sec=0.05)
    late, due = 0.0, time.monotonic()
    for _ in range(ticks + WARM_UP_TICKS):
        time.sleep(max(0.0, due - time.monotonic()))
        late = max(late, time.monotonic() - due)
        for publisher, topic in zip(publishers, IMAGES, strict=True):
            encoding = ENCODINGS[topic.name]
            publisher.publish(image_message(images[encoding], encoding, time.monotonic_ns(), topic.frame))
        due += 1.0 / rate_hz
    connection.send(late)
    connection.recv()  # the receiver has seen the last image, or given up: the writers may go
    rclpy.shutdown()


def receive(ticks: int, connection: Connection) -> None:
    """Collects latencies by topic, in the order of arrival."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image

    from clamp_ros.ros.convert import array_from_image, stamp_ns
    from clamp_ros.ros.run import subscribe

    rclpy.init()
    node = rclpy.create_node("bench_receiver")
    arrivals: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def listen(topic: Topic) -> None:
        def callback(message: Image) -> None:
            array_from_image(message, ENCODINGS[topic.name])
            arrivals[topic.name].append((stamp_ns(message.header.stamp), time.monotonic_ns()))

        subscribe(node, topic, callback)

    for topic in IMAGES:
        listen(topic)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    seen, last = 0, time.monotonic() + DISCOVERY_S
    expected = (ticks + WARM_UP_TICKS) * len(IMAGES)
    while seen < expected and time.monotonic() - last < SILENCE_S:
        executor.spin_once(timeout_sec=0.05)
        if (now_seen := sum(map(len, arrivals.values()))) != seen:
            seen, last = now_seen, time.monotonic()
    connection.send(dict(arrivals))
    rclpy.shutdown()


def measure(name: str, args: argparse.Namespace) -> None:
    """One run in fresh processes; prints its line."""
    os.environ["ROS_DOMAIN_ID"] = str(random.randrange(1, 100))
    context = multiprocessing.get_context("spawn")
    ticks = round(args.seconds * args.rate)
    to_sender, sender_end = context.Pipe()
    to_receiver, receiver_end = context.Pipe()
    sender = context.Process(target=send, args=(tuple(args.size), args.rate, ticks, sender_end), daemon=True)
    receiver = context.Process(target=receive, args=(ticks, receiver_end), daemon=True)
    receiver.start()
    sender.start()
    if not to_receiver.poll(args.seconds * 5 + DISCOVERY_S + 30):
        raise SystemExit(f"{name}: the receiver gave no answer")
    arrivals: dict[str, list[tuple[int, int]]] = to_receiver.recv()
    late = to_sender.recv() if to_sender.poll(SILENCE_S) else float("nan")
    to_sender.send(None)
    for process in (sender, receiver):
        process.join(10.0)
        process.kill()
    stamps = [np.array(arrivals.get(topic.name, []), dtype=np.int64).reshape(-1, 2) for topic in IMAGES]
    # the warm-up is the first half second of what arrived
    if not all(len(s) for s in stamps):
        print(f"{name:22}  nothing arrived on {sum(not len(s) for s in stamps)} of {len(stamps)} topics")
        return
    start = max(s[0, 0] for s in stamps) + int(WARM_UP_TICKS / args.rate * 1e9)
    stamps = [s[s[:, 0] >= start] for s in stamps]
    single = np.concatenate([s[:, 1] - s[:, 0] for s in stamps]) / 1e6
    sets = defaultdict(list)
    for s in stamps:
        for stamp, arrival in s:
            sets[round((stamp - start) * args.rate / 1e9)].append((stamp, arrival))
    whole = [v for v in sets.values() if len(v) == len(stamps)]
    last = np.array([max(a for _, a in v) - min(s for s, _ in v) for v in whole]) / 1e6
    sent = (ticks + WARM_UP_TICKS) * len(stamps)
    lost = sent - sum(len(arrivals[topic.name]) for topic in IMAGES)
    figures = "".join(f"{np.percentile(x, q) if len(x) else np.nan:10.1f}" for x in (single, last) for q in (50, 99))
    print(f"{name:22}{sent:8d}{lost:7d}{figures}{late * 1e3:12.1f}")


def main() -> None:
    """Runs both environments and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of sending, each (default 10)")
    parser.add_argument("--size", type=int, nargs=2, default=(848, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rate", type=float, default=30.0, help="ticks per second (default 30)")
    args = parser.parse_args()
    environment.prepare()
    print(f"{len(CAMERAS)} RGB-D cameras {args.size[0]}x{args.size[1]} at {args.rate:g} Hz; milliseconds")
    columns = f"{'image p50':>10}{'p99':>10}{'tick p50':>10}{'p99':>10}{'sender late':>12}"
    print(f"{'environment':22}{'sent':>8}{'lost':>7}{columns}")
    measure("clamp_ros", args)
    for name in environment.DEFAULTS:
        del os.environ[name]
    measure("Fast DDS's defaults", args)


if __name__ == "__main__":
    main()
