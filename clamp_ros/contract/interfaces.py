"""One table of every topic and service of the stack: name, type, quality of service, rate, frame, and meaning.

Nodes, recorder, bringup, documentation and tests all read it; no topic name stands anywhere else.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.robot import CONTROL_RATE_HZ

CAMERAS = ("front_left", "back_right", "wrist_left", "wrist_right")
"""The physical cameras. Not to be confused with the five virtual views rendered from their merged cloud."""


class Qos(Enum):
    """Quality-of-service profiles; `clamp_ros.ros.run.qos_profile` turns them into rclpy's.

    The depths are readers'. Senders of small messages keep more (`SMALL_DEPTH`), for a reader that wants every one.
    """

    IMAGE = "reliable, volatile, depth 2: large messages within a host (best effort loses them)"
    STATE = "reliable, volatile, depth 50: small periodic messages of which none should be lost"
    COMMAND = "reliable, volatile, depth 1: only the newest counts"
    LATCHED = "reliable, transient local, depth 1: late joiners get the last one"
    CLOCK = "best effort, volatile, depth 1: as rclpy's clock subscription expects"
    TF = "reliable, volatile, depth 100: tf2's own"
    TF_STATIC = "reliable, transient local, depth 100: tf2's own"


@dataclass(frozen=True)
class Topic:
    """One topic. `rate_hz` is None where messages come on events; `frame` is the header's frame_id, or empty."""

    name: str
    type: str
    qos: Qos
    rate_hz: float | None
    frame: str
    meaning: str


@dataclass(frozen=True)
class Service:
    """One service."""

    name: str
    type: str
    meaning: str


def color_topic(camera: str) -> str:
    """Colour image of a physical camera (realsense-ros's name), rgb8."""
    return f"/{camera}/color/image_raw"


def depth_topic(camera: str) -> str:
    """Depth aligned to color, 16UC1 millimetres, 0 invalid."""
    return f"/{camera}/aligned_depth_to_color/image_raw"


def color_compressed_topic(camera: str) -> str:
    """The colour image as a JPEG, by compressed_image_transport's name."""
    return f"{color_topic(camera)}/compressed"


def depth_compressed_topic(camera: str) -> str:
    """The aligned depth as a PNG, or by RVL, with compressed_depth_image_transport's header, by its name."""
    return f"{depth_topic(camera)}/compressedDepth"


def depth_metres_topic(camera: str) -> str:
    """The aligned depth in metres, by depth_image_proc's name."""
    return f"/{camera}/aligned_depth_to_color/image"


def camera_info_topic(camera: str) -> str:
    """Intrinsics of color and aligned depth."""
    return f"/{camera}/color/camera_info"


def optical_frame(camera: str) -> str:
    """TF frame of the camera's optical axis (x right, y down, z forward)."""
    return f"{camera}_color_optical_frame"


def gripper_frame(arm: str) -> str:
    """TF frame at the fingertips: Menagerie's site `{arm}/gripper`, x out of the fingers, y across them."""
    return f"{arm}/gripper"


def object_frame(name: str) -> str:
    """TF frame of a simulated object; privileged, never an input of a policy."""
    return f"object/{name}"


JOINT_STATES = Topic("/joint_states", "sensor_msgs/msg/JointState", Qos.STATE, CONTROL_RATE_HZ, "",
                     "measured positions, velocities (rad, m) and, on the robot, efforts (N m, N); 14 names of contract.robot")
JOINT_COMMANDS = Topic("/joint_commands", "sensor_msgs/msg/JointState", Qos.COMMAND, CONTROL_RATE_HZ, "",
                       "absolute joint targets that passed the safety gate; the stamp is when they are due")
ACTION_CHUNK = Topic("/policy/action_chunk", "trajectory_msgs/msg/JointTrajectory", Qos.COMMAND, None, "",
                     "50 absolute joint targets, 20 ms apart, stamped with their observation's stamp")
OBSERVATION = Topic("/policy/observation", "std_msgs/msg/Header", Qos.STATE, None, "world",
                    "stamp of an observation, said as the policy begins to infer its chunk; 0 where it will not come")
VIEWS = Topic("/fusion/views", "sensor_msgs/msg/Image", Qos.IMAGE, None, "world",
              "virtual views side by side (the paper's five: 224x1120), 32FC4 (depth, X, Y, Z) in metres, of the images' stamp")
