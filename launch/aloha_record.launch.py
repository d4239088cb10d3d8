"""`ros2 launch clamp_ros aloha_record.launch.py sim:=true`: a recording session on the robot, or on its simulation.

The graph itself is `clamp_ros.bringup.graph`, which `clamp up record` runs too. Episodes begin and end by the services
/record/start, /record/stop, /record/discard and /record/keep, or by the keys of teleoperation.
"""

from launch import LaunchDescription

from clamp_ros.bringup import graph
from clamp_ros.bringup.launching import description


def generate_launch_description() -> LaunchDescription:
    return description(graph.RECORD_ARGUMENTS, graph.aloha_record)
