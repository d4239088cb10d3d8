"""The control tables agree with ROBOTIS's own, which come with the SDK."""

from __future__ import annotations

from importlib.resources import files

import pytest

from clamp_ros.arm.aloha2 import FOLLOWER, eeprom_settings
from clamp_ros.arm.registers import MODELS, TABLE_SIZE, XM430_W350, Model, Register, hardware_errors
from clamp_ros.arm.units import RAD_PER_TICK
from clamp_ros.contract.robot import LOWER_LIMITS, UPPER_LIMITS

FOLDER = files("dynamixel_easy_sdk") / "control_table"


def _table(model: Model) -> dict[str, tuple[int, int]]:
    text = (FOLDER / f"{model.name.lower().replace('-', '_')}.model").read_text()
    rows = [line.split("\t") for line in text.split("[control table]\n")[1].splitlines()[1:] if line.strip()]
    rename = {"secondary(shadow)_id": "secondary_id"}
    names = [name.strip().lower().replace(" ", "_") for _, _, name in rows]
    return {
        rename.get(name, name): (int(row[0]), int(row[1])) for name, row in zip(names, rows, strict=True)
        if int(row[0]) < TABLE_SIZE
    }  # fmt: skip


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_addresses_and_sizes_are_the_vendors(model):
    ours = {name: (register.address, register.size) for name, register in model.registers.items()}
    theirs = {name: row for name, row in _table(model).items() if not name.startswith("external_port")}
    assert ours == theirs


def test_model_numbers_are_the_vendors():
    rows = [line.split("\t") for line in (FOLDER / "dynamixel.model").read_text().splitlines()]
    theirs = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
    for number, model in MODELS.items():
        assert theirs[str(number)] == f"{model.name.lower().replace('-', '_')}.model"


def test_a_register_is_little_endian_and_signed_where_it_says_so():
    assert Register(0, 4, signed=True).decode(b"\xfe\xff\xff\xff") == -2
    assert Register(0, 2).encode(0x0102) == b"\x02\x01"
    with pytest.raises(OverflowError):
        Register(0, 1).encode(256)


def test_error_bits_in_words():
    assert hardware_errors(0) == ""
    assert hardware_errors(0x24) == "overheating, overload"
    assert hardware_errors(0x42) == "unknown bits 0x42"


@pytest.mark.parametrize("spec", FOLLOWER, ids=lambda spec: spec.name)
def test_a_motors_limits_are_its_joints_and_its_settings_exist(spec):
    settings = eeprom_settings(spec, None)
    assert all(spec.model.registers[name].eeprom for name in settings)
    if spec.joint < 6:
        low, high = ((ticks - 2048) * RAD_PER_TICK for ticks in (spec.min_ticks, spec.max_ticks))
        assert low == pytest.approx(LOWER_LIMITS[spec.joint], abs=0.003)
        assert high == pytest.approx(UPPER_LIMITS[spec.joint], abs=0.003)


def test_the_wrist_and_the_gripper_have_the_small_motor():
    assert [spec.name for spec in FOLLOWER if spec.model is XM430_W350] == ["wrist_rotate", "gripper"]
