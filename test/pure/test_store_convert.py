"""Bags become a training store: refused with a reason, gone on with after an interruption, read without ROS."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from interchange_bag import CAMERAS, image_of, joints_at, make_bag
from sample_bag import make_bag as make_faulty_bag

from clamp_ros.contract.errors import RecordError
from clamp_ros.policy.preprocess import resize_rgb
from clamp_ros.record.recover import recover

store = pytest.importorskip("clamp_training.store")
pytestmark = pytest.mark.training
SIZE = (24, 32)


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bags")
    make_bag(folder / "a", ticks=60)
    make_bag(folder / "b", ticks=50)
    return folder


def test_the_index_tells_schema_and_statistics(bags, tmp_path):
    converted = store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["rows"] == len(converted) == sum(row["rows"] for row in index["episodes"])
    assert index["schema"]["actions"] == ["float32", 50, 14] and "rgb" not in index["schema"]
    assert [(row["depth"], row["text"]) for row in index["episodes"]] == [(True, True)] * 2
    actions = converted.stacked("actions")[:, 0]
    np.testing.assert_allclose(index["statistics"]["actions"]["min"], actions.min(axis=0))
    np.testing.assert_allclose(index["statistics"]["actions"]["mean"], actions.mean(axis=0, dtype=np.float64))
    color, depth_mm = image_of("front_left", 0)
    assert np.array_equal(converted.frames(0)[0].depth_mm, depth_mm)
    assert np.array_equal(converted.colors("front_left", [0])[0], resize_rgb(color, *SIZE))
    np.testing.assert_allclose(converted.stacked("joint_positions")[0], joints_at(0), atol=1e-4)


def test_a_store_of_another_format_is_refused(bags, tmp_path):
    store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "format": 1}))
    with pytest.raises(RecordError, match="has format 1, expected 2: convert the bags again, elsewhere"):
        store.Store([tmp_path])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], r"index\.json is damaged \(.*convert the bags again, elsewhere"),
        (lambda text: text.replace('"format"', '"fromat"'), r"index\.json has no format: convert the bags again"),
        (lambda text: text.replace('"file"', '"fiel"'), r"index\.json has no episodes\.file"),
        (lambda text: "[]", r"index\.json has no format, cameras"),
    ],
)
def test_a_damaged_index_is_a_clear_error(bags, tmp_path, damage, says):
    store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1)
    path = tmp_path / "index.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=says):
        store.Store([tmp_path])
    before = path.read_text()
    with pytest.raises(RecordError, match=says):
        store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1)
    assert path.read_text() == before


def test_a_bag_that_was_not_finished_is_named_and_the_others_converted(bags, tmp_path):
    make_bag(tmp_path / "in/whole", ticks=50)
    for name in ("cut.partial", "moved", "discarded/cut.partial"):
        (make_bag(tmp_path / "in" / name, ticks=50) / "metadata.yaml").unlink()
    with pytest.raises(RecordError) as refused:
        store.convert([tmp_path / "in"], tmp_path / "store", CAMERAS, SIZE, workers=1)
    partial, moved = tmp_path / "in/cut.partial", tmp_path / "in/moved"
    assert f"{partial}: was not finished (a crash or a full disk?); `clamp bag recover {partial}`" in str(refused.value)
    assert f"rename it to moved.partial, and `clamp bag recover {moved}.partial`" in str(refused.value)
    assert "discarded" not in str(refused.value)
    assert store.Store([tmp_path / "store"]).bags == ["whole"]
    with pytest.raises(RecordError, match=r"no bag .*; .*cut\.partial was not finished"):
        store.convert([partial], tmp_path / "none", CAMERAS, SIZE, workers=1)
    moved.rename(tmp_path / "in/moved.partial")
    for bag in (partial, tmp_path / "in/moved.partial"):
        recover(bag)
    converted = store.convert([tmp_path / "in"], tmp_path / "store", CAMERAS, SIZE, workers=1)
    assert converted.bags == ["cut", "moved", "whole"]


def test_an_interrupted_conversion_keeps_what_was_done(bags, tmp_path, monkeypatch):
    def after_one(rows, **_):
        yield next(rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "tqdm", after_one)
        with pytest.raises(KeyboardInterrupt):
            store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1)
    written = (tmp_path / "a.safetensors").stat().st_mtime_ns
    assert [row["bag"] for row in json.loads((tmp_path / "index.json").read_text())["episodes"]] == ["a"]
    assert store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1).bags == ["a", "b"]
    assert (tmp_path / "a.safetensors").stat().st_mtime_ns == written


def test_a_converting_process_that_is_killed_is_said(bags, tmp_path, monkeypatch):
    class Killed:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

        def map(self, work, jobs):
            yield work(jobs[0])
            raise BrokenProcessPool

    monkeypatch.setattr(store, "ProcessPoolExecutor", Killed)
    with pytest.raises(RecordError, match=r"was killed, by want of memory perhaps; 1 bags are converted, .* --workers"):
        store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1)
    monkeypatch.undo()
    assert store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1).bags == ["a", "b"], "the same command goes on"


def test_bags_that_are_not_fit_are_refused_and_the_others_converted(bags, tmp_path):
    make_faulty_bag(tmp_path / "in/gap", skip=lambda topic, tick: topic == "/joint_states" and 30 < tick < 60)
    truncated = make_bag(tmp_path / "in/truncated", ticks=50) / "truncated_0.mcap"
    truncated.write_bytes(truncated.read_bytes()[:-20_000])
    make_bag(tmp_path / "in/whole", ticks=50)
    with pytest.raises(RecordError) as refused:
        store.convert([tmp_path / "in"], tmp_path / "store", CAMERAS[:1], SIZE, workers=1)
    text = str(refused.value)
    assert "gap fails its audit: /joint_states has 1 gaps, the longest 600 ms, 0.60 s from its start" in text
    assert "truncated_0.mcap is damaged or was not finished" in text
    assert store.Store([tmp_path / "store"]).bags == ["whole"]


def test_two_bags_of_one_name_are_refused(bags, tmp_path):
    make_bag(tmp_path / "more/a", ticks=50)
    with pytest.raises(RecordError, match="two bags are called a"):
        store.convert([bags, tmp_path / "more"], tmp_path / "store", CAMERAS, SIZE, workers=1)


def test_a_bag_without_depth_serves_only_what_needs_none(tmp_path):
    make_bag(tmp_path / "in/flat", ticks=50, depth=False)
    with pytest.raises(RecordError, match=r"no depth of front_left, wrist_left: only policy\.tokens 'none'"):
        store.convert([tmp_path / "in"], tmp_path / "refused", CAMERAS, SIZE, workers=1)
    converted = store.convert([tmp_path / "in"], tmp_path / "store", CAMERAS, SIZE, workers=1, needs_depth=False)
    assert converted.colors("front_left", range(len(converted))).shape == (len(converted), *SIZE, 3)
    with pytest.raises(RecordError, match="flat has no depth"):
        converted.frames(0)
    (row,) = json.loads((tmp_path / "store/index.json").read_text())["episodes"]
    assert row["depth"] is False and converted.has_depth == [False]


def test_a_store_is_read_without_ros_and_without_torch(bags, tmp_path):
    store.convert([bags], tmp_path, CAMERAS, SIZE, workers=1)
    code = f"""
import sys
sys.modules |= dict.fromkeys(("rclpy", "sensor_msgs", "torch"))  # an import of them fails
from pathlib import Path
from clamp_training.store import Store
print(len(Store([Path({str(tmp_path)!r})]).frames(3)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"
