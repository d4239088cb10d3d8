"""The cameras of the fault matrix, recorded as the SDK records: one that works, and those that do not.

    python test/faults/recordings.py FOLDER SECONDS

A process of its own, since the SDK and ROS share symbols and a recording takes as long as it plays.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from realsense_recording import Lens, Shot, record, shots

LENS = Lens(64, 48, 50.0, 31.5, 23.5)
LATE_S = 1.2
PERIOD_S = 0.1
"""10 Hz, whatever the stream claims: the matrix is about faults, not about throughput."""


def taken(count: int, lens: Lens = LENS) -> list[Shot]:
    """A table 0.9 m below."""
    frames = shots(range(1, count + 1), 0.9, 0.001, lens, lens)
    return [replace(shot, stamp_ms=1000.0 + 1000.0 * PERIOD_S * shot.number) for shot in frames]


def recordings(seconds: float) -> dict[str, tuple[Sequence[Shot], Lens, str, float]]:
    """What each shows: frames, lens, USB, and by how much all but the first five are late."""
    good = taken(round(seconds / PERIOD_S))
    some = good[:100]
    frozen = [*some[:5], *([some[4]] * (len(some) - 5))]
    small, wide = Lens(48, 32, 40.0, 23.5, 15.5), replace(LENS, f=80.0)
    dark = [replace(shot, depth=np.zeros_like(shot.depth)) for shot in some]
    drops = [replace(shot, number=3 * shot.number) for shot in some]
    return {
        "good": (good, LENS, "3.2", 0.0), "frozen": (frozen, LENS, "3.2", 0.0), "late": (some, LENS, "3.2", LATE_S),
        "size": (taken(10, small), small, "3.2", 0.0), "lens": (taken(len(some), wide), wide, "3.2", 0.0),
        "usb2": (some, LENS, "2.1", 0.0), "dark": (dark, LENS, "3.2", 0.0), "drops": (drops, LENS, "3.2", 0.0),
    }  # fmt: skip


def make(folder: Path, seconds: float, only: Sequence[str] = ()) -> None:
    """Records all at the same time."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(name: str, frames: Sequence[Shot], lens: Lens, usb: str, late_s: float) -> None:
        pauses = [PERIOD_S + (late_s if i == 4 else 0.0) for i in range(len(frames))]
        record(folder / f"{name}.db3", frames, unit_m=0.001, color=lens, depth=lens, name="D435", usb=usb,
               pauses_s=pauses)  # fmt: skip

    threads = [
        threading.Thread(target=one, args=(name, *what))
        for name, what in recordings(seconds).items() if not only or name in only
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    make(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
