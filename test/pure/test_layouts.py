"""The layouts for Foxglove and RViz show topics and frames that the stack has."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from clamp_ros.contract.interfaces import CAMERAS, TOPICS, camera_info_topic, color_topic
from clamp_ros.contract.robot import NUM_JOINTS
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.share import share_folder

TYPES = {topic.name: topic.type for topic in TOPICS}
FOXGLOVE = json.loads((share_folder() / "config" / "foxglove.json").read_text())
RVIZ = yaml.safe_load((share_folder() / "config" / "aloha.rviz").read_text())
FIELDS = {
    "sensor_msgs/msg/JointState": {"name", "position", "velocity", "effort"},
    "diagnostic_msgs/msg/DiagnosticStatus": {"level", "name", "message"},
    "std_msgs/msg/Header": {"stamp", "frame_id"},
}


def strings(value: Any) -> list[str]:
    """Every string and key of a JSON value."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in [key, *strings(item)]]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_foxglove_names_only_topics_and_fields_of_the_table():
    paths = [text for text in strings(FOXGLOVE) if text.startswith("/")]
    assert len(paths) > 20
    for path in paths:
        match = re.fullmatch(r"((?:/\w+)+)(?:\.(\w+)(?:\[(\d+)\])?)?", path)
        assert match, path
        topic, field, index = match.groups()
        assert topic in TYPES, path
        assert field is None or field in FIELDS[TYPES[topic]], path
        assert index is None or int(index) < NUM_JOINTS, path


def test_foxglove_shows_each_panel_once():
    def panels(node: Any) -> list[str]:
        return [node] if isinstance(node, str) else [*panels(node["first"]), *panels(node["second"])]

    shown = panels(FOXGLOVE["layout"])
    assert sorted(shown) == sorted(FOXGLOVE["configById"])
    images = [panel["imageMode"] for name, panel in FOXGLOVE["configById"].items() if name.startswith("Image!")]
    assert images == [
        {"imageTopic": color_topic(camera), "calibrationTopic": camera_info_topic(camera)} for camera in CAMERAS
    ]


def test_every_joint_is_plotted_as_measured_and_as_commanded():
    plotted = {
        path["value"]
        for name, panel in FOXGLOVE["configById"].items()
        if name.startswith("Plot!")
        for path in panel["paths"]
    }
    topics = ("/joint_states", "/joint_commands")
    assert plotted == {f"{topic}.position[{joint}]" for topic in topics for joint in range(NUM_JOINTS)}


def test_rviz_shows_topics_of_the_table_by_displays_of_their_type():
    kinds = {"Image": "sensor_msgs/msg/Image", "PointCloud2": "sensor_msgs/msg/PointCloud2"}
    manager = RVIZ["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == WORLD_FRAME
    shown = [display for display in manager["Displays"] if "Topic" in display]
    assert {color_topic(camera) for camera in CAMERAS} <= {display["Topic"]["Value"] for display in shown}
    for display in shown:
        assert TYPES[display["Topic"]["Value"]] == kinds[display["Class"].split("/")[1]], display["Name"]

