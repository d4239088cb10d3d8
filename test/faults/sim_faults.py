"""Faults of nodes, messages and time, played against the simulation: what the control loop and the policy stand."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from faults.matrix import Expect, Fault, nothing
from faults.stack import Stack
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    CLOCK,
    CONTROL_ENABLE,
    CONTROL_ESTOP,
    CONTROL_RESET,
    JOINT_COMMANDS,
    JOINT_STATES,
    POLICY_ENABLE,
    SIM_PAUSE,
    SIM_RESET,
    TF,
    VIEWS,
    Service,
    depth_topic,
    gripper_frame,
    optical_frame,
    topic,
)
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import ARMS, CHUNK_SIZE, REST_POSE
from clamp_ros.contract.views import TILED_SHAPE, WORLD_FRAME
from clamp_ros.ros.convert import chunk_message, image_message, joint_state_message, time_message, transform_message
from clamp_ros.ros.run import interface_type

S = 1_000_000_000
WRISTS = (5, 12)
HOLD, GO_ON, EITHER, END = Expect.HOLD, Expect.GO_ON, Expect.EITHER, Expect.END


def _foreign() -> np.ndarray:
    """A pose that the policy, which turns both waists, never has."""
    pose = REST_POSE.copy()
    pose[list(WRISTS)] += 0.3
    return pose


def send(node: str, number: signal.Signals) -> Callable[[Stack], None]:
    """A signal to a node."""
    return lambda stack: stack.signal(node, number)


def call(service: Service, **fields: Any) -> Callable[[Stack], None]:
    """A call to a service."""
    return lambda stack: (stack.call(service, **fields), None)[1]


def chunk(change: Callable[[Any], None], ahead_ns: int = 0, jump_rad: float = 0.0) -> Callable[[Stack], None]:
    """Floods the action chunks with one that is changed."""

    def make(now_ns: int) -> Any:
        actions = np.tile(_foreign(), (CHUNK_SIZE, 1))
        actions[:, 0] += jump_rad
        message = chunk_message(ActionChunk(max(now_ns + ahead_ns, 0), actions))
        change(message)
        return message

    return lambda stack: stack.flood(ACTION_CHUNK, make)


def joints(row: Any, change: Callable[[JointState], None], ahead_ns: int = 0) -> Callable[[Stack], None]:
    """Floods joint commands or joint states with one that is changed."""

    def make(now_ns: int) -> JointState:
        message = joint_state_message(_foreign(), max(now_ns + ahead_ns, 0))
        message.header.frame_id = "intruder"  # so that the watching node knows it for its own
        change(message)
        return message

    return lambda stack: stack.flood(row, make)


def first_point(value: float) -> Callable[[Any], None]:
    """Puts a number into a chunk's first point."""

    def change(message: Any) -> None:
        message.points[0].positions[0] = value

    return change


def first_position(value: float) -> Callable[[Any], None]:
    """Puts a number into a joint message."""

    def change(message: Any) -> None:
        message.position[0] = value

    return change


def other_name(message: Any) -> None:
    """A joint that the robot does not have."""
    names = getattr(message, "joint_names", None)
    if names is not None:
        message.joint_names = ["left_wrist_spin", *names[1:]]
    else:
        message.name = ["left_wrist_spin", *message.name[1:]]


def shorter(message: Any) -> None:
    """One point, or one value, too few."""
    if hasattr(message, "points"):
        message.points = message.points[:-1]
    else:
        message.position = message.position[:-1]


def slower_steps(message: Any) -> None:
    """Points 40 ms apart."""
    for i, point in enumerate(message.points):
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(i * 40_000_000, S)


def unchanged(_: Any) -> None:
    """Nothing."""


def clock(ahead_ns: int) -> Callable[[Stack], None]:
    """A second clock, ahead of the simulation's or behind it."""
    return lambda stack: stack.flood(CLOCK, lambda now_ns: Clock(clock=time_message(max(now_ns + ahead_ns, 1))))


def views(fill: float, shape: tuple[int, ...] = TILED_SHAPE) -> Callable[[Stack], None]:
    """Views that fusion did not make."""
    picture = np.full(shape, fill, np.float32)
    return lambda stack: stack.flood(VIEWS, lambda now_ns: image_message(picture, "32FC4", now_ns, WORLD_FRAME))


