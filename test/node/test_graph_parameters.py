"""Every parameter of the graph and of the YAML files in config/ is declared by its node, and has the right type."""

from __future__ import annotations

import importlib
import inspect
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rclpy.node import Node
from tiny_artifact import build_tiny_artifact

from clamp_ros.bringup import graph, up
from clamp_ros.contract.errors import ConfigError
from clamp_ros.ros import params
from clamp_ros.share import share_folder

MODULES = {
    "arm_node": "clamp_ros.arm.arm_node",
    "camera_node": "clamp_ros.camera.camera_node",
    "mujoco_node": "clamp_ros.sim.mujoco_node",
    "fusion_node": "clamp_ros.fusion.fusion_node",
    "policy_node": "clamp_ros.policy.policy_node",
    "control_node": "clamp_ros.control.control_node",
    "recorder_node": "clamp_ros.record.recorder_node",
    "teleop_node": "clamp_ros.arm.teleop_node",
}
CONFIGS = sorted(path for path in (share_folder() / "config").glob("*.yaml") if path.stem != "cameras")
"""Laid over the simulation's graph; cameras.yaml is the hardware's, and test_camera_node.py reads it."""


def _config_class(node: str) -> type:
    """The dataclass that a node declares its parameters from."""
    module = importlib.import_module(MODULES[node])
    source = inspect.getsource(module)
    name = source.split("declare(self, ")[1].split(",")[0].split(")")[0]
    return getattr(module, name)


def _declare(ros: Any, node: str, arguments: list[str]) -> Any:
    """What a node of that name makes of a command line's parameters."""
    shell = ros.add(Node(node, cli_args=arguments))
    return params.declare(shell, _config_class(node))


def _nodes(tmp_path: Path, **given: str) -> tuple[graph.Node, ...]:
    build_tiny_artifact(tmp_path / "policy")
    return graph.aloha_policy({"sim": "true", "policy": str(tmp_path / "policy"), "record": "true", **given})


@pytest.mark.parametrize("sim", ["true", "false"])
@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"arm_node", "camera_node", "teleop_node"}))
def test_a_node_takes_what_the_graph_gives_it(ros, tmp_path, name, sim):
    node = next((node for node in _nodes(tmp_path, seed="5", sim=sim) if node.name == name), None)
    if node is None:
        assert (name, sim) == ("mujoco_node", "false")
        return
    assert node.module == MODULES[name]
    config = _declare(ros, name, up.command(node)[3:])
    for parameter, value in node.parameters.items():
        if parameter != "use_sim_time":
            declared = attrgetter(parameter)(config)
            assert (list(declared) if isinstance(declared, tuple) else declared) == value


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.startswith("sim_")], ids=lambda path: path.stem)
def test_a_parameter_file_of_the_repository_is_taken_by_its_nodes(ros, tmp_path, path):
    nodes = {node.name: node for node in _nodes(tmp_path, config=str(path))}
    for name, section in graph.load_parameter_file(path).items():
        config = _declare(ros, name, up.command(nodes[name])[3:])
        for parameter, value in section["ros__parameters"].items():
            assert getattr(config, parameter) == value, "a file lies over the graph's values"


def test_the_arms_parameter_file_is_taken_by_their_node(ros, tmp_path):
    path = share_folder() / "config/arms.yaml"
    node = next(node for node in _nodes(tmp_path, sim="false") if node.name == "arm_node")
    assert node.files == (path,) and node.module == MODULES["arm_node"]
    config = _declare(ros, "arm_node", up.command(node)[3:])
    sections = graph.load_parameter_file(path)
    assert list(sections) == ["arm_node"]
    for side, parameters in sections["arm_node"]["ros__parameters"].items():
        for parameter, value in parameters.items():
            declared = getattr(getattr(config, side), parameter)
            assert (list(declared) if isinstance(declared, tuple) else declared) == value
        assert getattr(config, side).units(), "the gripper's angles make a map"


@pytest.mark.parametrize("name", ["control_node", "recorder_node", "teleop_node"])
def test_a_node_takes_what_the_graph_of_teleoperation_gives_it(ros, name):
    made = graph.aloha_teleop({"sim": "true", "record": "true", "operator": "Ada", "leaders": "/dev/ttyOTHER"})
    node = next(node for node in made if node.name == name)
    assert node.module == MODULES[name]
    config = _declare(ros, name, up.command(node)[3:])
    for parameter, value in node.parameters.items():
        declared: Any = config
        for part in parameter.split(".") if parameter != "use_sim_time" else ():
            declared = getattr(declared, part)
        if parameter != "use_sim_time":
            assert (list(declared) if isinstance(declared, tuple) else declared) == value
    if name == "teleop_node":
        assert config.left.port == "/dev/ttyOTHER_left" and config.right.port == "/dev/ttyOTHER_right"
        assert node.files == (share_folder() / "config/leaders.yaml",)
        for side in (config.left, config.right):
            assert side.units().gripper.closed_raw == -0.0552, "the file lies over the defaults"


@pytest.mark.parametrize("sim", ["true", "false"])
@pytest.mark.parametrize("by", ["policy", "teleop", "replay"])
def test_the_recorder_takes_what_the_graph_of_a_session_gives_it(ros, tmp_path, by, sim):
    build_tiny_artifact(tmp_path / "policy")
    made = graph.aloha_record({"sim": sim, "by": by, "policy": str(tmp_path / "policy"), "keep_s": "3"})
    node = next(node for node in made if node.name == "recorder_node")
    config = _declare(ros, "recorder_node", up.command(node)[3:])
    assert config.keep_s == 3.0
    assert len(config.calibration) == (0 if sim == "true" else 2)


@pytest.mark.parametrize("sim", ["true", "false"])
def test_the_gates_limits_are_taken_by_the_control_node(ros, tmp_path, sim):
    path = share_folder() / "config/safety.yaml"
    node = next(node for node in _nodes(tmp_path, sim=sim) if node.name == "control_node")
    assert node.files == (path,)
    config = _declare(ros, "control_node", up.command(node)[3:])
    sections = graph.load_parameter_file(path)
    assert list(sections) == ["control_node"]
    for group, parameters in sections["control_node"]["ros__parameters"]["safety"].items():
        for parameter, value in parameters.items():
            assert list(getattr(getattr(config.safety, group), parameter)) == value
    assert config.safety.clearance.enabled, "on by default, in the simulation too"


def test_there_are_parameter_files_to_test():
    assert {path.stem for path in CONFIGS} >= {"arms", "leaders", "safety", "sim_d435", "sim_delays"}


def test_an_unknown_key_of_a_parameter_file_fails_at_start_with_the_nearest_name(ros, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"control_node": {"ros__parameters": {"execute_step": 10}}}))
    node = next(node for node in _nodes(tmp_path, config=str(path)) if node.name == "control_node")
    with pytest.raises(ConfigError, match=r"control_node 'execute_step'; did you mean 'execute_steps'"):
        _declare(ros, "control_node", up.command(node)[3:])
