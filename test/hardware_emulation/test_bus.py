"""The bus over the unpatched SDK against emulated servos: each fault has its error, its count and its deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from dynamixel_sdk import COMM_SUCCESS, GroupSyncRead, PacketHandler, PortHandler
from hardware_emulation.motor import Joint, Servo
from hardware_emulation.protocol import FAST_SYNC_READ, PING, SYNC_READ, crc16
from hardware_emulation.servos import Emulator, ServoBus, follower
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.arm.aloha2 import FOLLOWER, FOLLOWER_IDS
from clamp_ros.arm.bus import Bus
from clamp_ros.arm.registers import XM430_W350, XM540_W270
from clamp_ros.contract.errors import ArmError

MODELS = {motor: spec.model for motor, spec in zip(FOLLOWER_IDS, FOLLOWER, strict=True)}


@pytest.fixture
def servos() -> Iterator[ServoBus]:
    servos = follower()
    with Emulator(servos):
        yield servos


@pytest.fixture
def bus(servos: ServoBus) -> Iterator[Bus]:
    bus = Bus(servos.port, MODELS, reply_s=0.05, retry_s=0.15)
    bus.open()
    try:
        yield bus
    finally:
        bus.close()


@given(st.binary(max_size=64))
def test_the_emulators_crc_is_the_sdks(data):
    assert crc16(data) == PacketHandler(2.0).updateCRC(0, data, len(data))  # pyright: ignore[reportAttributeAccessIssue]


def test_the_sdks_own_port_and_group_read_understand_the_servos(servos):
    port, packets = PortHandler(servos.port), PacketHandler(2.0)
    assert port.openPort()
    group = GroupSyncRead(port, packets, 132, 4)
    assert all(group.addParam(motor) for motor in FOLLOWER_IDS)
    for read in (group.fastSyncRead, group.txRxPacket):
        assert read() == COMM_SUCCESS
        assert {motor: group.getData(motor, 132, 4) for motor in FOLLOWER_IDS} == servos.positions()
    port.closePort()


def test_motors_are_identified_and_read_in_one_exchange(servos, bus):
    bus.identify()
    before = dict(servos.instructions)
    states = bus.read_states()
    assert list(states) == list(FOLLOWER_IDS)
    assert {motor: state.position for motor, state in states.items()} == servos.positions()
    assert servos.instructions[FAST_SYNC_READ] == before.get(FAST_SYNC_READ, 0) + 1
    assert bus.traffic.loss == 0.0


def test_old_firmware_is_read_one_by_one(servos, bus):
    servos[7].put(firmware_version=44)
    bus.identify()
    assert {motor: state.position for motor, state in bus.read_states().items()} == servos.positions()
    assert servos.instructions[SYNC_READ] == 1 and FAST_SYNC_READ not in servos.instructions


def test_values_that_look_like_a_header_survive_stuffing(servos, bus):
    servos[1].put(homing_offset=-0x20001, moving_threshold=0xFDFFFF)
    assert bus.read(1, "homing_offset") == -0x20001
    bus.write(1, "goal_velocity", -0x020001)  # ff ff fd ff
    assert servos.values("goal_velocity")[1] == -0x020001
    assert bus.read(1, "goal_velocity") == -0x020001


def test_a_fast_read_is_not_stuffed(servos, bus):
    bus.identify()
    with servos.lock:
        servos[1].joint.shaft = 2045 - 2048  # its low byte is fd, after a velocity of ffff
        servos[1].measure = lambda: servos[1].put(present_position=2045, present_velocity=-1, present_current=-1)
    assert bus.read_states()[1][:3] == (2045, -1, -1)


@pytest.mark.parametrize(("fault", "counter"), [("drop", "lost"), ("corrupt", "corrupt"), ("cut", "corrupt")])
def test_a_spoilt_reply_is_repeated_and_counted(servos, bus, fault, counter):
    bus.identify()
    setattr(servos, fault, 1)
    assert len(bus.read_states()) == 9
    setattr(servos, fault, 1)
    assert bus.read(4, "present_temperature") == 32
    assert getattr(bus.traffic, counter) == 2
    assert bus.traffic.lost_by_id == {4: 1}
    assert 0.0 < bus.traffic.loss < 0.2


@pytest.mark.parametrize("fault", ["drop", "corrupt", "cut"])
def test_it_gives_up_at_its_deadline(servos, bus, fault):
    bus.identify()
    setattr(servos, fault, 10_000)
    before = sum(servos.instructions.values())
    with pytest.raises(ArmError, match="reading the motors failed for 150 ms"):
        bus.read_states()
    assert sum(servos.instructions.values()) >= before + 2
    with pytest.raises(ArmError, match="reading present_temperature of motor 4 failed"):
        bus.read(4, "present_temperature")


def test_a_silent_motor_is_named(servos, bus):
    servos[5].silent = True
    with pytest.raises(ArmError, match=r"motor 5 \(XM540-W270\) does not answer"):
        bus.identify()
    servos[5].silent = False
    bus.identify()
    servos[5].silent = True
    with pytest.raises(ArmError):
        bus.read_states()
    assert bus.silent() == [5]


def test_a_wrong_model_is_named(servos, bus):
    servos[8].put(model_number=XM540_W270.number)
    with pytest.raises(ArmError, match=rf"motor 8 has model number 1120, expected {XM430_W350.number} \(XM430-W350\)"):
        bus.identify()


def test_a_late_answer_is_not_taken_for_a_second_motors(servos, bus, monkeypatch):
    """An operator leaves a fault as soon as the bus is well again, and an answer to an earlier ping still comes."""
    real, late = servos.hear, [True]

    def hear(data: bytes, now: float) -> list[bytes]:
        replies = real(data, now)
        return [*replies, *replies] if replies and late and late.pop() else replies

    monkeypatch.setattr(servos, "hear", hear)
    assert bus.examine(6) is None
    assert not late, "the answer did come twice"


@pytest.mark.parametrize("collide", [False, True])
def test_a_duplicate_id_is_named(servos, bus, collide):
    servos.servos.append(Servo(6, XM540_W270.number, Joint()))
    servos.collide = collide
    with pytest.raises(ArmError, match=r"motor 6 .*share the id"):
        bus.identify()


def test_a_late_reply_does_not_answer_the_next_question(servos, bus):
    bus.identify()
    servos.delay_s = 0.12  # too late, and still on its way when the question is repeated
    with pytest.raises(ArmError):
        bus.read_states()
    servos.delay_s = 0.0
    with servos.lock:
        servos[1].joint.shaft = 100.0
    assert bus.read_states()[1].position == 2148, "neither is it what was measured before"


def test_slow_replies_within_the_limit_are_no_fault(servos, bus):
    bus.identify()
    servos.delay_s = 0.01
    assert len(bus.read_states()) == 9
    assert bus.traffic.lost == 0


def test_a_refusal_says_why(servos, bus):
    with pytest.raises(ArmError, match="writing 5000 to goal_position of motor 1 was refused: The data value exceeds"):
        bus.write(1, "goal_position", 5000)
    bus.write(1, "torque_enable", 1)
    with pytest.raises(ArmError, match=r"drive_mode of motor 1 was refused: .*not available"):
        bus.write(1, "drive_mode", 1)


def test_a_hardware_error_raises_the_alert_at_once(servos, bus):
    bus.identify()
    servos[7].fail(0x20)
    states = bus.read_states()
    assert [motor for motor, state in states.items() if state.alert] == [7]
    assert bus.read(7, "hardware_error_status") == 0x20, "an alert does not stop other instructions"
    bus.reboot(7)
    deadline = time.monotonic() + 5.0
    while bus.silent() and time.monotonic() < deadline:
        pass
    assert bus.read(7, "hardware_error_status") == 0


def test_an_unplugged_cable_is_told_and_a_missing_port_too(servos, bus):
    bus.identify()
    servos.unplug()
    with pytest.raises(ArmError, match="is gone"):
        bus.read_states()
    with pytest.raises(ArmError, match="is gone"):
        bus.write_all("goal_position", {1: 2048})
    with pytest.raises(ArmError, match="does not exist; connect the arm"):
        Bus("/dev/ttyDXL_nowhere", MODELS, reply_s=0.01, retry_s=0.0).open()


def test_a_port_is_held_by_one_driver_alone(servos, bus):
    second = Bus(servos.port, MODELS, reply_s=0.05, retry_s=0.1)
    with pytest.raises(ArmError, match="another driver"):
        second.open()


def test_a_closed_port_is_an_error_and_no_crash(bus):
    bus.close()
    with pytest.raises(ArmError, match="closed"):
        bus.read_states()


def test_garbage_without_end_cannot_hold_the_driver(servos, bus):
    bus.identify()
    answer = servos._obey
    servos._obey = lambda *question: [b"\xff\xff\xfd\x00\x01\xff\x03\x55" * 60, *answer(*question)]
    before = time.process_time()
    with pytest.raises(ArmError):
        for _ in range(50):
            bus.read_states()
    assert time.process_time() - before < 20.0
    servos._obey = answer
    assert len(bus.read_states()) == 9


def test_the_watchdog_stops_a_motor_and_locks_its_goal(servos, bus):
    bus.write(1, "profile_velocity", 20)
    bus.write(1, "torque_enable", 1)
    bus.write(1, "bus_watchdog", 1)
    bus.write(1, "goal_position", 3000)
    deadline = time.monotonic() + 5.0
    while servos.values("bus_watchdog")[1] != 255 and time.monotonic() < deadline:
        os.sched_yield()
    stopped = servos.positions()[1]
    assert 2048 <= stopped < 2100 and servos.values("torque_enable")[1] == 1
    with pytest.raises(ArmError, match="out of range"):
        bus.write(1, "goal_position", 2500)
    assert servos.positions()[1] == stopped
    bus.write(1, "bus_watchdog", 0)
    bus.write(1, "goal_position", 2500)
    assert servos.instructions.get(PING, 0) == 0
