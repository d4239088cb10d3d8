"""The adjustment on projected corners: exact without noise, honest with it, and clear about what cannot be told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calibration_synthetic import BOARD, CAMERAS, PINHOLES, TRUTH, observed, shifted

from clamp_ros.calibration import quality
from clamp_ros.calibration.adjust import _System as System
from clamp_ros.calibration.adjust import adjust, chain
from clamp_ros.calibration.problem import Problem, board_poses, hand_eye, start
from clamp_ros.calibration.solve import Observed, Solution, check, distance, solve
from clamp_ros.contract.errors import CalibrationError
from clamp_ros.contract.robot import REST_POSE
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.geometry.transforms import axis_angle, invert, make


@pytest.fixture(scope="module")
def exact() -> Observed:
    return observed(2, 3)


@pytest.fixture(scope="module")
def noisy() -> Observed:
    return observed(3, 4, pixel_sigma=0.15, joint_sigma=0.0004, seed=5)


@pytest.fixture(scope="module")
def solution(noisy: Observed) -> Solution:
    return solve(noisy, shifted(TRUTH))


def errors(solution: Solution) -> dict[str, tuple[float, float]]:
    return {name: distance(pose, TRUTH[name]) for name, pose in solution.cameras.items()}


def test_without_noise_every_pose_is_exact(exact):
    for present in ({}, shifted(TRUTH)):
        result = solve(exact, present)
        for name, (mm, deg) in errors(result).items():
            assert mm < 1e-3 and deg < 1e-4, name
        assert result.scale[0] == pytest.approx(1.0, abs=1e-6)
        assert not result.strays


def test_a_poor_start_does_not_matter(exact):
    """Where poses before are nonsense, the closed form starts better, and wins."""
    nonsense = {name: make(axis_angle((0, 1, 0), 2.5), (0.3, 0.3, 0.3)) for name in TRUTH}
    assert max(mm for mm, _ in errors(solve(exact, nonsense)).values()) < 1e-3


def test_with_noise_poses_are_as_good_as_is_said(solution):
    for name, (mm, deg) in errors(solution).items():
        figures = solution.figures[name]
        assert mm < 1.0 and deg < 0.1, name
        assert mm < 4.0 * figures.sigma_mm and deg < 4.0 * figures.sigma_deg, "the uncertainty is no boast"
        assert figures.sigma_mm < 1.5 and figures.sigma_deg < 0.15, "nor is it useless"
        assert 0.1 < figures.rms_px < 0.4
        assert figures.moved_mm == pytest.approx(20.0, abs=2.0)
        assert figures.moved_deg == pytest.approx(np.rad2deg(0.05), abs=0.2)


def test_derivatives_are_those_of_the_residuals(noisy):
    problem = replace(noisy.problem, views=noisy.problem.views[:6])
    begin = start(problem, TRUTH)
    system = System(problem, begin, problem.cameras, None, True, [0.25] * len(problem.views))
    rng = np.random.default_rng(0)
    wild = {key: 1e-3 * rng.standard_normal(6) for key in system.copy(begin).joints}
    estimate = system.stepped(begin, 1e-3 * rng.standard_normal(system.size), wild)
    fit = system.fit(estimate)
    for i, view in enumerate(problem.views):
        columns, outer, inner = system.jacobian(estimate, view, fit.views[i], fit.chains)
        arm = problem.arm(view.camera)
        unit = np.eye(system.size)
        steps = [(unit[column], {}) for column in columns]
        if arm is not None:
            steps += [(0 * unit[0], {(view.shot, arm): row}) for row in np.eye(6)]
        for (step, joints), analytic in zip(steps, (*outer.T, *inner.T), strict=False):
            pixels = [
                system.fit(system.stepped(estimate, s * step, {k: s * v for k, v in joints.items()})).views[i].residual
                for s in (1e-6, -1e-6)
            ]
            np.testing.assert_allclose(-(pixels[0] - pixels[1]).ravel() / 2e-6, analytic, rtol=1e-4, atol=1e-3)


def test_joint_axes_turn_the_gripper():
    joints = REST_POSE + 0.1
    for arm, first in (("left", 0), ("right", 7)):
        arms = chain(arm, joints)
        origins, axes = arms.origins, arms.axes
        before = world_from_gripper(arm, joints)
        np.testing.assert_allclose(arms.world_from_gripper, before, atol=1e-12)
        for i in range(6):
            moved = joints.copy()
            moved[first + i] += 0.2
            turn = axis_angle(axes[i], 0.2)
            expected = make(turn, origins[i] - turn @ origins[i]) @ before
            np.testing.assert_allclose(world_from_gripper(arm, moved), expected, atol=1e-12)


def test_hand_eye_takes_turns_about_two_axes():
    rng = np.random.default_rng(2)
    gripper_from_camera, world_from_board = TRUTH["wrist_left"], make(translation=(0.1, 0.0, 0.0))

    def poses(axes):
        turns = zip(axes, (0.0, 0.6, 1.1, -0.7), strict=True)
        grippers = [make(axis_angle(axis, angle), rng.normal(0, 0.1, 3)) for axis, angle in turns]
        return grippers, [invert(g @ gripper_from_camera) @ world_from_board for g in grippers]

    grippers, boards = poses([(1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
    found = hand_eye(grippers, boards, [0] * 4)
    assert found is not None
    np.testing.assert_allclose(found, gripper_from_camera, atol=1e-9)
    grippers, boards = poses([(0, 0, 1)] * 4)
    assert hand_eye(grippers, boards, [0] * 4) is None, "turns about one axis leave the shift along it open"
    assert hand_eye(*poses([(1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]), [0, 1, 2, 3]) is None, "no two of one place"


def test_a_plane_that_looks_the_same_tilted_either_way_has_two_poses(exact):
    views = exact.problem.views
    near = next(v for v in views if v.camera == "wrist_left" and len(v.pixels) > 20)
    assert len(board_poses(near, PINHOLES["wrist_left"])) == 1
    # far and small: perspective is lost in the noise
    far = make(axis_angle((1, 0, 0), 0.6), (0.0, 0.0, 6.0))
    pixels, _ = PINHOLES["front_left"].project(BOARD.corners_m @ far[:3, :3].T + far[:3, 3])
    rng = np.random.default_rng(0)
    view = replace(near, points_m=BOARD.corners_m, pixels=pixels + 0.3 * rng.standard_normal(pixels.shape))
    assert len(board_poses(view, PINHOLES["front_left"])) == 2


def test_corners_on_a_line_have_no_pose_and_do_no_harm(exact):
    line = next(v for v in exact.problem.views if v.camera == "back_right")
    on_row = np.flatnonzero(line.points_m[:, 1] == line.points_m[0, 1])
    kept = replace(line, points_m=line.points_m[on_row], pixels=line.pixels[on_row], depth_m=line.depth_m[on_row])
    assert board_poses(kept, PINHOLES["back_right"]) == []
    views = [kept if v is line else v for v in exact.problem.views]
    result = solve(replace(exact, problem=replace(exact.problem, views=views)))
    assert max(mm for mm, _ in errors(result).values()) < 1e-2


def test_a_board_of_another_size_is_noticed(exact):
    result = solve(observed(2, 4, scale=0.95, pixel_sigma=0.1, joint_sigma=0.0003), TRUTH)
    verdict = quality.judge_board(result, BOARD)
    assert result.scale[0] == pytest.approx(0.95, abs=0.003)
    assert verdict.grade is quality.Grade.FAIL
    assert "a square is 36.1" in verdict.reasons[0] and "not 38 mm" in verdict.reasons[0]
    assert quality.judge_board(solve(exact), BOARD).grade is quality.Grade.PASS


def test_a_view_of_a_moving_arm_is_set_aside(noisy):
    views = list(noisy.problem.views)
    i = next(i for i, v in enumerate(views) if v.camera == "wrist_right")
    views[i] = replace(views[i], pixels=views[i].pixels + np.array([25.0, -10.0]))
    result = solve(replace(noisy, problem=replace(noisy.problem, views=views)))
    assert len(result.strays) == 1 and "shot_" in result.strays[0] and "wrist_right: off by" in result.strays[0]
    assert max(mm for mm, _ in errors(result).values()) < 1.0


def test_fixed_cameras_alone_have_no_tie_to_the_robot():
    with pytest.raises(CalibrationError, match="front_left, back_right only: without a wrist camera"):
        solve(observed(1, 2, cameras=("front_left", "back_right")))


def test_a_gripper_that_never_turned_determines_nothing(exact):
    first = exact.problem.views[0].shot
    views = [v for v in exact.problem.views if v.shot == first]
    one = replace(exact, problem=replace(exact.problem, views=views))
    with pytest.raises(CalibrationError, match="three or more shots of one place"):
        solve(one)
    # with poses before, there is an answer; that it is worth nothing is said
    result = solve(one, TRUTH)
    verdicts = quality.report(one, result).cameras
    assert {v.grade for v in verdicts.values()} == {quality.Grade.FAIL}
    assert any("uncertainty" in reason for reason in verdicts["wrist_left"].reasons)
    assert any("turn of the gripper" in reason for reason in verdicts["wrist_left"].reasons)


def test_a_camera_that_never_shared_a_place_cannot_be_reached(exact):
    views = [v for v in exact.problem.views if (v.camera == "back_right") == (v.place == 1)]
    with pytest.raises(CalibrationError, match="back_right never saw the board at a place where"):
        solve(replace(exact, problem=replace(exact.problem, views=views)))


def test_the_report_passes_what_is_good_and_names_what_is_missing(noisy, solution):
    report = quality.report(noisy, solution)
    assert report.grade in (quality.Grade.PASS, quality.Grade.WEAK)
    for name in CAMERAS:
        assert name in report.text
    values = report.to_dict(solution)
    np.testing.assert_allclose(values["cameras"]["front_left"]["frame_from_camera"], solution.cameras["front_left"])
    problem = noisy.problem
    few = [v for v in problem.views if v.camera != "back_right" and (v.camera != "front_left" or v.shot < 1)]
    some = replace(noisy, problem=Problem(problem.mounts, problem.pinholes, problem.joints, few))
    report = quality.report(some, solve(some))
    assert report.missing == ("back_right",) and report.grade is quality.Grade.FAIL
    assert "it never saw the board" in report.text
    assert report.cameras["front_left"].grade is quality.Grade.FAIL
    assert any(reason.startswith("views 1") for reason in report.cameras["front_left"].reasons)


def test_check_names_the_camera_that_moved(noisy):
    few = [v for v in noisy.problem.views if v.shot % 4 < 3]
    some = replace(noisy, problem=replace(noisy.problem, views=few))
    result, as_is = check(some, TRUTH)
    report = quality.report_drift(some, result, 0.2)
    assert report.grade is quality.Grade.PASS, report.text
    knocked = dict(TRUTH) | {"back_right": TRUTH["back_right"] @ make(axis_angle((0, 0, 1), 0.01), (0.004, 0.0, 0.003))}
    result, worse = check(some, knocked)
    report = quality.report_drift(some, result, 0.2)
    assert worse.cost > 3.0 * as_is.cost
    assert report.grade is quality.Grade.FAIL
    grades = {name: verdict.grade for name, verdict in report.cameras.items()}
    assert grades.pop("back_right") is quality.Grade.FAIL
    assert set(grades.values()) == {quality.Grade.PASS}, report.text
    assert result.figures["back_right"].moved_mm == pytest.approx(5.0, abs=1.5)


def test_check_says_where_one_shot_cannot_tell(noisy):
    first = noisy.problem.views[0].shot
    one = replace(noisy, problem=replace(noisy.problem, views=[v for v in noisy.problem.views if v.shot == first]))
    result, _ = check(one, TRUTH)
    report = quality.report_drift(one, result, 0.2)
    assert report.grade is quality.Grade.WEAK and "cannot tell" in report.text
    with pytest.raises(CalibrationError, match="wrist_left has no calibration to check"):
        check(noisy, {name: pose for name, pose in TRUTH.items() if name != "wrist_left"})


def test_an_adjustment_needs_a_start_for_everything(exact):
    begin = start(exact.problem, TRUTH)
    del begin.boards[0]
    with pytest.raises(CalibrationError, match="the start says nothing of place 0"):
        adjust(exact.problem, begin)
    begin = start(exact.problem, TRUTH)
    begin.cameras["front_left"] = begin.cameras["front_left"] @ make(axis_angle((0, 1, 0), np.pi))
    with pytest.raises(CalibrationError, match="behind a camera"):
        adjust(exact.problem, begin)
