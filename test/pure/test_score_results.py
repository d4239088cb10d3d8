"""A results file survives whatever happens to the run, and refuses what does not belong in it."""

from __future__ import annotations

import json

import pytest
from score_rows import SETTINGS, STAGES, disk_that_is_full_after, episode, settings

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.evaluate import missing_seeds
from clamp_ros.score.page import write_page
from clamp_ros.score.results import DIED, SUCCESS, TIMEOUT, VERSION, Results, Training, row
from clamp_ros.score.seeds import FIRST_SEED
from clamp_ros.share import models_folder

TRAINING = Training("tiny")


def test_results_continue_where_they_stopped(tmp_path):
    path = tmp_path / "new" / "r.json"
    results = Results(path, SETTINGS, TRAINING)
    for seed in (12, 10):
        results.add(episode(seed, seed == 10, "grasped"))
    again = Results(path, SETTINGS, TRAINING)
    assert missing_seeds(again, range(10, 14)) == [11, 13]
    again.add(episode(11, False, "idle", outcome=DIED, reason="the policy's process ended: SIGSEGV"))
    again.add(episode(13, True))
    content = json.loads(path.read_text())
    assert content["version"] == VERSION
    assert [e["seed"] for e in content["episodes"]] == [10, 11, 12, 13]
    assert content["summary"] == {
        "episodes": 4, "successes": 2, "success_rate": 0.5, "wilson_95": [0.15, 0.85], "mean_partial": 0.6667,
        "mean_success_seconds": 6.0, "failures_by_furthest_stage": {"grasped": 1, "idle": 1}, "errors": 1,
    }  # fmt: skip
    assert "2/4 = 50.0 % success, 95 % interval 15.0 to 85.0 %; partial 66.7 %" in again.text(range(10, 14))
    assert again.summary([10])["successes"] == 1  # over the seeds asked for, not all in the file
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    assert Results.read(path).rows == again.rows

    whole = Results(tmp_path / "whole.json", SETTINGS, TRAINING)
    for seed in (13, 11, 10, 12):
        whole.add(again.rows[seed])
    assert whole.path.read_bytes() == path.read_bytes()  # in whatever order, and however often it was stopped


def test_partial_success_is_the_share_of_the_stages():
    assert episode(1, False, "idle")["partial"] == 0.0
    assert episode(1, False, "grasped")["partial"] == pytest.approx(2 / 3, abs=1e-4)
    # success is the last stage, whether or not somebody looked at the moment
    assert row(1, SUCCESS, STAGES, {})["partial"] == 1.0
    # the furthest counts, not the last
    assert row(1, DIED, STAGES, {"grasped": 2.0, "reaching": 1.0})["stage"] == "grasped"


def test_partial_success_of_a_real_world_task_is_what_the_paper_awards(tmp_path):
    def played(seed, outcome, reached):
        return row(seed, outcome, STAGES, reached, partial_stage="grasped")

    rows = [
        played(0, TIMEOUT, {"reaching": 1.0}), played(1, DIED, {"reaching": 1.0, "grasped": 2.0}),
        played(2, SUCCESS, {}), played(3, TIMEOUT, {}),
    ]  # fmt: skip
    assert [r["partial"] for r in rows] == [0.0, 0.5, 1.0, 0.0]
    path = tmp_path / "r.json"
    results = Results(path, settings(partial_stage="grasped"), TRAINING)
    for played_row in rows:
        results.add(played_row)
    summary = json.loads(path.read_text())["summary"]
    assert (summary["partial_successes"], summary["successes"], summary["mean_partial"]) == (2, 1, 0.375)
    assert "partial success, as the paper counts it ('grasped' or farther): 2/4" in results.text()
    page = write_page([path], tmp_path / "page.html")
    assert "2/4 partly or wholly" in page
    with pytest.raises(ConfigError, match="partial_stage is 'grasped' there and None here"):
        Results(path, SETTINGS, TRAINING)


