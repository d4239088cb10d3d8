"""What a camera's frame costs: the SDK alone, then depth aligned, in true units and without distortion, then packed.

    python test/bench/bench_cameras.py

848x480 recordings of an emulated D435 and D405, made by the SDK's recorder and played through the production pipeline.
Processor time of the whole process a frame; the SDK's share is mostly its reading of the file.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyrealsense2 as rs

sys.path.insert(0, str(Path(__file__).parents[1]))
from realsense_recording import Lens, Shot, record

from clamp_ros.camera.images import jpeg, png_depth
from clamp_ros.camera.realsense import RealSense
from clamp_ros.camera.settings import CameraSettings

FRAMES = 60
LENS = Lens(848, 480, 425.0, 423.5, 239.5)
BENT = replace(LENS, model=rs.distortion.inverse_brown_conrady, coefficients=(-0.055, 0.06, 0.0003, 0.0005, -0.02))


def scene(unit_m: float) -> list[Shot]:
    """A slanted, textured wall with a millimetre of noise."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:480, :848]
    color = (rng.integers(0, 60, (480, 848, 3)) + u[..., None] // 5).astype(np.uint8)
    depth = ((0.6 + 0.0005 * u + 0.0003 * v + rng.normal(0.0, 0.001, u.shape)) / unit_m).astype(np.uint16)
    return [Shot(n, 1000.0 + 1000.0 * n / 30.0, color, depth) for n in range(1, FRAMES + 1)]


def cost_ms(camera: RealSense, handle: Callable[[Any], Any]) -> tuple[float, int]:
    """Processor time a frame that was read and handled, ms; and how many were."""
    camera.open()
    playback = camera._pipeline.get_active_profile().get_device().as_playback()
    begun_s, count = time.process_time(), 0
    while playback.current_status() == rs.playback_status.playing:
        frame = camera.read(0.2)
        if frame is not None:
            count += 1
            handle(frame)
    spent_s = time.process_time() - begun_s
    camera.close()
    return 1e3 * spent_s / max(count, 1), count


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, unit_m, lens in (("D435", 0.001, LENS), ("D405", 0.0001, BENT)):
            path = Path(folder) / f"{name}.db3"
            record(path, scene(unit_m), unit_m=unit_m, color=lens, depth=LENS, color_at_m=(0.015, 0.0, 0.0), name=name)
            camera = RealSense(name, CameraSettings(recording=str(path), warmup_frames=0), lambda *_: None)
            ways: dict[str, Callable[[Any], Any]] = {
                "frame": lambda f: None,
                "frame, millimetres": lambda f: f.scale.millimetres(f.raw_depth),
                "frame, metres": lambda f: f.scale.metres(f.raw_depth),
                "frame, JPEG": lambda f: jpeg(f.color, 90),
                "frame, PNG": lambda f: png_depth(f.scale.millimetres(f.raw_depth), 1),
            }
            convert = camera._convert
            camera._convert = lambda frames, stamp_ns: frames  # the SDK alone
            base, count = cost_ms(camera, lambda f: None)
            print(f"{name}: the SDK alone {base:.1f} ms a frame, {count} frames of {FRAMES}")
            camera._convert = convert
            for what, handle in ways.items():
                total, count = cost_ms(camera, handle)
                print(f"{name}: {what}: {total - base:+.1f} ms, {total / base:.2f}x the SDK alone, {count} frames")


if __name__ == "__main__":
    main()
