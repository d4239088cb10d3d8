"""A person takes over from the policy and hands back in the whole stack: no jump, and the bag says whose time it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from teleop_episode import Operator, leaders

from clamp_ros.bringup.session import START_TIMEOUT_S, Session
from clamp_ros.contract.interfaces import ACTION_CHUNK, CONTROL_SOURCE, JOINT_COMMANDS, RECORD_START, RECORD_STOP
from clamp_ros.contract.robot import REST_POSE, VELOCITY_LIMITS
from clamp_ros.record import messages
from clamp_ros.record.episode import Episode
from clamp_ros.ros.convert import stamp_ns
from clamp_ros.ros.run import subscribe

WAIT_S = 240.0
LEFT_WAIST = 0
SWING_RAD = 0.3


@pytest.mark.slow
@pytest.mark.usefixtures("ros_domain_id")
def test_a_person_takes_over_and_hands_back_without_a_jump(tmp_path):
    rows = np.tile(REST_POSE, (3000, 1))
    rows[:, LEFT_WAIST] = SWING_RAD * np.sin(np.arange(3000) * 0.01)
    with leaders(tmp_path, rows, {"mujoco_node": {"look": "primitive"}}) as found:
        words = ["sim:=true", "takeover:=true", "record:=true", f"record_to:={tmp_path / 'bags'}", *found]
        with Session(words, tmp_path / "log.txt", "operator") as session:
            chunks: list[int] = []
            sources: list[tuple[str, int]] = []
            subscribe(session.node, ACTION_CHUNK, lambda message: chunks.append(stamp_ns(message.header.stamp)))
            subscribe(session.node, CONTROL_SOURCE, lambda m: sources.append((m.frame_id, stamp_ns(m.stamp))))
            operator = Operator(session)

            def policy_acts() -> bool:
                """It runs by chunks of what was seen since the arms are the policy's."""
                mine = bool(sources) and sources[-1][0] == "policy" and operator.said.get("control") == "running"
                return mine and sum(stamp > sources[-1][1] for stamp in chunks) >= 2

            session.spin_until(policy_acts, START_TIMEOUT_S, "the policy to act")
            bag = Path(session.call(RECORD_START))
            operator.start()
            begun = session.task_state["time_s"]
            session.spin_until(lambda: session.task_state["time_s"] > begun + 1.0, WAIT_S, "a second of the person's")
            operator.stop(True)
            session.spin_until(lambda: sources[-1][0] == "policy", WAIT_S, "the arms to be handed back")
            session.spin_until(policy_acts, WAIT_S, "the policy to act again")
            session.call(RECORD_STOP, data=True)
        assert session.exit_code == 0
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    _check(bag)


def _check(bag: Path) -> None:
    with Episode.open(bag) as episode:
        kind = episode.topics[CONTROL_SOURCE.name].type
        told = [messages.decode(cdr, kind) for _, cdr in episode.messages(CONTROL_SOURCE.name)]
        commands = episode.commands
        chunks = [messages.header_stamp_ns(cdr) for _, cdr in episode.messages(ACTION_CHUNK.name)]
    changes = [(message.frame_id, message.stamp.sec * 10**9 + message.stamp.nanosec) for message in told]
    whose = [source for i, (source, _) in enumerate(changes) if i == 0 or source != changes[i - 1][0]]
    assert [source for source in whose if source != "nobody"] == ["policy", "teleop", "policy"]
    taken = next(stamp for source, stamp in changes if source == "teleop")
    back = next(stamp for source, stamp in reversed(changes) if source == "policy")
    stamps, poses = commands.stamps_ns, commands.positions
    assert stamps[0] < taken < back < stamps[-1], "the bag holds what was before, and what came after"
    speeds = np.abs(np.diff(poses, axis=0)) / (np.diff(stamps)[:, None] / 1e9)
    assert (speeds <= VELOCITY_LIMITS + 1e-6).all(), f"{JOINT_COMMANDS.name} jumps"
    persons = (stamps >= taken) & (stamps < back)
    assert np.ptp(poses[persons], axis=0)[LEFT_WAIST] > 0.02, "the arms were the person's meanwhile"
    assert max(chunks) > back, "the policy goes on with what it saw after it had the arms back"
