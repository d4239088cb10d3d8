"""`ros2 launch clamp_ros aloha_policy.launch.py sim:=true`: the policy on the robot, or on its simulation.

The graph itself is `clamp_ros.bringup.graph`, which `clamp up` runs too.
"""

from launch import LaunchDescription

from clamp_ros.bringup import graph
from clamp_ros.bringup.launching import description


def generate_launch_description() -> LaunchDescription:
    return description(graph.ARGUMENTS, graph.aloha_policy)
