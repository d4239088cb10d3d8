"""For how long an arm may lag or strain, by the clock of the ticks; and for how long a node may be silent."""

from __future__ import annotations

import numpy as np
import pytest

from clamp_ros.contract.robot import EFFORT_LIMITS, JOINT_NAMES, NUM_JOINTS, REST_POSE
from clamp_ros.control.alive import AliveConfig, Heartbeats
from clamp_ros.control.following import Following, FollowingConfig

CONFIG = FollowingConfig(error_rad=0.1, error_s=0.1, effort_share=0.5, effort_s=0.2)


def ticks_until_held(joint: int, error: float, effort: float, ticks: int = 50) -> int | None:
    following, off = Following(CONFIG), np.eye(NUM_JOINTS)[joint]
    for tick in range(1, ticks):
        reason = following.check(REST_POSE, REST_POSE + error * off, effort * off, 0.02)
        if reason is not None:
            assert JOINT_NAMES[joint] in reason
            return tick
    return None


@pytest.mark.parametrize(
    ("joint", "error", "effort", "held"),
    [
        (1, 0.11, 0.0, 6),
        (1, -0.11, 0.0, 6),
        (1, 0.09, 0.0, None),
        (7, 0.0, 0.51 * EFFORT_LIMITS[7], 11),
        (7, 0.0, 0.49 * EFFORT_LIMITS[7], None),
        (6, 0.03, 1e3, None),  # a gripper that holds something
    ],
)
def test_what_lasts_too_long(joint: int, error: float, effort: float, held: int | None) -> None:
    found = ticks_until_held(joint, error, effort)
    assert found == held or (held is not None and found == held - 1), "sums of 0.02 s may be a rounding early"


def test_what_passes_is_forgotten() -> None:
    following = Following(CONFIG)
    for tick in range(60):
        late = REST_POSE + (0.2 if tick % 5 else 0.0)
        assert following.check(REST_POSE, late, None, 0.02) is None


def test_a_node_that_was_heard_and_falls_silent_is_dead_until_it_is_heard_again() -> None:
    heartbeats = Heartbeats(AliveConfig(("arm_node",), silence_s=2.0))
    assert heartbeats.dead(100.0) == "", "it has not started yet"
    heartbeats.beat("policy_node", 100.0)
    heartbeats.beat("arm_node", 100.0)
    assert heartbeats.dead(102.0) == ""
    assert heartbeats.dead(102.1) == "arm_node has been silent for 2.1 s, limit 2.0 s"
    heartbeats.beat("arm_node", 102.2)
    assert heartbeats.dead(102.3) == ""


def test_a_watcher_that_was_hung_takes_nobody_for_dead() -> None:
    heartbeats = Heartbeats(AliveConfig(("arm_node",), ("policy_node",), 2.0))
    for now_s in (100.0, 100.25):
        heartbeats.watch(now_s)
    heartbeats.beat("arm_node", 100.25)
    heartbeats.beat("policy_node", 100.25)
    heartbeats.watch(112.0)
    assert heartbeats.dead(112.0) == heartbeats.hung(112.0) == ""
    for tick in range(1, 9):
        heartbeats.watch(112.0 + 0.25 * tick)
    assert heartbeats.dead(114.1).startswith("arm_node has been silent for 2.1 s"), "it is heard no more since then"
    assert "policy_node" in heartbeats.hung(114.1)


def test_a_watched_node_that_hangs_is_named_and_is_no_emergency():
    heartbeats = Heartbeats(AliveConfig(("arm_node",), ("recorder_node", "policy_node"), 2.0))
    for name in ("arm_node", "recorder_node", "policy_node", "another"):
        heartbeats.beat(name, 100.0)
    assert heartbeats.hung(102.0) == ""
    for name in ("arm_node", "policy_node"):
        heartbeats.beat(name, 102.0)
    told = heartbeats.hung(102.1)
    assert "recorder_node" in told and "policy_node" not in told
    assert heartbeats.hung(103.0) == told, "said once, since it does not change"
    assert heartbeats.dead(103.0) == ""
    heartbeats.beat("recorder_node", 103.5)
    assert heartbeats.hung(103.5) == ""
    assert heartbeats.dead(105.0).startswith("arm_node"), "a required node is told as an emergency only"
    assert "arm_node" not in heartbeats.hung(105.0)


def test_a_mourned_node_that_comes_back_in_another_process_has_died():
    heartbeats = Heartbeats(AliveConfig(mourned=("policy_node", "fusion_node")))
    for name, process in (("policy_node", "10"), ("fusion_node", "11"), ("recorder_node", "12"), ("policy_node", "10")):
        heartbeats.beat(name, 100.0, process)
    assert heartbeats.died() == ""
    heartbeats.beat("recorder_node", 101.0, "13")
    heartbeats.beat("policy_node", 101.0, "14")
    heartbeats.beat("policy_node", 101.1, "14")
    assert heartbeats.died() == "policy_node died and had to be started again"
    assert heartbeats.died() == "", "told once, so that the stop can be released"
    assert heartbeats.dead(200.0) == "", "its silence is no emergency"
