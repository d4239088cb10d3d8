"""The control tables of the motors ALOHA 2 is made of, as data: where each register stands, and what it means.

Source: ROBOTIS e-Manual, XM540-W270, XM430-W350, XC430-W150 and XL430-W250, "Control Table"; Protocol 2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Register:
    """One register.

    Attributes:
        address: of its first byte; little-endian.
        size: bytes: 1, 2 or 4.
        signed: two's complement.
        unit: what one count is, or empty.
        eeprom: kept without power, and writable only while torque is off.
    """

    address: int
    size: int
    signed: bool = False
    unit: str = ""
    eeprom: bool = False

    def decode(self, data: bytes) -> int:
        """The value of `size` bytes."""
        return int.from_bytes(data, "little", signed=self.signed)

    def encode(self, value: int) -> bytes:
        """The `size` bytes of a value; OverflowError where it does not fit."""
        return value.to_bytes(self.size, "little", signed=self.signed)


_TICK = "0.0879 deg"
_VELOCITY = "0.229 rpm"
_CURRENT = "2.69 mA"
_PWM = "0.113 %"

_COMMON: dict[str, Register] = {
    "model_number": Register(0, 2, eeprom=True),
    "model_information": Register(2, 4, eeprom=True),
    "firmware_version": Register(6, 1, eeprom=True),
    "id": Register(7, 1, eeprom=True),
    "baud_rate": Register(8, 1, eeprom=True),
    "return_delay_time": Register(9, 1, unit="2 us", eeprom=True),
    "drive_mode": Register(10, 1, eeprom=True),
    "operating_mode": Register(11, 1, eeprom=True),
    "secondary_id": Register(12, 1, eeprom=True),
    "protocol_type": Register(13, 1, eeprom=True),
    "homing_offset": Register(20, 4, signed=True, unit=_TICK, eeprom=True),
    "moving_threshold": Register(24, 4, unit=_VELOCITY, eeprom=True),
    "temperature_limit": Register(31, 1, unit="1 C", eeprom=True),
    "max_voltage_limit": Register(32, 2, unit="0.1 V", eeprom=True),
    "min_voltage_limit": Register(34, 2, unit="0.1 V", eeprom=True),
    "pwm_limit": Register(36, 2, unit=_PWM, eeprom=True),
    "velocity_limit": Register(44, 4, unit=_VELOCITY, eeprom=True),
    "max_position_limit": Register(48, 4, unit=_TICK, eeprom=True),
    "min_position_limit": Register(52, 4, unit=_TICK, eeprom=True),
    "shutdown": Register(63, 1, eeprom=True),
    "torque_enable": Register(64, 1),
    "led": Register(65, 1),
    "status_return_level": Register(68, 1),
    "registered_instruction": Register(69, 1),
    "hardware_error_status": Register(70, 1),
    "velocity_i_gain": Register(76, 2),
    "velocity_p_gain": Register(78, 2),
    "position_d_gain": Register(80, 2),
    "position_i_gain": Register(82, 2),
    "position_p_gain": Register(84, 2),
    "feedforward_2nd_gain": Register(88, 2),
    "feedforward_1st_gain": Register(90, 2),
    "bus_watchdog": Register(98, 1, unit="20 ms"),  # 255 is -1: it has run out
    "goal_pwm": Register(100, 2, signed=True, unit=_PWM),
    "goal_velocity": Register(104, 4, signed=True, unit=_VELOCITY),
    "profile_acceleration": Register(108, 4, unit="214.577 rev/min^2"),
    "profile_velocity": Register(112, 4, unit=_VELOCITY),
    "goal_position": Register(116, 4, signed=True, unit=_TICK),
    "realtime_tick": Register(120, 2, unit="1 ms"),
    "moving": Register(122, 1),
    "moving_status": Register(123, 1),
    "present_pwm": Register(124, 2, signed=True, unit=_PWM),
    "present_velocity": Register(128, 4, signed=True, unit=_VELOCITY),
    "present_position": Register(132, 4, signed=True, unit=_TICK),
    "velocity_trajectory": Register(136, 4, signed=True, unit=_VELOCITY),
    "position_trajectory": Register(140, 4, signed=True, unit=_TICK),
    "present_input_voltage": Register(144, 2, unit="0.1 V"),
    "present_temperature": Register(146, 1, unit="1 C"),
}
_WITH_CURRENT = {
    **_COMMON,
    "current_limit": Register(38, 2, unit=_CURRENT, eeprom=True),
    "goal_current": Register(102, 2, signed=True, unit=_CURRENT),
    "present_current": Register(126, 2, signed=True, unit=_CURRENT),
}
_WITH_LOAD = {**_COMMON, "present_load": Register(126, 2, signed=True, unit="0.1 %")}

TABLE_SIZE = 147
"""Bytes from the model number to the present temperature."""


@dataclass(frozen=True)
class Model:
    """One motor type.

    Attributes:
        name: as ROBOTIS writes it.
        number: what its register `model_number` says.
        registers: by name.
        max_current: largest value of `current_limit`, 2.69 mA each; 0 where current is not measured.
        torque_nm_per_a: stall torque over stall current at 12 V; 0 where current is not measured.
        fast_sync_firmware: the first firmware that knows Fast Sync Read.
    """

    name: str
    number: int
    registers: Mapping[str, Register]
    max_current: int
    torque_nm_per_a: float
    fast_sync_firmware: int = 45


XM540_W270 = Model("XM540-W270", 1120, _WITH_CURRENT, max_current=2047, torque_nm_per_a=10.6 / 4.4)
XM430_W350 = Model("XM430-W350", 1020, _WITH_CURRENT, max_current=1193, torque_nm_per_a=4.1 / 2.3)
XC430_W150 = Model("XC430-W150", 1070, _WITH_LOAD, max_current=0, torque_nm_per_a=0.0)
XL430_W250 = Model("XL430-W250", 1060, _WITH_LOAD, max_current=0, torque_nm_per_a=0.0)
MODELS: dict[int, Model] = {model.number: model for model in (XM540_W270, XM430_W350, XC430_W150, XL430_W250)}

BAUD_1M = 3
MODE_CURRENT = 0
MODE_POSITION = 3
MODE_CURRENT_POSITION = 5
DRIVE_REVERSE = 0x01
NO_SHADOW = 255
WATCHDOG_TRIPPED = 255
WATCHDOG_UNIT_S = 0.020
ALERT = 0x80
"""Bit of a status packet's error byte: `hardware_error_status` is not 0."""

HARDWARE_ERRORS = {
    0x01: "input voltage out of range",
    0x04: "overheating",
    0x08: "motor encoder failed",
    0x10: "electrical shock or too little power",
    0x20: "overload",
}


def hardware_errors(status: int) -> str:
    """The bits of `hardware_error_status` in words, or empty."""
    words = [text for bit, text in HARDWARE_ERRORS.items() if status & bit]
    unknown = status & ~sum(HARDWARE_ERRORS)
    return ", ".join([*words, f"unknown bits 0x{unknown:02x}"] if unknown else words)
