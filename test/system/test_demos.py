"""Demonstrations: right bags, the same whatever interrupts them, and settings that cannot be mixed in one folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from clamp_ros.contract.errors import ConfigError, RecordError, SimulationError
from clamp_ros.contract.interfaces import object_frame
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.demos import DemoConfig, Demonstrator, bag_path, make_demos
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.simulation import START_NS
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
            frame = episode.rgbd(frames, len(frames) - 1)
            assert frame.color.std() > 5
            assert 300 < np.median(frame.depth_mm[frame.depth_mm > 0]) < 2000 or camera.startswith("wrist")


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
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
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
