"""Demonstrations: right bags, the same whatever interrupts them, and settings that cannot be mixed in one folder."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from score_rows import disk_that_is_full_after

from clamp_ros.contract.errors import ConfigError, RecordError, SimulationError
from clamp_ros.contract.interfaces import object_frame, optical_frame
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.demos import DemoConfig, Demonstrator, Summary, bag_path, make_demos, render_demos
from clamp_ros.demos.folder import check_settings, read_settings
from clamp_ros.demos.make import shard_of
from clamp_ros.demos.merge import merge
from clamp_ros.demos.score import attempt, read, score, table
from clamp_ros.demos.sheet import write_grid, write_sheet
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.randomise import Randomisation
from clamp_ros.sim.simulation import START_NS, tells_task_state
from clamp_ros.sim.world import World

CONFIG = DemoConfig("mug_on_plate_easy", cameras=("front_left", "wrist_left"), image_rate_hz=1, look="primitive")


def content(bag: Path) -> list[tuple[str, int, bytes]]:
    with Reader(bag) as reader:
        return sorted((c.topic, stamp, bytes(data)) for c, stamp, data in reader.messages())


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "bag"
    row = Demonstrator(CONFIG).demonstrate(3, path)
    assert row["success"], row
    return path


def test_a_demonstration_is_what_the_world_did(bag):
    """The bag against the same episode played by hand."""
    assert audit(bag).ok, audit(bag).text()
    world = World(CONFIG.task, look="primitive")
    world.reset(3)
    expert = make_expert(world, np.random.default_rng([3, 1]))
    with Episode.open(bag) as episode:
        assert (episode.metadata.outcome, episode.metadata.seed) == ("success", 3)
        states, commands = episode.joint_states, episode.commands
        assert len(states) == len(commands) + 1
        for i in range(len(commands)):
            assert states.stamps_ns[i] == commands.stamps_ns[i] == START_NS + i * CONTROL_PERIOD_NS
            assert np.array_equal(states.positions[i], world.joint_positions)
            action = expert.act()
            assert np.array_equal(commands.positions[i], action)
            if i == 30:
                mug = episode.tf.lookup("world", object_frame("mug"), START_NS + i * CONTROL_PERIOD_NS)
                assert np.allclose(mug, world.object_poses()["mug"], atol=1e-12)
                gripper = episode.world_from_grippers(START_NS + i * CONTROL_PERIOD_NS)["left"]
                assert np.allclose(gripper, world_from_gripper("left", states.positions[i]), atol=1e-12)
            world.step(action)
        final = episode.task_state[-1][1]
        assert final["success"] is world.success() is True
        assert final["text"] == world.text()


def test_images_come_at_their_rate_with_a_pose(bag):
    with Episode.open(bag) as episode:
        assert episode.cameras == CONFIG.cameras
        for camera in CONFIG.cameras:
            frames = episode.frames(camera)
            assert np.array_equal(frames.stamps_ns, START_NS + np.arange(len(frames)) * 1_000_000_000)
            last = len(frames) - 1
            assert frames.color(last).std() > 5
            depth_mm = frames.depth_mm(last)
            assert 300 < np.median(depth_mm[depth_mm > 0]) < 2000 or camera.startswith("wrist")
            assert episode.tf.lookup("world", optical_frame(camera), int(frames.stamps_ns[last])).shape == (4, 4)


def test_every_image_has_the_task_state_of_its_instant_as_in_the_live_simulation(tmp_path):
    """At the highest rate; the text, which is trained on, is what the world says there."""
    config = replace(CONFIG, cameras=("front_left",), image_rate_hz=25, randomise=Randomisation(latency=1.0))
    assert Demonstrator(config).demonstrate(3, tmp_path / "bag")["success"]
    world = World(CONFIG.task, look="primitive")
    world.reset(3)
    with Episode.open(tmp_path / "bag") as episode:
        told, texts = dict(episode.task_state), {}
        for tick, action in enumerate(episode.commands.positions):
            texts[START_NS + tick * CONTROL_PERIOD_NS] = world.text()
            world.step(action)
        images = [stamp for stamp in episode.frames("front_left").stamps_ns.tolist() if stamp in texts]
        assert len(images) > 100 and len(set(texts.values())) > 2
        assert [told[stamp]["text"] for stamp in images] == [texts[stamp] for stamp in images]
        ticks = [(stamp - START_NS) // CONTROL_PERIOD_NS for stamp, _ in episode.task_state]
        assert ticks[:-1] == [tick for tick in range(ticks[-1]) if tells_task_state(tick, 2)]


KILLED = """
from pathlib import Path
from test_demos import CONFIG
from clamp_ros.demos import make_demos
if __name__ == "__main__":
    make_demos(CONFIG, 4, Path({folder!r}), workers=2, progress=False)
