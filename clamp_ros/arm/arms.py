"""Both follower arms: a thread a bus, and what they do together. Whatever fails, both hold still.

States: OFF (limp), HOLDING, FOLLOWING (commands), MOVING (home, sleep), FAULT (holding until /arms/torque or
/arms/reboot mends it). A bus that does not answer for `hold_after_s` holds both arms, and for `fault_after_s` is a
fault; so is a motor that reports an error or has lost its torque. A fault never takes torque away: a falling arm is
worse.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.aloha2 import HOME_RAD, SLEEP_RAD
from clamp_ros.arm.arm import Arm, ArmSample
from clamp_ros.arm.driver import Driver
from clamp_ros.arm.motion import Motion
from clamp_ros.arm.settings import ArmsConfig
from clamp_ros.contract.errors import ArmError
from clamp_ros.contract.robot import (
    ARM_SLICES,
    ARMS,
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    UPPER_LIMITS,
)
from clamp_ros.control.clearance import Clearance

_MARGIN = 1e-6
_OBSTRUCTED_RAD = 0.35
_REQUEST_S = 15.0
_UNWATCHED_S = 0.5
"""Home and sleep go no farther without commands: with their sender the emergency stop is silent, too."""
_REST_S = 0.002
"""Between looking at one pose of a way and the next, so that the arms' threads go on undisturbed."""
_IS_ARM = np.ones(NUM_JOINTS, dtype=bool)
_IS_ARM[list(GRIPPER_INDICES)] = False
_SILENT = {name: f"the {name} arm's bus does not answer" for name in ARMS}


class State(Enum):
    """What the arms do."""

    STARTING = "starting"
    OFF = "off"
    HOLDING = "holding"
    FOLLOWING = "following"
    MOVING = "moving"
    FAULT = "fault"


class ArmsSample(NamedTuple):
    """Both arms at one instant; (14,) in contract order, rad and m, per second, N m and N."""

    stamp_ns: int
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    efforts: NDArray[np.float64]