def test_files_from_before_there_was_a_partial_stage_are_gone_on_with(tmp_path):
    path = tmp_path / "r.json"
    Results(path, SETTINGS, TRAINING).add(episode(1, True))
    content = json.loads(path.read_text())
    del content["settings"]["partial_stage"]
    path.write_text(json.dumps(content))
    assert list(Results(path, SETTINGS, TRAINING).rows) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"artifact_sha256": {"encoders": "ee", "manifest": "cd"}},
            "artifact_sha256 is {'encoders': 'ab'} there and {'enc",
        ),
        ({"artifact": "other"}, "artifact is 'tiny' there and 'other' here"),
        ({"task": "drawer_open"}, "task is 'mug_on_plate' there and 'drawer_open' here"),
        ({"way": "ros"}, "way is 'in process' there and 'ros' here"),
        ({"rollout": {"mode": "temporal_ensemble"}}, "temporal_ensemble"),
    ],
)
def test_results_of_other_settings_are_not_continued(tmp_path, change, message):
    Results(tmp_path / "r.json", SETTINGS, TRAINING).add(episode(1, True))
    before = (tmp_path / "r.json").read_bytes()
    with pytest.raises(ConfigError) as error:
        Results(tmp_path / "r.json", settings(**change), TRAINING)
    assert message in str(error.value)
    assert (tmp_path / "r.json").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[1, 2]",
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: text.replace('"outcome": "success"', '"outcome": "timeout"'),
        lambda text: text.replace('"stage": "done"', '"stage": "dne"'),
        lambda text: text.replace('"seconds"', '"secnds"'),
        lambda text: text.replace('"method"', '"methd"'),
    ],
)
def test_a_damaged_file_is_neither_read_nor_overwritten(tmp_path, damage):
    path = tmp_path / "r.json"
    Results(path, SETTINGS, TRAINING).add(episode(1, True))
    text = damage(path.read_text())
    path.write_text(text)
    for attempt in (lambda: Results.read(path), lambda: Results(path, SETTINGS, TRAINING)):
        with pytest.raises(RecordError, match=r"r\.json is not a results file of `clamp eval`"):
            attempt()
    assert path.read_text() == text


def test_a_full_disk_loses_nothing(tmp_path):
    path = tmp_path / "r.json"
    results = Results(path, SETTINGS, TRAINING)
    results.add(episode(1, True))
    before = path.read_bytes()
    with disk_that_is_full_after(len(before) // 2), pytest.raises(RecordError, match="1 episodes are safe: make room"):
        results.add(episode(2, True))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    results.add(episode(2, True))
    assert sorted(Results.read(path).rows) == [1, 2]


def test_two_evaluations_do_not_write_over_each_other(tmp_path):
    first, second = (Results(tmp_path / "r.json", SETTINGS, TRAINING) for _ in range(2))
    first.add(episode(1, True))
    with pytest.raises(RecordError, match="changed by another process"):
        second.add(episode(2, True))
    assert sorted(Results.read(tmp_path / "r.json").rows) == [1]


def test_seeds_that_the_policy_was_trained_on_are_named(tmp_path):
    training = Training("tiny", seeds={"mug_on_plate": [[0, 99]], "drawer_open": [[100, 200]]})
    results = Results(tmp_path / "r.json", SETTINGS, training)
    assert results.warnings(range(100, 110)) == []
    (warning,) = results.warnings(range(95, 105))
    assert "trained on 5 of these seeds of mug_on_plate (95-99)" in warning
    assert warning in results.text(range(95, 105))
    unknown = Results(tmp_path / "r.json", SETTINGS, TRAINING)
    (warning,) = unknown.warnings(range(5))
    assert warning.startswith("training seeds unknown: no manifest of tiny names them")
    assert warning in unknown.text(range(5)) and "training seeds" not in results.text(range(100, 110))


def test_the_shipped_policy_names_its_training_seeds_and_is_scored_on_others(tmp_path):
    manifest = json.loads((models_folder() / "mug_on_plate_easy" / "manifest.json").read_text())
    training = Training.of(manifest["name"], manifest["training"])
    results = Results(tmp_path / "r.json", settings(artifact=manifest["name"], task=manifest["task"]), training)
    assert "was trained on 90 of these seeds" in results.warnings(range(300, 400))[0]
    assert results.warnings(range(FIRST_SEED, FIRST_SEED + 50)) == []


def test_what_a_manifest_tells_of_the_training():
    record = {
        "experiment": {"name": "clamp", "training": {"seed": 3}}, "steps": {"policy": 400, "encoders": 9}, "run": "r3",
        "seeds": {"mug_on_plate": [[0, 5]]},
    }  # fmt: skip
    assert Training.of("a", record) == Training("clamp", "r3", 3, 400, {"mug_on_plate": [[0, 5]]})
    assert Training.of("a", {"note": "by hand", "steps": 7, "experiment": None}) == Training("a")


@pytest.mark.parametrize("seeds", [[], [-1, 2], [3, 3]])
def test_bad_seeds(tmp_path, seeds):
    with pytest.raises(ConfigError, match="seeds"):
        missing_seeds(Results(tmp_path / "r.json", SETTINGS, TRAINING), seeds)
