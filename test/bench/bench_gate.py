"""What the safety gate costs a tick of the 50 Hz loop, and what of it the clearance check, in processor time.

    python test/bench/bench_gate.py [--seconds 20]

The gate is fed three streams: both arms swinging over the table, which is what work looks like; the same with the left
fingers sent into the table, so that it refuses; and hostile ones. Printed are percentiles of the wall and processor
time of `SafetyGate.check` with and without the clearance check, and of the clearance check alone. The budget of a
tick is 20 ms; on a busy machine the wall time holds what other processes took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.robot import CONTROL_PERIOD_NS, LOWER_LIMITS, NUM_JOINTS, REST_POSE, UPPER_LIMITS
from clamp_ros.control.clearance import Clearance, ClearanceConfig
from clamp_ros.control.safety import SafetyConfig, SafetyGate

Vector = NDArray[np.float64]


def working(ticks: int) -> Iterator[Vector]:
    """Both arms over the table, every joint in motion."""
    amplitudes = np.tile((0.4, 0.25, 0.3, 0.4, 0.4, 0.6, 0.01), 2)
    for tick in range(ticks):
        yield REST_POSE + amplitudes * np.sin(0.03 * tick + np.arange(NUM_JOINTS)) * min(tick / 50.0, 1.0)


def pressing(ticks: int) -> Iterator[Vector]:
    """The left fingers go into the table every other second."""
    for tick, target in enumerate(working(ticks)):
        target[1] += 0.6 * (1.0 - np.cos(0.06 * tick))
        yield target


def hostile(ticks: int) -> Iterator[Vector]:
    """Anything within a target's largest jump."""
    rng = np.random.default_rng(0)
    for _ in range(ticks):
        yield np.clip(REST_POSE + rng.uniform(-1.0, 1.0, NUM_JOINTS), LOWER_LIMITS, UPPER_LIMITS)


def told(name: str, wall_s: list[float], used_s: list[float], more: str = "") -> None:
    """One row of the table, in milliseconds."""
    wall, used = 1e3 * np.percentile(wall_s, (50, 99, 100)), 1e3 * np.percentile(used_s, (50, 99, 100))
    print(f"{name:38} wall p50 {wall[0]:6.3f}  p99 {wall[1]:6.3f}  max {wall[2]:7.3f}   processor p50 {used[0]:6.3f}"
          f"  p99 {used[1]:6.3f}  max {used[2]:7.3f}  {more}")  # fmt: skip


def timed(calls: Iterator[Callable[[], object]]) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of each call."""
    wall_s, used_s = [], []
    for call in calls:
        wall, used = time.perf_counter(), time.thread_time()
        call()
        used_s.append(time.thread_time() - used)
        wall_s.append(time.perf_counter() - wall)
    return wall_s, used_s


def gate_ticks(gate: SafetyGate, targets: Iterator[Vector], held: list[str]) -> Iterator[Callable[[], object]]:
    """The gate's ticks, with arms that are where they are told to be."""
    command, effort = REST_POSE, np.zeros(NUM_JOINTS)
    for tick, target in enumerate(targets, 1):
        now = tick * CONTROL_PERIOD_NS

        def check(target: Vector = target, now: int = now, measured: Vector = command) -> None:
            nonlocal command
            result = gate.check(target, now, measured, now, efforts=effort)
            held.extend([result.reason] if result.reason else [])
            command = REST_POSE if result.command is None else result.command

        yield check


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each stream, at 50 Hz (%(default)s)")
    ticks = round(50.0 * parser.parse_args().seconds)
    clearance = Clearance()
    print(f"{ticks} ticks a row, ms; {clearance.count} pairs of shapes")
    for name, stream in (("working", working), ("pressing", pressing), ("hostile", hostile)):
        told(f"{name}: distances of one pose", *timed((lambda j=j: clearance.shortfalls(j)) for j in stream(ticks)))
        for enabled in (False, True):
            gate, held = SafetyGate(SafetyConfig(clearance=ClearanceConfig(enabled=enabled))), []
            times = timed(gate_ticks(gate, stream(ticks), held))
            told(f"{name}: gate {'with' if enabled else 'without'} clearance", *times, f"held {len(held)}")


if __name__ == "__main__":
    main()
