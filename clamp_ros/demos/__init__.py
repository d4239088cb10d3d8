"""Demonstrations by scripted experts, in process: `clamp demos`."""

from clamp_ros.demos.make import Summary, bag_path, make_demos
from clamp_ros.demos.recording import DemoConfig, Demonstrator, WorldRecorder, task_state

__all__ = ["DemoConfig", "Demonstrator", "Summary", "WorldRecorder", "bag_path", "make_demos", "task_state"]
