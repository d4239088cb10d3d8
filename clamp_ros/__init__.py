"""clamp_ros: a ROS 2 control stack for the ALOHA 2 robot that runs CLAMP, a diffusion policy that sees in 3D.

The folders stand in the order of the dataflow: camera, fusion, policy, control, arm (or sim). Start with
`clamp_ros.contract`, which everything stands on.
"""

__version__ = "0.1.0"