CLOUD = Topic("/fusion/cloud", "sensor_msgs/msg/PointCloud2", Qos.IMAGE, None, "world",
              "the fused, cropped, voxelised cloud; computed only while somebody subscribes")
TF = Topic("/tf", "tf2_msgs/msg/TFMessage", Qos.TF, CONTROL_RATE_HZ, "world", "gripper, wrist camera and object poses")
TF_STATIC = Topic("/tf_static", "tf2_msgs/msg/TFMessage", Qos.TF_STATIC, None, "world", "fixed camera poses")
CLOCK = Topic("/clock", "rosgraph_msgs/msg/Clock", Qos.CLOCK, CONTROL_RATE_HZ, "", "simulated time; simulation only")
DIAGNOSTICS = Topic("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", Qos.STATE, 1.0, "",
                    "each node's health: latencies, counts of dropped, late and refused messages")
CONTROL_STATUS = Topic("/control/status", "diagnostic_msgs/msg/DiagnosticStatus", Qos.LATCHED, None, "",
                       "what the control loop does: idle, running, holding (and why), stopped")
CONTROL_SOURCE = Topic("/control/source", "std_msgs/msg/Header", Qos.LATCHED, None, "",
                       "whose targets are followed from this stamp on, in frame_id: policy, teleop, replay or nobody")
TELEOP_TARGETS = Topic("/teleop/joint_targets", "sensor_msgs/msg/JointState", Qos.COMMAND, CONTROL_RATE_HZ, "",
                       "14 absolute targets of the leader arms; followed, through the gate, while `source` is teleop")
REPLAY_TARGETS = Topic("/replay/joint_targets", "sensor_msgs/msg/JointState", Qos.COMMAND, CONTROL_RATE_HZ, "",
                       "14 absolute targets of a bag; followed, through the gate, while `source` is replay")
LEADER_STATES = Topic("/leader/joint_states", "sensor_msgs/msg/JointState", Qos.STATE, None, "",
                      "the leader arms' positions in the followers' units and names, 50 Hz while they answer")
TELEOP_STATUS = Topic("/teleop/status", "diagnostic_msgs/msg/DiagnosticStatus", Qos.LATCHED, None, "",
                      "what teleoperation does: idle, approaching, following, stopped (and why)")
ARMS_STATUS = Topic("/arms/status", "diagnostic_msgs/msg/DiagnosticStatus", Qos.LATCHED, None, "",
                    "what the real arms do: starting, off, holding (and why), following, moving, fault; robot only")
TASK_STATE = Topic("/sim/task_state", "std_msgs/msg/String", Qos.STATE, 10.0, "",
                   "JSON: task, seed, time_s, success, progress (int), text (privileged); at each image, too; simulation only")

TOPICS: tuple[Topic, ...] = (
    JOINT_STATES, JOINT_COMMANDS, ACTION_CHUNK, OBSERVATION, VIEWS, CLOUD, TF, TF_STATIC, CLOCK, DIAGNOSTICS, CONTROL_STATUS,
    TASK_STATE,
    *(
        row
        for camera in CAMERAS
        for row in (
            Topic(color_topic(camera), "sensor_msgs/msg/Image", Qos.IMAGE, 30.0, optical_frame(camera), "rgb8 colour"),
            Topic(depth_topic(camera), "sensor_msgs/msg/Image", Qos.IMAGE, 30.0, optical_frame(camera),
                  "16UC1 depth in millimetres aligned to color, 0 invalid"),
            Topic(camera_info_topic(camera), "sensor_msgs/msg/CameraInfo", Qos.IMAGE, 30.0, optical_frame(camera),
                  "intrinsics of color and aligned depth, same stamp"),
            Topic(depth_metres_topic(camera), "sensor_msgs/msg/Image", Qos.IMAGE, 30.0, optical_frame(camera),
                  "32FC1 depth in metres aligned to color, NaN invalid; hardware only, while somebody subscribes"),
            Topic(color_compressed_topic(camera), "sensor_msgs/msg/CompressedImage", Qos.IMAGE, 30.0, optical_frame(camera),
                  "colour as JPEG; hardware only, where `compressed` is set, while somebody subscribes"),
            Topic(depth_compressed_topic(camera), "sensor_msgs/msg/CompressedImage", Qos.IMAGE, 30.0, optical_frame(camera),
                  "depth as PNG or RVL; hardware only, where `compressed` is set, while somebody subscribes"),
        )
    ),
    ARMS_STATUS, CONTROL_SOURCE, TELEOP_TARGETS, REPLAY_TARGETS, LEADER_STATES, TELEOP_STATUS,
)

