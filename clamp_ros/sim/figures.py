"""Reads the robot's figures, `aloha2.json`: MuJoCo Menagerie's ALOHA 2 in SI units, quaternions wxyz."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def figures() -> dict[str, Any]:
    """The parsed file; its `source` entry says where each part comes from. It is shared: do not change it."""
    return json.loads(resources.files("clamp_ros.sim").joinpath("aloha2.json").read_text(encoding="utf-8"))
