"""`ros2 launch clamp_ros aloha_teleop.launch.py sim:=true`: a person moves the robot, or its simulation.

The graph itself is `clamp_ros.bringup.graph`, which `clamp teleop` runs too. Start, stop and discard sessions with
`clamp keys` in another terminal, a foot pedal, or the services /teleop/start, /teleop/stop and /teleop/discard.
"""

from launch import LaunchDescription

from clamp_ros.bringup import graph
from clamp_ros.bringup.launching import description


def generate_launch_description() -> LaunchDescription:
    return description(graph.TELEOP_ARGUMENTS, graph.aloha_teleop)
