"""The interface table."""

from __future__ import annotations

import re

import pytest

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import (
    CAMERAS,
    SERVICES,
    TOPICS,
    Qos,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
    topic,
)


def test_names_are_absolute_valid_and_stand_once() -> None:
    names = [row.name for row in (*TOPICS, *SERVICES)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(/[a-z][a-z0-9_]*)+", name.removesuffix("/compressedDepth")) for name in names)


def test_types_are_full_interface_names_and_every_row_explains_itself() -> None:
    assert all(re.fullmatch(r"[a-z0-9_]+/msg/[A-Z][A-Za-z0-9]+", row.type) for row in TOPICS)
    assert all(re.fullmatch(r"[a-z0-9_]+/srv/[A-Z][A-Za-z0-9]+", row.type) for row in SERVICES)
    assert all(row.meaning for row in (*TOPICS, *SERVICES))


def test_every_camera_has_its_three_topics_in_its_own_frame() -> None:
    for camera in CAMERAS:
        for name in (color_topic(camera), depth_topic(camera), camera_info_topic(camera)):
            assert topic(name).qos is Qos.IMAGE
            assert topic(name).frame == optical_frame(camera)


def test_an_unknown_topic_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean '/joint_states'"):
        topic("/joint_state")
