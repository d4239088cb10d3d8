"""The leaders over the unpatched SDK: read limp, driven with little force, carried by current, found again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hardware_emulation.leaders import HANDLE, leader
from hardware_emulation.rig import wait
from hardware_emulation.servos import Emulator, ServoBus

from clamp_ros.arm.aloha2 import FOLLOWER_IDS, LEADER, SLEEP_RAD, Drive
from clamp_ros.arm.gravity import GravityModel
from clamp_ros.arm.leader import Leader
from clamp_ros.arm.leaders import Leaders, LeaderSample
from clamp_ros.arm.registers import (
    MODE_CURRENT,
    MODE_CURRENT_POSITION,
    MODE_POSITION,
    WATCHDOG_TRIPPED,
    XL430_W250,
    XM430_W350,
    XM540_W270,
)
from clamp_ros.arm.settings import LeaderMotors, LeaderSide
from clamp_ros.arm.units import AMPERE_PER_UNIT
from clamp_ros.contract.errors import ArmError, ConfigError
from clamp_ros.contract.robot import GRIPPER_INDICES, REST_POSE

SLOW: dict[str, Any] = {"reply_s": 0.1, "retry_s": 0.5, "watchdog_s": 2.5, "fresh_s": 1.0, "drive_rad_s": 2.0}
"""Deadlines of a busy machine."""
ARMS_ONLY = np.delete(np.arange(14), GRIPPER_INDICES)


def side(bus: ServoBus) -> LeaderSide:
    return LeaderSide(port=bus.port, **HANDLE)


@contextmanager
def served(bus: ServoBus, **motors: Any) -> Iterator[Leader]:
    """One leader, set up."""
    with Emulator(bus):
        arm = Leader("left", side(bus), LeaderMotors(**{**SLOW, **motors}))
        try:
            arm.start()
            yield arm
        finally:
            arm.bus.close()


@contextmanager
def cell(left: ServoBus, right: ServoBus, **motors: Any) -> Iterator[Leaders]:
    """Both leaders, read."""
    with Emulator(left, right):
        leaders = Leaders(side(left), side(right), LeaderMotors(**{**SLOW, **motors}), 50)
        leaders.start()
        try:
            wait(lambda: lives(leaders) and leaders.problem is None and leaders.sample(), "the leaders")
            yield leaders
        finally:
            leaders.close()


def lives(leaders: Leaders) -> bool:
    leaders.check()
    return True


def sampled(leaders: Leaders, condition: Any, what: str) -> LeaderSample:
    """Waits for a reading that meets a condition."""
    found: list[LeaderSample] = []

    def look() -> bool:
        leaders.check()
        sample = leaders.sample()
        found[:] = [sample] if sample is not None and condition(sample) else []
        return bool(found)

    wait(look, what)
    return found[0]


def test_a_leader_is_set_up_limp_and_read_in_the_followers_units():
    bus = leader()
    with served(bus) as arm:
        assert set(bus.values("torque_enable").values()) == {0}
        for motor, spec in zip(FOLLOWER_IDS, LEADER, strict=True):
            assert bus[motor].value("drive_mode") == spec.drive_mode
            assert bus[motor].value("min_position_limit") == spec.min_ticks
        assert [bus[motor].value("secondary_id") for motor in (2, 3, 4, 5)] == [255, 2, 255, 4]
        np.testing.assert_allclose(arm.read().positions, [*SLEEP_RAD, 0.037], atol=2e-3)
        bus[9].joint.shaft = -36.0  # -0.0552 rad: squeezed
        assert arm.read().positions[6] == pytest.approx(0.002, abs=1e-4)


def test_leaders_differ_in_their_motors_and_any_of_the_known_may_stand_anywhere():
    bus = leader(swapped={7: XL430_W250, 8: XL430_W250, 9: XM430_W350})
    with served(bus, assist=1.0) as arm:
        arm.enter(Drive.DRIVEN)
        assert [bus[motor].value("operating_mode") for motor in (6, 7)] == [MODE_CURRENT_POSITION, MODE_POSITION]
        arm.enter(Drive.ASSIST)
        assert bus.values("torque_enable") == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 0, 8: 0, 9: 0}


def test_a_follower_in_a_leaders_place_is_refused():
    bus = leader(swapped={2: XM540_W270})
    with pytest.raises(ArmError, match=r"motor 2 has model number 1120, expected 1020 \(XM430-W350\)"), served(bus):
        pass


def test_a_driven_leader_goes_to_the_pose_with_little_current_and_its_handle_stays_limp():
    left, right = leader(), leader()
    with cell(left, right) as leaders:
        leaders.wish(Drive.DRIVEN, REST_POSE)
        sample = sampled(leaders, lambda s: s.drive is Drive.DRIVEN and s.settled, "the pose")
        np.testing.assert_allclose(sample.positions[ARMS_ONLY], REST_POSE[ARMS_ONLY], atol=0.03)
        assert sample.positions[6] == pytest.approx(0.037, abs=1e-4), "the handle is the person's"
        for bus in (left, right):
            assert bus.values("torque_enable") == dict.fromkeys(range(1, 9), 1) | {9: 0}
            assert bus.values("goal_current") == dict.fromkeys(range(1, 9), 400)
            assert all(0 < ticks < WATCHDOG_TRIPPED for motor, ticks in bus.values("bus_watchdog").items() if motor < 9)
        leaders.wish(Drive.FREE)
        sampled(leaders, lambda s: s.drive is Drive.FREE, "letting go")
    assert {value for bus in (left, right) for value in bus.values("torque_enable").values()} == {0}


def test_a_leader_that_something_holds_back_settles_where_it_is():
    left, right = leader(), leader()
    left[1].joint.stops = (-1e9, 100.0)
    pose = REST_POSE.copy()
    pose[[0, 7]] = 1.5
    with cell(left, right) as leaders:
        leaders.wish(Drive.DRIVEN, pose)
        sample = sampled(leaders, lambda s: s.drive is Drive.DRIVEN and s.settled, "both to settle")
        assert sample.positions[0] == pytest.approx(100 * 2 * np.pi / 4096, abs=0.01)
        assert sample.positions[7] == pytest.approx(1.5, abs=0.03)


def test_the_weight_is_carried_by_currents_that_shadows_share():
    bus = leader(np.array([0.0, 0.3, -0.2, 0.0, 0.4, 0.0, 0.02]))
    model = GravityModel()
    with served(bus, assist=0.5, assist_current=1000) as arm:
        arm.enter(Drive.ASSIST)
        sample = arm.read()
        arm.act(None, 0.0)
        found = {motor: value for motor, value in bus.values("goal_current").items() if motor < 9}
        assert {motor: bus[motor].value("operating_mode") for motor in found} == dict.fromkeys(found, MODE_CURRENT)
        torques = 0.5 * model.torques(sample.positions[:6]) / (XM430_W350.torque_nm_per_a * AMPERE_PER_UNIT)
        assert found[2] == found[3] == round(torques[1] / 2), "two motors share the shoulder"
        assert found[4] == found[5] == round(torques[2] / 2)
        assert found[7] == round(torques[4])
        assert found[2] < -50, "the arm leans forward: its motors pull it back"
        assert found[1] == found[8] == 0


def test_the_current_that_carries_is_limited():
    bus = leader(np.array([0.0, 0.3, -0.2, 0.0, 0.4, 0.0, 0.02]))
    with served(bus, assist=1.0, assist_current=30) as arm:
        arm.enter(Drive.ASSIST)
        arm.read()
        arm.act(None, 0.0)
        assert min(bus.values("goal_current").values()) == -30


def test_a_leader_whose_computer_dies_carries_nothing_on():
    """The motors' own watchdogs: of driven leaders and of those that are carried, also with a homing offset."""
    bus = leader()
    bus[3].put(homing_offset=20)
    with served(bus, assist=1.0, watchdog_s=0.1) as arm:
        arm.enter(Drive.ASSIST)
        arm.read()
        arm.act(None, 0.0)
        assert any(bus.values("goal_current").values())
        wait(lambda: bus.values("bus_watchdog")[3] == WATCHDOG_TRIPPED, "the watchdogs")  # nobody speaks
        assert not any(value for motor, value in bus.values("goal_current").items() if motor < 9)
        assert arm.stalled()
        arm.rearm()
        assert arm.mode is Drive.ASSIST
        assert any(bus.values("goal_current").values())


