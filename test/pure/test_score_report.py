"""Runs, methods and comparisons out of result files, and the page that tells of them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from score_rows import episode, settings, write

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.files import write_whole
from clamp_ros.score.page import render, write_page
from clamp_ros.score.plots import Line, Point, curves, mean_line
from clamp_ros.score.results import ERROR, Results, Training
from clamp_ros.score.runs import comparisons, funnel, group, merged, methods, words
from clamp_ros.score.statistics import Paired

SEEDS = range(1_000_000, 1_000_010)


def checkpoints(folder, method, seed, rates, task="mug_on_plate", run="r"):
    """Files of a run whose checkpoints, 400 steps apart, succeed on the first so many of ten seeds."""
    return [
        write(
            folder / f"{method}_{seed}_{step}_{task}.json", SEEDS[:successes], SEEDS,
            training={"method": method, "run": f"{run}{seed}", "seed": seed, "step": step},
            artifact=f"{method}_{seed}_{step}", artifact_sha256={"policy": f"{method}{seed}{step}"}, task=task,
        )
        for step, successes in zip(range(400, 9999, 400), rates, strict=False)
    ]  # fmt: skip


def runs_of(*files):
    return group([Results.read(path) for part in files for path in part])


def test_the_maximum_over_checkpoints_averaged_over_training_runs(tmp_path):
    runs = runs_of(checkpoints(tmp_path, "with", 0, [4, 9, 7]), checkpoints(tmp_path, "with", 1, [6, 6, 8]),
                   checkpoints(tmp_path, "without", 0, [1, 3]))  # fmt: skip
    assert [run.label for run in runs] == ["with (r0, seed 0)", "with (r1, seed 1)", "without"]
    assert [run.best.training.step for run in runs] == [800, 1200, 800]
    assert [run.last.training.step for run in runs] == [1200, 1200, 800]
    scores = methods(runs)
    with_, without = (scores[name]["mug_on_plate"] for name in ("with", "without"))
    assert with_.mean == pytest.approx(0.85)
    assert with_.deviation == pytest.approx(np.std([0.9, 0.8], ddof=1))
    assert (without.mean, without.deviation) == (pytest.approx(0.3), None)
    # a failure here reaches the first of three stages
    assert without.partial == pytest.approx(0.3 + 0.7 / 3, abs=1e-3)
    # 9, 8 and 3 of the same ten seeds
    assert [pair for _, _, pair in comparisons(runs)] == [
        Paired(8, 1, 0, 1), Paired(3, 6, 0, 1), Paired(3, 5, 0, 2)
    ]  # fmt: skip
    told = words(runs)
    assert "maximum over 3 checkpoints of with (r0, seed 0) on mug_on_plate: 9/10 = 90.0 %, at step 800" in told
    assert "-60.0 points" in told and f"p = {2 / 2**6:.4f}" in told


def test_runs_of_the_same_seed_are_not_averaged(tmp_path):
    files = []
    for folder, good in (("a", 2), ("b", 8)):
        training = {"method": "m", "run": folder, "seed": 0, "step": 400}
        files.append(write(tmp_path / f"{folder}.json", SEEDS[:good], SEEDS, training, artifact=folder))
    scores = methods(runs_of(files))
    assert {name: score["mug_on_plate"].mean for name, score in scores.items()} == {"m (a)": 0.2, "m (b)": 0.8}


def test_a_method_on_two_tasks_is_one_row_though_its_runs_there_have_the_same_seeds(tmp_path):
    files = [
        file for task in ("mug_on_plate", "drawer_open") for seed in (0, 1)
        for file in checkpoints(tmp_path, "m", seed, [4 + seed], task=task, run=task)
    ]  # fmt: skip
    (scores,) = methods(runs_of(files)).values()
    assert {task: (score.mean, len(score.runs)) for task, score in scores.items()} == {
        "mug_on_plate": (pytest.approx(0.45), 2), "drawer_open": (pytest.approx(0.45), 2),
    }  # fmt: skip


def test_equal_checkpoints_count_as_the_earliest(tmp_path):
    assert runs_of(checkpoints(tmp_path, "m", 0, [2, 5, 5]))[0].best.training.step == 800


def test_in_process_and_through_ros_are_compared_on_their_seeds(tmp_path):
    training = {"method": "tiny"}
    files = [write(tmp_path / f"{way}.json", good, SEEDS, training, way=way, rollout={"mode": "open_loop"})
             for way, good in (("in process", SEEDS[:8]), ("ros", SEEDS[1:8]))]  # fmt: skip
    ((a, b, pair),) = comparisons(runs_of(files))
    assert (a.label, b.label, pair) == ("tiny (in process)", "tiny (ros)", Paired(7, 1, 0, 2))


def test_shards_of_one_evaluation_are_one(tmp_path):
    training = {"method": "tiny"}
    parts = [write(tmp_path / f"{i}" / "r.json", SEEDS[:5], SEEDS[5 * i : 5 * i + 5], training) for i in range(2)]
    whole = merged([Results.read(path) for path in parts])
    assert len(whole) == 1 and whole[0].successes() == {seed: seed in SEEDS[:5] for seed in SEEDS}
    other = write(tmp_path / "other.json", [], SEEDS[:2], training)
    with pytest.raises(ConfigError, match=r"0/r\.json and .*other\.json .* tell differently how seed 1000000 ended"):
        merged([Results.read(parts[0]), Results.read(other)])


def test_two_policies_that_claim_to_be_the_same_checkpoint_are_refused(tmp_path):
    training = {"method": "clamp", "step": 400}
    files = [write(tmp_path / f"{name}.json", [], SEEDS, training, artifact=name) for name in ("a", "b")]
    with pytest.raises(ConfigError, match=r"a\.json and .*b\.json are of different policies.*step 400"):
        runs_of(files)


def test_the_funnel_counts_who_came_so_far_or_farther(tmp_path):
    results = Results(tmp_path / "r.json", settings(), Training("tiny"))
    for seed, stage in enumerate(("idle", "reaching", "grasped", "grasped")):
        results.add(episode(seed, False, stage))
    results.add(episode(4, True))
    assert funnel(results) == [("reaching", 4), ("grasped", 3), ("done", 1)]


def test_the_mean_curve_is_over_common_steps():
    def line(*points):
        return Line("m", tuple(Point(x, y, y, y, "") for x, y in points))

    assert mean_line([line((0, 0.2), (5, 0.4)), line((5, 0.8), (9, 1.0))]) == [(5, pytest.approx(0.6))]
    picture = curves([line((400, 0.0), (800, 1.0))], "t")
    ((x0, y0), (x1, y1)) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', picture)
    assert float(x1) == 744 and float(x0) == (744 + 56) / 2  # half-way and at the right edge
    assert (float(y0), float(y1)) == (272, 16)  # the bottom and the top


class Page(HTMLParser):
    """Checks that elements nest, and collects what a reader sees and what a browser would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_page_stands_by_itself_and_tells_everything(tmp_path):
    files = [
        *checkpoints(tmp_path, "with", 0, [4, 9, 7]),
        *checkpoints(tmp_path, "with", 1, [6, 6, 8]),
        *checkpoints(tmp_path, "without", 0, [1, 3]),
        *checkpoints(tmp_path, "without", 0, [10], task="drawer_open"),
    ]
    results = Results(
        tmp_path / "odd.json",
        settings(artifact="<odd & bad>"),
        Training("<odd & bad>", seeds={"mug_on_plate": [[0, 7]]}),
    )
    results.add(
        {**episode(7, False, "grasped", outcome=ERROR, reason="<script>alert(1)</script>"), "picture": "f/7.jpg"}
    )
    results.add({**episode(8, False), "picture": "f/absent.jpg"})
    results.add({**episode(9, False), "picture": "odd.json"})  # no picture
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    write_whole(tmp_path / "f" / "7.jpg", jpeg)
    html = write_page([*files, results.path], tmp_path / "out" / "page.html")
    assert (tmp_path / "out" / "page.html").read_text() == html
    page = Page(html)
    assert "script" not in page.tags and len(page.loaded) == 1 and page.loaded[0].startswith("data:image/jpeg;base64,")
    assert "http" not in html and "url(" not in html and "@import" not in html
    assert {"table", "svg", "details"} <= page.tags
    for told in (
        "85.0 %", "mean of 2 runs: 90.0, 80.0; s.d. 7.1", "9 of 10, 95 % interval 59.6 to 98.2 %", "drawer_open",
        "<script>alert(1)</script>", "<odd & bad>", "was trained on 1 of these seeds of mug_on_plate (7)",
        "training seeds unknown: no manifest of with names them",
        "-60.0", "0.0312", "best of 2 checkpoints", "seed 7: grasped, error", "1000000-1000009",
    ):  # fmt: skip
        assert told in page.words, told
    assert page.words.count("no manifest of with names them") == 1, "once, however many checkpoints"
    assert html == render(group([Results.read(path) for path in [*files, results.path]]))  # and nothing of now or here


def test_bad_files_are_named(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RecordError, match=r"other\.json is not a results file"):
        write_page([tmp_path / "other.json"], tmp_path / "page.html")
    with pytest.raises(ConfigError, match="no results to report"):
        write_page([], tmp_path / "page.html")
    (tmp_path / "folder").mkdir()
    file = write(tmp_path / "r.json", [], SEEDS, {"method": "tiny"})
    with pytest.raises(ConfigError, match="pictures is -1"):
        write_page([file], tmp_path / "page.html", -1)
    with pytest.raises(RecordError, match="folder cannot be written"):
        write_page([file], tmp_path / "folder")
