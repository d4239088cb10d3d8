"""The demonstration's picture and the film it becomes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clamp_ros.bringup.picture import WIDTH, color_views, compose
from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.views import TILED_SHAPE, VIEW_SIZE
from clamp_ros.sim import film


def _views(height_m: float) -> np.ndarray:
    views = np.zeros(TILED_SHAPE, np.float32)
    views[50:100, 50:100] = (0.7, 0.1, 0.1, height_m)
    return views


def test_height_decides_the_hue_and_nothing_seen_stays_dark():
    low, high = color_views(_views(0.0)), color_views(_views(0.4))
    assert low.shape == (VIEW_SIZE, WIDTH, 3) and low.dtype == np.uint8
    assert low[75, 75, 2] > low[75, 75, 0], "the table is blue"
    assert high[75, 75, 0] > high[75, 75, 2], "what is high is red"
    assert low[150, 150].max() < 40


def test_a_step_in_depth_is_an_edge():
    views = np.zeros(TILED_SHAPE, np.float32)
    views[..., 0], views[..., 3] = 1.0, 0.2
    views[:, 100:, 0] = 0.9
    colors = color_views(views).astype(int)
    assert colors[50, 100].sum() < colors[50, 99].sum()


@pytest.mark.parametrize("cameras", [0, 1, 2, 4])
def test_the_picture_has_a_size_that_films_can_have(cameras):
    images = {f"camera{i}": np.full((240, 424, 3), 200, np.uint8) for i in range(cameras)}
    picture = compose(images, _views(0.1))
    assert picture.shape[1] == WIDTH and picture.shape[0] % 2 == 0
    assert picture.dtype == np.uint8


def test_a_film_is_h264_and_has_its_name_only_when_complete(tmp_path):
    path = tmp_path / "film.mp4"
    with film.Film(path, 64, 48, fps=10) as reel:
        for i in range(20):
            reel.add(np.full((48, 64, 3), 10 * i, np.uint8), ["a line"])
        assert not path.exists()
    probe = subprocess.run([film._ffmpeg(), "-i", str(path)], capture_output=True, text=True, check=False).stderr
    assert "Video: h264" in probe and "yuv420p" in probe and "Duration: 00:00:02.00" in probe


def test_a_film_that_is_broken_off_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), film.Film(tmp_path / "film.mp4", 64, 48) as reel:
        reel.add(np.zeros((48, 64, 3), np.uint8), ["a line"])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_cannot_be_written_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(film, "_ffmpeg", lambda: "false")
    path, picture = tmp_path / "film.mp4", np.zeros((480, 640, 3), np.uint8)
    with pytest.raises(SimulationError, match=r"film\.mp4 cannot be written"), film.Film(path, 640, 480) as reel:
        for _ in range(10):
            reel.add(picture, ["a line"])


def test_the_systems_ffmpeg_will_do(monkeypatch, tmp_path):
    own = tmp_path / "ffmpeg"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(film._ffmpeg()) == own
    own.unlink()
    with pytest.raises(SimulationError, match="apt-get install -y ffmpeg"):
        film._ffmpeg()
