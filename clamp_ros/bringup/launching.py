"""A graph of `clamp_ros.bringup.graph` as a launch description; the files in launch/ name the graph."""

# launch and launch_ros come with ROS, not from PyPI
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.events.process import ProcessExited
from launch_ros.actions import Node

from clamp_ros.bringup import graph

Make = Callable[[Mapping[str, str]], Sequence[graph.Node]]


def description(arguments: Sequence[graph.Argument], make: Make) -> LaunchDescription:
    """Declares the arguments, and starts the nodes that the graph makes of them."""
    declared = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.doc,
            choices=list(argument.choices) or None,
        )
        for argument in arguments
    ]
    nodes = OpaqueFunction(function=lambda context: make_nodes(context, arguments, make))
    return LaunchDescription([*declared, nodes])


def make_nodes(context: LaunchContext, arguments: Sequence[graph.Argument], make: Make) -> list[Node]:
    """The graph's nodes as launch's.

    Raises:
        ConfigError: an argument is unknown or impossible.
    """
    # launch takes names it does not know without a word; those of the command line are in argv
    graph.resolve(dict(word.split(":=", 1) for word in context.argv if ":=" in word), arguments)
    given = {argument.name: context.launch_configurations[argument.name] for argument in arguments}
    return [make_action(node) for node in make(given)]


def make_action(node: graph.Node) -> Node:
    """One node of the graph as launch's."""
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
        """`node`: whose."""
        self._node = node
        self._deaths = 0

    def __call__(self, event: ProcessExited, context: LaunchContext) -> None:
        """A process of the node has ended."""
        self._deaths += 1
        if not context.is_shutdown and not self._node.restarts(event.returncode, self._deaths):
            raise RuntimeError(f"{self._node.name} ended, and the system cannot go on without it")
