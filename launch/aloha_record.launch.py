"""`ros2 launch clamp_ros aloha_record.launch.py sim:=true`: a recording session on the robot, or on its simulation.

The graph itself is `clamp_ros.bringup.graph`, which `clamp up record` runs too.
"""

from launch import LaunchDescription

from clamp_ros.bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("record")
