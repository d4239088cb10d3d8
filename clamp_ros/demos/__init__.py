"""Demonstrations by scripted experts, in process: `clamp demos`."""

from clamp_ros.demos.folder import Summary, bag_path
from clamp_ros.demos.make import make_demos, render_demos
from clamp_ros.demos.recording import DemoConfig, Demonstrator, WorldRecorder, task_state

__all__ = [
    "DemoConfig",
    "Demonstrator",
    "Summary",
    "WorldRecorder",
    "bag_path",
    "make_demos",
    "render_demos",
    "task_state",
]
