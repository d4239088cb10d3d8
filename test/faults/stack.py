"""A running system with a policy that never rests, faults within reach, and everything it says and does written down.

`Stack` starts `clamp up` as a user does, on the simulation or on emulated servos and recorded cameras, and watches it
from a node of its own: commands, joint states, statuses, /diagnostics, the log, and the motors' goals on the wire.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from faults.seen import QUIET_S, STILL_RAD, Joints, Mark, Seen, WatchedBus, rows_has, spread, travel
from hardware_emulation.rig import GRIPPER
from hardware_emulation.servos import Emulator
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from realsense_recording import Lens
from tiny_artifact import TINY_CAMERA, build_tiny_artifact

from clamp_ros.bringup.up import die_with_parent
from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    ARMS_HOME,
    ARMS_STATUS,
    CLOCK,
    CONTROL_STATUS,
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    TF,
    VIEWS,
    Qos,
    Service,
    Topic,
    depth_topic,
    topic,
)
from clamp_ros.contract.robot import CHUNK_SIZE, REST_POSE
from clamp_ros.policy.artifact import CameraSpec
from clamp_ros.ros import environment, messages
from clamp_ros.ros.convert import joints_from_message, stamp_ns
from clamp_ros.ros.run import advertise, interface_type, qos_profile, subscribe

LENS = Lens(64, 48, 50.0, 31.5, 23.5)
CAMERAS = ("front_left", "back_right")
WAISTS = (0, 7)
START_S, AGAIN_S = 240.0, 60.0
MOVING_RAD = 0.03
_FLOOD_S = 0.02
_KEPT_S = 60.0
_ATTEMPTS, _NEAR_RAD = 20, 0.4
_IS_ARM = [i for i in range(14) if i % 7 != 6]

class SystemEndedError(ClampError):
    """The system ended, or does not do what is waited for."""


class Stack:
    """One running system; a context manager. `spin` and what waits must be called from one thread.

    Attributes:
        robot: whether the drivers run, else the simulation.
        left, right: the emulated buses of the robot.
        folder: everything it writes.
        seen: what was heard.
    """

    def __init__(self, folder: Path, *, robot: bool, patient: bool = False, recordings: Path | None = None) -> None:
        """Prepares; `start` starts.

        Args:
            folder: for its files.
            robot: drivers over emulated devices, instead of the simulation.
            patient: deadlines of a busy machine, instead of those of a robot.
            recordings: folder with the cameras' recordings, for the robot.
        """
        self.folder, self.robot, self.patient = folder, robot, patient
        self.recordings = recordings
        self.seen = Seen()
        self.log = folder / "log.txt"
        self.record_to = folder / "episodes"
        self._child: subprocess.Popen[bytes] | None = None
        self._floods: list[Any] = []
        self._throttle: threading.Event | None = None
        self._policy()
        if robot:
            self._plug_in()

    # Starting and ending.

    def _policy(self) -> None:
        """Both waists are never at rest."""
        target = np.tile(REST_POSE, (CHUNK_SIZE, 1))
        for waist in WAISTS:
            target[:, waist] = 0.2 * np.sin(np.linspace(0.0, 4.0 * np.pi, CHUNK_SIZE))
        scale = LENS.height / TINY_CAMERA.height
        f = LENS.f if self.robot else TINY_CAMERA.fy * scale
        spec = CameraSpec(LENS.width, LENS.height, f, f, LENS.cx, LENS.cy, rgb=False)
        self.policy = self.folder / "tiny"
        build_tiny_artifact(self.policy, target=target, cameras=dict.fromkeys(CAMERAS, spec), image_rate_hz=10.0)

    def _plug_in(self) -> None:
        self.left, self.right = WatchedBus(), WatchedBus()
        self.emulator = Emulator(self.left, self.right)
        for name in ("left", "right"):
            self.link(name)
        for camera in CAMERAS:
            self.show(camera, "good")

    def bus(self, side: str) -> WatchedBus:
        """One arm's bus."""
        return self.left if side == "left" else self.right

    def link(self, side: str) -> None:
        """Gives a bus's port its name, as udev does."""
        path = self.folder / f"ttyDXL_{side}"
        path.unlink(missing_ok=True)
        path.symlink_to(self.bus(side).port)

    def show(self, camera: str, recording: str) -> None:
        """Puts another recording in a camera's place; it is played once the camera is opened anew."""
        path = self.folder / f"{camera}.db3"
        path.unlink(missing_ok=True)
        if self.recordings is not None:
            path.symlink_to(self.recordings / f"{recording}.db3")

    def words(self) -> list[str]:
        """Launch arguments."""
        common = {"policy": self.policy, "enabled": "true", "record": "true", "record_to": self.record_to}
        if not self.robot:
            # simulated time waits for nobody, so that the arms must hold; or, on a busy machine, for slow nodes
            waits = {} if self.patient else {"policy_wait_s": 0.0, "command_wait_s": 0.0}
            simulation = {"look": "primitive", "render_workers": 1, **waits}
            files = {"sim": "true", "config": self._write("config", {"mujoco_node": simulation})}
            return [f"{name}:={value}" for name, value in {**common, **files}.items()]
        pose = {"position_m": [0.0, 0.0, 1.0], "quat_xyzw": [1.0, 0.0, 0.0, 0.0], "frame": "world"}
        size = {"width": LENS.width, "height": LENS.height, "depth_width": LENS.width, "depth_height": LENS.height}
        cameras = {
            camera: {"recording": str(self.folder / f"{camera}.db3"), "warmup_frames": 0, **size, **pose}
            for camera in CAMERAS
        }
        sides = {side: {"port": str(self.folder / f"ttyDXL_{side}"), **GRIPPER} for side in ("left", "right")}
        busy: dict[str, Any] = {} if not self.patient else {
            "hold_after_s": 0.6, "fault_after_s": 0.9, "command_timeout_s": 1.0,
            "motors": {"reply_s": 0.05, "retry_s": 0.2, "watchdog_s": 2.5},
        }  # fmt: skip
        files = {
            "sim": "false",
            "config": self._write("config", {"fusion_node": {"match_tolerance_s": 0.06}}),  # the cameras run free
            "camera_config": self._write("cameras", {"/**": {"timeout_s": 0.3, "retry_s": 0.1, **cameras}}),
            "arm_config": self._write("arms", {"arm_node": {**sides, **busy, "speed_rad_s": 2.0}}),
        }
        return [f"{name}:={value}" for name, value in {**common, **files}.items()]

    def _write(self, name: str, sections: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        # JSON is YAML, and without aliases, which ROS refuses
        path.write_text(json.dumps({node: {"ros__parameters": values} for node, values in sections.items()}))
        return path

    def __enter__(self) -> Stack:
        environment.prepare()
        messages.ensure()
        if self.robot:
            self.emulator.__enter__()
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node("watcher")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        deep = qos_profile(Qos.STATE)
        for row, rows in ((JOINT_COMMANDS, self.seen.commands), (JOINT_STATES, self.seen.measured)):
            kind = interface_type(row.type)
            self.node.create_subscription(kind, row.name, self._joint_watcher(row.name, rows), deep)
        subscribe(self.node, CONTROL_STATUS, lambda m: self._say("control", m.message))
        subscribe(self.node, ARMS_STATUS, lambda m: self._say("arms", m.message))
        subscribe(self.node, DIAGNOSTICS, self._on_diagnostics)
        rows = (ACTION_CHUNK, JOINT_COMMANDS, JOINT_STATES, TF, VIEWS, topic(depth_topic("front_left")))
        self._intruder = {row.name: advertise(self.node, row) for row in (*rows, *(() if self.robot else (CLOCK,)))}
        self._services: dict[str, Any] = {}
        _hurry()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()
        if self.robot:
            self.emulator.__exit__()

    def start(self) -> None:
        """Starts the system and waits until both arms move; tries again, since a busy machine may miss a deadline.

        Raises:
            SystemEndedError: they do not, three times.
        """
        for left in (2, 1, 0):
            try:
                self._start()
                return
            except SystemEndedError:
                self.stop()
                if not left:
                    raise

    def _start(self) -> None:
        self.seen.status.clear()
        if self.robot:
            for side in ("left", "right"):
                self.bus(side).goals.clear()
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "clamp_ros.cli", "up", *self.words()],
                env={**os.environ, "CLAMP_FAULTS": str(self.folder)}, preexec_fn=_prepare(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        if self.robot:
            self._go_home()
        self.until_moving(START_S)

    def _go_home(self) -> None:
        """From the cradles, or wherever they are, to where the policy's motion begins."""

        def arms(*states: str) -> bool:
            return self.ended or any(self.seen.status.get("arms", "").startswith(state) for state in states)

        for _ in range(_ATTEMPTS):  # a bus that is late once ends the motion
            self.spin(START_S, lambda: bool(self.seen.measured) and arms("holding", "following"))
            if self.ended or np.abs(self.seen.measured[-1][1] - REST_POSE)[_IS_ARM].max() < _NEAR_RAD:
                return
            with contextlib.suppress(SystemEndedError):
                self.call(ARMS_HOME)
            self.spin(2.0, lambda: arms("moving"))
            self.spin(AGAIN_S, lambda: arms("holding", "following", "fault"))

    def stop(self) -> int | None:
        """Ends the system as Ctrl-C does, or kills it; its exit code."""
        self.quiet()
        child, self._child = self._child, None
        if child is None:
            return None
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
        try:
            return child.wait(30.0)
        except subprocess.TimeoutExpired:
            for pid in self.nodes().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.kill()
            return child.wait()

    @property
    def ended(self) -> bool:
        """Whether the system has ended by itself."""
        return self._child is None or self._child.poll() is not None

    @property
    def pid(self) -> int:
        """The process of `clamp up`."""
        if self._child is None:
            raise SystemEndedError("the system does not run")
        return self._child.pid

    def nodes(self) -> dict[str, int]:
        """Process by node name, of the nodes below `clamp up`, and of those that it left behind."""
        found = {}
        mark = f"CLAMP_FAULTS={self.folder}\0".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                ours = mark in (entry / "environ").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            for word in words:
                if ours and word.startswith(b"__node:="):
                    found[word.removeprefix(b"__node:=").decode()] = int(entry.name)
        return found

    def signal(self, node: str, number: signal.Signals) -> None:
        """Sends a signal to a node."""
        os.kill(self.nodes()[node], number)

    # Watching.

    def _joint_watcher(self, name: str, rows: list[tuple[float, Joints]]) -> Callable[[Any], None]:
        def watch(message: Any) -> None:
            if message.header.frame_id == "intruder":
                return
            with contextlib.suppress(ClampError):
                rows.append((time.monotonic(), joints_from_message(message)))
                self.seen.newest_ns = stamp_ns(message.header.stamp)
                self.seen.stamps[name].append(self.seen.newest_ns)

        return watch

    def _say(self, who: str, text: str) -> None:
        self.seen.status[who] = text
        self.seen.said.append((time.monotonic(), f"{who}: {text}"))

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.level != b"\0":
                self.seen.diagnostics.append((time.monotonic(), f"{status.name}: {status.message}"))

    @property
    def now_ns(self) -> int:
        """The system's time."""
        return time.time_ns() if self.robot else self.seen.newest_ns

    def spin(self, seconds: float = 0.0, until: Callable[[], object] = lambda: False) -> bool:
        """Handles messages for a time, or until something; whether that came."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() >= deadline:
                return False
            self._executor.spin_once(timeout_sec=0.01)
        return True

    def mark(self) -> Mark:
        """Now."""
        self.seen.forget(time.monotonic() - _KEPT_S)
        measured = self.seen.measured[-1][1] if self.seen.measured else np.zeros(14)
        return Mark(time.monotonic(), self.log.stat().st_size, measured)

    def told(self, since: Mark) -> str:
        """The log since a moment."""
        with self.log.open("rb") as file:
            file.seek(since.log)
            return file.read().decode(errors="replace")

    def goals(self, since_s: float) -> list[tuple[float, Joints]]:
        """What the arms were told: on the robot each motor's goal on the wire, in simulation the commands."""
        if not self.robot:
            return [row for row in self.seen.commands if row[0] >= since_s]
        rows: list[tuple[float, Joints]] = []
        for part, bus in ((slice(0, 7), self.left), (slice(7, 14), self.right)):
            before: Joints | None = None
            for at_s, goal in list(bus.goals):
                if at_s >= since_s:
                    if before is not None and not rows_has(rows, part):
                        rows.append((since_s, spread(before, part)))
                    rows.append((at_s, spread(goal, part)))
                before = goal
        return sorted(rows, key=lambda row: row[0])

    def still(self) -> bool:
        """Whether nothing told the arms to move for a while."""
        return travel(self.goals(time.monotonic() - QUIET_S)) < STILL_RAD

    def moving(self) -> bool:
        """Whether both arms were told to move just now, and do."""
        now_s = time.monotonic()
        recent = [row for at_s, row in self.seen.measured[-100:] if at_s > now_s - 0.6]
        return (
            len(recent) > 5
            and self.seen.status.get("control") == "running"
            and bool(np.ptp(np.array(recent)[:, WAISTS], axis=0).min() > MOVING_RAD)
            and travel(self.goals(now_s - 0.15)) > 5.0 * STILL_RAD
        )

    def complained(self, within_s: float) -> bool:
        """Whether a node has said on /diagnostics, lately, that something is not as it should be."""
        return any(at_s > time.monotonic() - within_s for at_s, _ in self.seen.diagnostics)

    def until_moving(self, timeout_s: float = AGAIN_S) -> None:
        """Waits until both arms move.

        Raises:
            SystemEndedError: they do not.
        """
        if not self.spin(timeout_s, lambda: self.ended or self.moving()) or self.ended:
            last = [text for _, text in self.seen.said[-3:]]
            tail = self.log.read_text(errors="replace")[-1500:]
            raise SystemEndedError(f"the arms do not move {'(the system ended) ' if self.ended else ''}{last}\n{tail}")

    # Acting.

    def call(self, service: Service, **fields: Any) -> str:
        """Calls a service; its message."""
        return self.call_type(interface_type(service.type), service.name, **fields).message

    def call_type(self, kind: Any, name: str, **fields: Any) -> Any:
        """Calls a service of any type and returns the response.

        Raises:
            SystemEndedError: there is no answer.
        """
        client = self._services.get(name)
        if client is None:
            client = self._services[name] = self.node.create_client(kind, name)
        if not self.spin(AGAIN_S, client.service_is_ready):
            raise SystemEndedError(f"there is no service {name}")
        future = client.call_async(kind.Request(**fields))
        if not self.spin(AGAIN_S, future.done):
            raise SystemEndedError(f"no answer of {name}")
        return future.result()

    def connect(self, service: Service) -> None:
        """Finds a service beforehand, so that a call to it is quick."""
        client = self._services.setdefault(
            service.name, self.node.create_client(interface_type(service.type), service.name)
        )
        self.spin(AGAIN_S, client.service_is_ready)

    def reopen(self) -> None:
        """Opens the cameras anew, by the camera node's lifecycle."""
        for step in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            self.call_type(ChangeState, "/camera_node/change_state", transition=Transition(id=step))

    def flood(self, row: Topic, make: Callable[[int], Any]) -> None:
        """Publishes beside the system's own publisher, at 50 Hz, beginning now. `make` is given the time in ns."""
        publisher = self._intruder[row.name]

        def send() -> None:
            publisher.publish(make(self.now_ns))

        send()
        self._floods.append(self.node.create_timer(_FLOOD_S, send))

    def starve(self, node: str, share: float) -> None:
        """Lets a node run for a share of the time only."""
        pid, stop = self.nodes()[node], threading.Event()

        def run() -> None:
            with contextlib.suppress(ProcessLookupError):
                while not stop.is_set():
                    os.kill(pid, signal.SIGSTOP)
                    stop.wait(0.1 * (1.0 - share))
                    os.kill(pid, signal.SIGCONT)
                    stop.wait(0.1 * share)

        threading.Thread(target=run, daemon=True).start()
        self._throttle = stop

    def quiet(self) -> None:
        """Ends floods and starving, and lets stopped nodes go on."""
        for timer in self._floods:
            self.node.destroy_timer(timer)
        self._floods.clear()
        if self._throttle is not None:
            self._throttle.set()
            self._throttle = None
        for pid in self.nodes().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def forget_bags(self) -> None:
        """Removes what was recorded."""
        shutil.rmtree(self.record_to, ignore_errors=True)


def _prepare() -> Callable[[], None]:
    """For the system's process: it dies with this one, and is as nice, which children of one that hurries are not."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)

    def prepare() -> None:
        die_with_parent()
        os.setpriority(os.PRIO_PROCESS, 0, niceness)

    return prepare


def _hurry() -> None:
    """Servos, and whoever takes times, do not wait for the computer's other work; nor does what holds their locks."""
    with contextlib.suppress(PermissionError):
        for thread in Path("/proc/self/task").iterdir():
            # not for the system under test, which is started from here
            os.sched_setscheduler(int(thread.name), os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(40))


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Stack]:
    """A stack that is started and, at the end, stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with Stack(folder, **options) as stack:
        yield stack
