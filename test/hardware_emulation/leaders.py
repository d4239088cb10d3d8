"""ALOHA 2's leader arms on pseudo-terminals, and the hands that move them.

Run as a program it serves both leaders until it is killed, with hands that move them to and fro, or along a script:

    python test/hardware_emulation/leaders.py /tmp/leader [joints.npy]

makes the ports /tmp/leader_left and /tmp/leader_right. A script is an array of (N, 14) positions in contract order, in
radians and metres, 20 ms apart, as `/joint_commands` of a bag are. The hands begin, and begin anew, when the leaders
have been driven to the followers' pose and are let go of.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.aloha2 import FOLLOWER_IDS, LEADER, SLEEP_RAD
from clamp_ros.arm.registers import Model
from clamp_ros.arm.settings import LeaderSide
from clamp_ros.contract.robot import ARM_SLICES, ARMS, CONTROL_PERIOD_NS, JOINTS_PER_ARM

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hardware_emulation.motor import Joint, Servo
from hardware_emulation.servos import Emulator, ServoBus

HANDLE: dict[str, Any] = {"handle_closed_rad": -0.055, "handle_open_rad": 0.83}
"""Handles like those of config/leaders.yaml."""
HAND_TICKS_S = 800.0
"""How fast a hand moves a joint at most: 1.2 rad/s."""
_UNITS = LeaderSide(**HANDLE).units()


def shafts(positions: NDArray[np.float64]) -> list[float]:
    """Where the joints of one leader stand, in ticks from the middle in the joints' direction, at (7,) positions."""
    return [float(tick - 2048) for tick in _UNITS.ticks(positions)]


def leader(positions: NDArray[np.float64] | None = None, swapped: dict[int, Model] | None = None) -> ServoBus:
    """A leader out of the box: factory settings but for the ids.

    Args:
        positions: (7,) where it stands, by default the sleep pose with its handle open.
        swapped: models of motors, by id, that differ from the spec's.
    """
    stand = np.append(SLEEP_RAD, 0.037) if positions is None else positions
    joints = [Joint(shaft) for shaft in shafts(stand)]
    return ServoBus([
        Servo(
            motor, (swapped or {}).get(motor, spec.model).number, joints[spec.joint], mirrored=bool(spec.drive_mode)
        )
        for motor, spec in zip(FOLLOWER_IDS, LEADER, strict=True)
    ])  # fmt: skip


class Hands:
    """A person's hands, which move the leaders along a script: from when they were last driven, and let go of.

    Before that they hold still. The handles, which nobody drives, wait for the joints.
    """

    def __init__(self, rows: NDArray[np.float64]) -> None:
        """`rows`: (N, 14) in contract order, 20 ms apart; they stay at the last."""
        self._shafts = {arm: np.array([shafts(row[ARM_SLICES[arm]]) for row in rows]) for arm in ARMS}
        self._times = np.arange(len(rows)) * (CONTROL_PERIOD_NS / 1e9)
        self._driven = False
        self._began: float | None = None

    def take(self, arm: str, bus: ServoBus) -> None:
        """Puts a hand on an arm."""
        joints = {id(servo.joint): servo.joint for servo in bus.servos}.values()
        for n, joint in enumerate(joints):
            joint.hand = self._hand(self._shafts[arm][:, n])

    def begin(self) -> None:
        """Begins the script, though nobody drives the leaders."""
        self._driven, self._began = True, None

    def _hand(self, script: NDArray[np.float64]) -> Callable[[float, float, bool], float]:
        then: float | None = None

        def move(now: float, shaft: float, held: bool) -> float:
            nonlocal then
            elapsed, then = 0.0 if then is None else min(now - then, 0.1), now
            if held:
                self.begin()
            if held or not self._driven:
                return shaft
            if self._began is None:
                self._began = now
            wanted = float(np.interp(now - self._began, self._times, script))
            step = HAND_TICKS_S * elapsed
            return min(max(wanted, shaft - step), shaft + step)

        return move


def to_and_fro(seconds: float, around: NDArray[np.float64], radians: float = 0.2) -> NDArray[np.float64]:
    """(N, 14) a slow swing of every joint around (14,) positions, the handles closing and opening with it."""
    t = np.arange(0.0, seconds, CONTROL_PERIOD_NS / 1e9)
    swing = np.sin(2.0 * math.pi * t / 6.0)[:, None]
    rows = around + radians * swing * np.tile([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], 2)
    for arm in range(len(ARMS)):
        rows[:, arm * JOINTS_PER_ARM + 6] = 0.022 + 0.014 * np.cos(2.0 * math.pi * t / 6.0)
    return rows


def main() -> None:
    """See the module."""
    prefix, *rest = sys.argv[1:]
    with contextlib.suppress(PermissionError):  # servos do not wait for the computer's other work
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(40))
    home = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.022] * 2)
    hands = Hands(np.load(rest[0]) if rest else to_and_fro(3600.0, home))
    buses = {arm: leader() for arm in ARMS}
    for arm, bus in buses.items():
        hands.take(arm, bus)
        path = Path(f"{prefix}_{arm}")
        path.unlink(missing_ok=True)
        path.symlink_to(bus.port)
        print(f"{path} -> {bus.port}", flush=True)
    with Emulator(*buses.values()):
        threading.Event().wait()


if __name__ == "__main__":
    main()
