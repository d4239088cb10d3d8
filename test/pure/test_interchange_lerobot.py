"""The real lerobot reads what is exported, where it is installed; it brings torch and much else, so often it is not."""

from __future__ import annotations

import numpy as np
import pytest
from interchange_bag import TICKS, image_of, joints_at, make_bag

from clamp_ros.interchange.aloha import aloha_from_positions
from clamp_ros.interchange.convert import export_bags

pytest.importorskip("lerobot")


def test_lerobot_reads_the_export(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

    make_bag(tmp_path / "bags/a")
    make_bag(tmp_path / "bags/b")
    export_bags([tmp_path / "bags"], "lerobot", tmp_path / "out")
    window = {"action": [i / 50 for i in range(50)]}
    dataset = LeRobotDataset("clamp/test", root=tmp_path / "out", delta_timestamps=window)
    assert dataset.num_episodes == 2 and dataset.num_frames == 2 * TICKS and dataset.fps == 50
    item = dataset[TICKS + 10]
    assert item["task"] == "mug_on_plate"
    np.testing.assert_allclose(item["observation.state"], aloha_from_positions(joints_at(10)), atol=1e-6)
    np.testing.assert_allclose(item["action"][5], aloha_from_positions(joints_at(15) + 0.01), atol=1e-6)
    first, (color, depth) = dataset[0], image_of("front_left", 0)
    np.testing.assert_allclose(255 * first["observation.images.front_left"].permute(1, 2, 0), color, atol=1e-3)
    assert np.array_equal(np.asarray(first["observation.images.front_left_depth"])[0].astype(np.uint16), depth)
