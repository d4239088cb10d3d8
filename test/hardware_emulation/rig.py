"""Both emulated follower arms and the configuration that finds them, with deadlines for a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hardware_emulation.servos import Emulator, ServoBus, follower

from clamp_ros.arm.arms import Arms, ArmsSample, State
from clamp_ros.arm.settings import ArmsConfig, MotorConfig, SideConfig

MOTORS: dict[str, Any] = {"reply_s": 0.1, "retry_s": 0.5, "watchdog_s": 2.5}
TOGETHER: dict[str, Any] = {"hold_after_s": 0.9, "fault_after_s": 1.5, "speed_rad_s": 2.0}
GRIPPER: dict[str, Any] = {"gripper_touch_rad": 0.62, "gripper_open_rad": 1.62}


def side(bus: ServoBus, **values: Any) -> SideConfig:
    """One arm's parameters."""
    return SideConfig(port=bus.port, **{**GRIPPER, **values})


def wait(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> None:
    """Waits for a condition; fails the test at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.005)


class Cell:
    """Two emulated arms and `Arms` that drives them."""

    def __init__(self, left: ServoBus, right: ServoBus, motors: dict[str, Any], together: dict[str, Any]) -> None:
        self.left, self.right = left, right
        self.samples: list[ArmsSample] = []
        self.states: list[tuple[State, str]] = []
        config = ArmsConfig(
            left=side(left), right=side(right), motors=MotorConfig(**{**MOTORS, **motors}), **{**TOGETHER, **together}
        )
        self.arms = Arms(config, time.time_ns, self.samples.append, lambda *state: self.states.append(state))

    def start(self) -> None:
        """Until both arms hold, with torque."""
        self.arms.start()
        wait(lambda: self._lives() and self.samples and self.arms.state is State.HOLDING, "the arms")
        assert self.torque() == {1}

    def go(self, pose: str) -> float:
        """Home or sleep, as when the system ends: nobody sends commands."""
        return self.arms.move(pose, watched=False)

    def _lives(self) -> bool:
        self.arms.check()
        return True

    def torque(self) -> set[int]:
        """The values of `torque_enable` over all motors."""
        return {value for bus in (self.left, self.right) for value in bus.values("torque_enable").values()}

    def wait_for(self, state: State, timeout_s: float = 15.0) -> str:
        """Waits for a state; returns its reason."""
        wait(lambda: self._lives() and self.arms.state is state, f"{state}, in {self.arms.state}", timeout_s)
        return self.arms.reason

    def fresh(self) -> ArmsSample:
        """A sample that was not there yet."""
        count = len(self.samples) + 1
        wait(lambda: self._lives() and len(self.samples) > count, "a sample")
        return self.samples[-1]


@contextmanager
def cell(motors: dict[str, Any] | None = None, **together: Any) -> Iterator[Cell]:
    """A `Cell` that is served and, at the end, closed; `start` it."""
    left, right = follower(), follower()
    with Emulator(left, right):
        rig = Cell(left, right, motors or {}, together)
        try:
            yield rig
        finally:
            rig.arms.close()
