"""`ros2 launch clamp_ros aloha_policy.launch.py sim:=true`: the policy on the robot, or on its simulation.

The graph itself is `clamp_ros.bringup.graph`, which `clamp up` runs too; here it becomes launch_ros actions.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.events.process import ProcessExited
from launch_ros.actions import Node

from clamp_ros.bringup import graph


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.doc,
            choices=list(argument.choices) or None,
        )
        for argument in graph.ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=make_nodes)])


def make_nodes(context: LaunchContext) -> list[Node]:
    # launch takes names it does not know without a word; those of the command line are in argv
    graph.resolve(dict(word.split(":=", 1) for word in context.argv if ":=" in word))
    given = {argument.name: context.launch_configurations[argument.name] for argument in graph.ARGUMENTS}
    return [make_action(node) for node in graph.aloha_policy(given)]


def make_action(node: graph.Node) -> Node:
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

    def __call__(self, event: ProcessExited, context: LaunchContext) -> None:
        self._deaths += 1
        if not context.is_shutdown and not self._node.restarts(event.returncode, self._deaths):
            raise RuntimeError(f"{self._node.name} ended, and the system cannot go on without it")
