"""A pen that goes from one hand to the other, by choice and because no arm reaches both ends of its way."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import ARM_SLICES, ARMS, CONTROL_RATE_HZ, REST_POSE
from clamp_ros.geometry.transforms import make
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.experts.gripping import OTHER, gripper_pose
from clamp_ros.sim.experts.insert import _Insertion
from clamp_ros.sim.experts.trajectory import ArmPath, together
from clamp_ros.sim.tasks.task import gripped_by, touching
from clamp_ros.sim.world import World

HANDED_OVER = 14
ALONE = 0


@cache
def world() -> World:
    return World("pen_in_container", look="primitive")


def hands(scene: World) -> str:
    """Which hands have the pen."""
    bodies = touching(scene.model, scene.data, "pen")
    fingers = {arm: {body for body in bodies if body.startswith(f"{arm}/")} for arm in ARMS}
    return " ".join(arm for arm in ARMS if gripped_by(fingers[arm]) == arm)


def test_the_pen_goes_from_hand_to_hand_and_is_never_let_go_in_between():
    scene = world()
    scene.reset(HANDED_OVER)
    expert = make_expert(scene, np.random.default_rng([HANDED_OVER, 1]))
    held = expert.held
    seen = []
    for tick in itertools.count():
        scene.step(expert.act())
        if tick in held:
            seen.append(hands(scene))
        if expert.done:
            break
    assert scene.success() and expert.attempts == 1
    settled = seen[10:-10]
    in_order = [key for key, group in itertools.groupby(settled) if len(list(group)) > 5]
    assert in_order == ["right", "left right", "left"]
    assert "" not in settled


def test_what_no_arm_can_do_alone_is_handed_over(monkeypatch: pytest.MonkeyPatch):
    def out_of_reach(*_: object) -> None:
        raise SimulationError("out of reach")

    scene = world()
    scene.reset(ALONE)
    moved = {arm: np.ptp(make_expert(scene, np.random.default_rng(3)).plan[:, ARM_SLICES[arm]][:, 6]) for arm in ARMS}
    assert min(moved.values()) < 1e-6, "one hand alone"
    monkeypatch.setattr(_Insertion, "with_one_arm", out_of_reach)
    plan = make_expert(scene, np.random.default_rng(3)).plan
    assert min(np.ptp(plan[:, ARM_SLICES[arm]][:, 6]) for arm in ARMS) > 0.015, "both hands open and close"
    np.testing.assert_allclose(plan[-1], REST_POSE, atol=2e-3)


def test_tools_with_room_for_one_hand_are_not_handed_over(monkeypatch: pytest.MonkeyPatch):
    def out_of_reach(*_: object) -> None:
        raise SimulationError("out of reach by a mile")

    scene = World("screwdriver_in_caddy", look="primitive")
    scene.reset(0)
    monkeypatch.setattr(_Insertion, "with_one_arm", out_of_reach)
    with pytest.raises(SimulationError, match="by a mile"):
        make_expert(scene, np.random.default_rng(0))


@pytest.mark.parametrize("first", ARMS)
def test_two_paths_together_wait_for_each_other(first: str):
    paths = {arm: ArmPath(arm, REST_POSE) for arm in ARMS}
    pose = gripper_pose(first, paths[first].start_pose[:3, 3] + np.array([0.0, 0.0, 0.05]), np.deg2rad(20.0))
    paths[first].move(1.0, pose)
    other = paths[OTHER[first]]
    other.wait_until(paths[first].end_s)
    other.move(0.5, other.start_pose @ make(translation=(0.0, 0.0, 0.02)), 0.03)
    targets = together(paths[first], other)
    assert len(targets) == round(1.5 * CONTROL_RATE_HZ)
    columns, others = ARM_SLICES[first], ARM_SLICES[OTHER[first]]
    np.testing.assert_array_equal(targets[:50, others], np.tile(REST_POSE[others], (50, 1)))
    np.testing.assert_array_equal(targets[49:, columns], np.tile(targets[49, columns], (26, 1)))
    assert targets[-1, others][6] == pytest.approx(0.03)
    other.wait_until(0.2)
    assert other.end_s == pytest.approx(1.5), "waiting never goes back"
