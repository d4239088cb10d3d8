"""Processes that play episodes: a crash or a stall costs one episode; what is no policy's fault ends the run."""

from __future__ import annotations

import multiprocessing

import pytest
import score_players
from score_players import CRASHES, DISK_FULL, STALLS

from clamp_ros.contract.errors import ArtifactError, ClampError, ConfigError, RecordError
from clamp_ros.score.workers import play_in_workers


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_and_a_stall_cost_their_episodes_alone(workers):
    seeds = [1, 2, CRASHES, 4, STALLS, 6]
    rows = {
        row["seed"]: row
        for row in play_in_workers(score_players.make, seeds, score_players.lost, workers=workers, stall_s=3.0)
    }
    assert sorted(rows) == sorted(seeds)
    assert [rows[seed]["outcome"] for seed in seeds] == ["success", "success", "died", "success", "stalled", "success"]
    assert rows[CRASHES]["reason"] == "the policy's process ended: SIGSEGV"
    assert rows[STALLS]["reason"] == "no tick for 3 s: the policy stalled"
    for seed in (CRASHES, STALLS):  # what was known of the episode is kept
        assert (rows[seed]["stage"], rows[seed]["seconds"]) == ("reaching", 1.5)
    if workers == 1:
        pids = [rows[seed]["pid"] for seed in (1, 2, 4, 6)]
        assert pids[0] == pids[1] and len(set(pids)) == 3  # a process plays on until it is lost


def test_what_is_not_the_policys_fault_ends_the_run():
    rows = play_in_workers(score_players.make, [1, DISK_FULL, 2], score_players.lost)
    assert next(rows)["seed"] == 1
    with pytest.raises(RecordError, match="the film cannot be written"):
        next(rows)
    with pytest.raises(ArtifactError, match="no such policy"):
        list(play_in_workers(score_players.refuse, [1], score_players.lost))
    with pytest.raises(ClampError, match="before its first episode: the policy's process ended: exit code 3"):
        list(play_in_workers(score_players.crash, [1], score_players.lost))


def test_a_run_that_is_given_up_leaves_no_process():
    rows = play_in_workers(score_players.make, [1, STALLS], score_players.lost, workers=2)
    assert next(rows)["seed"] == 1
    rows.close()


@pytest.mark.parametrize(("workers", "stall_s"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_bad_numbers(workers, stall_s):
    with pytest.raises(ConfigError, match=r"workers is \d and stall_s is"):
        list(play_in_workers(score_players.make, [1], score_players.lost, workers=workers, stall_s=stall_s))
