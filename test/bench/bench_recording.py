"""Recording at full rate: four RGB-D cameras, 848x480, 30 Hz, 244 MB/s, and 50 Hz joints through ROS into a bag.

    python test/bench/bench_recording.py [--minutes 10] [--folder DIR] [--compression none lz4 zstd] [--rate 30]

A sender publishes as the camera node does: colour with texture and depth with a sensor's noise, a few different frames
in turn. The recorder node runs in a process of its own. Printed, for each compression: the share of images that are in
the bag, the recorder's processor time and largest memory, what the bag weighs, and what reached the disk a second; then
what the bag's own verdict says. First comes what the disk can do, and what compressing costs without ROS and disk.
The bags are removed. `--offline` stops after the first part.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
from mcap.writer import Writer
from numpy.typing import NDArray

from clamp_ros.contract.interfaces import (
    CAMERAS,
    JOINT_COMMANDS,
    JOINT_STATES,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
    topic,
)
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, CONTROL_RATE_HZ, REST_POSE
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.record import messages
from clamp_ros.record.disk import write_speed
from clamp_ros.record.episode import Episode
from clamp_ros.record.writer import COMPRESSIONS
from clamp_ros.ros import environment

DISCOVERY_S = 60.0
FRAMES = 4
OFFLINE_S = 2.0
SHOWN = 4
MB = 1e6


def pictures(width: int, height: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Colour with shading, texture and a sensor's noise; depth of a table with holes, and noise growing with it."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[0:height, 0:width]
    coarse = cv2.resize(rng.random((height // 40, width // 40, 3)).astype(np.float32), (width, height))
    color = 90 + 110 * coarse + 30 * np.sin(u / 17.0)[..., None] + rng.normal(0.0, 3.0, (height, width, 3))
    depth = 700.0 + 500.0 * v / height + 150 * coarse[..., 0]
    depth += rng.normal(0.0, 1.0, depth.shape) * 2.0 * (depth / 1000.0) ** 2
    depth[cv2.resize(rng.random((height // 8, width // 8)).astype(np.float32), (width, height)) > 0.93] = 0.0
    return np.clip(color, 0, 255).astype(np.uint8), np.rint(depth).astype(np.uint16)


def send(size: tuple[int, int], rate_hz: float, ticks: int, connection: Connection) -> None:
    """Publishes at a rate; answers with how late it was at most, and waits for leave to end."""
    import rclpy

    from clamp_ros.ros.convert import camera_info_message, image_message, joint_state_message
    from clamp_ros.ros.run import advertise

    rclpy.init()
    node = rclpy.create_node("bench_sender")
    names = [name(camera) for camera in CAMERAS for name in (color_topic, depth_topic, camera_info_topic)]
    out = {name: advertise(node, topic(name)) for name in (*names, JOINT_STATES.name, JOINT_COMMANDS.name)}
    pinhole = Pinhole(*size, 0.7 * size[0], 0.7 * size[0], size[0] / 2, size[1] / 2)
    frames = [pictures(*size, seed) for seed in range(FRAMES)]
    deadline = time.monotonic() + DISCOVERY_S
    while not all(publisher.get_subscription_count() for publisher in out.values()):
        if time.monotonic() > deadline:
            raise SystemExit(f"the recorder was not found within {DISCOVERY_S:.0f} s")
        rclpy.spin_once(node, timeout_sec=0.05)
    connection.send("found")
    start, start_ns, joints, late = time.monotonic(), time.time_ns(), 0, 0.0
    for tick in range(ticks):
        due = start + tick / rate_hz
        time.sleep(max(0.0, due - time.monotonic()))
        late = max(late, time.monotonic() - due)
        stamp = start_ns + round(1e9 * tick / rate_hz)  # what is lost then shows, and not how late it was sent
        color, depth = frames[tick % FRAMES]
        for camera in CAMERAS:
            frame = optical_frame(camera)
            out[camera_info_topic(camera)].publish(camera_info_message(pinhole, stamp, frame))
            out[color_topic(camera)].publish(image_message(color, "rgb8", stamp, frame))
            out[depth_topic(camera)].publish(image_message(depth, "16UC1", stamp, frame))
        while joints <= tick / rate_hz * CONTROL_RATE_HZ:
            at = start_ns + joints * CONTROL_PERIOD_NS
            for name in (JOINT_STATES.name, JOINT_COMMANDS.name):
                out[name].publish(joint_state_message(REST_POSE, at))
            joints += 1
    connection.send(late)
    connection.recv()
    rclpy.shutdown()


def offline(size: tuple[int, int]) -> None:
    """What a chunk's compression costs one core, and saves, of images like the sender's."""
    frame = optical_frame(CAMERAS[0])
    sent = []
    for seed in range(FRAMES):
        color, depth = pictures(*size, seed)
        sent += [bytes(messages.encode_color(0, frame, color)), bytes(messages.encode_depth(0, frame, depth))]
    print(f"{'compression':12}{'MB/s of one core':>18}{'size':>8}")
    for name, compression in COMPRESSIONS.items():
        stream, taken, start = io.BytesIO(), 0, time.process_time()
        writer = Writer(stream, chunk_size=4 << 20, compression=compression)
        writer.start()
        channel = writer.register_channel("/image", "cdr", writer.register_schema("Image", "ros2msg", b""))
        while time.process_time() - start < OFFLINE_S:
            for message in sent:
                writer.add_message(channel, 0, message, 0)
                taken += len(message)
            if stream.tell() > 1 << 28:
                break
        writer.finish()
        spent = time.process_time() - start
        print(f"{name:12}{taken / MB / spent:>18.0f}{stream.tell() / taken:>8.2f}")


def memory_mb(pid: int) -> float:
    """The most that a process has held in memory so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024.0


