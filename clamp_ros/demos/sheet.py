"""Pictures to look through demonstrations by: a contact sheet of a folder, and a grid of what the tasks look like."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import ConfigError, RecordError, SimulationError
from clamp_ros.contract.robot import CONTROL_RATE_HZ
from clamp_ros.demos.folder import Row, Summary, bag_path, config_of, finished, locked
from clamp_ros.demos.recording import DemoConfig
from clamp_ros.demos.states import load
from clamp_ros.record.episode import Episode
from clamp_ros.sim.cameras import OVERVIEW_CAMERA, fixed_camera
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.render import Renderer
from clamp_ros.sim.world import World

Picture = NDArray[np.uint8]
SHEET_FILE = "sheet.html"
MOST = 200
"""Episodes on a sheet, spread evenly over the folder."""
_WIDTH_PX = 300
_GRID_CAMERA = fixed_camera("grid", (0.0, -0.66, 0.66), (0.0, 0.01, 0.06), 42.0, width=480, height=270)
"""Nearer than the overview, so that things are seen rather than arms."""
_ONE_COLUMN = 4
"""Up to so many tasks are below one another in a grid."""
_STYLE = """body{font:15px sans-serif;margin:24px;color:#222}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(430px,1fr));gap:14px}
figure{margin:0;border:1px solid #ccc;padding:6px;display:grid;grid-template-columns:1fr 1fr;gap:4px}
figure img{width:100%}figcaption{grid-column:1/3}td,th{padding:2px 14px 2px 0;text-align:left}.bad{color:#a11}"""


def write_sheet(folder: Path) -> Path:
    """Writes sheet.html into a folder of demonstrations: how each episode starts and ends, and which seeds failed.

    Raises:
        RecordError: the folder holds no demonstrations, or the disk refuses.
    """
    config = config_of(folder)
    with locked(folder) as log:
        rows = [row for _, row in sorted(finished(log, folder, config.task).items())]
    good = [row for row in rows if row["success"]]
    shown = [good[i] for i in np.unique(np.linspace(0, len(good) - 1, min(MOST, len(good))).astype(int))]
    frames = _state_frames(config, folder, shown) if config.states_only else _bag_frames(config, folder, shown)
    figures = [_figure(row, pictures) for row, pictures in zip(shown, frames, strict=True)]
    summary = Summary(config, rows).to_dict()
    facts = {
        "task": config.task, "episodes": f"{len(good)} of {len(rows)} seeds; shown: {len(shown)}",
        "mean length": f"{summary['mean_seconds']} s", "size": f"{summary['megabytes']} MB",
        "cameras": ", ".join(config.cameras),
        "randomised": ", ".join(f"{k}={v:g}" for k, v in summary["randomise"].items() if v) or "no",
    }  # fmt: skip
    lines = "".join(f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items())
    bad = "".join(f"<li>seed {r['seed']}: {html.escape(r['reason'])}</li>" for r in rows if not r["success"])
    page = (
        f"<!doctype html><meta charset=utf-8><title>{config.task}</title><style>{_STYLE}</style>"
        f"<h1>{config.task}: demonstrations</h1><table>{lines}</table>"
        f"<h2>Start (left) and end (right) of each</h2><main>{''.join(figures)}</main>"
        f"<h2>Seeds that failed, of which nothing is kept</h2><ul class=bad>{bad or '<li>none</li>'}</ul>\n"
    )
    path = folder / SHEET_FILE
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error}") from error
    return path


def _bag_frames(config: DemoConfig, folder: Path, rows: Iterable[Row]) -> Iterable[list[Picture]]:
    for row in rows:
        with Episode.open(bag_path(folder, config.task, row["seed"])) as episode:
            pictures = []
            for camera in config.cameras[:2]:
                frames = episode.frames(camera)
                pictures += [frames.color(0), frames.color(len(frames) - 1)]
        yield pictures


def _state_frames(config: DemoConfig, folder: Path, rows: Iterable[Row]) -> Iterable[list[Picture]]:
    world = World(config.task, look=config.look, assets=config.assets)
    with Renderer(world.model, [OVERVIEW_CAMERA]) as renderer:
        for row in rows:
            states, _, _ = load(bag_path(folder, config.task, row["seed"]))
            pictures = []
            for state in (states[0], states[-1]):
                world.set_state(state)
                pictures.append(renderer.render(world.data, OVERVIEW_CAMERA.name)[0])
            yield pictures


def _figure(row: Row, pictures: Sequence[Picture]) -> str:
    images = "".join(f'<img src="data:image/jpeg;base64,{_jpeg(picture)}">' for picture in pictures)
    seconds = row["ticks"] / CONTROL_RATE_HZ
    return f"<figure>{images}<figcaption>seed {row['seed']}: success, {seconds:.1f} s</figcaption></figure>"


def _jpeg(picture: Picture) -> str:
    height = round(_WIDTH_PX * picture.shape[0] / picture.shape[1])
    small = cv2.resize(picture, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    good, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not good:
        raise RecordError("a picture cannot be written as JPEG")
    return base64.b64encode(data.tobytes()).decode()


def write_grid(
    tasks: Sequence[str], path: Path, *, seed: int = 0, look: str = "auto", assets: Path | None = None
) -> None:
    """Writes a picture of tasks, two in a row where there are many: how an episode of its expert starts and ends.

    The first seed from `seed` on that succeeds is shown.

    Args:
        tasks: names.
        path: ends in .png or .jpg.
        seed: the first to try.
        look: of the robot.
        assets: folder of objects in place of our own.

    Raises:
        ConfigError: the path ends otherwise.
        SimulationError: a task is unknown, or its expert fails on 10 seeds.
        RecordError: the picture cannot be written.
    """
    if path.suffix not in (".png", ".jpg"):
        raise ConfigError(f"picture is {path}, expected a name that ends in .png or .jpg")
    pairs = [np.hstack(_start_and_end(task, seed, look, assets)) for task in tasks]
    columns = 1 if len(pairs) <= _ONE_COLUMN else 2
    pairs += [np.full_like(pairs[0], 255)] * (-len(pairs) % columns)
    grid = np.vstack([np.hstack(pairs[i : i + columns]) for i in range(0, len(pairs), columns)])
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85] if path.suffix == ".jpg" else []
    data = cv2.imencode(path.suffix, grid[..., ::-1], quality)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error}") from error


def _start_and_end(task: str, first: int, look: str, assets: Path | None) -> list[Picture]:
    world = World(task, look=look, assets=assets)
    with Renderer(world.model, [_GRID_CAMERA]) as renderer:
        for seed in range(first, first + 10):
            world.reset(seed)
            start, _ = renderer.render(world.data, _GRID_CAMERA.name)
            expert = make_expert(world, np.random.default_rng([seed, 1]))
            while not expert.done and world.time_ns < 1e9 * world.task.max_seconds:
                world.step(expert.act())
            if world.success():
                end, _ = renderer.render(world.data, _GRID_CAMERA.name)
                return [_named(start, f"{task}, seed {seed}"), _named(end, f"{world.time_ns / 1e9:.1f} s")]
    raise SimulationError(f"the expert of {task} failed on seeds {first} to {first + 9}")


def _named(picture: Picture, text: str) -> Picture:
    named = np.ascontiguousarray(picture)
    cv2.putText(named, text, (8, picture.shape[0] - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (20, 20, 20), 1, cv2.LINE_AA)
    return named