def depth(height: int, width: int) -> Callable[[Stack], None]:
    """A second camera of the name front_left, of another size."""
    picture, frame = np.full((height, width), 1000, np.uint16), optical_frame("front_left")

    def make(now_ns: int) -> Image:
        return image_message(picture, "16UC1", now_ns, frame)

    return lambda stack: stack.flood(topic(depth_topic("front_left")), make)


def transforms(ahead_ns: int, number: float = 1.0) -> Callable[[Stack], None]:
    """Gripper poses of another time, or that are none."""

    def make(now_ns: int) -> Any:
        pose = np.eye(4)
        stamp = max(now_ns + ahead_ns, 0)
        rows = [transform_message(WORLD_FRAME, gripper_frame(arm), pose, stamp) for arm in ARMS]
        for row in rows:
            row.transform.translation.x = number
        return interface_type(TF.type)(transforms=rows)

    return lambda stack: stack.flood(TF, make)


def message_faults(*, robot: bool) -> list[Fault]:
    """Messages that are wrong, beside those that are right: after a bad chunk a good one lets the arms go on."""
    alone, holds = "comes from", HOLD if robot else EITHER  # of a simulation's arms only the commands are seen
    faults = [
        Fault("chunk with NaN", chunk(first_point(float("nan"))), EITHER, "bad action chunk.*not finite", prompt=True),
        Fault("chunk with Inf", chunk(first_point(float("inf"))), EITHER, "bad action chunk.*not finite", prompt=True),
        Fault("chunk with a wrong name", chunk(other_name), EITHER, "bad action chunk.*left_wrist_spin", prompt=True),
        Fault("chunk of 49 points", chunk(shorter), EITHER, "bad action chunk.*49 points", prompt=True),
        Fault("chunk with steps of 40 ms", chunk(slower_steps), EITHER, "bad action chunk.*due after", prompt=True),
        Fault("chunk that jumps by 2 rad", chunk(unchanged, jump_rad=2.0), HOLD, "rad from the last command, limit"),
        Fault("chunk 5 s old", chunk(unchanged, -5 * S), EITHER, "chunk refused|run out"),
        Fault("chunk 10 s ahead", chunk(unchanged, 10 * S), EITHER, "in the future"),
        Fault("another's command", joints(JOINT_COMMANDS, unchanged), holds, alone, prompt=robot),
        Fault("another's command with NaN", joints(JOINT_COMMANDS, first_position(float("nan"))), holds, alone,
              prompt=robot),
        Fault("another's command with a wrong name", joints(JOINT_COMMANDS, other_name), holds, alone, prompt=robot),
        Fault("another's command of 13 joints", joints(JOINT_COMMANDS, shorter), holds, alone, prompt=robot),
        Fault("another's command 10 s ahead", joints(JOINT_COMMANDS, unchanged, 10 * S), holds, alone, prompt=robot),
        Fault("joint state with NaN", joints(JOINT_STATES, first_position(float("nan"))), EITHER,
              "joint state.*finite"),
        Fault("joint state with a wrong name", joints(JOINT_STATES, other_name), EITHER, "left_wrist_spin"),
        Fault("joint state of 13 joints", joints(JOINT_STATES, shorter), EITHER, "joint state"),
        Fault("joint state 5 s old", joints(JOINT_STATES, unchanged, -5 * S), EITHER, "joint states are .* s old"),
        Fault("joint state 10 s ahead", joints(JOINT_STATES, unchanged, 10 * S), EITHER, "ahead of the clock"),
        Fault("transforms 10 s ahead", transforms(10 * S), EITHER, "ahead of time"),
        Fault("transforms 20 s old", transforms(-20 * S), EITHER, "older than the history"),
        Fault("transforms with NaN", transforms(0, float("nan")), EITHER, "finite|transform"),
        Fault("views with NaN", views(float("nan")), EITHER, "finite"),
        Fault("views of a wrong size", views(0.5, (100, 200, 4)), EITHER, "views"),
        Fault("depth of a wrong size", depth(30, 40), EITHER, "40x30|front_left"),
    ]
    return [replace(fault, foreign=True) for fault in faults]