"""


@pytest.mark.slow
def test_a_run_killed_and_continued_equals_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(folder=str(killed)))
    path = os.pathsep.join([*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path},
                          start_new_session=True) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not (killed / "demos.jsonl").exists() or not (killed / "demos.jsonl").read_text():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    summary = make_demos(CONFIG, 4, killed, workers=2, progress=False)
    assert 0 < summary.made < 4
    make_demos(CONFIG, 4, whole, workers=1, progress=False)
    bags = [sorted(p.name for p in folder.iterdir() if p.is_dir()) for folder in (whole, killed)]
    assert bags[0] == bags[1]
    assert len(bags[0]) == 4
    for name in bags[0]:
        assert content(whole / name) == content(killed / name)
    assert json.loads((killed / "summary.json").read_text())["episodes"] == 4
    assert make_demos(CONFIG, 4, killed, progress=False).made == 0
    assert multiprocessing.active_children() == []


def test_a_folder_holds_one_configuration(tmp_path):
    (tmp_path / "demos.json").write_text(json.dumps({"task": "mug_on_plate"}))
    with pytest.raises(ConfigError, match="task 'mug_on_plate' there and 'mug_on_plate_easy' here"):
        make_demos(CONFIG, 1, tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    import fcntl

    with (tmp_path / "demos.jsonl").open("a+") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(RecordError, match="another process"):
            make_demos(CONFIG, 1, tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"task": "mug_on_plat"}, "mug_on_plate"), ({"cameras": ("front",)}, "front_left"),
     ({"image_rate_hz": 7}, "divisor of 50"), ({"compression": "gzip"}, "zstd")],
)  # fmt: skip
def test_bad_settings_are_named(change, expected):
    with pytest.raises(ConfigError, match=expected):
        DemoConfig(**{"task": "mug_on_plate", **change})


def test_an_expert_that_always_fails_ends_the_run(tmp_path, monkeypatch):
    """Nineteen failures are in the log already; the twentieth in a row gives up."""
    rows = [{"seed": i, "success": False, "ticks": 1, "reason": "dropped it", "bytes": 0} for i in range(20)]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SimulationError, match="20 times in a row; the last time: dropped it"):
        make_demos(CONFIG, 1, tmp_path, progress=False)
    assert not bag_path(tmp_path, CONFIG.task, 0).exists()


def folder_of(path: Path, seeds: dict[int, bool], config: DemoConfig = CONFIG, **settings: object) -> Path:
    """A folder as a run leaves it: settings, a log with an outcome a seed, and something for a bag of each success."""
    path.mkdir()
    (path / "demos.json").write_text(json.dumps({**asdict(config), **settings}))
    for seed, success in seeds.items():
        row = {"seed": seed, "success": success, "ticks": 300, "reason": "" if success else "dropped <it>", "bytes": 8}
        with (path / "demos.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if success:
            bag = bag_path(path, config.task, seed)
            bag.mkdir()
            (bag / "x.mcap").write_text(f"bag {seed}")
    return path


@pytest.mark.parametrize(("episodes", "shards"), [(10, 3), (7, 7), (100, 8), (1, 1)])
def test_shards_share_the_episodes_and_no_seed(episodes, shards):
    parts = [shard_of(episodes, 1000, i, shards) for i in range(1, shards + 1)]
    assert sum(share for share, _ in parts) == episodes
    seeds = [seed for _, span in parts for seed in span]
    assert len(seeds) == len(set(seeds))
    assert seeds == sorted(seeds) and seeds[0] == 1000
    assert all(len(span) >= 2 * share for share, span in parts)
    for index in (0, shards + 1):
        with pytest.raises(ConfigError, match=f"shard is {index}/{shards}"):
            shard_of(episodes, 0, index, shards)


def test_merged_folders_hold_what_their_sources_do(tmp_path):
    a = folder_of(tmp_path / "a", {0: True, 1: False, 2: True})
    b = folder_of(tmp_path / "b", {100: True})
    out = tmp_path / "c"
    summary = merge([a, b], out)
    assert [row["seed"] for row in summary.rows] == [0, 1, 2, 100]
    assert [bag_path(out, CONFIG.task, s).joinpath("x.mcap").read_text() for s in (0, 2, 100)] == [
        "bag 0", "bag 2", "bag 100",
    ]  # fmt: skip
    assert (a / "demos.jsonl").read_text() + (b / "demos.jsonl").read_text() == (out / "demos.jsonl").read_text()
    # killed after two seeds, with a third bag half brought
    lines = (out / "demos.jsonl").read_text().splitlines(keepends=True)
    (out / "demos.jsonl").write_text("".join(lines[:2]))
    shutil.rmtree(bag_path(out, CONFIG.task, 100))
    (out / f"{CONFIG.task}_000100.partial").mkdir()
    bag_path(out, CONFIG.task, 2).joinpath("x.mcap").unlink()
    assert merge([a, b], out).to_dict() == summary.to_dict()
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [f"{CONFIG.task}_{s:06d}" for s in (0, 2, 100)]
    assert bag_path(out, CONFIG.task, 2).joinpath("x.mcap").read_text() == "bag 2"
    assert make_demos(CONFIG, 2, out, progress=False).made == 0  # and it can be gone on with


def test_folders_that_do_not_fit_are_not_merged(tmp_path):
    a = folder_of(tmp_path / "a", {0: True, 1: True})
    same = folder_of(tmp_path / "same", {1: False, 7: True})
    fast = folder_of(tmp_path / "fast", {9: True}, image_rate_hz=10)
    pen = folder_of(tmp_path / "pen", {9: True}, task="pen_in_container")
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"a and .*same have both played 1 seeds: 1;.*--shard"):
        merge([a, same], out)
    with pytest.raises(ConfigError, match=r"fast cannot be merged: image_rate_hz 1 in the first and 10 in .*fast"):
        merge([a, fast], out)
    with pytest.raises(ConfigError, match=r"task 'mug_on_plate_easy' in the first and 'pen_in_container' in .*pen"):
        merge([a, pen], out)
    with pytest.raises(RecordError, match=r"nowhere holds no demonstrations"):
        merge([a, tmp_path / "nowhere"], out)
    with pytest.raises(ConfigError, match="two or more different folders"):
        merge([a, a], out)
    assert not out.exists()
    taken = folder_of(tmp_path / "taken", {0: False})
    with pytest.raises(ConfigError, match=r"a and .*taken have both played"):
        merge([a, folder_of(tmp_path / "b", {5: True})], taken)


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "a", {0: True, 1: True})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Summary, "save", full)
        with pytest.raises(RecordError, match=r"cannot be kept in .*a: .*No space left.*same command again"):
            make_demos(CONFIG, 2, folder, progress=False)
        patch.setattr(shutil, "copytree", full)
        with pytest.raises(RecordError, match=r"merging into .*c failed: .*No space left"):
            merge([folder, folder_of(tmp_path / "b", {5: True})], tmp_path / "c")
    assert make_demos(CONFIG, 2, folder, progress=False).made == 0
    assert merge([folder, tmp_path / "b"], tmp_path / "c").to_dict()["episodes"] == 3


def test_a_disk_that_is_full_in_mid_episode_leaves_a_folder_that_the_same_command_goes_on_with(tmp_path):
    """By the bag's real writer, in the worker process, which the kernel lets write no file of that size."""
    config, folder = replace(CONFIG, cameras=("front_left",)), tmp_path / "a"
    with disk_that_is_full_after(100_000):
        with pytest.raises(RecordError) as refused:
            make_demos(config, 1, folder, workers=1, progress=False)
        assert re.search(r"a/\w+_000000 cannot be written: .*; make room, then run the same", str(refused.value))
        assert "recover" not in str(refused.value), "there is nothing to recover"
    assert sorted(path.name for path in folder.iterdir()) == ["demos.json", "demos.jsonl", "summary.json"]
    assert make_demos(config, 1, folder, workers=1, progress=False).made == 1
    assert audit(bag_path(folder, config.task, 0)).ok


