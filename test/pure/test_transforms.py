"""Group laws of SE(3), quaternion round trips, and hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract.errors import ContractError
from clamp_ros.geometry import transforms as tf

coordinate = st.floats(-100.0, 100.0)
points = st.tuples(coordinate, coordinate, coordinate).map(np.array)
quats = st.tuples(*[st.floats(-1.0, 1.0)] * 4).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.05)
poses = st.builds(lambda q, t: tf.make(tf.rotation_from_quat_xyzw(q), t), quats, points)
axes = points.filter(lambda p: np.linalg.norm(p) > 0.1).map(lambda p: p / np.linalg.norm(p))


@given(poses, poses, poses)
def test_group_laws(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    np.testing.assert_allclose((a @ b) @ c, a @ (b @ c), atol=1e-9)
    np.testing.assert_allclose(a @ tf.invert(a), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(tf.invert(a @ b), tf.invert(b) @ tf.invert(a), atol=1e-9)


@given(poses, poses, points)
def test_apply_is_the_action_of_the_group(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> None:
    np.testing.assert_allclose(tf.apply(a @ b, p), tf.apply(a, tf.apply(b, p)), atol=1e-8)
    many = np.stack([p, 2 * p, -p]).reshape(3, 1, 3)
    np.testing.assert_allclose(tf.apply(a, many)[1, 0], tf.apply(a, 2 * p), atol=1e-12)


@given(quats)
def test_quaternions_give_rotations_and_come_back(q: np.ndarray) -> None:
    rotation = tf.rotation_from_quat_xyzw(q)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    back = tf.quat_xyzw_from_rotation(rotation)
    assert back[3] >= 0.0
    assert np.linalg.norm(back) == pytest.approx(1.0)
    assert abs(back @ (q / np.linalg.norm(q))) == pytest.approx(1.0)


@pytest.mark.parametrize("axis", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("angle", [0.0, 1e-9, math.pi / 2, math.pi - 1e-9, math.pi])
def test_quaternions_near_their_corners(axis: tuple[float, float, float], angle: float) -> None:
    rotation = tf.axis_angle(axis, angle)
    q = tf.quat_xyzw_from_rotation(rotation)
    np.testing.assert_allclose(tf.rotation_from_quat_xyzw(q), rotation, atol=1e-12)
    np.testing.assert_allclose(np.abs(q), [*(math.sin(angle / 2) * np.array(axis)), math.cos(angle / 2)], atol=1e-9)


def test_by_hand() -> None:
    quarter = tf.rotation_from_quat_xyzw((0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)))
    np.testing.assert_allclose(tf.apply(tf.make(quarter, (1.0, 2.0, 3.0)), (1.0, 0.0, 0.0)), (1.0, 3.0, 3.0))
    np.testing.assert_array_equal(tf.wxyz_from_xyzw((1, 2, 3, 4)), (4, 1, 2, 3))
    np.testing.assert_array_equal(tf.xyzw_from_wxyz((4, 1, 2, 3)), (1, 2, 3, 4))


@pytest.mark.parametrize("q", [(0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 1.0), (math.inf, 0.0, 0.0, 1.0)])
def test_what_is_no_rotation_is_refused(q: tuple[float, ...]) -> None:
    with pytest.raises(ContractError, match="normalised"):
        tf.rotation_from_quat_xyzw(q)


@given(axes, st.floats(-3.0, 3.0), st.floats(0.0, 1.0))
def test_slerp_turns_at_a_constant_rate(axis: np.ndarray, angle: float, fraction: float) -> None:
    q = tf.quat_xyzw_from_rotation(tf.axis_angle(axis, angle))
    part = tf.slerp_xyzw((0.0, 0.0, 0.0, 1.0), q, fraction)
    expected = tf.axis_angle(axis, fraction * angle)
    np.testing.assert_allclose(tf.rotation_from_quat_xyzw(part), expected, atol=1e-7)


@given(quats, quats, st.floats(0.0, 1.0))
def test_slerp_is_symmetric_and_blind_to_the_sign(a: np.ndarray, b: np.ndarray, f: float) -> None:
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    forth = tf.rotation_from_quat_xyzw(tf.slerp_xyzw(a, b, f))
    if abs(a @ b) > 1e-6:  # at right angles, both ways are equally short
        np.testing.assert_allclose(forth, tf.rotation_from_quat_xyzw(tf.slerp_xyzw(b, a, 1.0 - f)), atol=1e-6)
        np.testing.assert_allclose(forth, tf.rotation_from_quat_xyzw(tf.slerp_xyzw(a, -b, f)), atol=1e-6)


@given(poses, poses)
def test_interpolation_ends_at_its_ends(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(tf.interpolate(a, b, 0.0), a, atol=1e-9)
    np.testing.assert_allclose(tf.interpolate(a, b, 1.0), b, atol=1e-9)


@given(points, points)
def test_look_at_puts_the_target_on_the_axis_and_up_at_the_top(eye: np.ndarray, target: np.ndarray) -> None:
    line = target - eye
    if np.linalg.norm(np.cross(line, (0.0, 0.0, 1.0))) < 1e-3:
        return
    pose = tf.look_at(eye, target, (0.0, 0.0, 1.0))
    np.testing.assert_allclose(tf.apply(tf.invert(pose), target), (0.0, 0.0, float(np.linalg.norm(line))), atol=1e-8)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
    assert pose[2, 1] <= 0.0  # the image's y axis points down


@pytest.mark.parametrize(("eye", "target"), [((1, 1, 1), (1, 1, 1)), ((0, 0, 1), (0, 0, 0))])
def test_look_at_refuses_what_has_no_answer(eye: tuple[float, ...], target: tuple[float, ...]) -> None:
    with pytest.raises(ContractError, match="degenerate"):
        tf.look_at(eye, target, (0.0, 0.0, 1.0))


@given(axes, st.floats(0.0, math.pi), poses)
def test_angle_between_measures_the_turn(axis: np.ndarray, angle: float, pose: np.ndarray) -> None:
    turned = pose @ tf.make(tf.axis_angle(axis, angle))
    assert tf.angle_between(pose, turned) == pytest.approx(angle, abs=1e-7)


def test_angle_between_is_accurate_near_zero() -> None:
    assert tf.angle_between(np.eye(3), tf.axis_angle((1, 0, 0), 1e-9)) == pytest.approx(1e-9, rel=1e-6)
