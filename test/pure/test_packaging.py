"""The package's own files agree with each other and with the code."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

from clamp_ros.contract.interfaces import SERVICES, TOPICS

ROOT = Path(__file__).parents[2]
PYPROJECT = read_configuration(ROOT / "pyproject.toml", expand=False)
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
INTERFACE_PACKAGES = {row.type.split("/")[0] for row in (*TOPICS, *SERVICES)}


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=;! ]", requirement)[0].lower().replace("_", "-")


def _pins() -> dict[str, list[str]]:
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert "==" in line, line
            pins.setdefault(_name(line), []).append(line.split("==")[1].split(";")[0].strip())
    return pins


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_dependency_is_held_by_the_constraints(extra):
    pins = _pins()
    wanted = EXTRAS[extra] if extra else PYPROJECT["project"]["dependencies"]
    assert [requirement for requirement in wanted if _name(requirement) not in pins] == []


def test_versions_that_are_known_to_matter():
    pins = _pins()
    assert pins["mujoco"] == ["3.17.0"]
    assert pins["torch"] == ["2.13.0"]
    assert "torchvision" not in pins, "it would replace torch"


def test_neither_torch_nor_ros_is_needed_to_run():
    names = {_name(requirement) for requirement in PYPROJECT["project"]["dependencies"]}
    assert not [name for name in names if name.startswith(("torch", "onnxscript", "ros-"))]


def test_ros_dependencies_are_those_of_the_interfaces():
    depends = {element.text for element in ElementTree.parse(ROOT / "package.xml").getroot().iter("exec_depend")}
    assert depends >= INTERFACE_PACKAGES | {"rclpy", "launch_ros"}
    wheels = {_name(requirement) for requirement in EXTRAS["ros"]}
    missing = {package for package in INTERFACE_PACKAGES if f"ros-{package.replace('_', '-')}" not in wheels}
    assert missing == {"tf2_msgs"}, "all but tf2_msgs, which is generated, come as wheels"


def test_ros_stays_in_its_rooms():
    lint = PYPROJECT["tool"]["ruff"]["lint"]
    assert set(lint["flake8-tidy-imports"]["banned-api"]) >= INTERFACE_PACKAGES | {"rclpy", "launch"}
    exceptions = {path for path, rules in lint["per-file-ignores"].items() if "TID251" in rules}
    assert {path for path in exceptions if path.startswith("clamp_ros")} == {
        "clamp_ros/**/*_node.py", "clamp_ros/ros/*", "clamp_ros/bringup/*",
    }  # fmt: skip


def test_shipped_policies_hold_no_paths_of_the_machine_that_exported_them():
    networks = sorted((ROOT / "models").glob("*/*.onnx"))
    assert networks
    for path in networks:
        assert b"stack_trace" not in path.read_bytes() and b".py" not in path.read_bytes(), path


def test_one_version_everywhere():
    import clamp_ros

    version = ElementTree.parse(ROOT / "package.xml").getroot().findtext("version")
    assert clamp_ros.__version__ == version == PYPROJECT["project"]["version"]
