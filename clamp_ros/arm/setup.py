"""Sets an arm's motors up as ALOHA 2 has them: what must stand in their memories, shadows, gains.

Only what differs is written: an EEPROM wears out, and can be written without torque only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clamp_ros.contract.errors import ArmError

if TYPE_CHECKING:
    from clamp_ros.arm.arm import Arm

_SHADOW_TICKS = 8
_MAX_HOMING_TICKS = 1024


def configure(arm: Arm) -> None:
    """Writes what differs; first the masters, since what is written to them reaches their shadows, too.

    Raises:
        ArmError: a motor does not answer or keep a setting, torque is on and may not be taken away, or two motors of a
            joint stand too far from each other.
    """
    bus = arm.bus
    for motor in arm.specs:
        bus.write(motor, "bus_watchdog", 0)  # where it had run out, goals are locked
    for _ in range(2):
        if not (wrong := _wrong_settings(arm)):
            break
        _write_settings(arm, wrong)
    if wrong := _wrong_settings(arm):
        motor, name, value, found = wrong[0]
        raise ArmError(f"{arm.label(motor)} does not keep {name}: it is {found} after writing {value}")
    if not _any_torque(arm):
        _align_shadows(arm)
    for motor in arm.specs:
        for name, value in arm.ram_settings(motor).items():
            if bus.read(motor, name) != value:
                bus.write(motor, name, value)


def _wrong_settings(arm: Arm) -> list[tuple[int, str, int, int]]:
    """(motor, register, wanted, found) of the EEPROM."""
    wrong = []
    for motor in arm.specs:
        wanted = arm.eeprom_settings(motor)
        found = arm.bus.read_many(motor, list(wanted))
        wrong += [(motor, name, value, found[name]) for name, value in wanted.items() if found[name] != value]
    return wrong


def _write_settings(arm: Arm, wrong: list[tuple[int, str, int, int]]) -> None:
    if _any_torque(arm):
        if not arm.config.torque_off_to_configure:
            motor, name, value, found = wrong[0]
            raise ArmError(
                f"{name} of {arm.label(motor)} is {found}, not {value} ({len(wrong)} settings differ); they can "
                "only be written without torque, and torque is on: lay the arms on their cradles and start with "
                "motors.torque_off_to_configure:=true"
            )
        arm.torque_off()
    for motor, name, value, found in wrong:
        arm.bus.write(motor, name, value)
        arm.notes.append(f"{name} of {arm.label(motor)} set from {found} to {value}")


def _any_torque(arm: Arm) -> bool:
    return any(arm.bus.read(motor, "torque_enable") for motor in arm.specs)


def _align_shadows(arm: Arm) -> None:
    """Two motors on one joint whose zeros differ would pull against each other: moves the shadow's zero."""
    for motor in arm.specs:
        if (master := arm.master(motor)) is None:
            continue
        apart = arm.bus.read(master, "present_position") - arm.bus.read(motor, "present_position")
        if abs(apart) <= _SHADOW_TICKS:
            continue
        offset = arm.bus.read(motor, "homing_offset") + apart
        if abs(offset) > _MAX_HOMING_TICKS:
            raise ArmError(
                f"{arm.label(motor)} stands {apart} ticks from {arm.label(master)}, more than its homing offset "
                f"can mend ({_MAX_HOMING_TICKS}); mount its horn anew"
            )
        arm.bus.write(motor, "homing_offset", offset)
        arm.notes.append(f"homing_offset of {arm.label(motor)} set to {offset}")
