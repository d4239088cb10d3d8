"""Players for the worker processes, which find this module by name: each ends some episodes as policies can."""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn

from score_rows import STAGES, episode

from clamp_ros.contract.errors import ArtifactError, RecordError
from clamp_ros.score.results import Row, row
from clamp_ros.score.workers import Beat, Player

CRASHES, STALLS, DISK_FULL = 3, 5, 7


def lost(seed: int, outcome: str, reason: str, seconds: float, reached: dict[str, float], wall_s: float) -> Row:
    return row(seed, outcome, STAGES, reached, seconds=seconds, reason=reason, wall_s=wall_s)


def play(seed: int, beat: Beat) -> Row:
    beat(1.5, {"reaching": 1.2})
    if seed == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    if seed == STALLS:
        time.sleep(3600)
    if seed == DISK_FULL:
        raise RecordError("the film cannot be written")
    return {**episode(seed, True), "pid": os.getpid()}


def make() -> Player:
    return play


def refuse() -> NoReturn:
    raise ArtifactError("no such policy")


def crash() -> NoReturn:
    os._exit(3)
