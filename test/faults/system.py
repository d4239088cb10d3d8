"""A system under test: `clamp up` in a process, on the simulation or on emulated servos and recorded cameras."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from faults.seen import WatchedBus
from hardware_emulation.leaders import Hands, leader
from hardware_emulation.rig import GRIPPER
from hardware_emulation.servos import Emulator, ServoBus
from realsense_recording import Lens
from tiny_artifact import TINY_CAMERA, build_tiny_artifact

from clamp_ros.bringup.up import die_with_parent
from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.robot import ARMS, CHUNK_SIZE, CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.policy.artifact import CameraSpec

LENS = Lens(64, 48, 50.0, 31.5, 23.5)
CAMERAS = ("front_left", "back_right")
WAISTS = (0, 7)
SIM, ROBOT, TELEOP = "sim", "robot", "teleop"
_HANDS_S, _STILL_S, _SWING_S, _SWING_RAD = 600.0, 3.0, 3.0, 0.25


class SystemEndedError(ClampError):
    """The system ended, or does not do what is waited for."""


class System:
    """Its files, its process and those below, and its emulated devices, with a policy or hands that never rest.

    Attributes:
        robot: whether the followers' and cameras' drivers run, else the simulation.
        teleop: whether a person's hands, on leaders, move the arms, else the policy.
        left, right: the emulated buses: of the robot's followers, or of the leaders.
        followers: those whose goals are watched.
        emulator: what serves them, if there are any.
        folder: everything it writes.
        log: what it prints.
        record_to: its bags.
    """

    def __init__(self, folder: Path, *, kind: str, patient: bool = False, recordings: Path | None = None) -> None:
        """Prepares; `launch` starts.

        Args:
            folder: for its files.
            kind: SIM: the policy in the simulation; ROBOT: the policy and the drivers over emulated devices; TELEOP:
                emulated leaders move the simulation.
            patient: deadlines of a busy machine, instead of those of a robot.
            recordings: folder with the cameras' recordings, for the robot.
        """
        self.folder, self.patient = folder, patient
        self.robot, self.teleop = kind == ROBOT, kind == TELEOP
        self.recordings = recordings
        self.emulator: Emulator | None = None
        self.followers: tuple[WatchedBus, ...] = ()
        self.log = folder / "log.txt"
        self.record_to = folder / "episodes"
        self._child: subprocess.Popen[bytes] | None = None
        self._throttle: threading.Event | None = None
        if self.teleop:
            self._take_leaders()
        else:
            self._policy()
        if self.robot:
            self._plug_in()

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
        self.followers = self.left, self.right = WatchedBus(), WatchedBus()
        self.emulator = Emulator(self.left, self.right)
        for name in ARMS:
            self.link(name)
        for camera in CAMERAS:
            self.show(camera, "good")

    def _take_leaders(self) -> None:
        """Hands that turn both waists to and fro, from when the leaders were driven to the followers and let go of."""
        seconds = np.arange(0.0, _HANDS_S, CONTROL_PERIOD_NS / 1e9)
        rows = np.tile(REST_POSE, (len(seconds), 1))
        swing = _SWING_RAD * np.sin(2.0 * np.pi * np.maximum(seconds - _STILL_S, 0.0) / _SWING_S)
        rows[:, WAISTS] = swing[:, None]
        hands = Hands(rows)
        self.left, self.right = leader(), leader()
        self.emulator = Emulator(self.left, self.right)
        for name in ARMS:
            hands.take(name, self.bus(name))
            self.link(name)

    def bus(self, side: str) -> ServoBus:
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
        """Launch arguments, after the name of a graph but the policy's."""
        if self.teleop:
            busy = {} if not self.patient else {
                "motors": {"reply_s": 0.1, "retry_s": 0.4, "watchdog_s": 2.5, "fresh_s": 1.0, "silent_s": 5.0},
                "law": {"leader_lost_s": 2.0, "take_s": 30.0, "align_s": 120.0}, "command_timeout_s": 5.0,
                "answer_s": 60.0,
            }  # fmt: skip
            sections = {
                "mujoco_node": {"look": "primitive"},
                "teleop_node": {"record": False, **busy},  # bags are begun and ended by whoever injects faults
                **({"control_node": {"stale_after_s": 1.0}} if self.patient else {}),
            }
            given = {
                "sim": "true", "cameras": "", "leaders": self.folder / "ttyDXL", "record": "true",
                "record_to": self.record_to, "config": self._write("config", sections),
            }  # fmt: skip
            return ["teleop", *(f"{name}:={value}" for name, value in given.items())]
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
        sides = {side: {"port": str(self.folder / f"ttyDXL_{side}"), **GRIPPER} for side in ARMS}
        busy: dict[str, Any] = {} if not self.patient else {
            "hold_after_s": 0.9, "fault_after_s": 1.5, "command_timeout_s": 1.0,
            "motors": {"reply_s": 0.1, "retry_s": 0.4, "watchdog_s": 2.5},
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

    def launch(self) -> None:
        """Starts `clamp up`."""
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "clamp_ros.cli", "up", *self.words()],
                env={**os.environ, "CLAMP_FAULTS": str(self.folder)}, preexec_fn=_prepare(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def end(self) -> int | None:
        """Ends the system as Ctrl-C does, or kills it; its exit code."""
        self.release()
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

    def release(self) -> None:
        """Ends starving, and lets stopped nodes go on."""
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
