"""Both follower arms: a thread a bus, and what they do together. Whatever fails, both hold still.

States: OFF (limp), HOLDING, FOLLOWING (commands), MOVING (home, sleep), FAULT (holding until /arms/torque or
/arms/reboot mends it). A bus that does not answer for `hold_after_s` holds both arms, and for `fault_after_s` is a
fault; so is a motor that reports an error or has lost its torque. A fault never takes torque away: a falling arm is
worse.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clamp_ros.arm.aloha2 import HOME_RAD, SLEEP_RAD
from clamp_ros.arm.arm import Arm, ArmSample, MotorConfig, SideConfig
from clamp_ros.arm.motion import Motion
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ArmError, ConfigError
from clamp_ros.contract.robot import (
    ARM_SLICES,
    ARMS,
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    NUM_JOINTS,
    UPPER_LIMITS,
)
from clamp_ros.control.clearance import Clearance, ClearanceConfig

_MARGIN = 1e-6
_OBSTRUCTED_RAD = 0.35
_REQUEST_S = 15.0
_REST_S = 0.002
"""Between looking at one pose of a way and the next, so that the arms' threads go on undisturbed."""
_IS_ARM = np.ones(NUM_JOINTS, dtype=bool)
_IS_ARM[list(GRIPPER_INDICES)] = False


@dataclass(frozen=True)
class ArmsConfig:
    """Parameters of the arm node."""

    left: SideConfig = field(default_factory=lambda: SideConfig(port="/dev/ttyDXL_follower_left"))
    right: SideConfig = field(default_factory=lambda: SideConfig(port="/dev/ttyDXL_follower_right"))
    motors: MotorConfig = field(default_factory=MotorConfig)
    rate_hz: int = param(100, "how often the arms are read and driven", unit="Hz", minimum=50, maximum=250)
    torque_at_start: bool = param(True, "hold the arms where they stand as soon as both are set up")
    at_exit: str = param(
        "hold", "when the node is told to end: hold where they are, or move to the sleep pose and let go",
        choices=("hold", "sleep"),
    )  # fmt: skip
    command_timeout_s: float = param(
        0.1, "commands older than this are refused; hold when none came for so long", unit="s",
        minimum=0.02, maximum=1.0,
    )  # fmt: skip
    max_jump_rad: float = param(
        0.5, "a command further than this from where an arm is told to be is refused", unit="rad",
        minimum=0.05, maximum=3.2,
    )  # fmt: skip
    hold_after_s: float = param(
        0.03, "both arms hold when a bus has not answered for this long", unit="s", minimum=0.01, maximum=1.0
    )
    fault_after_s: float = param(
        0.5, "that is a fault, which lasts until it is mended, after this long", unit="s", minimum=0.05, maximum=5.0
    )
    speed_rad_s: float = param(
        0.7, "top speed of the motions home and sleep", unit="rad/s", minimum=0.05, maximum=2.0
    )
    realtime_priority: int = param(
        25, "SCHED_FIFO priority where the user may set it; 0 leaves the scheduler alone", minimum=0, maximum=90
    )
    clearance: ClearanceConfig = field(default_factory=ClearanceConfig)
    hot_c: int = param(65, "a motor hotter than this is warned of; at 80 it lets go", unit="C", minimum=30, maximum=80)

    def __post_init__(self) -> None:
        check(self)
        for name, limit_s in (("hold_after_s", self.hold_after_s), ("motors.watchdog_s", self.motors.watchdog_s)):
            if limit_s * self.rate_hz < 2.0:
                raise ConfigError(f"{name} is {limit_s}, expected two periods of {self.rate_hz} Hz at least")
        if self.fault_after_s < self.hold_after_s:
            raise ConfigError(f"fault_after_s is {self.fault_after_s}, expected hold_after_s or more")


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


