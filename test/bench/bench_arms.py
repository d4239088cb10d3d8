"""How regularly both arms are read and driven, and how soon they hold when a bus falls silent, with default parameters.

    .venv/bin/python test/bench/bench_arms.py [seconds]

Each arm's servos are emulated by a process of their own; a bus falls silent when its process is stopped.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from clamp_ros.arm.arms import Arms, ArmsSample, State
from clamp_ros.arm.settings import ArmsConfig, SideConfig

SERVOS = Path(__file__).parents[1] / "hardware_emulation/servos.py"
FAULTS = 10
PERIOD_S = 0.02


def main() -> None:
    """Prints both."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with tempfile.TemporaryDirectory() as folder:
        ports = [Path(folder) / name for name in ("left", "right")]
        servos = [subprocess.Popen([sys.executable, SERVOS, port], stdout=subprocess.PIPE) for port in ports]
        try:
            for process in servos:
                assert process.stdout is not None and process.stdout.readline(), "the servos have not started"
            run(ports, servos[0], seconds)
        finally:
            for process in servos:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def run(ports: list[Path], left: subprocess.Popen[bytes], seconds: float) -> None:
    """Follows a slow sine for some seconds, then stops the left arm's servos again and again."""
    sides = [SideConfig(port=str(port), gripper_touch_rad=0.62, gripper_open_rad=1.62) for port in ports]
    samples: list[tuple[float, ArmsSample]] = []
    arms = Arms(
        ArmsConfig(left=sides[0], right=sides[1]), time.time_ns,
        lambda sample: samples.append((time.monotonic(), sample)), lambda *_: None,
    )  # fmt: skip
    arms.start()
    try:
        while not (arms.state is State.HOLDING and samples and arms.arm("right").torque and arms.arm("left").torque):
            arms.check()
            time.sleep(0.01)
        samples.clear()
        cpu_s, start_s = time.process_time(), time.monotonic()
        middle = arms_goal(arms)
        refused = drive(arms, middle, start_s + seconds)
        cpu = (time.process_time() - cpu_s) / (time.monotonic() - start_s)
        periods = 1e3 * np.diff([at for at, _ in samples])
        p50, p99, p999 = np.percentile(periods, (50, 99, 99.9))
        print(f"{len(periods) / seconds:.1f} joint states a second; period ms: p50 {p50:.1f}, p99 {p99:.1f}, "
              f"p99.9 {p999:.1f}, max {periods.max():.1f}; driver's CPU {100 * cpu:.0f}% of a core; {refused} refused")
        for name in ("left", "right"):
            traffic = arms.arm(name).bus.traffic
            print(f"{name}: {traffic.sent} questions, {traffic.lost} lost, {traffic.corrupt} corrupt, "
                  f"{arms.arm(name).watchdog_trips} watchdog trips")
        held_ms = []
        for _ in range(FAULTS):
            drive(arms, arms_goal(arms), time.monotonic() + 0.5)
            if arms.state is not State.FOLLOWING:
                arms.torque(True)
                continue
            left.send_signal(signal.SIGSTOP)
            stopped_s = time.monotonic()
            held_ms.append(1e3 * hold_s(arms, stopped_s))
            left.send_signal(signal.SIGCONT)
            time.sleep(0.3)
            arms.torque(True)
        print(f"left bus silent, {len(held_ms)} times: both arms held after ms: "
              f"median {statistics.median(held_ms):.0f}, max {max(held_ms):.0f}")
    finally:
        arms.close()


def hold_s(arms: Arms, since_s: float) -> float:
    """Goes on commanding until the arms hold; returns how long that took."""
    middle = arms_goal(arms)
    while arms.state is State.FOLLOWING and time.monotonic() < since_s + 2.0:
        arms.submit(middle)
        time.sleep(0.001)
    return time.monotonic() - since_s


def arms_goal(arms: Arms) -> np.ndarray:
    """(14,) where the arms are told to be."""
    return np.concatenate([np.array(arms.arm(name).goal) for name in ("left", "right")])


def drive(arms: Arms, middle: np.ndarray, until_s: float) -> int:
    """Commands at 50 Hz, both wrists along a sine; returns how many were refused."""
    refused, start_s = 0, time.monotonic()
    while (now_s := time.monotonic()) < until_s:
        target = middle.copy()
        target[[5, 12]] += 0.3 * np.sin(2.0 * (now_s - start_s))
        refused += arms.submit(target) is not None
        time.sleep(PERIOD_S)
    return refused


if __name__ == "__main__":
    main()
