"""A session of teleoperation as a user starts it: emulated leaders on the wire, the simulation for the robot."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from std_srvs.srv import SetBool, Trigger
from teleop_episode import leaders

from clamp_ros.bringup.session import START_TIMEOUT_S
from clamp_ros.contract.interfaces import (
    CONTROL_SOURCE,
    CONTROL_STATUS,
    JOINT_COMMANDS,
    JOINT_STATES,
    LEADER_STATES,
    TELEOP_START,
    TELEOP_STATUS,
    TELEOP_STOP,
)
from clamp_ros.contract.robot import REST_POSE, VELOCITY_LIMITS
from clamp_ros.record import messages
from clamp_ros.record.episode import Episode
from clamp_ros.ros.convert import joints_from_message
from clamp_ros.ros.run import subscribe

TASK = "mug_on_plate_easy"
TIMEOUT_S = 240.0
RIGHT_WAIST = 7


@pytest.fixture
def found(tmp_path: Path) -> Iterator[list[str]]:
    """Launch arguments that find two emulated leaders, whose hands swing the right waist."""
    rows = np.tile(REST_POSE, (3000, 1))
    rows[:, RIGHT_WAIST] = 0.3 * np.sin(np.arange(3000) * 0.02)
    with leaders(tmp_path, rows, {"mujoco_node": {"look": "primitive"}}) as words:
        yield [*words, "record:=true", f"record_to:={tmp_path / 'bags'}"]


def _bag(tmp_path: Path) -> Path:
    (bag,) = (tmp_path / "bags").iterdir()
    return bag


def _sources(bag: Path) -> list[str]:
    with Episode.open(bag) as episode:
        kind = episode.topics[CONTROL_SOURCE.name].type
        return [messages.decode(cdr, kind).frame_id for _, cdr in episode.messages(CONTROL_SOURCE.name)]


def _no_jumps(bag: Path) -> None:
    with Episode.open(bag) as episode:
        rows = [messages.decode_joints(cdr)[:2] for _, cdr in episode.messages(JOINT_COMMANDS.name)]
    elapsed_s = np.diff([stamp for stamp, _ in rows])[:, None] / 1e9
    assert (np.abs(np.diff([pose for _, pose in rows], axis=0)) <= VELOCITY_LIMITS * elapsed_s + 1e-9).all()


@pytest.mark.slow
def test_a_session_of_clamp_teleop_is_an_episode(ros, tmp_path, found):
    peer = ros.node("operator")
    said: dict[str, str] = {}
    measured: list[np.ndarray] = []
    subscribe(peer, CONTROL_STATUS, lambda message: said.update(control=message.message))
    subscribe(peer, TELEOP_STATUS, lambda message: said.update(teleop=message.message))
    subscribe(peer, JOINT_STATES, lambda message: measured.append(joints_from_message(message)))
    log = (tmp_path / "log.txt").open("w+")

    def until(condition: Any, what: str) -> None:
        ros.spin_until(lambda: system.poll() is not None or condition(), START_TIMEOUT_S, what)
        log.seek(0)
        assert system.poll() is None, log.read()

    words = ["sim:=true", "cameras:=", "operator:=Ada", *found]
    system = subprocess.Popen(
        [sys.executable, "-m", "clamp_ros.cli", "teleop", *words],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        until(lambda: "no teleop target" in said.get("control", "") and said.get("teleop") == "idle", "the system")
        # it refuses as long as the recorder is not up, and a user asks again
        until(lambda: ros.call(peer, Trigger, TELEOP_START.name, timeout_s=TIMEOUT_S).success, "the start")
        until(lambda: said["teleop"] == "following", "the followers to follow")
        measured.clear()
        until(lambda: measured and np.ptp(measured, axis=0)[RIGHT_WAIST] > 0.3, "the right waist to follow the hand")
        answer = ros.call(peer, SetBool, TELEOP_STOP.name, SetBool.Request(data=True), TIMEOUT_S)
        assert answer.success
        until(lambda: list((tmp_path / "bags").glob("*/metadata.yaml")), "the bag")
    finally:
        system.send_signal(signal.SIGINT)
        code = system.wait(60.0)
    log.seek(0)
    told = log.read()
    log.close()
    assert (code, "Traceback" in told) == (0, False), told
    bag = _bag(tmp_path)
    assert set(_sources(bag)) == {"teleop"}
    _no_jumps(bag)
    with Episode.open(bag) as episode:
        assert (episode.metadata.task, episode.metadata.operator, episode.metadata.outcome) == (TASK, "Ada", "success")
        assert episode.topics[LEADER_STATES.name].count > 10
        kind = episode.topics[TELEOP_STATUS.name].type
        states = [messages.decode(cdr, kind).values[0].value for _, cdr in episode.messages(TELEOP_STATUS.name)]
        assert states[-2:] == ["following", "idle"] or states[-1] == "following"
