"""Scores: results on disk, their statistics, and the report page. `clamp_ros.evaluate` plays the episodes."""