@dataclass
class _Side:
    """What one arm's thread shares with the others."""

    arm: Arm
    requests: queue.SimpleQueue[tuple[Callable[[Arm], Any], Future[Any]]] = field(default_factory=queue.SimpleQueue)
    started: bool = False
    answered_s: float = 0.0
    sample: tuple[int, ArmSample] | None = None
    release: bool = False
    late_s: float = 0.0


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
        self._now_ns = now_ns
        self._on_sample, self._on_state = on_sample, on_state
        self._sides = {
            "left": _Side(Arm("left", config.left, config.motors)),
            "right": _Side(Arm("right", config.right, config.motors)),
        }
        self._lock = threading.RLock()
        self._state, self._reason = State.STARTING, ""
        self._target: NDArray[np.float64] | None = None
        self._target_s = 0.0
        self._motion: Motion | None = None
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"arm-{name}", daemon=True) for name in ARMS
        ]

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
        side = self._sides[name]
        slowest, side.late_s = side.late_s, 0.0
        return slowest

    def arm(self, name: str) -> Arm:
        """One arm, for its counters."""
        return self._sides[name].arm

    def start(self) -> None:
        """Starts the threads; `check` says whether they live."""
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raises what ended a thread, where something did."""
        if self._failure is not None:
            raise self._failure

    def submit(self, target: NDArray[np.float64]) -> str | None:
        """Takes a command of (14,) finite positions in contract order; returns why it is refused, or None."""
        now_s = time.monotonic()
        with self._lock:
            if self._state not in (State.HOLDING, State.FOLLOWING):
                return f"the arms are {self._state.value}: commands are refused"
            if (late := self._silent_side(now_s)) is not None:
                return f"the {late} arm's bus does not answer: commands are refused"
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

    def move(self, pose: str) -> float:
        """Begins the motion "home" or "sleep", grippers as they are; returns how many seconds it takes.

        The way is straight in joint space. It is looked at before anything moves, while the arms hold.

        Raises:
            ArmError: the arms are limp, in fault, already moving or stopped, or something is in the way.
        """
        looking = f"looking at the way {pose}"
        with self._lock:
            if self._state not in (State.HOLDING, State.FOLLOWING):
                raise ArmError(f"the arms are {self._state.value} ({self._reason}): they cannot go {pose}")
            start = self._goals()
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
            self._motion = Motion.between(start, end, time.monotonic(), self._config.speed_rad_s)
            self._enter(State.MOVING, f"going {pose}")
            return self._motion.duration_s

    def stop(self, reason: str) -> None:
        """Stops home or sleep where they are. Commands need no stop: the safety gate's own brakes them."""
        with self._lock:
            if self._state is State.MOVING:
                self._enter(State.HOLDING, reason)

    def close(self) -> None:
        """Ends as the parameter `at_exit` says, within a deadline, and lets the buses go."""
        if self._config.at_exit == "sleep" and self._failure is None and all(s.started for s in self._sides.values()):
            self._sleep()
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for side in self._sides.values():
            side.arm.bus.close()

    def _sleep(self) -> None:
        try:
            if self._state is State.MOVING:
                self._still("ending")
            deadline = time.monotonic() + self.move("sleep") + 1.0
            while self._state is State.MOVING and time.monotonic() < deadline and self._failure is None:
                self._stop.wait(0.02)
            if self._state is State.HOLDING and not self._reason:
                self.torque(False)
        except ArmError:
            return  # in fault they hold, whatever was asked for

    # What they do together.

    def _goals(self) -> NDArray[np.float64]:
        goals = [side.arm.goal for side in self._sides.values()]
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

    def _fail(self, reason: str) -> None:
        """Both arms hold, until somebody mends it; the first reason stays."""
        with self._lock:
            if self._state is not State.FAULT:
                self._enter(State.FAULT, reason)

    def _both(self, request: Callable[[Arm], Any], then: State, reason: str) -> list[Any]:
        """Has both threads do something; the state is `then` if both could."""
        self.check()
        futures: list[Future[Any]] = []
        for side in self._sides.values():
            futures.append(Future())
            side.requests.put((request, futures[-1]))
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
        for name, side in self._sides.items():
            if now_s - side.answered_s > self._config.hold_after_s:
                return name
        return None

    def _wanted(self, name: str, now_s: float) -> NDArray[np.float64] | None:
        """Where an arm shall go now, (7,); None: stay."""
        with self._lock:
            if self._state not in (State.FOLLOWING, State.MOVING):
                return None
            if (late := self._silent_side(now_s)) is not None:
                self._enter(State.HOLDING, f"the {late} arm's bus does not answer")
                return None
            if self._motion is not None:
                wanted = self._motion.at(now_s)[ARM_SLICES[name]]
                if self._motion.over(now_s) and self._arrived():
                    self._enter(State.HOLDING, "")
                return wanted
            if now_s - self._target_s > self._config.command_timeout_s:
                self._enter(State.HOLDING, "no commands")
            return None if self._target is None else self._target[ARM_SLICES[name]]

    def _arrived(self) -> bool:
        return self._motion is None or bool(np.abs(self._goals() - self._motion.end).max() < 1e-6)

    # One arm's thread.

    def _run(self, name: str) -> None:
        side = self._sides[name]
        try:
            side.arm.start()
            side.started = True
            if all(other.started for other in self._sides.values()):
                self._begin()
            next_s = time.monotonic()
            while not self._stop.is_set():
                self._serve(side)
                self._cycle(name, side)
                next_s = max(next_s + 1.0 / self._config.rate_hz, time.monotonic() - 1.0 / self._config.rate_hz)
                self._stop.wait(max(next_s - time.monotonic(), 0.0))
        except BaseException as error:  # `check` raises it in the node's thread; the motors' watchdogs hold the arms
            self._failure = error
            self._stop.set()
        finally:
            while not side.requests.empty():
                side.requests.get()[1].set_exception(ArmError(f"the {name} arm's thread has ended"))

    def _begin(self) -> None:
        """Both are set up: the thread that was later asks both to hold."""
        with self._lock:
            if self._state is not State.STARTING:
                return
            if not self._config.torque_at_start:
                self._enter(State.OFF, "torque is off; /arms/torque holds the arms")
                return
            futures: list[Future[Any]] = [Future() for _ in self._sides]

            def holding(_: Future[Any]) -> None:
                with self._lock:
                    if self._state is State.STARTING and all(f.done() and f.exception() is None for f in futures):
                        self._enter(State.HOLDING, "")

            for side, future in zip(self._sides.values(), futures, strict=True):
                future.add_done_callback(holding)
                side.requests.put((Arm.torque_on, future))

    def _serve(self, side: _Side) -> None:
        try:
            request, future = side.requests.get_nowait()
        except queue.Empty:
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = request(side.arm)
        except ArmError as error:
            self._fail(str(error))
            future.set_exception(error)
        else:
            side.answered_s = time.monotonic()
            future.set_result(result)

    def _cycle(self, name: str, side: _Side) -> None:
        arm, started_s = side.arm, time.monotonic()
        try:
            if arm.stalled():
                arm.rearm()
            before_ns = self._now_ns()
            sample = arm.read()
            stamp_ns = (before_ns + self._now_ns()) // 2
            side.answered_s = time.monotonic()
            if side.release:
                side.release = False
                arm.hold_here(keep_grip=True)
            arm.drive(self._wanted(name, side.answered_s), side.answered_s)
            if (problem := arm.watch()) is not None:
                self._fail(problem)
        except ArmError as error:
            self._unanswered(side, error)
            return
        finally:
            side.late_s = max(side.late_s, time.monotonic() - started_s)
        self._take(side, stamp_ns, sample)

    def _unanswered(self, side: _Side, error: ArmError) -> None:
        silent_s = time.monotonic() - side.answered_s
        if silent_s <= self._config.fault_after_s or self._state is State.FAULT:
            return
        try:
            missing = side.arm.bus.silent()
        except ArmError:
            missing = []
        who = f"; no answer from {', '.join(map(side.arm.label, missing))}" if missing else ""
        self._fail(f"{error}{who}. Check cable and power, then call /arms/torque")

    def _take(self, side: _Side, stamp_ns: int, sample: ArmSample) -> None:
        """Keeps a reading; whoever completes a pair hands it on."""
        with self._lock:
            side.sample = (stamp_ns, sample)
            pair = [other.sample for other in self._sides.values() if other.sample is not None]
            if len(pair) < len(self._sides):
                return
            for other in self._sides.values():
                other.sample = None
            positions, velocities, efforts = (
                np.concatenate([arm_sample[i] for _, arm_sample in pair]) for i in range(3)
            )
            if self._state is State.MOVING:
                self._mind_obstacles(positions)
        self._on_sample(ArmsSample(min(stamp for stamp, _ in pair), positions, velocities, efforts))

    def _mind_obstacles(self, positions: NDArray[np.float64]) -> None:
        behind = np.where(_IS_ARM, np.abs(positions - self._goals()), 0.0)
        if behind.max() > _OBSTRUCTED_RAD:
            self._enter(State.HOLDING, f"stopped: {JOINT_NAMES[int(behind.argmax())]} cannot follow; is it obstructed?")
            for side in self._sides.values():
                side.release = True
