"""Scores: the interval's numbers, and a results file that survives whatever happens to the run."""

from __future__ import annotations

import json

import pytest
from scipy.stats import binomtest

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.evaluate import TIMEOUT, Results, Settings, failed_row, missing_seeds, wilson_interval

SETTINGS = Settings("tiny", {"encoders": "ab"}, "mug_on_plate", "in process", {"mode": "open_loop"})


def row(seed: int, success: bool, stage: str = "lifted") -> dict:
    return {"seed": seed, "success": success, "seconds": 6.0, "stage": stage, "chunks": 9, "held_ticks": 0,
            "reason": "" if success else TIMEOUT, "wall_s": 1.0}  # fmt: skip


@pytest.mark.parametrize(("successes", "trials"), [(8, 10), (0, 10), (10, 10), (40, 50), (1, 1), (0, 1), (613, 1000)])
def test_wilson_interval(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_interval_without_trials_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="3 successes of 2"):
        wilson_interval(3, 2)


def test_results_continue_where_they_stopped(tmp_path):
    path = tmp_path / "new" / "r.json"
    results = Results(path, SETTINGS)
    for seed in (12, 10):
        results.add(row(seed, seed == 10))
    again = Results(path, SETTINGS)
    assert missing_seeds(again, range(10, 14)) == [11, 13]
    again.add(failed_row(11, "the policy crashed"))
    again.add(row(13, True))
    content = json.loads(path.read_text())
    assert [e["seed"] for e in content["episodes"]] == [10, 11, 12, 13]
    assert content["summary"] == {
        "episodes": 4, "successes": 2, "success_rate": 0.5, "wilson_95": [0.15, 0.85], "mean_success_seconds": 6.0,
        "failures_by_furthest_stage": {"error": 1, "lifted": 1}, "errors": 1,
    }  # fmt: skip
    assert "2/4 = 50.0 % success, 95 % interval 15.0 to 85.0 %" in again.text(range(10, 14))
    assert again.summary([10])["successes"] == 1  # over the seeds asked for, not all in the file
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_results_of_other_settings_are_not_continued(tmp_path):
    Results(tmp_path / "r.json", SETTINGS).add(row(1, True))
    other = Settings("tiny", {"encoders": "cd"}, "mug_on_plate", "in process", {"mode": "open_loop"})
    with pytest.raises(ConfigError, match="another artifact_sha256"):
        Results(tmp_path / "r.json", other)
    (tmp_path / "r.json").write_text("[1, 2")
    with pytest.raises(RecordError, match="not a results file"):
        Results(tmp_path / "r.json", SETTINGS)


@pytest.mark.parametrize("seeds", [[], [-1, 2], [3, 3]])
def test_bad_seeds(tmp_path, seeds):
    with pytest.raises(ConfigError, match="seeds"):
        missing_seeds(Results(tmp_path / "r.json", SETTINGS), seeds)