def test_an_unplugged_leader_is_named_and_a_silent_one_is_found_again():
    left, right = leader(), leader()
    with cell(left, right) as leaders:
        for servo in left.servos:
            servo.silent = True
        wait(lambda: lives(leaders) and leaders.problem, "the problem")
        assert str(leaders.problem).startswith("left leader: ")
        wait(lambda: lives(leaders) and leaders.sample() is None, "the last reading to be too old")
        for servo in left.servos:
            servo.silent = False
        wait(lambda: lives(leaders) and leaders.problem is None and leaders.sample(), "the leader to come back")
        right.unplug()
        wait(lambda: lives(leaders) and leaders.problem, "the other problem")
        assert "right leader" in str(leaders.problem)


def test_a_motor_that_reports_an_error_is_restarted_since_nothing_hangs_on_it():
    left, right = leader(), leader()
    with cell(left, right) as leaders:
        left[4].fail(0x20)
        wait(lambda: lives(leaders) and any("restarted" in note for note in leaders.arm("left").notes), "the restart")
        wait(lambda: lives(leaders) and leaders.problem is None and leaders.sample(), "the leader")
        assert left.values("hardware_error_status")[4] == 0


def test_handles_have_to_be_calibrated():
    with pytest.raises(ConfigError, match="handle_open_rad are both 0"):
        Leaders(LeaderSide(), LeaderSide(), LeaderMotors(), 50)
