"""`ros2 launch clamp_ros aloha_policy.launch.py sim:=true`: the policy on the robot, or on its simulation.

The graph itself is `clamp_ros.bringup.graph`, which `clamp up policy` runs too.
"""

from launch import LaunchDescription

from clamp_ros.bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("policy")