def measure(compression: str, folder: Path, args: argparse.Namespace) -> None:
    """One run in fresh processes; prints its line and the bag's verdict."""
    os.environ["ROS_DOMAIN_ID"] = str(random.randrange(1, 100))
    ticks = round(60.0 * args.minutes * args.rate)
    values = {
        "folder": str(folder), "cameras": list(CAMERAS), "compression": compression, "auto_start": True,
        "image_rate_hz": args.rate, "queue_mb": args.queue,
    }  # fmt: skip
    words = [word for name, value in values.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    recorder = subprocess.Popen([sys.executable, "-m", "clamp_ros.record.recorder_node", "--ros-args", *words])
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    sender = context.Process(target=send, args=(tuple(args.size), args.rate, ticks, there), daemon=True)
    sender.start()
    if not here.poll(2 * DISCOVERY_S):
        raise SystemExit("the sender found no recorder")
    here.recv()
    start = time.monotonic()
    late = here.recv()
    seconds = time.monotonic() - start
    memory = memory_mb(recorder.pid)
    recorder.send_signal(signal.SIGINT)  # it writes what is queued, and ends
    recorder.wait(600.0)
    written_s = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    here.send(None)
    sender.join(10.0)
    (bag,) = (path for path in folder.iterdir() if path.is_dir())
    size = sum(file.stat().st_size for file in bag.iterdir())
    with Episode.open(bag) as episode:
        got = sum(len(episode.stamps_ns(name(c))) for c in CAMERAS for name in (color_topic, depth_topic))
        verdict = episode.metadata.audit
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds
    sent = 2 * len(CAMERAS) * ticks
    dropped = sum(row["dropped"] for row in verdict["topics"].values())
    print(
        f"{compression:12}{sent:>8}{sent - got:>7}{dropped:>9}{100.0 * cpu:>8.0f} %{memory:>9.0f}{size / 1e9:>9.2f}"
        f"{size / MB / written_s:>10.0f}{1e3 * late:>9.0f}   {verdict['verdict']}"
    )
    for problem in verdict["problems"][:SHOWN]:
        print(f"{'':12}{problem}")
    if len(verdict["problems"]) > SHOWN:
        print(f"{'':12}and {len(verdict['problems']) - SHOWN} more problems")
    shutil.rmtree(bag)


def main() -> None:
    """Prints what the disk and the compressors can do, then a line for each compression."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of sending, for each compression (default 10)")
    parser.add_argument("--folder", type=Path, help="for the bags, by default a temporary one")
    parser.add_argument("--compression", nargs="+", default=["lz4"], choices=tuple(COMPRESSIONS))
    parser.add_argument("--size", type=int, nargs=2, default=(848, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rate", type=float, default=30.0, help="images a second (default 30)")
    parser.add_argument("--queue", type=int, default=512, help="MB that may wait for the disk (default 512)")
    parser.add_argument("--offline", action="store_true", help="no recording")
    args = parser.parse_args()
    environment.prepare()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        needed = 5 * args.size[0] * args.size[1] * len(CAMERAS) * args.rate / MB
        print(f"{len(CAMERAS)} RGB-D {args.size[0]}x{args.size[1]} at {args.rate:g} Hz are {needed:.0f} MB/s")
        print(f"the disk of {folder.parent} writes {write_speed(folder, 3.0) / MB:.0f} MB/s\n")
        offline(tuple(args.size))
        if args.offline:
            return
        columns = (
            f"{'images':>8}{'lost':>7}{'dropped':>9}{'CPU':>10}{'MB':>9}{'bag GB':>9}{'disk MB/s':>10}{'late ms':>9}"
        )
        print(f"\n{'recording':12}{columns}")
        for compression in args.compression:
            measure(compression, folder, args)


if __name__ == "__main__":
    main()
