"""Both arms on emulated servos: set up, driven, and held still through every fault."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hardware_emulation.motor import Joint, Servo
from hardware_emulation.protocol import SYNC_WRITE
from hardware_emulation.rig import Cell, cell, wait
from hardware_emulation.servos import ServoBus

from clamp_ros.arm.aloha2 import FOLLOWER, FOLLOWER_IDS, HOME_RAD, SLEEP_RAD, eeprom_settings
from clamp_ros.arm.arm import Arm, ArmSample
from clamp_ros.arm.arms import State
from clamp_ros.arm.registers import XM430_W350
from clamp_ros.arm.settings import ArmsConfig
from clamp_ros.contract.errors import ArmError, ConfigError
from clamp_ros.contract.robot import ARM_SLICES, GRIPPER_CLOSED_M, JOINT_NAMES, UPPER_LIMITS, VELOCITY_LIMITS
from clamp_ros.control.clearance import ClearanceConfig

ARM = np.array([name.split("/")[1] != "gripper" for name in JOINT_NAMES])


def _away(rig: Cell, delta: float = 0.3) -> np.ndarray:
    """A target near the sleep pose, both wrists turned."""
    target = rig.fresh().positions.copy()
    target[[5, 12]] += delta
    return target


def _follow(rig: Cell, target: np.ndarray, what: str = "the target") -> None:
    """Sends a target until the arms are there."""

    def there() -> bool:
        assert rig.arms.submit(target) is None
        return bool(np.abs(rig.fresh().positions - target).max() < 0.005)

    wait(there, what)


def _still(rig: Cell, bus: ServoBus) -> None:
    """Commands that go on coming move an arm no more, while its goals are written again and again."""
    before, written = bus.positions(), bus.instructions[SYNC_WRITE]
    target = rig.samples[-1].positions.copy()
    target[[0, 7]] += 0.2

    def ten_cycles() -> bool:
        assert rig.arms.submit(target) is not None
        return bus.instructions[SYNC_WRITE] >= written + 10

    wait(ten_cycles, "ten cycles of the arm that lives")
    after = bus.positions()
    assert max(abs(after[motor] - before[motor]) for motor in before) <= 3


def test_motors_out_of_the_box_are_set_up_and_held_where_they_stand():
    with cell() as rig:
        rig.left[5].horn = 20  # ticks by which its horn is off
        before = {motor: servo.joint.shaft for motor, servo in enumerate(rig.left.servos)}
        rig.start()
        for motor, spec in zip(FOLLOWER_IDS, FOLLOWER, strict=True):
            master = None if spec.shadow_of is None else motor - 1
            for name, value in eeprom_settings(spec, master).items():
                assert rig.left[motor].value(name) == value, (spec.name, name)
        assert rig.left[5].value("homing_offset") == -20, "else it would pull against the other motor"
        watchdogs = rig.left.values("bus_watchdog")
        assert watchdogs.pop(5) == 0, "old firmware runs away with a homing offset"
        assert set(watchdogs.values()) == {125}
        assert rig.left[9].value("goal_current") == 250 and rig.right[9].value("goal_current") == 250
        sample = rig.fresh()
        assert sample.positions[ARM_SLICES["left"]][:6] == pytest.approx(SLEEP_RAD, abs=0.01)
        moved = [abs(servo.joint.shaft - before[i]) for i, servo in enumerate(rig.left.servos)]
        assert max(moved) <= 2.0, "nothing jumps"


def test_commands_are_followed_no_faster_than_the_joints_may():
    with cell() as rig:
        rig.start()
        target = _away(rig, 0.45)
        goals: list[np.ndarray] = []
        arm = rig.arms.arm("left")
        write = arm._write_goals

        def spy() -> None:
            goals.append(np.array(arm.goal))
            write()

        arm._write_goals = spy
        _follow(rig, target)
        steps = np.abs(np.diff(goals, axis=0))
        assert (steps <= VELOCITY_LIMITS[:7] * 0.04 + 1e-9).all()
        assert rig.fresh().velocities == pytest.approx(np.zeros(14), abs=0.2)
        assert rig.arms.state is State.FOLLOWING
        assert rig.wait_for(State.HOLDING) == "no commands"


def test_the_gripper_closes_to_where_its_pads_touch_and_pushes_with_what_it_may():
    with cell() as rig:
        rig.start()
        touch = 0.62 / (2 * np.pi / 4096)
        with rig.left.lock:
            rig.left[9].joint.stops = (touch, 4000.0)
        target = rig.fresh().positions.copy()
        target[6], target[13] = 0.002, UPPER_LIMITS[13]

        def closed() -> bool:
            assert rig.arms.submit(target) is None
            return abs(rig.fresh().positions[6] - GRIPPER_CLOSED_M) < 1e-4 and rig.samples[-1].efforts[6] < 0

        wait(closed, "the left gripper to close")
        units = rig.arms.arm("left").units
        limit_nm = 250 * 2.69e-3 * XM430_W350.torque_nm_per_a
        assert rig.samples[-1].efforts[6] == pytest.approx(-limit_nm / units.metres_per_rad, rel=1e-6)


def test_a_gripper_goes_on_squeezing_when_the_arms_are_told_to_hold():
    with cell() as rig:
        rig.start()
        with rig.left.lock:
            rig.left[9].joint.stops = (600.0, 4000.0)  # something is between the fingers
        target = rig.fresh().positions.copy()
        target[6] = 0.002

        def squeezing() -> bool:
            assert rig.arms.submit(target) is None
            return rig.left.values("goal_position")[9] == 2320  # 0.62 - 1.00 * 0.0059 / 0.0291 rad: beyond touching

        wait(squeezing, "the grip")
        goal = rig.left.values("goal_position")[9]
        rig.arms.torque(True)
        wait(lambda n=rig.left.instructions[SYNC_WRITE]: rig.left.instructions[SYNC_WRITE] > n + 3, "a few cycles")
        assert abs(rig.left.values("goal_position")[9] - goal) <= 1


def test_contradicting_deadlines_are_refused():
    with pytest.raises(ConfigError, match=r"hold_after_s is 0.03, expected two periods of 50 Hz"):
        ArmsConfig(rate_hz=50)
    with pytest.raises(ConfigError, match=r"fault_after_s is 0.1, expected hold_after_s or more"):
        ArmsConfig(hold_after_s=0.2, fault_after_s=0.1)


@pytest.mark.parametrize(
    ("joint", "value", "reason"),
    [(0, 0.9, "0.90 rad from where the arm"), (13, 0.05, "right/gripper is 0.0500, outside"), (8, -2.0, "outside")],
)
def test_commands_out_of_reach_are_refused(joint, value, reason):
    with cell() as rig:
        rig.start()
        target = rig.fresh().positions.copy()
        target[joint] = value
        assert reason in str(rig.arms.submit(target))
        assert rig.arms.state is State.HOLDING


def test_home_and_sleep_are_smooth_and_leave_the_grippers():
    with cell() as rig:
        rig.start()
        grips = rig.fresh().positions[~ARM]
        for pose, where in (("home", HOME_RAD), ("sleep", SLEEP_RAD)):
            seconds = rig.go(pose)
            assert 0.5 < seconds < 5.0
            assert "moving" in str(rig.arms.submit(rig.samples[-1].positions)), "commands wait"
            with pytest.raises(ArmError, match="moving"):
                rig.go("home")
            rig.wait_for(State.HOLDING)
            wait(lambda w=where: np.abs(rig.fresh().positions[ARM] - np.tile(w, 2)).max() < 0.02, pose)
        assert rig.fresh().positions[~ARM] == pytest.approx(grips, abs=1e-4)


def test_home_goes_no_farther_than_commands_come():
    """They are not followed; but who sends them is who stops the arms in an emergency."""
    with cell(speed_rad_s=0.2) as rig:
        rig.start()
        with pytest.raises(ArmError, match="no emergency stop would"):
            rig.arms.move("home")
        assert rig.arms.submit(rig.fresh().positions) is None
        seconds = rig.arms.move("home")
        for _ in range(50):
            assert "moving" in str(rig.arms.submit(rig.fresh().positions))
        assert "no commands come" in rig.wait_for(State.HOLDING, seconds / 2)
        assert np.abs(rig.fresh().positions[ARM] - np.tile(HOME_RAD, 2)).max() > 0.2


def test_a_way_that_is_not_free_is_refused_and_nothing_moves():
    with cell(clearance=ClearanceConfig(arm_self_m=0.03)) as rig:  # folded up, an arm is nearer to itself than that
        rig.start()
        rig.go("home")
        rig.wait_for(State.HOLDING)
        before = rig.fresh().positions
        with pytest.raises(ArmError, match=r"way sleep is not free: .* mm from .*, limit 30\.0 mm\. Bring"):
            rig.go("sleep")
        assert rig.arms.state is State.HOLDING
        assert rig.arms.submit(before) is None, "commands are taken again"
        assert rig.fresh().positions == pytest.approx(before, abs=0.01)


def test_an_obstructed_motion_stops_pushing():
    with cell() as rig:
        rig.start()
        with rig.right.lock:
            rig.right[2].joint.stops = (-1300.0, -1000.0)
        rig.go("home")
        assert "right/shoulder cannot follow; is it obstructed?" in rig.wait_for(State.HOLDING)
        arm = rig.arms.arm("right")

        def relaxed() -> bool:
            return abs(np.array(arm.goal)[1] - rig.fresh().positions[8]) < 0.01

        wait(relaxed, "the goal to go back to where the arm stands")


def test_a_dead_motor_stops_both_arms_and_is_named_until_it_is_mended():
    with cell() as rig:
        rig.start()
        _follow(rig, _away(rig))
        rig.left[4].silent = True
        reason = rig.wait_for(State.FAULT)
        assert "no answer from left elbow (motor 4)" in reason
        _still(rig, rig.right)
        assert rig.torque() == {1}, "a fault takes no torque away"
        with pytest.raises(ArmError, match=r"motor 4 \(XM540-W270\) does not answer"):
            rig.arms.torque(True)
        with pytest.raises(ArmError, match="fault"):
            rig.go("sleep")
        rig.left[4].silent = False
        rig.arms.torque(True)
        assert rig.arms.state is State.HOLDING
        _follow(rig, _away(rig, -0.2))


def test_an_unplugged_bus_stops_both_arms():
    with cell() as rig:
        rig.start()
        rig.right.unplug()
        assert "is gone" in rig.wait_for(State.FAULT)
        _still(rig, rig.left)


def test_a_motor_whose_own_answers_are_garbled_for_long_stops_both_arms_though_the_sync_reads_go_on():
    with cell() as rig:
        rig.start()
        with rig.left.lock:
            rig.left.collide = True
            rig.left.servos.append(Servo(6, rig.left[6].model.number, Joint(500.0)))
        assert "left forearm_roll (motor 6) does not answer for itself" in rig.wait_for(State.FAULT)
        _still(rig, rig.right)


@pytest.mark.parametrize("fault", ["drop", "corrupt", "cut"])
def test_a_short_disturbance_is_bridged(fault):
    with cell() as rig:
        rig.start()
        target = _away(rig)
        setattr(rig.left, fault, 3)
        _follow(rig, target)
        traffic = rig.arms.arm("left").bus.traffic
        assert traffic.lost + traffic.corrupt >= 3
        assert State.FAULT not in {state for state, _ in rig.states}


def test_a_bus_that_comes_back_in_time_holds_and_goes_on():
    with cell(fault_after_s=5.0, hold_after_s=0.4) as rig:
        rig.start()
        target = _away(rig)
        rig.arms.submit(target)
        rig.left.drop = 10_000

        def refused() -> bool:
            return "left arm's bus does not answer" in str(rig.arms.submit(target))

        wait(refused, "the hold")
        rig.left.drop = 0
        wait(lambda: rig.arms.submit(target) is None, "commands to be taken again")
        _follow(rig, target)
        assert State.FAULT not in {state for state, _ in rig.states}


def test_a_bus_that_comes_back_while_nobody_commands_is_no_longer_what_the_arms_hold_for():
    with cell(fault_after_s=5.0, hold_after_s=0.4) as rig:
        rig.start()
        target = _away(rig)
        wait(lambda: rig.arms.submit(target) is None, "a command to be taken")
        rig.left.drop = 10_000
        wait(lambda: "left arm's bus does not answer" in str(rig.arms.submit(target)), "the hold")
        wait(lambda: rig.arms.submit(target) and rig.arms.reason == "the left arm's bus does not answer", "its reason")
        rig.left.drop = 0
        wait(lambda: rig.arms.reason == "no commands", "the true reason")
        assert rig.arms.state is State.HOLDING
        _follow(rig, target)


def test_one_late_answer_after_the_process_was_hung_is_no_fault(monkeypatch: pytest.MonkeyPatch):
    with cell(fault_after_s=0.5, hold_after_s=0.4) as rig:
        rig.start()
        arm = rig.arms.arm("left")
        hung: list[float] = []

        def read() -> ArmSample:
            if not hung:
                hung.append(time.monotonic())
                time.sleep(0.8)
                raise ArmError("not every motor answered")
            return Arm.read(arm)

        monkeypatch.setattr(arm, "read", read)
        wait(lambda: hung and rig.fresh(), "the arm to be read again")
        _follow(rig, _away(rig))
        assert State.FAULT not in {state for state, _ in rig.states}


@pytest.mark.parametrize(("bits", "words"), [(0x20, "overload"), (0x04, "overheating")])
def test_a_hardware_error_stops_both_arms_until_the_motor_is_rebooted(bits, words):
    with cell() as rig:
        rig.start()
        rig.right[2].fail(bits)
        assert f"hardware error of right shoulder (motor 2): {words}" in rig.wait_for(State.FAULT)
        _still(rig, rig.left)
        with pytest.raises(ArmError, match="call /arms/reboot"):
            rig.arms.torque(True)
        assert "right shoulder (motor 2)" in rig.arms.reboot()
        assert rig.arms.state is State.HOLDING and rig.torque() == {1}
        assert rig.right[2].value("profile_velocity") == 131, "a restarted motor is set up again"


def test_a_motor_that_lost_its_power_for_a_moment_is_noticed():
    with cell() as rig:
        rig.start()
        with rig.left.lock:
            rig.left[7].power_up()
        assert "left wrist_angle (motor 7) has lost its torque" in rig.wait_for(State.FAULT)
        rig.arms.torque(True)
        assert rig.torque() == {1} and rig.left[7].value("bus_watchdog") == 125


def test_watchdogs_that_ran_out_are_wound_up_and_the_arm_goes_on_from_where_it_stopped():
    with cell() as rig:
        rig.start()
        with rig.left.lock:
            for servo in rig.left.servos:
                servo.expire()
        wait(lambda: set(rig.left.values("bus_watchdog").values()) == {125}, "the watchdogs")
        assert set(rig.left.values("profile_velocity").values()) == {131}
        assert rig.arms.arm("left").watchdog_trips >= 1
        _follow(rig, _away(rig))


def test_letting_go_and_holding_again():
    with cell() as rig:
        rig.start()
        rig.arms.torque(False)
        assert rig.arms.state is State.OFF and rig.torque() == {0}
        assert "off" in str(rig.arms.submit(rig.fresh().positions))
        with rig.left.lock:
            rig.left[1].joint.shaft = 300.0  # somebody moves the arm
        wait(lambda: rig.fresh().positions[0] == pytest.approx(300 * 2 * np.pi / 4096), "the new pose")
        rig.arms.torque(True)
        wait(lambda: rig.torque() == {1}, "torque")
        assert rig.left.positions()[1] == pytest.approx(2048 + 300, abs=2), "it stays where it was put"


def test_a_restart_finds_the_arms_holding_and_leaves_them_so():
    with cell() as rig:
        rig.start()
        _follow(rig, _away(rig))
        rig.arms.close()
        assert rig.torque() == {1}, "at exit the arms hold"
        with rig.left.lock, rig.right.lock:
            for servo in (*rig.left.servos, *rig.right.servos):
                servo.expire()
        before = rig.left.positions()
        again = Cell(rig.left, rig.right, {}, {})
        try:
            again.start()
            assert again.arms.arm("left").notes == [], "nothing is written to the motors' memory again"
            assert max(abs(rig.left.positions()[motor] - before[motor]) for motor in before) <= 2
        finally:
            again.arms.close()


def test_settings_are_not_changed_under_torque_unless_allowed():
    with cell() as rig:
        rig.left[1].put(torque_enable=1)
        rig.arms.start()
        with pytest.raises(ArmError, match="torque is on: lay the arms on their cradles"):
            wait(lambda: rig.arms.check(), "the refusal")
        assert rig.right.values("torque_enable")[1] == 0, "the other arm stays limp, too"
    with cell(motors={"torque_off_to_configure": True}) as rig:
        rig.left[1].put(torque_enable=1)
        rig.start()


def test_a_wrong_motor_ends_the_start_before_any_arm_gets_torque():
    with cell() as rig:
        rig.right[1].put(model_number=XM430_W350.number)
        rig.arms.start()
        with pytest.raises(ArmError, match="motor 1 has model number 1020, expected 1120"):
            wait(lambda: rig.arms.check(), "the refusal")
        assert rig.torque() == {0}


def test_sleep_at_exit_lays_the_arms_down_before_it_lets_go():
    with cell(at_exit="sleep") as rig:
        rig.start()
        _follow(rig, _away(rig))
        rig.arms.close()
        assert rig.torque() == {0}
        ticks = rig.left.positions()
        assert ticks[2] == pytest.approx(2048 - 1.80 / (2 * np.pi / 4096), abs=12)
        assert ticks[8] == pytest.approx(2048, abs=12)


def test_sleep_at_exit_is_not_for_arms_in_fault():
    with cell(at_exit="sleep") as rig:
        rig.start()
        rig.left[3].silent = True
        rig.wait_for(State.FAULT)
        rig.arms.close()
        assert rig.torque() == {1}


def test_a_defect_in_one_arms_thread_ends_both_and_the_motors_hold():
    with cell(motors={"watchdog_s": 0.2}) as rig:
        rig.start()
        rig.arms.arm("left").watch = lambda: [][1]
        with pytest.raises(IndexError):
            wait(lambda: rig.arms.check(), "the defect")
        for bus in (rig.left, rig.right):
            wait(lambda b=bus: set(b.values("bus_watchdog").values()) == {255}, "the motors' watchdogs")
        assert rig.torque() == {1}
        with pytest.raises(IndexError):
            rig.arms.torque(False)
