"""Scores through the whole running system: episodes are played, and a system that dies costs one episode."""

from __future__ import annotations

import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros.bringup import evaluate
from clamp_ros.bringup.evaluate import evaluate_ros
from clamp_ros.bringup.session import Session, SystemDiedError
from clamp_ros.contract.errors import ClampError
from clamp_ros.evaluate import TIMEOUT
from clamp_ros.rollout import RolloutConfig
from clamp_ros.sim.tasks import TASKS

TASK = "mug_on_plate_easy"


@pytest.mark.slow
def test_a_system_that_dies_costs_one_episode_and_another_plays_the_rest(tmp_path, monkeypatch):
    artifact = build_tiny_artifact(tmp_path / "tiny").folder
    monkeypatch.setattr(TASKS[TASK], "max_seconds", 1.5)
    play, sessions = Session.play, []

    def die_in_the_second_episode(self, max_seconds, on_state=None):
        sessions.append(self)
        if len(sessions) == 2:
            self._child.kill()
        return play(self, max_seconds, on_state)

    monkeypatch.setattr(Session, "play", die_in_the_second_episode)
    out = tmp_path / "scores" / "r.json"
    results = evaluate_ros(artifact, TASK, [7, 8, 9], out, rollout=RolloutConfig(), progress=False)
    assert [results.rows[seed]["reason"] for seed in (7, 9)] == [TIMEOUT, TIMEOUT]
    assert results.rows[7]["stage"] == "idle"
    assert results.rows[7]["seconds"] == pytest.approx(1.5)
    assert "the system ended with exit code -9" in results.rows[8]["reason"]
    assert sessions[0] is sessions[1] is not sessions[2]
    assert sorted(p.name for p in out.parent.iterdir()) == ["r.json", "r.log"]
    assert results.settings.way == "ros"


def test_a_system_that_never_starts_ends_the_run(tmp_path, monkeypatch):
    def never(*_args):
        raise SystemDiedError("the system ended with exit code 1")

    monkeypatch.setattr(evaluate, "Session", never)
    artifact = build_tiny_artifact(tmp_path / "tiny").folder
    with pytest.raises(ClampError, match="does not start: the system ended with exit code 1"):
        evaluate_ros(artifact, TASK, range(5), tmp_path / "r.json", rollout=RolloutConfig(), progress=False)
    assert not (tmp_path / "r.json").exists()