def clamp_stop(stack: Stack) -> None:
    """The command, in a terminal of the system's domain; its start is counted."""
    command = subprocess.Popen([sys.executable, "-m", "clamp_ros.cli", "stop"], stdout=subprocess.DEVNULL)
    stack.spin(30.0, lambda: command.poll() is not None)


def operator_faults() -> list[Fault]:
    """What an operator does."""
    reset, enable = call(CONTROL_RESET), call(CONTROL_ENABLE, data=True)
    return [
        Fault("emergency stop", call(CONTROL_ESTOP), HOLD, "stopped: emergency stop", reset, prompt=True),
        Fault("emergency stop by clamp stop", clamp_stop, HOLD, "stopped: emergency stop by .*clamp stop", reset),
        Fault("control disabled", call(CONTROL_ENABLE, data=False), HOLD, "disabled", enable, prompt=True),
        Fault("policy disabled", call(POLICY_ENABLE, data=False), HOLD, "run out|no action chunk",
              call(POLICY_ENABLE, data=True)),
    ]  # fmt: skip


def release(stack: Stack) -> None:
    """Has looked why a node died, and releases the emergency stop that its return is."""
    stack.spin(30.0, lambda: stack.seen.status.get("control", "").startswith("stopped"))
    stack.call(CONTROL_RESET)


def node_faults(*, robot: bool) -> list[Fault]:
    """Nodes that die, hang, or are too slow."""
    stop, go, kill = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
    driver = "arm_node" if robot else "mujoco_node"
    # a robot that hangs says nothing itself; where time stands still with it, others miss its images
    hung = "joint states are" if robot else "no views|no observation"
    silent = "no commands|joint command"
    mourned = release if robot else nothing
    faults = [
        Fault("policy_node hung", send("policy_node", stop), HOLD, "run out", send("policy_node", go)),
        Fault("fusion_node hung", send("fusion_node", stop), HOLD, "no observation|run out", send("fusion_node", go)),
        Fault(f"{driver} hung", send(driver, stop), HOLD, hung, send(driver, go), prompt=not robot),
        Fault("control_node hung", send("control_node", stop), HOLD, silent, send("control_node", go), prompt=True),
        Fault("recorder_node hung", send("recorder_node", stop), GO_ON, "nothing heard of recorder_node",
              send("recorder_node", go)),
        Fault("policy too slow", lambda stack: stack.starve("policy_node", 0.02), HOLD, "run out", patience_s=25.0),
        Fault("fusion too slow", lambda stack: stack.starve("fusion_node", 0.02), EITHER,
              r"run out|stale|\blate\b|missed|s old", patience_s=25.0),
        Fault("policy_node killed", send("policy_node", kill), HOLD, "policy_node was killed by SIGKILL", mourned),
        Fault("fusion_node killed", send("fusion_node", kill), HOLD, "fusion_node was killed by SIGKILL", mourned),
        Fault("recorder_node killed", send("recorder_node", kill), GO_ON, "recorder_node was killed by SIGKILL"),
        Fault("control_node killed", send("control_node", kill), END, "control_node was killed by SIGKILL, and the"),
        Fault(f"{driver} killed", send(driver, kill), END, f"{driver} was killed by SIGKILL, and the"),
    ]  # fmt: skip
    if robot:
        faults[5:5] = [
            Fault("camera_node hung", send("camera_node", stop), HOLD, "run out|no observation",
                  send("camera_node", go)),
            Fault("camera_node killed", send("camera_node", kill), HOLD, "camera_node was killed by SIGKILL",
                  mourned),
        ]
    return faults


def time_faults() -> list[Fault]:
    """Clocks of a simulation; a robot's system clock is not for a test to set."""
    return [
        Fault("clock jumps back 0.3 s, again and again", clock(-3 * S // 10), EITHER, "time ran back", prompt=True),
        Fault("clock jumps ahead 10 s, again and again", clock(10 * S), EITHER, "time ran back|run out|s old"),
        Fault("simulation reset", call(SIM_RESET), EITHER, "time ran back"),
        Fault("time stops", call(SIM_PAUSE, data=True), HOLD, "no views|no observation", call(SIM_PAUSE, data=False),
              prompt=True),
    ]  # fmt: skip


def sim_faults() -> list[Fault]:
    """All that are played against the simulation, those after which the system has to be started anew last."""
    return [*operator_faults(), *message_faults(robot=False), *time_faults(), *node_faults(robot=False)]


