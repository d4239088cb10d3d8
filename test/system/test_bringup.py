"""The whole stack as a user starts it: the loop closes, arms hold when a node is killed, and ends are clean."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros.bringup import demo
from clamp_ros.bringup.session import START_TIMEOUT_S, Session, SystemDiedError
from clamp_ros.contract.interfaces import CONTROL_STATUS, JOINT_COMMANDS, JOINT_STATES
from clamp_ros.contract.robot import CHUNK_SIZE, REST_POSE
from clamp_ros.record.audit import audit
from clamp_ros.ros.convert import joints_from_message
from clamp_ros.ros.run import subscribe

TASK = "mug_on_plate_easy"
STATUS_S = 90.0


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """A policy whose left waist is never at rest."""
    target = np.tile(REST_POSE, (CHUNK_SIZE, 1))
    target[:, 0] = 0.2 * np.sin(np.linspace(0.0, 4.0 * np.pi, CHUNK_SIZE))
    build_tiny_artifact(tmp_path / "tiny", target=target, task=TASK)
    return str(tmp_path / "tiny")


class Cell:
    """What a running system says of its arms."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.status = ""
        self.commands: list[float] = []
        self.measured: list[float] = []
        subscribe(session.node, CONTROL_STATUS, self._on_status)
        subscribe(session.node, JOINT_COMMANDS, lambda m: self.commands.append(joints_from_message(m)[0]))
        subscribe(session.node, JOINT_STATES, lambda m: self.measured.append(joints_from_message(m)[0]))

    def _on_status(self, message: Any) -> None:
        self.status = message.message

    def until_status(self, text: str, timeout_s: float = STATUS_S) -> None:
        self.session.spin_until(lambda: self.status.startswith(text), timeout_s, f"the status {text!r}")

    def until_moving(self) -> None:
        self.measured.clear()
        self.session.spin_until(
            lambda: self.measured and np.ptp(self.measured) > 0.05, STATUS_S, "the waist to move by 0.05 rad"
        )

    def until_held(self, commands: int = 25) -> None:
        """Half a second of commands, all the same, once the arms have braked."""
        self.until_status("holding")
        self.commands.clear()

        def held() -> bool:
            return len(self.commands) >= commands and len(set(self.commands[-commands:])) == 1

        self.session.spin_until(held, STATUS_S, "commands that stay while holding")


def _pid(node: str) -> int:
    """The process of a node below this one; its command line names the node."""
    parents: dict[int, int] = {}
    words: dict[int, list[bytes]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                words[int(folder.name)] = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    for pid, line in words.items():
        if f"__node:={node}".encode() in line:
            ancestor = pid
            while ancestor in parents and ancestor != os.getpid():
                ancestor = parents[ancestor]
            if ancestor == os.getpid():
                return pid
    raise AssertionError(f"{node} does not run")


@pytest.mark.slow
def test_the_loop_closes_and_the_arms_hold_whatever_dies(tmp_path, policy):
    log = tmp_path / "log.txt"
    impatient = tmp_path / "impatient.yaml"  # simulated time does not wait for the dead, so that the arms must hold
    impatient.write_text("mujoco_node: {ros__parameters: {policy_wait_s: 0.0}}\n")
    with Session(["sim:=true", f"task:={TASK}", f"policy:={policy}", f"config:={impatient}"], log) as session:
        cell = Cell(session)
        cell.until_status("running", START_TIMEOUT_S)
        cell.until_moving()
        for node in ("policy_node", "fusion_node"):
            os.kill(_pid(node), signal.SIGKILL)
            cell.until_held()
            cell.until_status("running")
            cell.until_moving()
            assert f"{node} was killed by SIGKILL; starting it again (1 of 3)" in log.read_text()
        os.kill(_pid("control_node"), signal.SIGKILL)
        with pytest.raises(SystemDiedError, match="the system ended with exit code 1"):
            session.spin_until(lambda: False, STATUS_S, "its end")
    assert "control_node was killed by SIGKILL, and the system cannot go on without it" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_the_demonstration_tells_films_records_and_ends_cleanly(tmp_path, policy, capsys):
    out = tmp_path / "out"
    code = demo.main(["--task", TASK, "--policy", policy, "--seed", "3", "--seconds", "1", "--out", str(out)])
    told = capsys.readouterr().out
    assert code == demo.EXIT_FAILURE, "waving does not put the mug on the plate"
    assert "Pick up the mug and place it on the plate. Layout 3, policy tiny." in told
    assert "hand to mug" in told and "real time" in told
    assert re.search(r"no success within \d\.\d s; it came as far as: idle", told)
    (left,) = out.iterdir()
    assert (left / "film.mp4").stat().st_size > 10_000
    assert "Traceback" not in (left / "log.txt").read_text()
    (bag,) = (path for path in left.iterdir() if path.is_dir())
    report = audit(bag)
    assert report.duration_s > 0.8  # of one second: the recorder hears of the start a few ticks late
    assert "outcome: failure" in report.notes


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["simm:=true"], "clamp: error: unknown launch argument 'simm'; did you mean 'sim'?\n"),
        (["sim:=false", "arm_config:=arm"], "clamp: error: arm_config:=arm does not exist; expected a ROS parameter"),
        (["sim:=true", "policy:=/nowhere"], "clamp: error: no policy artifact at '/nowhere'"),
    ],
)
def test_a_mistake_on_the_command_line_starts_nothing(words, complaint):
    result = subprocess.run(
        [sys.executable, "-m", "clamp_ros.cli", "up", *words], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(complaint) and len(result.stderr.splitlines()) == 1
