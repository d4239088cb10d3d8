"""Parameters of the arms: of a side, of the motors, of both followers together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from clamp_ros.arm.aloha2 import FOLLOWER, FOLLOWER_IDS, JOINTS, LEADER, Drive, MotorSpec
from clamp_ros.arm.gravity import GravityModel
from clamp_ros.arm.units import ArmUnits, gripper_map
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import JOINTS_PER_ARM, GripperMap
from clamp_ros.control.clearance import ClearanceConfig


@dataclass(frozen=True)
class Side(ABC):
    """Parameters that a follower and a leader share."""

    SPECS: ClassVar[tuple[MotorSpec, ...]]
    SHIPPED_RAD: ClassVar[tuple[float, float]]
    """The gripper's, or its handle's, angles in the file that ships: one robot's, and hardly the user's."""

    port: str = param("", "serial port of the arm's bus")
    ids: tuple[int, ...] = param(
        FOLLOWER_IDS, f"motor ids in the order {', '.join(spec.name for spec in FOLLOWER)}", minimum=0, maximum=252
    )
    joint_signs: tuple[int, ...] = param(
        (1,) * 6, "direction of each arm joint over its motor's; 1 with ALOHA 2's drive modes", choices=(-1, 1)
    )
    joint_offsets_rad: tuple[float, ...] = param(
        (0.0,) * 6, "angle of each arm joint at its motor's centre", unit="rad", minimum=-0.5, maximum=0.5
    )

    def __post_init__(self) -> None:
        check(self)
        if len(self.ids) != len(self.SPECS) or len(set(self.ids)) != len(self.ids):
            raise ConfigError(f"ids is {self.ids}, expected {len(self.SPECS)} different ones")

    @property
    @abstractmethod
    def angles_rad(self) -> tuple[float, float]:
        """The gripper's, or its handle's: closed, and wide open."""

    @property
    def borrowed(self) -> bool:
        """Whether the angles are still those of the file that ships."""
        return self.angles_rad == self.SHIPPED_RAD

    @abstractmethod
    def units(self) -> ArmUnits:
        """The arm's conversions, into the contract's units.

        Raises:
            ClampError: the gripper, or its handle, is not calibrated, or a list has the wrong length.
        """


@dataclass(frozen=True)
class SideConfig(Side):
    """Parameters of one follower."""

    SPECS: ClassVar[tuple[MotorSpec, ...]] = FOLLOWER
    SHIPPED_RAD = (0.6197, 1.6214)

    gripper_touch_rad: float = param(
        0.0, "angle of the gripper's motor where the empty pads touch; calibrate it", unit="rad",
        minimum=-3.15, maximum=3.15,
    )  # fmt: skip
    gripper_open_rad: float = param(
        0.0, "angle of the gripper's motor where it is wide open; calibrate it", unit="rad", minimum=-3.15, maximum=3.15
    )

    @property
    def angles_rad(self) -> tuple[float, float]:
        """See `Side.angles_rad`; closed is where the empty pads touch."""
        return self.gripper_touch_rad, self.gripper_open_rad

    def units(self) -> ArmUnits:
        """See `Side.units`."""
        return ArmUnits(
            self.joint_signs, self.joint_offsets_rad, gripper_map(self.gripper_touch_rad, self.gripper_open_rad)
        )


@dataclass(frozen=True)
class LeaderSide(Side):
    """Parameters of one leader; its handle's map is the affine one to the follower's gripper."""

    SPECS: ClassVar[tuple[MotorSpec, ...]] = LEADER
    SHIPPED_RAD = (-0.0552, 0.8298)

    handle_closed_rad: float = param(
        0.0, "angle of the handle's motor where it is squeezed as far as it goes: the follower grips with its full "
        "force; calibrate it", unit="rad", minimum=-3.15, maximum=3.15,
    )  # fmt: skip
    handle_open_rad: float = param(
        0.0, "angle of the handle's motor where it is wide open; calibrate it", unit="rad", minimum=-3.15, maximum=3.15
    )

    @property
    def angles_rad(self) -> tuple[float, float]:
        """See `Side.angles_rad`."""
        return self.handle_closed_rad, self.handle_open_rad

    def units(self) -> ArmUnits:
        """See `Side.units`."""
        if self.handle_closed_rad == self.handle_open_rad:
            raise ConfigError(
                f"handle_closed_rad and handle_open_rad are both {self.handle_open_rad}: measure them on your leader "
                "(docs/hardware.md, Teleoperation)"
            )
        handle = GripperMap(self.handle_closed_rad, self.handle_open_rad)
        return ArmUnits(self.joint_signs, self.joint_offsets_rad, handle)


@dataclass(frozen=True)
class BusDeadlines:
    """How long bus and motors wait, of both arms alike."""

    reply_s: float = param(
        0.006, "how long a motor may take to answer, USB included", unit="s", minimum=0.001, maximum=0.1
    )
    retry_s: float = param(
        0.02, "an instruction is repeated for this long before it counts as failed", unit="s", minimum=0.0, maximum=0.5
    )
    watchdog_s: float = param(
        0.1, "motors that have torque stop by themselves after hearing nothing for this long", unit="s",
        minimum=0.02, maximum=2.5,
    )  # fmt: skip


@dataclass(frozen=True)
class MotorConfig(BusDeadlines):
    """Parameters of the motors, of both arms alike."""

    gripper_current: int = param(250, "limit of the gripper's current", unit="2.69 mA", minimum=20, maximum=500)
    position_p: tuple[int, ...] = param((800,) * 7, f"P gain of {', '.join(JOINTS)}", minimum=0, maximum=16383)
    position_i: tuple[int, ...] = param((0,) * 7, "I gain, likewise", minimum=0, maximum=16383)
    position_d: tuple[int, ...] = param((0,) * 7, "D gain, likewise", minimum=0, maximum=16383)
    torque_off_to_configure: bool = param(
        False, "let go of the arms at start where a setting differs that can only be written without torque"
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("position_p", "position_i", "position_d"):
            if len(getattr(self, name)) != JOINTS_PER_ARM:
                raise ConfigError(f"{name} has {len(getattr(self, name))} values, expected {JOINTS_PER_ARM}")


@dataclass(frozen=True)
class LeaderMotors(BusDeadlines):
    """Parameters of the leaders' motors, of both arms alike."""

    fresh_s: float = param(
        0.1, "a reading counts for this long; the followers hold while there is none", unit="s",
        minimum=0.02, maximum=2.0,
    )  # fmt: skip
    silent_s: float = param(
        0.5, "a leader that has not answered for this long is set up anew", unit="s", minimum=0.1, maximum=30.0
    )
    drive_current: int = param(
        400, "limit of the current while a leader is driven; enough to lift it, and no more", unit="2.69 mA",
        minimum=20, maximum=1193,
    )  # fmt: skip
    drive_rad_s: float = param(0.6, "top speed while a leader is driven", unit="rad/s", minimum=0.05, maximum=2.0)
    assist: float = param(
        0.0, "part of a leader's weight that its motors carry while a person moves it; 0: no torque",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    assist_current: int = param(300, "limit of the current that carries it", unit="2.69 mA", minimum=0, maximum=1193)
    gravity: GravityModel = field(default_factory=GravityModel)

    def __post_init__(self) -> None:
        check(self)

    @property
    def rest(self) -> Drive:
        """What the motors do while a person moves the leader."""
        return Drive.ASSIST if self.assist > 0.0 else Drive.FREE


@dataclass(frozen=True)
class ArmsConfig:
    """Parameters of the arm node."""

    left: SideConfig = field(default_factory=lambda: SideConfig(port="/dev/ttyDXL_follower_left"))
    right: SideConfig = field(default_factory=lambda: SideConfig(port="/dev/ttyDXL_follower_right"))
    motors: MotorConfig = field(default_factory=MotorConfig)
    rate_hz: int = param(100, "how often the arms are read and driven", unit="Hz", minimum=50, maximum=250)
    torque_at_start: bool = param(True, "hold the arms where they stand as soon as both are set up")
    at_exit: str = param(
        "hold", "when the node is told to end: hold where they are, or move to the sleep pose and let go",
        choices=("hold", "sleep"),
    )  # fmt: skip
    command_timeout_s: float = param(
        0.1, "commands older than this are refused; hold when none came for so long", unit="s",
        minimum=0.02, maximum=1.0,
    )  # fmt: skip
    max_jump_rad: float = param(
        0.5, "a command further than this from where an arm is told to be is refused", unit="rad",
        minimum=0.05, maximum=3.2,
    )  # fmt: skip
    hold_after_s: float = param(
        0.03, "both arms hold when a bus has not answered for this long", unit="s", minimum=0.01, maximum=1.0
    )
    fault_after_s: float = param(
        0.5, "that is a fault, which lasts until it is mended, after this long", unit="s", minimum=0.05, maximum=5.0
    )
    speed_rad_s: float = param(
        0.7, "top speed of the motions home and sleep", unit="rad/s", minimum=0.05, maximum=2.0
    )
    realtime_priority: int = param(
        25, "SCHED_FIFO priority where the user may set it; 0 leaves the scheduler alone", minimum=0, maximum=90
    )
    clearance: ClearanceConfig = field(default_factory=ClearanceConfig)
    hot_c: int = param(65, "a motor hotter than this is warned of; at 80 it lets go", unit="C", minimum=30, maximum=80)

    def __post_init__(self) -> None:
        check(self)
        for name, limit_s in (("hold_after_s", self.hold_after_s), ("motors.watchdog_s", self.motors.watchdog_s)):
            if limit_s * self.rate_hz < 2.0:
                raise ConfigError(f"{name} is {limit_s}, expected two periods of {self.rate_hz} Hz at least")
        if self.fault_after_s < self.hold_after_s:
            raise ConfigError(f"fault_after_s is {self.fault_after_s}, expected hold_after_s or more")