ESTOP_SIGNAL = signal.SIGUSR1
"""The emergency stop by the space bar and by `clamp stop`: the control node's process needs no network to hear it."""

_BY_NAME = {row.name: row for row in TOPICS}


def topic(name: str) -> Topic:
    """The row of a topic by its name, say ``topic(color_topic("front_left"))``.

    Raises:
        ConfigError: no such row.
    """
    if name not in _BY_NAME:
        raise unknown_key(name, _BY_NAME, "topic")
    return _BY_NAME[name]


POLICY_ENABLE = Service("/policy/enable", "std_srvs/srv/SetBool", "start or stop inferring chunks")
CONTROL_ENABLE = Service("/control/enable", "std_srvs/srv/SetBool", "start or stop following targets, whosever; stopped means hold")
CONTROL_ESTOP = Service("/control/estop", "std_srvs/srv/Trigger", "latched emergency stop: hold until reset")
CONTROL_RESET = Service("/control/reset", "std_srvs/srv/Trigger", "leave the emergency stop; chunks from before are void")
CONTROL_PARAMETERS = Service("/control_node/set_parameters", "rcl_interfaces/srv/SetParameters",
                             "ROS's own; its `source` selects whose targets are followed: policy, teleop or replay")
TELEOP_START = Service("/teleop/start", "std_srvs/srv/Trigger",
                       "take over: the leaders and followers approach each other, then the followers follow")
TELEOP_STOP = Service("/teleop/stop", "std_srvs/srv/SetBool",
                      "hand back; where it records episodes, true marks a success, false a failure")
TELEOP_DISCARD = Service("/teleop/discard", "std_srvs/srv/Trigger", "hand back, and discard the episode")
ARMS_TORQUE = Service("/arms/torque", "std_srvs/srv/SetBool",
                      "true: hold both arms where they stand, and leave a fault; false: let go, and they fall")
ARMS_REBOOT = Service("/arms/reboot", "std_srvs/srv/Trigger",
                      "restart the motors that report a hardware error, limp for a moment, then hold")
ARMS_HOME = Service("/arms/home", "std_srvs/srv/Trigger", "both arms to the pose that tasks begin from, smoothly")
ARMS_SLEEP = Service("/arms/sleep", "std_srvs/srv/Trigger", "both arms onto their cradles, smoothly; torque stays on")
SIM_RESET = Service("/sim/reset", "std_srvs/srv/Trigger",
                    "new episode from the node's parameter `seed`; the answer's message is JSON with the seed used")
SIM_PAUSE = Service("/sim/pause", "std_srvs/srv/SetBool", "stop or resume simulated time")
SIM_STEP = Service("/sim/step", "std_srvs/srv/Trigger", "one control period (20 ms) while paused")
RECORD_START = Service("/record/start", "std_srvs/srv/Trigger", "begin an episode; the answer names the bag")
RECORD_STOP = Service("/record/stop", "std_srvs/srv/SetBool", "end the episode; true marks a success, false a failure")
RECORD_DISCARD = Service("/record/discard", "std_srvs/srv/Trigger", "end the episode and move its bag to discarded/")
RECORD_KEEP = Service("/record/keep", "std_srvs/srv/Trigger",
                      "write the last seconds, held in memory between episodes, as an episode of their own")

SERVICES: tuple[Service, ...] = (
    POLICY_ENABLE, CONTROL_ENABLE, CONTROL_ESTOP, CONTROL_RESET, ARMS_TORQUE, ARMS_REBOOT, ARMS_HOME,
    ARMS_SLEEP, SIM_RESET, SIM_PAUSE, SIM_STEP,
    CONTROL_PARAMETERS, TELEOP_START, TELEOP_STOP, TELEOP_DISCARD,
    RECORD_START, RECORD_STOP, RECORD_DISCARD, RECORD_KEEP,
)
