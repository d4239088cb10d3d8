"""The fault matrix in its short form: a handful of faults, once each, against the simulated robot's whole graph.

`python test/fault_matrix.py` is the long form, with times. Here nothing is judged by a clock: the arms hold, somebody
says why, and the system comes back.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import leader_faults, matrix, robot_faults, sim_faults, start_faults
from faults.matrix import Expect, Fault
from faults.seen import farthest_off, gate_held_s, held_since_s, largest_step
from faults.stack import Stack, running
from faults.system import ROBOT, SIM, TELEOP

from clamp_ros.contract.robot import REST_POSE

RECORDER = Path(__file__).parents[1] / "faults/recordings.py"
SHORT = {
    SIM: ("emergency stop", "control disabled", "chunk with NaN", "chunk of 49 points", "joint state with NaN",
          "fusion_node killed"),
    ROBOT: ("left bus silent", "right elbow too hot", "another's command", "policy_node killed"),
    TELEOP: ("left leader unplugged", "right leader's elbow overloaded", "target with NaN", "teleop_node killed"),
}  # fmt: skip
FAULTS = {
    SIM: sim_faults.sim_faults, ROBOT: robot_faults.robot_faults, TELEOP: leader_faults.teleop_faults,
}  # fmt: skip


@pytest.fixture
def stack(request: pytest.FixtureRequest, ros_domain_id: int, tmp_path: Path) -> Iterator[Stack]:
    recordings = tmp_path / "recordings"
    if request.param == ROBOT:
        subprocess.run([sys.executable, RECORDER, recordings, "20", "good"], check=True, timeout=300.0)
    with running(tmp_path, kind=request.param, patient=True, recordings=recordings) as system:
        yield system


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "kind"), [(kind, kind) for kind in FAULTS], indirect=["stack"])
def test_whatever_fails_the_arms_hold_and_the_log_says_why(stack, kind):
    faults = {fault.name: fault for fault in FAULTS[kind]()}
    for name in SHORT[kind]:
        outcome = matrix.play(stack, faults[name])
        assert outcome.wrong == [], name
        assert outcome.log, name
        assert outcome.held_ms is not None or faults[name].expect is not Expect.HOLD, name
    assert "Traceback" not in stack.log.read_text()


def test_the_matrix_has_forty_faults_at_least_each_with_a_name_of_its_own():
    named = {kind: [fault.name for fault in faults()] for kind, faults in FAULTS.items()}
    named[SIM] += [fault.name for fault in start_faults.start_faults()]
    for kind, names in named.items():
        assert len(set(names)) == len(names) and set(SHORT[kind]) <= set(names)
    assert len({name for names in named.values() for name in names}) >= 40


def test_a_goal_off_the_policys_way_is_found_on_either_arm():
    on = REST_POSE.copy()
    on[[0, 7]] = 0.2
    left_only = np.where(np.arange(14) < 7, on, np.nan)
    assert farthest_off([(0.0, on), (0.1, left_only)]) == pytest.approx(0.0)
    for joint in sim_faults.WRISTS:
        off = on.copy()
        off[joint] += 0.3
        assert farthest_off([(0.0, on), (0.1, off)]) == pytest.approx(0.3)


def test_holding_begins_with_the_last_change_before_a_while_of_none():
    def row(at_s: float, waist: float) -> tuple[float, np.ndarray]:
        return at_s, np.concatenate([[waist], np.zeros(13)])

    moving = [row(0.02 * i, 0.02 * i) for i in range(10)]
    assert held_since_s(moving, 0.0, 0.3) is None
    assert held_since_s(moving, 0.0, 0.7) == pytest.approx(0.18)
    again = [*moving, row(1.0, 0.5), row(1.02, 0.52)]
    assert held_since_s(again, 0.0, 1.1) == pytest.approx(0.18)
    assert held_since_s([row(0.5, 0.1)], 0.5, 1.0) == 0.5
    assert largest_step(again) == pytest.approx(0.32)


def test_holding_begins_with_the_gates_first_word_since_the_fault():
    said = [(0.5, "control: holding: late"), (1.0, "control: running"), (1.5, "arms: idle"), (1.6, "control: stopped")]
    assert gate_held_s(said, 0.0) == 0.5
    assert gate_held_s(said, 0.9) == 1.6
    assert gate_held_s(said, 1.7) is None


def test_a_row_counts_what_held_in_time_and_tells_what_was_wrong():
    fault = Fault("bus silent", lambda _: None, Expect.HOLD, "", prompt=True)
    outcomes = [
        matrix.Outcome(began_ms=30.0, held_ms=170.0, log="a | b", lost=(2, 100), back_s=1.0),
        matrix.Outcome(began_ms=50.0, held_ms=190.0, wrong=["nobody said it"], lost=(5, 90)),
    ]
    row = matrix.Row("robot", fault, outcomes)
    cells = row.cells()
    assert cells["arms"] == "held 2/2" and cells["within 40 ms"] == "1/2"
    assert cells["held from ms, median (max)"] == "40 (50)" and cells["at rest after ms"] == "180 (190)"
    assert cells["bag lost"] == "5 of 100"
    assert cells["wrong"] == "nobody said it" and cells["log or status"] == "a / b"
    lines = matrix.markdown([row, row]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


def test_an_interrupted_run_goes_on_round_by_round(tmp_path):
    results = matrix.Results(tmp_path / "out" / "outcomes.jsonl")
    names = ("a", "b")
    assert list(results.missing("sim", names, 2)) == ["a", "b", "a", "b"]
    results.add("sim", "a", matrix.Outcome(held_ms=30.0, lost=(2, 100), wrong=["x"]))
    again = matrix.Results(tmp_path / "out" / "outcomes.jsonl")
    assert again.of("sim", "a") == [matrix.Outcome(held_ms=30.0, lost=(2, 100), wrong=["x"])]
    played = []
    for name in again.missing("sim", names, 2):
        again.add("sim", name, matrix.Outcome())
        played.append(name)
    assert played == ["b", "a", "b"]
    assert list(matrix.Results(tmp_path / "out" / "outcomes.jsonl").missing("sim", names, 2)) == []
