"""Evaluations in process: whatever a policy does fails its episode alone; what is not its fault counts for nothing."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from faulty_artifact import build_faulty_artifact, kind
from score_rows import disk_that_is_full_after
from tiny_artifact import build_tiny_artifact

from clamp_ros import evaluate as evaluation
from clamp_ros.contract.errors import ArtifactError, ConfigError, RecordError
from clamp_ros.evaluate import IN_PROCESS, NOT_DONE, Player, Watching, evaluate, plan
from clamp_ros.policy.artifact import CameraSpec
from clamp_ros.rollout import Rollout, RolloutConfig
from clamp_ros.score.results import Results
from clamp_ros.sim.tasks import TASKS

TASK = "mug_on_plate_easy"
LOOK = RolloutConfig(look="primitive")
CHUNKS = 25  # of an episode that is played to its end: 12 s, and a chunk every half a second


def without_wall(row):
    return {key: value for key, value in row.items() if key != "wall_s"}


@pytest.mark.slow
def test_what_fails_fails_its_episode_alone_and_the_run_continues(tmp_path, monkeypatch):
    artifact = build_faulty_artifact(tmp_path / "faulty").folder
    seeds = {
        name: next(s for s in range(100_000) if kind(s, CHUNKS) == name) for name in ("stalls", "nonsense", "good")
    }
    order = [seeds["nonsense"], seeds["stalls"], seeds["good"]]
    out, video = tmp_path / "r.json", tmp_path / "film"
    results = evaluate(
        artifact, TASK, order, out, rollout=LOOK, watching=Watching(video, "failures"), stall_s=8.0, progress=False
    )
    nonsense, stalled, good = (results.rows[seed] for seed in order)
    assert (nonsense["outcome"], stalled["outcome"], good["outcome"]) == ("error", "stalled", "timeout")
    assert "finite" in nonsense["reason"]
    assert stalled["reason"] == "no tick for 8 s: the policy stalled"
    assert (good["reason"], good["seconds"], good["stage"], good["chunks"]) == (NOT_DONE, 12.0, "idle", 24)
    assert json.loads(out.read_text())["summary"]["errors"] == 2
    assert {p.name for p in video.iterdir() if p.name[0] != "."} == {f"{TASK}_{order[i]:07d}.mp4" for i in (0, 2)}
    picture = cv2.imread(str(tmp_path / good["picture"]))
    assert picture is not None and picture.shape == (180, 4 * 320, 3)
    assert np.ptp(picture) > 100

    def nothing_is_played(*_args, **_keywords):
        raise AssertionError("nothing is left to be played")

    monkeypatch.setattr(evaluation, "play_in_workers", nothing_is_played)
    assert evaluate(artifact, TASK, order, out, rollout=LOOK, progress=False).rows == results.rows


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    folder = tmp_path_factory.mktemp("player")
    artifact = build_tiny_artifact(folder / "tiny")
    rollout = Rollout(artifact, TASK, LOOK, threads=1)

    def with_watching(watching: Watching) -> Player:
        return Player(evaluation._Job(artifact.folder, TASK, LOOK, watching, folder / "r_failures", threads=1), rollout)

    return with_watching


def no_beat(seconds, reached):
    pass


@pytest.mark.slow
def test_workers_give_the_rows_of_one_process_whatever_was_played_before(tmp_path, player):
    play = player(Watching())
    expected = {seed: without_wall(play(seed, no_beat)) for seed in (4, 3)}
    artifact = play._job.artifact
    results = evaluate(artifact, TASK, [3, 4], tmp_path / "r.json", rollout=LOOK, workers=2, progress=False)
    assert {seed: without_wall(row) for seed, row in results.rows.items()} == expected
    again = Results.read(tmp_path / "r.json")
    assert again.settings == results.settings and again.rows == results.rows


def test_an_exception_of_the_policy_is_its_failure(player, monkeypatch):
    monkeypatch.setattr(TASKS[TASK], "max_seconds", 1.0)
    play = player(Watching(pictures=False))

    class Crashing:
        def infer(self, observation, rng, prefix):
            if observation.stamp_ns > 0:
                raise ZeroDivisionError("in the policy")
            return runtime.infer(observation, rng)

    runtime = play._rollout._runtime
    monkeypatch.setattr(play._rollout, "_runtime", Crashing())
    row = play(2, no_beat)
    assert (row["outcome"], row["reason"]) == ("error", "ZeroDivisionError: in the policy")
    assert (row["seconds"], row["picture"]) == (0.5, "")


def test_a_full_disk_is_no_failure_of_the_policy(player, tmp_path, monkeypatch):
    monkeypatch.setattr(TASKS[TASK], "max_seconds", 1.0)
    play = player(Watching(tmp_path))
    with disk_that_is_full_after(1000), pytest.raises(RecordError, match="cannot be written"):
        play(2, no_beat)
    assert list(tmp_path.iterdir()) == []
    play = player(Watching())
    with disk_that_is_full_after(1000), pytest.raises(RecordError, match=r"0000002\.jpg: .*make room"):
        play(2, no_beat)
    assert play(2, no_beat)["outcome"] == "timeout"


def test_every_artifact_is_looked_at_before_the_first_is_played(tmp_path):
    good = build_tiny_artifact(tmp_path / "a" / "tiny").folder
    other = {"front_left": CameraSpec(424, 240, 200.0, 200.0, 211.5, 119.5, rgb=False)}
    bad = build_tiny_artifact(tmp_path / "b" / "cameras", cameras=other).folder
    same = build_tiny_artifact(tmp_path / "c" / "tiny").folder
    out = tmp_path / "scores"
    planned = plan([good, build_tiny_artifact(tmp_path / "d").folder], TASK, "ros", LOOK, out)
    files = [(folder.name, results.path.name) for folder, results in planned]
    assert files == [("tiny", f"tiny_{TASK}_ros.json"), ("d", f"d_{TASK}_ros.json")]
    with pytest.raises(ArtifactError, match=r"front_left.*200\.0"):
        plan([good, bad], TASK, IN_PROCESS, LOOK, out)
    with pytest.raises(ConfigError, match="rename one of them"):
        plan([good, same], TASK, IN_PROCESS, LOOK, out)
    with pytest.raises(ConfigError, match="2 artifacts; name a folder"):
        plan([good, bad], TASK, IN_PROCESS, LOOK, tmp_path / "one.json")
    with pytest.raises(ConfigError, match="did you mean 'mug_on_plate_easy'"):
        plan([good], "mug_on_plate_eas", IN_PROCESS, LOOK, out)
    assert not out.exists()
