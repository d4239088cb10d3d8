"""ALOHA 2's arms as their motors see them: ids, models, modes, limits, shadows, poses.

Source: Interbotix `aloha_vx300s.yaml` for the followers and `aloha_wx250s.yaml` for the leaders (limits, drive modes,
shadows). The followers' limits in ticks are those of `contract.robot` to a tick. With these drive modes a motor turns
as its joint does in the contract, and tick 2048 is its zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from clamp_ros.arm.registers import (
    BAUD_1M,
    DRIVE_REVERSE,
    MODE_CURRENT_POSITION,
    MODE_POSITION,
    NO_SHADOW,
    XC430_W150,
    XL430_W250,
    XM430_W350,
    XM540_W270,
    Model,
)
from clamp_ros.contract.robot import ARM_JOINTS, REST_POSE

JOINTS = (*ARM_JOINTS, "gripper")


@dataclass(frozen=True)
class MotorSpec:
    """One motor of an arm.

    Attributes:
        name: of its joint, with `_shadow` for the second motor of a joint.
        joint: index of its joint in the arm, 0 to 6.
        model: what it has to be.
        min_ticks, max_ticks: its position limits.
        drive_mode: 1 where the motor is mounted the other way round.
        shadow_of: name of the motor whose commands it follows, or None.
    """

    name: str
    joint: int
    model: Model
    min_ticks: int = 0
    max_ticks: int = 4095
    drive_mode: int = 0
    shadow_of: str | None = None


FOLLOWER: tuple[MotorSpec, ...] = (
    MotorSpec("waist", 0, XM540_W270),
    MotorSpec("shoulder", 1, XM540_W270, 841, 2867, DRIVE_REVERSE),
    MotorSpec("shoulder_shadow", 1, XM540_W270, 841, 2867, shadow_of="shoulder"),
    MotorSpec("elbow", 2, XM540_W270, 898, 3094, DRIVE_REVERSE),
    MotorSpec("elbow_shadow", 2, XM540_W270, 898, 3094, shadow_of="elbow"),
    MotorSpec("forearm_roll", 3, XM540_W270),
    MotorSpec("wrist_angle", 4, XM540_W270, 830, 3504, DRIVE_REVERSE),
    MotorSpec("wrist_rotate", 5, XM430_W350),
    MotorSpec("gripper", 6, XM430_W350),
)
FOLLOWER_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9)

LEADER: tuple[MotorSpec, ...] = (
    MotorSpec("waist", 0, XM430_W350),
    MotorSpec("shoulder", 1, XM430_W350, 819, 3345),
    MotorSpec("shoulder_shadow", 1, XM430_W350, 819, 3345, DRIVE_REVERSE, shadow_of="shoulder"),
    MotorSpec("elbow", 2, XM430_W350, 648, 3094),
    MotorSpec("elbow_shadow", 2, XM430_W350, 648, 3094, DRIVE_REVERSE, shadow_of="elbow"),
    MotorSpec("forearm_roll", 3, XM430_W350),
    MotorSpec("wrist_angle", 4, XM430_W350, 910, 3447, DRIVE_REVERSE),
    MotorSpec("wrist_rotate", 5, XM430_W350),
    MotorSpec("gripper", 6, XC430_W150),
)
LEADER_MODELS: tuple[Model, ...] = (XM430_W350, XC430_W150, XL430_W250)
"""Any of these may stand at any place of a leader: they differ from robot to robot."""


class Drive(Enum):
    """What a leader's motors do. The handle of its gripper is never driven."""

    FREE = "free"
    """No torque: a person moves it."""
    ASSIST = "assist"
    """A person moves it, and the motors carry a part of its weight."""
    DRIVEN = "driven"
    """It moves by itself, with little force."""


VELOCITY_LIMIT = 131
"""Of every motor, 0.229 rpm each: 3.14 rad/s."""
SHUTDOWN = 0x34
"""The factory's: a motor lets go at overload, electrical shock and overheating."""

HOME_RAD = np.array(REST_POSE[:6])
SLEEP_RAD = np.array((0.0, -1.80, 1.55, 0.0, -1.57, 0.0))
"""The six joints of an arm resting on its cradle: there torque can be switched off."""


def eeprom_settings(spec: MotorSpec, master_id: int | None) -> dict[str, int]:
    """What has to stand in a motor's EEPROM; written only where it differs."""
    return {
        "baud_rate": BAUD_1M,
        "return_delay_time": 0,
        "drive_mode": spec.drive_mode,
        "operating_mode": MODE_CURRENT_POSITION if spec.name == "gripper" else MODE_POSITION,
        "secondary_id": NO_SHADOW if master_id is None else master_id,
        "pwm_limit": 885,
        "current_limit": spec.model.max_current,
        "velocity_limit": VELOCITY_LIMIT,
        "max_position_limit": spec.max_ticks,
        "min_position_limit": spec.min_ticks,
        "shutdown": SHUTDOWN,
    }