def test_a_disk_that_is_full_from_the_start_leaves_a_folder_that_counts_as_new(tmp_path):
    with disk_that_is_full_after(0), pytest.raises(RecordError, match="make room, then run the same command again"):
        make_demos(CONFIG, 1, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["demos.jsonl"]
    (tmp_path / "demos.json").touch()  # as an older version has left it
    assert read_settings(tmp_path) is None
    check_settings(tmp_path, CONFIG)
    assert read_settings(tmp_path) == json.loads(json.dumps(asdict(CONFIG)))
    (tmp_path / "demos.json").write_text("")
    (tmp_path / "demos.jsonl").write_text("{}\n")
    with pytest.raises(RecordError, match=r"demos\.json is damaged: .*choose another folder"):
        read_settings(tmp_path)


def test_a_sheet_shows_how_each_episode_starts_and_ends(bag, tmp_path):
    folder = folder_of(tmp_path / "a", {3: True, 4: False})
    shutil.rmtree(bag_path(folder, CONFIG.task, 3))
    shutil.copytree(bag, bag_path(folder, CONFIG.task, 3))
    page = write_sheet(folder).read_text()
    assert page.count("data:image/jpeg") == 4  # two cameras
    assert "seed 3: success, 6.0 s" in page and "1 of 2 seeds" in page
    assert "seed 4: dropped &lt;it&gt;" in page
    with pytest.raises(RecordError, match="holds no demonstrations"):
        write_sheet(tmp_path)


def test_states_rendered_later_give_the_very_bag(tmp_path):
    """Looks, depth faults and latencies drawn by seed included; through the processes of both commands."""
    config = replace(CONFIG, cameras=("front_left",), randomise=Randomisation(1.0, 1.0, 1.0, 1.0, 1.0))
    at_once = tmp_path / "at_once"
    assert Demonstrator(config).demonstrate(3, at_once)["success"]
    make_demos(replace(config, states_only=True), 1, tmp_path / "states", seed=3, workers=1, progress=False)
    render_demos(tmp_path / "states", config, tmp_path / "later", workers=1, progress=False)
    later = bag_path(tmp_path / "later", CONFIG.task, 3)
    assert content(at_once) == content(later)
    assert audit(later).ok, audit(later).text()
    with Episode.open(at_once) as one, Episode.open(later) as other:
        assert one.metadata == other.metadata
        drawn = one.metadata.extra["randomised"]
        assert drawn["strengths"]["camera"] == 1.0
        pose = one.tf.lookup("world", "front_left_color_optical_frame", START_NS)
        assert np.allclose(pose[:3, 3], drawn["cameras"]["front_left"]["position_m"])
        color = one.stamps_ns("/front_left/color/image_raw")
        assert color[0] - START_NS == round(1e9 * drawn["image_latency_s"]) > 0
    page = write_sheet(tmp_path / "states").read_text()
    assert page.count("data:image/jpeg") == 2
    with pytest.raises(ConfigError, match="is of task mug_on_plate_easy"):
        render_demos(tmp_path / "states", replace(config, task="mug_on_plate"), tmp_path / "other")
    with pytest.raises(ConfigError, match="only folders made with --states-only"):
        render_demos(tmp_path / "later", config, tmp_path / "other")


def test_scores_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    results, played, version = tmp_path / "experts.jsonl", [], ["1.0 (abcdef0)"]

    def quick(world, seed, control=False):
        played.append((seed, control))
        return replace(first, seed=seed, control=control, success=not control, software=version[0])

    first = attempt(World(CONFIG.task, cameras={}, look="primitive"), 3)
    assert (first.success, first.attempts, first.reason) == (True, 1, "")
    monkeypatch.setattr("clamp_ros.demos.score.attempt", quick)
    monkeypatch.setattr("clamp_ros.demos.score.software_version", lambda: version[0])
    rows = list(score([CONFIG.task], range(3, 15), 2, results, "primitive"))[-1]
    assert played == [(3, False), (3, True), (4, False), (4, True), *((seed, False) for seed in range(5, 15))]
    text = results.read_text()
    results.write_text(text[:-20])
    played.clear()
    assert list(score([CONFIG.task], range(3, 15), 2, results, "primitive"))[-1] == rows
    assert played == [(14, False)] and read(results) == rows
    assert "| 12 of 12 = 100.0% | 76% to 100% | 0 | 0 of 2 |" in table(rows)
    asked = list(score([CONFIG.task], range(3, 5), 0, results, "primitive"))[-1]
    assert {row.seed for row in asked} == {3, 4}
    for version[0] in ("1.0 (1234567)", "1.0 (1234567-dirty)", "1.0 (1234567-dirty)"):
        played.clear()
        assert len(list(score([CONFIG.task], range(3, 15), 0, results, "primitive"))[-1]) == len(played) == 12
    with pytest.raises(ConfigError, match="did you mean 'mug_on_plate'"):
        next(score(["mug_on_plat"], range(1), 0, results))


def test_with_open_grippers_no_expert_succeeds():
    result = attempt(World(CONFIG.task, cameras={}, look="primitive"), 3, control=True)
    assert not result.success and result.reason.startswith("ended at stage")


def test_a_grid_shows_how_tasks_start_and_end_two_to_a_row_where_there_are_many(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"picture is tasks\.gif, expected a name that ends in \.png or \.jpg"):
        write_grid([CONFIG.task], Path("tasks.gif"))
    write_grid([CONFIG.task], tmp_path / "new" / "one.png", look="primitive")
    one = cv2.imread(str(tmp_path / "new" / "one.png"))
    assert one is not None
    height, width = one.shape[:2]
    start, end = one[: height - 30, : width // 2].astype(int), one[: height - 30, width // 2 :].astype(int)
    assert 50 < (np.abs(start - end).max(axis=2) > 60).sum() < 0.1 * start[..., 0].size, "the mug alone has moved"
    monkeypatch.setattr("clamp_ros.demos.sheet._start_and_end", lambda *_: [start.astype(np.uint8)] * 2)
    write_grid(["task"] * 5, tmp_path / "five.jpg")
    five = cv2.imread(str(tmp_path / "five.jpg"))
    assert five is not None
    assert five.shape[:2] == (3 * start.shape[0], 2 * width)
    assert five[2 * start.shape[0] + 20 :, width + 20 :].min() > 250, "an empty place stays white"
