"""The graph as launch_ros actions, for the files in launch/: each names its graph, and nothing else."""

from __future__ import annotations

from typing import Any

from launch import LaunchDescription  # pyright: ignore[reportAttributeAccessIssue] (comes with ROS only)
from launch.actions import DeclareLaunchArgument, OpaqueFunction  # pyright: ignore[reportMissingImports]
from launch_ros.actions import Node  # pyright: ignore[reportMissingImports]

from clamp_ros.bringup import graph


def launch_description(name: str) -> LaunchDescription:
    """What `generate_launch_description` returns, of a graph of `graph.GRAPHS`."""
    arguments, make_graph = graph.GRAPHS[name]

    def make_nodes(context: Any) -> list[Node]:
        # launch takes names it does not know without a word; those of the command line are in argv
        graph.resolve(dict(word.split(":=", 1) for word in context.argv if ":=" in word), arguments)
        given = {argument.name: context.launch_configurations[argument.name] for argument in arguments}
        return [_make_action(node) for node in make_graph(given)]

    declared = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.doc,
            choices=list(argument.choices) or None,
        )
        for argument in arguments
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=make_nodes)])


def _make_action(node: graph.Node) -> Node:
    return Node(
        package=graph.PACKAGE,
        executable=node.name,
        name=node.name,
        parameters=[dict(node.parameters), *map(str, node.files)],
        remappings=list(node.remaps.items()),
        output="screen",
        emulate_tty=True,
        respawn=node.restart,
        respawn_delay=graph.RESTART_DELAY_S,
        respawn_max_retries=graph.RESTARTS,
        on_exit=Death(node),
    )


class Death:
    """Ends launch, with an exit code that is not 0, when a node has died for good; launch would go on without it."""

    def __init__(self, node: graph.Node) -> None:
        self._node = node
        self._deaths = 0

    def __call__(self, event: Any, context: Any) -> None:
        """launch's own call, at a `ProcessExited`."""
        self._deaths += 1
        if not context.is_shutdown and not self._node.restarts(event.returncode, self._deaths):
            raise RuntimeError(f"{self._node.name} ended, and the system cannot go on without it")
