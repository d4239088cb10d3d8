"""Faults that are there when the system is started: it must not start, or must not move, and has to say why."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faults.matrix import Expect, Fault, Outcome, Results, Row, nothing, tell_of
from faults.seen import STILL_RAD, TICK_RAD, Joints
from faults.stack import Stack
from faults.system import ROBOT
from hardware_emulation.motor import Joint, Servo

from clamp_ros.arm.registers import XC430_W150

PATIENCE_S = 60.0


@dataclass(frozen=True)
class StartFault:
    """One fault; `inject` changes files or devices before the start, and may add launch arguments."""

    name: str
    inject: Callable[[Stack], list[str]]
    says: str


def edit(name: str, node: str, change: Callable[[dict], None]) -> Callable[[Stack], list[str]]:
    """Changes a parameter file."""

    def act(stack: Stack) -> list[str]:
        stack.words()
        path = stack.folder / f"{name}.yaml"
        content = json.loads(path.read_text())
        change(content[node]["ros__parameters"])
        changed = path.with_name(f"{name}_changed.yaml")
        changed.write_text(json.dumps(content))
        return [f"{'camera' if name == 'cameras' else 'arm'}_config:={changed}"]

    return act


def corrupt_artifact(stack: Stack) -> list[str]:
    """A byte of a network is another."""
    return _copy(stack, "denoise.onnx", lambda data: data[:-1] + bytes((data[-1] ^ 1,)))


def broken_manifest(stack: Stack) -> list[str]:
    """Half a manifest."""
    return _copy(stack, "manifest.json", lambda data: data[: len(data) // 2])


def _copy(stack: Stack, name: str, change: Callable[[bytes], bytes]) -> list[str]:
    folder = stack.folder / f"broken_{name.split('.')[0]}"
    folder.mkdir(exist_ok=True)
    for path in stack.policy.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(change(data) if path.name == name else data)
    return [f"policy:={folder}"]


def fusion_mismatch(stack: Stack) -> list[str]:
    """Fusion is told of one camera, the policy knows two."""
    path = stack.folder / "mismatch.yaml"
    path.write_text(json.dumps({"fusion_node": {"ros__parameters": {"cameras": ["front_left"]}}}))
    return [f"config:={path}"]


def another_model(stack: Stack) -> list[str]:
    """A motor of a leader in a follower."""
    stack.left.servos[7] = Servo(8, XC430_W150.number, Joint())
    return []


def twins(stack: Stack) -> list[str]:
    """Two motors of one id."""
    stack.right.servos.append(Servo(6, stack.right[6].model.number, Joint()))
    return []


def overloaded(stack: Stack) -> list[str]:
    """A motor that reports an error from before."""
    stack.left[4].fail(0x20)
    return []


def missing_camera(stack: Stack) -> list[str]:
    """There is no such device."""
    stack.show("front_left", "nothing")
    return []


def start_faults() -> list[StartFault]:
    """All."""

    def without_pose(values: dict) -> None:
        del values["front_left"]["position_m"], values["front_left"]["quat_xyzw"]

    return [
        StartFault("artifact corrupt", corrupt_artifact, "denoise.onnx is corrupt"),
        StartFault("manifest cut off", broken_manifest, "is not JSON"),
        StartFault("fusion for other cameras", fusion_mismatch, "was trained on the cameras"),
        StartFault("wrist of another model", another_model, "model number 1070, expected 1020"),
        StartFault("two motors of one id", twins, "share the id"),
        StartFault("elbow overloaded before", overloaded, "elbow.*overload"),
        StartFault("arm not there", edit("arms", "arm_node", lambda v: v["left"].update(port="/dev/ttyDXL_no")),
                   "ttyDXL_no.*does not exist"),
        StartFault("unknown parameter", edit("arms", "arm_node", lambda v: v.update(hold_afer_s=0.1)),
                   "did you mean 'hold_after_s'"),
        StartFault("gripper not calibrated",
                   edit("arms", "arm_node", lambda v: v["left"].update(gripper_open_rad=0.62)), "gripper"),
        StartFault("camera missing", missing_camera, "there is no file"),
        StartFault("camera of a wrong size", edit("cameras", "/**", lambda v: v["front_left"].update(width=96)),
                   "it offers"),
        StartFault("camera without a pose", edit("cameras", "/**", without_pose), "no_transform|no pose"),
    ]  # fmt: skip


def play(folder: Path, fault: StartFault, recordings: Path) -> Outcome:
    """Starts a system with the fault in it, and ends it once it has said what is wrong, or has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    stack, outcome = Stack(folder, kind=ROBOT, recordings=recordings), Outcome()
    assert stack.emulator is not None
    changed = fault.inject(stack)
    names = {word.partition(":=")[0] for word in changed}
    words = [word for word in stack.words() if word.partition(":=")[0] not in names]
    start_s, before = time.monotonic(), _shafts(stack)
    with stack.emulator, stack.log.open("w+") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "clamp_ros.cli", "up", *words, *changed], stdout=log, stderr=log,
        )  # fmt: skip
        said = None
        while time.monotonic() - start_s < PATIENCE_S:
            said = said or re.search(f".*({fault.says}).*", stack.log.read_text(errors="replace"))
            if child.poll() is not None or (said and time.monotonic() - start_s > 20.0):
                break
            time.sleep(0.1)
        said = said or re.search(f".*({fault.says}).*", stack.log.read_text(errors="replace"))
        if child.poll() is None:
            child.terminate()
        child.wait(30.0)
        outcome.log = said.group(0) if said else ""
        outcome.began_ms = outcome.held_ms = 0.0
        outcome.moved_rad = float(np.abs(_shafts(stack) - before).max()) * TICK_RAD
        if not said:
            outcome.wrong.append(f"nobody said {fault.says!r}")
        if outcome.moved_rad > STILL_RAD:
            outcome.wrong.append(f"an arm moved by {outcome.moved_rad:.3f} rad")
    return outcome


def _shafts(stack: Stack) -> Joints:
    """Where every joint stands, in ticks; goals do not tell, while drive modes are still being set."""
    buses = (stack.left, stack.right)
    for bus in buses:
        bus.positions()
    return np.array([bus[motor].joint.shaft for bus in buses for motor in (1, 2, 4, 6, 7, 9)])


def shown(fault: StartFault) -> Fault:
    """As a row of the matrix shows it."""
    return Fault(fault.name, nothing, Expect.HOLD, fault.says)


def run(
    folder: Path, recordings: Path, faults: list[StartFault], times: int, tell: Callable[[str], None], results: Results
) -> None:
    """Plays each until it has `times` outcomes."""
    by_name = {fault.name: fault for fault in faults}
    for i, name in enumerate(results.missing("start", by_name, times)):
        outcome = play(folder / f"{i}_{time.time_ns()}", by_name[name], recordings)
        results.add("start", name, outcome)
        tell_of(Row("start", shown(by_name[name]), [outcome]), tell)
