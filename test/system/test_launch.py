"""The launch files say what the graphs say, and so do `clamp up` and `clamp teleop`.

launch and launch_ros come with ROS and are not on PyPI, so recording stand-ins take their place: the test is about what
the files ask of them. `test_launch_service` runs the real ones, where they are.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros.bringup import graph, up
from clamp_ros.contract.errors import ConfigError
from clamp_ros.share import share_folder

LAUNCHING = "clamp_ros.bringup.launching"


class _Recorded:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


@pytest.fixture(autouse=True)
def launching(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the launch files share, over recording stand-ins of launch's classes."""
    for name, classes in {
        "launch": ("LaunchContext", "LaunchDescription"),
        "launch.actions": ("DeclareLaunchArgument", "OpaqueFunction"),
        "launch.events": (),
        "launch.events.process": ("ProcessExited",),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
    }.items():
        module = ModuleType(name)
        for cls in classes:
            setattr(module, cls, type(cls, (_Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.find_spec(LAUNCHING)
    assert spec is not None
    return _load(LAUNCHING, spec.origin, monkeypatch)


def _load(name: str, path: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[f"aloha_{name}" for name in graph.GRAPHS])
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """A launch file's entities, and the arguments and the graph that it is about."""
    path = share_folder() / "launch" / f"{request.param}.launch.py"
    arguments = graph.GRAPHS[request.param.removeprefix("aloha_")][0]
    entities = _load(f"{request.param}_launch", path, monkeypatch).generate_launch_description().args[0]
    return entities, arguments, getattr(graph, request.param)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    build_tiny_artifact(folder)
    return str(folder)


def _context(given: dict[str, str], arguments: Any = graph.ARGUMENTS) -> Any:
    values = {argument.name: argument.default for argument in arguments} | given
    return SimpleNamespace(
        argv=[f"{name}:={value}" for name, value in given.items()], launch_configurations=values, is_shutdown=False
    )


def test_every_argument_is_declared_with_its_default_text_and_choices(launched):
    entities, arguments, _ = launched
    declared = [
        (entity.args[0], entity.kwargs["default_value"], entity.kwargs["description"], entity.kwargs["choices"])
        for entity in entities[:-1]
    ]
    assert declared == [(a.name, a.default, a.doc, list(a.choices) or None) for a in arguments]


@pytest.mark.parametrize("extra", [{"record": "false"}, {"record": "true", "cameras": "front_left"}])
def test_launch_and_clamp_start_the_nodes_of_the_graph(launched, policy, extra):
    entities, arguments, make = launched
    policies = {"policy": policy, "config": "sim_delays", "takeover": "true"} if make is not graph.aloha_teleop else {}
    given = {"sim": "true", **policies, **extra}
    if make is graph.aloha_record:  # it always does
        del given["record"]
    nodes = make(given)
    actions = entities[-1].kwargs["function"](_context(given, arguments))
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


def test_every_launch_file_has_a_graph_and_every_graph_a_launch_file():
    names = {path.name for path in (share_folder() / "launch").glob("*.launch.py")}
    assert names == {f"aloha_{name}.launch.py" for name in graph.GRAPHS}


def test_an_unknown_argument_on_the_command_line_of_launch_is_refused(launched):
    entities, arguments, _ = launched
    with pytest.raises(ConfigError, match=r"unknown launch argument 'simm'; did you mean 'sim'\?"):
        entities[-1].kwargs["function"](_context({"simm": "true"}, arguments))


def test_the_death_of_a_required_node_ends_launch_with_an_error_and_a_restart_does_not(launching):
    died, context = SimpleNamespace(returncode=1), _context({})
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
