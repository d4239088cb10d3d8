"""The launch files say what the graphs say, and so does `clamp up`.

launch and launch_ros come with ROS and are not on PyPI, so recording stand-ins take their place: the test is about what
the files ask of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros.bringup import graph, up
from clamp_ros.contract.errors import ConfigError
from clamp_ros.share import share_folder

LAUNCH = share_folder() / "launch"


class _Recorded:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


@pytest.fixture
def launching(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`clamp_ros.bringup.launching` over recording stand-ins of launch's classes."""
    for name, classes in {
        "launch": ("LaunchDescription",),
        "launch.actions": ("DeclareLaunchArgument", "OpaqueFunction"),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
    }.items():
        module = ModuleType(name)
        for cls in classes:
            setattr(module, cls, type(cls, (_Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "clamp_ros.bringup.launching", raising=False)
    module = importlib.import_module("clamp_ros.bringup.launching")
    monkeypatch.setitem(sys.modules, "clamp_ros.bringup.launching", module)  # and gone again after the test
    return module


def _entities(name: str) -> list[Any]:
    """What launch gets from the launch file of a graph."""
    path = LAUNCH / f"aloha_{name}.launch.py"
    spec = importlib.util.spec_from_file_location(f"aloha_{name}_launch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description().args[0]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    build_tiny_artifact(folder)
    return str(folder)


def _context(name: str, given: dict[str, str]) -> Any:
    values = {argument.name: argument.default for argument in graph.GRAPHS[name][0]} | given
    return SimpleNamespace(
        argv=[f"{name}:={value}" for name, value in given.items()], launch_configurations=values, is_shutdown=False
    )


def test_every_graph_has_a_launch_file_and_no_launch_file_is_without_one():
    assert {path.name for path in LAUNCH.glob("*.launch.py")} == {f"aloha_{name}.launch.py" for name in graph.GRAPHS}


@pytest.mark.parametrize("name", graph.GRAPHS)
def test_every_argument_is_declared_with_its_default_text_and_choices(launching, name):
    *entities, last = _entities(name)
    assert list(last.kwargs) == ["function"]
    declared = [
        (entity.args[0], entity.kwargs["default_value"], entity.kwargs["description"], entity.kwargs["choices"])
        for entity in entities
    ]
    assert declared == [(a.name, a.default, a.doc, list(a.choices) or None) for a in graph.GRAPHS[name][0]]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("policy", {}),
        ("policy", {"record": "true", "config": "sim_delays", "cameras": "front_left"}),
        ("record", {"keep_s": "3"}),
        ("record", {"by": "replay", "cameras": "wrist_left"}),
        ("record", {"sim": "false", "images": "compressed"}),
    ],
)
def test_launch_and_clamp_up_start_the_nodes_of_the_graph(launching, policy, name, extra):
    given = {"sim": "true", "policy": policy, **extra}
    nodes = graph.GRAPHS[name][1](given)
    actions = _entities(name)[-1].kwargs["function"](_context(name, given))
    for node, action in zip(nodes, actions, strict=True):
        asked = action.kwargs
        assert (asked["package"], asked["executable"], asked["name"]) == (graph.PACKAGE, node.name, node.name)
        assert asked["parameters"] == [dict(node.parameters), *map(str, node.files)]
        assert dict(asked["remappings"]) == dict(node.remaps)
        assert asked["respawn"] is node.restart
        assert (asked["respawn_delay"], asked["respawn_max_retries"]) == (graph.RESTART_DELAY_S, graph.RESTARTS)
        executable = (share_folder() / "scripts" / "nodes" / node.name).read_text()
        assert f"from {node.module} import main" in executable, "ros2 run and clamp up would start different things"
    assert [node.name for node in up.Runner(nodes).nodes] == [node.name for node in nodes]


def test_an_unknown_argument_on_the_command_line_of_launch_is_refused(launching):
    with pytest.raises(ConfigError, match=r"unknown launch argument 'simm'; did you mean 'sim'\?"):
        _entities("policy")[-1].kwargs["function"](_context("policy", {"simm": "true"}))


def test_the_death_of_a_required_node_ends_launch_with_an_error_and_a_restart_does_not(launching):
    died, context = SimpleNamespace(returncode=1), _context("policy", {})
    required = launching.Death(graph.Node("mujoco_node", "m"))
    with pytest.raises(RuntimeError, match="mujoco_node ended"):
        required(died, context)
    restartable = launching.Death(graph.Node("policy_node", "m", restart=True))
    for _ in range(graph.RESTARTS):
        restartable(died, context)
    with pytest.raises(RuntimeError, match="policy_node ended"):
        restartable(died, context)
    context.is_shutdown = True
    launching.Death(graph.Node("mujoco_node", "m"))(died, context)