class Arms:
    """Runs both arms. Any thread may call its methods, but `torque`, `reboot` and `move` only one at a time."""

    def __init__(
        self,
        config: ArmsConfig,
        now_ns: Callable[[], int],
        on_sample: Callable[[ArmsSample], None],
        on_state: Callable[[State, str], None],
    ) -> None:
        """Nothing is opened yet.

        Args:
            config: the parameters.
            now_ns: the clock of the samples' stamps.
            on_sample: called with each pair of readings, in an arm's thread; must not wait.
            on_state: called when the state or its reason changes, in any thread; must not wait.
        """
        self._config = config
        self._clearance = Clearance(config.clearance) if config.clearance.enabled else None
        self._on_sample, self._on_state = on_sample, on_state
        sides = {"left": config.left, "right": config.right}
        self._drivers = {
            name: Driver(Arm(name, side, config.motors), config, now_ns, self) for name, side in sides.items()
        }
        self._lock = threading.RLock()
        self._state, self._reason = State.STARTING, ""
        self._target: NDArray[np.float64] | None = None
        self._target_s = self._asked_s = 0.0
        self._motion: Motion | None = None
        self._watched_s = 0.0
        self._failure: BaseException | None = None
        self._begun = False

    # What others ask.

    @property
    def state(self) -> State:
        """What the arms do now."""
        return self._state

    @property
    def reason(self) -> str:
        """Why, where it is not obvious."""
        return self._reason

    @property
    def takes_commands(self) -> bool:
        """Whether a command could be followed now."""
        return self._state in (State.HOLDING, State.FOLLOWING)

    def slowest_cycle_s(self, name: str) -> float:
        """The longest that reading and driving an arm took since the last call."""
        driver = self._drivers[name]
        slowest, driver.slowest_s = driver.slowest_s, 0.0
        return slowest

    def arm(self, name: str) -> Arm:
        """One arm, for its counters."""
        return self._drivers[name].arm

    def start(self) -> None:
        """Starts the threads; `check` says whether they live."""
        for driver in self._drivers.values():
            driver.start()

    def check(self) -> None:
        """Raises what ended a thread, where something did."""
        if self._failure is not None:
            raise self._failure

    def submit(self, target: NDArray[np.float64]) -> str | None:
        """Takes a command of (14,) finite positions in contract order; returns why it is refused, or None."""
        now_s = time.monotonic()
        with self._lock:
            self._asked_s = now_s
            if self._state not in (State.HOLDING, State.FOLLOWING):
                return f"the arms are {self._state.value}: commands are refused"
            if (late := self._silent_side(now_s)) is not None:
                return f"{_SILENT[late]}: commands are refused"
            outside = np.flatnonzero((target < LOWER_LIMITS - _MARGIN) | (target > UPPER_LIMITS + _MARGIN))
            if outside.size:
                i = int(outside[0])
                return (
                    f"command of {JOINT_NAMES[i]} is {target[i]:.4f}, outside {LOWER_LIMITS[i]:.4f}.."
                    f"{UPPER_LIMITS[i]:.4f}"
                )
            jump = np.where(_IS_ARM, np.abs(target - self._goals()), 0.0)
            if jump.max() > self._config.max_jump_rad:
                i = int(jump.argmax())
                return (
                    f"command of {JOINT_NAMES[i]} is {jump[i]:.2f} rad from where the arm is told to be, limit "
                    f"{self._config.max_jump_rad:.2f}; the sender has to begin from the measured pose"
                )
            self._target, self._target_s = target, now_s
            self._enter(State.FOLLOWING, "")
        return None

    def torque(self, on: bool) -> None:
        """Holds both arms where they stand, leaving a fault; or lets go of both.

        Raises:
            ArmError: an arm does not answer, or a motor reports an error.
        """
        if on:
            self._both(Arm.recover, State.HOLDING, "")
        else:
            self._still("letting go")
            self._both(Arm.torque_off, State.OFF, "torque is off")

    def reboot(self) -> list[str]:
        """Restarts the motors that report a hardware error, then holds; returns which these were.

        Raises:
            ArmError: the error stays, or a motor does not come back.
        """
        self._still("rebooting motors")
        return [motor for motors in self._both(Arm.reboot, State.HOLDING, "") for motor in motors]

    def move(self, pose: str, watched: bool = True) -> float:
        """Begins the motion "home" or "sleep", grippers as they are; returns how many seconds it takes.

        The way is straight in joint space. It is looked at before anything moves, while the arms hold.

        Args:
            pose: where to.
            watched: goes on only while commands come, though none is followed: who sends them can stop it, too.

        Raises:
            ArmError: the arms are limp, in fault or moving already, something is in the way, or no commands come.
        """
        looking = f"looking at the way {pose}"
        with self._lock:
            if watched and time.monotonic() - self._asked_s > _UNWATCHED_S:
                raise ArmError(f"no commands come, so that no emergency stop would: start the system, then go {pose}")
            if self._state not in (State.HOLDING, State.FOLLOWING):
                raise ArmError(f"the arms are {self._state.value} ({self._reason}): they cannot go {pose}")
            start, self._watched_s = self._goals(), math.inf
            self._motion = Motion(start, start, time.monotonic(), _REQUEST_S)  # stays, and takes no commands
            self._enter(State.MOVING, looking)
        end = start.copy()
        end[_IS_ARM] = np.tile(HOME_RAD if pose == "home" else SLEEP_RAD, len(ARMS))
        blocked = self._clearance.refuses_path(start, end, _REST_S) if self._clearance is not None else None
        with self._lock:
            if (self._state, self._reason) != (State.MOVING, looking):
                raise ArmError(f"the arms are {self._state.value} ({self._reason}) by now: they do not go {pose}")
            if blocked is not None:
                self._enter(State.HOLDING, "")
                raise ArmError(
                    f"the way {pose} is not free: {blocked}. Bring the arms to where it is, by teleoperation or by "
                    "hand without torque, and ask again"
                )
            self._watched_s = time.monotonic() if watched else math.inf
            self._motion = Motion.between(start, end, time.monotonic(), self._config.speed_rad_s)
            self._enter(State.MOVING, f"going {pose}")
            return self._motion.duration_s

    def hold(self, reason: str) -> None:
        """Follows no command until the next one."""
        with self._lock:
            if self._state is State.FOLLOWING:
                self._enter(State.HOLDING, reason)

    def stop(self, reason: str) -> None:
        """Stops home or sleep where they are. Commands need no stop: the safety gate's own brakes them."""
        with self._lock:
            if self._state is State.MOVING:
                self._enter(State.HOLDING, reason)

    def close(self) -> None:
        """Ends as the parameter `at_exit` says, within a deadline, and lets the buses go."""
        if self._config.at_exit == "sleep" and self._failure is None and self._all_started:
            self._sleep()
        for driver in self._drivers.values():
            driver.stop()
        for driver in self._drivers.values():
            driver.join()

    def _sleep(self) -> None:
        try:
            if self._state is State.MOVING:
                self._still("ending")
            deadline = time.monotonic() + self.move("sleep", watched=False) + 1.0
            while self._state is State.MOVING and time.monotonic() < deadline and self._failure is None:
                time.sleep(0.02)
            if self._state is State.HOLDING and not self._reason:
                self.torque(False)
        except ArmError:
            return  # in fault they hold, whatever was asked for

    # What the arms' threads ask: see `driver.Together`.

    @property
    def in_fault(self) -> bool:
        """Whether the arms hold until somebody mends it."""
        return self._state is State.FAULT

    def wanted(self, name: str, now_s: float) -> NDArray[np.float64] | None:
        """(7,) where an arm shall go now; None: stay."""
        with self._lock:
            late = self._silent_side(now_s)
            if self._state not in (State.FOLLOWING, State.MOVING):
                unasked = now_s - self._asked_s > self._config.command_timeout_s
                if self._reason in _SILENT.values() and late is None and unasked:
                    self._enter(State.HOLDING, "no commands")  # the bus answers again: it is that no longer
                return None
            if late is not None:
                self._enter(State.HOLDING, _SILENT[late])
                return None
            if self._motion is not None:
                if now_s - max(self._watched_s, self._asked_s) > _UNWATCHED_S:
                    self._enter(State.HOLDING, "stopped: no commands come, so that no emergency stop would")
                    return None
                wanted = self._motion.at(now_s)[ARM_SLICES[name]]
                if self._motion.over(now_s) and self._arrived():
                    self._enter(State.HOLDING, "")
                return wanted
            if now_s - self._target_s > self._config.command_timeout_s:
                self._enter(State.HOLDING, "no commands")
            return None if self._target is None else self._target[ARM_SLICES[name]]

    def set_up(self) -> None:
        """An arm is ready. Once both are, both are asked to hold."""
        with self._lock:
            if self._state is not State.STARTING or not self._all_started or self._begun:
                return
            self._begun = True
            if not self._config.torque_at_start:
                self._enter(State.OFF, "torque is off; /arms/torque holds the arms")
                return
            futures: list[Future[Any]] = []

            def holding(_: Future[Any]) -> None:
                with self._lock:
                    if self._state is State.STARTING and all(f.done() and f.exception() is None for f in futures):
                        self._enter(State.HOLDING, "")

            futures += [driver.ask(Arm.torque_on) for driver in self._drivers.values()]
            for future in futures:
                future.add_done_callback(holding)

    def take(self, driver: Driver, stamp_ns: int, sample: ArmSample) -> None:
        """Keeps a reading; whoever completes a pair hands it on."""
        with self._lock:
            driver.sample = (stamp_ns, sample)
            pair = [other.sample for other in self._drivers.values() if other.sample is not None]
            if len(pair) < len(self._drivers):
                return
            for other in self._drivers.values():
                other.sample = None
            positions, velocities, efforts = (
                np.concatenate([arm_sample[i] for _, arm_sample in pair]) for i in range(3)
            )
            if self._state is State.MOVING:
                self._mind_obstacles(positions)
        self._on_sample(ArmsSample(min(stamp for stamp, _ in pair), positions, velocities, efforts))

    def fail(self, reason: str) -> None:
        """Both arms hold, until somebody mends it; the first reason stays."""
        with self._lock:
            if self._state is not State.FAULT:
                self._enter(State.FAULT, reason)

    def end(self, error: BaseException) -> None:
        """A thread has ended by a defect: the other ends, too, and `check` raises it in the node's thread."""
        self._failure = error
        for driver in self._drivers.values():
            driver.stop()

    # What they do together.

    @property
    def _all_started(self) -> bool:
        return all(driver.started for driver in self._drivers.values())

    def _goals(self) -> NDArray[np.float64]:
        goals = [driver.arm.goal for driver in self._drivers.values()]
        if any(goal is None for goal in goals):
            raise ArmError("the arms have not been read yet")
        return np.concatenate([goal for goal in goals if goal is not None])

    def _enter(self, state: State, reason: str) -> None:
        with self._lock:
            if (state, reason) == (self._state, self._reason):
                return
            self._state, self._reason = state, reason
            if state is not State.FOLLOWING:
                self._target = None
            if state is not State.MOVING:
                self._motion = None
            self._on_state(state, reason)

    def _still(self, reason: str) -> None:
        """Stops whatever is going on, but does not mend a fault."""
        with self._lock:
            if self._state in (State.FOLLOWING, State.MOVING, State.HOLDING):
                self._enter(State.HOLDING, reason)

    def _both(self, request: Callable[[Arm], Any], then: State, reason: str) -> list[Any]:
        """Has both threads do something; the state is `then` if both could."""
        self.check()
        futures = [driver.ask(request) for driver in self._drivers.values()]
        _, late = wait(futures, _REQUEST_S)
        for future in late:
            future.cancel()
        errors: list[BaseException] = [ArmError(f"an arm has not done it in {_REQUEST_S:g} s")] if late else []
        errors += [error for future in futures if future not in late and (error := future.exception()) is not None]
        if errors:
            message = "; ".join(map(str, errors))
            self._enter(State.FAULT, message)
            raise ArmError(message)
        self._enter(then, reason)
        return [future.result() for future in futures]

    def _silent_side(self, now_s: float) -> str | None:
        """The arm whose bus has not answered for too long."""
        for name, driver in self._drivers.items():
            if now_s - driver.answered_s > self._config.hold_after_s:
                return name
        return None

    def _arrived(self) -> bool:
        return self._motion is None or bool(np.abs(self._goals() - self._motion.end).max() < 1e-6)

    def _mind_obstacles(self, positions: NDArray[np.float64]) -> None:
        behind = np.where(_IS_ARM, np.abs(positions - self._goals()), 0.0)
        if behind.max() > _OBSTRUCTED_RAD:
            self._enter(State.HOLDING, f"stopped: {JOINT_NAMES[int(behind.argmax())]} cannot follow; is it obstructed?")
            for driver in self._drivers.values():
                driver.release = True
