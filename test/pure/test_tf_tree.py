"""Laws and hand-worked cases of the transform tree; the expected answers are tf2's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract.errors import (
    ContractError,
    FutureExtrapolationError,
    PastExtrapolationError,
    TransformError,
    UnknownFrameError,
)
from clamp_ros.geometry.tf_tree import TfTree
from clamp_ros.geometry.transforms import axis_angle, invert, make, rotation_from_quat_xyzw

S = 1_000_000_000
Z = (0.0, 0.0, 1.0)

numbers = st.floats(-10.0, 10.0)
quats = st.tuples(*[st.floats(-1.0, 1.0)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
poses = st.builds(lambda q, t: make(rotation_from_quat_xyzw(q), t), quats, st.tuples(numbers, numbers, numbers))
stamps = st.integers(0, 9 * S)


def shift(x: float) -> np.ndarray:
    return make(translation=(x, 0.0, 0.0))


def moving(*samples: tuple[int, float], parent: str = "world", child: str = "arm") -> TfTree:
    tree = TfTree()
    for stamp, x in samples:
        tree.set_transform(parent, child, stamp, shift(x))
    return tree


def test_halfway_is_half_the_way_and_half_the_turn() -> None:
    tree = TfTree()
    tree.set_transform("world", "arm", 1 * S, make(translation=(1.0, 2.0, 3.0)))
    tree.set_transform("world", "arm", 2 * S, make(axis_angle(Z, math.pi / 2), (3.0, 2.0, -1.0)))
    expected = make(axis_angle(Z, math.pi / 4), (2.0, 2.0, 1.0))
    np.testing.assert_allclose(tree.lookup("world", "arm", 1 * S + S // 2), expected, atol=1e-12)


def test_rotation_takes_the_shorter_way() -> None:
    tree = TfTree()
    tree.set_transform("world", "arm", 0, make(axis_angle(Z, math.radians(170))))
    tree.set_transform("world", "arm", 4 * S, make(axis_angle(Z, math.radians(-170))))
    np.testing.assert_allclose(tree.lookup("world", "arm", 1 * S), make(axis_angle(Z, math.radians(175))), atol=1e-12)


def test_a_chain_up_and_down_by_hand() -> None:
    tree = TfTree()
    tree.set_transform("world", "base", 0, make(axis_angle(Z, math.pi / 2), (1.0, 0.0, 0.0)), static=True)
    tree.set_transform("base", "hand", S, shift(2.0))
    tree.set_transform("world", "camera", 0, make(translation=(0.0, 0.0, 5.0)), static=True)
    # the hand is 2 m along the base's x, which is the world's y
    np.testing.assert_allclose(tree.lookup("camera", "hand", S)[:3, 3], (1.0, 2.0, -5.0), atol=1e-12)


@given(poses, poses, stamps, stamps, st.floats(0.0, 1.0))
def test_inverse_and_composition_hold_at_any_time(a: np.ndarray, b: np.ndarray, t0: int, t1: int, f: float) -> None:
    low, high = sorted((t0, t1))
    tree = TfTree()
    for stamp, pose in ((low, a), (high, b)):
        tree.set_transform("world", "arm", stamp, pose)
    tree.set_transform("arm", "hand", 0, b, static=True)
    tree.set_transform("world", "camera", 0, a, static=True)
    at = low + int(f * (high - low))
    there, back = tree.lookup("camera", "hand", at), tree.lookup("hand", "camera", at)
    np.testing.assert_allclose(there @ back, np.eye(4), atol=1e-9)
    by_hand = invert(a) @ tree.lookup("world", "arm", at) @ b
    np.testing.assert_allclose(there, by_hand, atol=1e-9)
    np.testing.assert_allclose(there[:3, :3] @ there[:3, :3].T, np.eye(3), atol=1e-9)


@given(st.dictionaries(stamps, poses, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(samples: dict[int, np.ndarray], random: object) -> None:
    sorted_tree, shuffled_tree = TfTree(), TfTree()
    stamped = sorted(samples.items(), key=lambda item: item[0])
    for stamp, pose in stamped:
        sorted_tree.set_transform("world", "arm", stamp, pose)
    random.shuffle(stamped)  # type: ignore[attr-defined]
    for stamp, pose in stamped:
        assert shuffled_tree.set_transform("world", "arm", stamp, pose)
    first, last = min(samples), max(samples)
    for at in {first, last, (first + last) // 2, *samples}:
        np.testing.assert_array_equal(
            shuffled_tree.lookup("world", "arm", at), sorted_tree.lookup("world", "arm", at)
        )
    for stamp, pose in samples.items():
        np.testing.assert_allclose(sorted_tree.lookup("world", "arm", stamp), pose, atol=0)


@given(poses, poses, st.floats(0.0, 1.0), stamps)
def test_interpolation_stays_on_the_segment(a: np.ndarray, b: np.ndarray, f: float, start: int) -> None:
    tree = TfTree()
    tree.set_transform("world", "arm", start, a)
    tree.set_transform("world", "arm", start + S, b)
    at = start + int(f * S)
    fraction = (at - start) / S
    expected = (1 - fraction) * a[:3, 3] + fraction * b[:3, 3]
    np.testing.assert_allclose(tree.lookup("world", "arm", at)[:3, 3], expected, atol=1e-9)


def test_nothing_is_extrapolated() -> None:
    tree = moving((1 * S, 0.0), (2 * S, 1.0))
    assert tree.lookup("world", "arm", 1 * S)[0, 3] == 0.0
    assert tree.lookup("world", "arm", 2 * S)[0, 3] == 1.0
    with pytest.raises(FutureExtrapolationError, match=r"'arm'.*2\.000000 s"):
        tree.lookup("world", "arm", 2 * S + 1)
    with pytest.raises(PastExtrapolationError, match=r"'arm'.*1\.000000 s"):
        tree.lookup("world", "arm", 1 * S - 1)


def test_one_sample_holds_at_its_own_time_only() -> None:
    tree = moving((5 * S, 1.0))
    assert tree.lookup("arm", "world", 5 * S)[0, 3] == -1.0
    with pytest.raises(FutureExtrapolationError):
        tree.lookup("world", "arm", 5 * S + 1)
    with pytest.raises(PastExtrapolationError):
        tree.lookup("world", "arm", 5 * S - 1)


def test_unknown_and_unconnected_frames_are_named() -> None:
    tree = moving((S, 0.0))
    with pytest.raises(UnknownFrameError, match=r"'hand'.*arm, world"):
        tree.lookup("world", "hand", S)
    with pytest.raises(UnknownFrameError, match="none"):
        TfTree().lookup("world", "world", S)
    tree.set_transform("map", "robot", S, shift(1.0))
    with pytest.raises(UnknownFrameError, match="'robot' and 'arm' are not connected"):
        tree.lookup("robot", "arm", S)
    with pytest.raises(UnknownFrameError, match="not connected"):
        tree.latest_common_stamp_ns("robot", "arm")


def test_frames_that_may_be_connected_later_say_so() -> None:
    tree = moving((S, 0.0))
    tree.set_transform("world", "camera", 0, shift(1.0), static=True)
    with pytest.raises(FutureExtrapolationError):  # arm's parent is not known yet at that time: not "unconnected"
        tree.lookup("camera", "arm", 2 * S)


def test_a_lookup_below_a_missing_transform_works() -> None:
    tree = moving((S, 0.0))
    tree.set_transform("arm", "hand", 0, shift(0.5), static=True)
    tree.set_transform("arm", "camera", 0, shift(0.1), static=True)
    np.testing.assert_allclose(tree.lookup("camera", "hand", 99 * S), shift(0.4), atol=1e-12)


def test_history_is_bounded_by_the_newest_stamp() -> None:
    tree = TfTree(history_s=2.0)
    for i in range(100):
        assert tree.set_transform("world", "arm", i * S // 10, shift(i))
    # as in tf2, what is too old goes when the next sample comes: the newest before it was 9.8 s
    assert tree.lookup("world", "arm", 78 * S // 10)[0, 3] == 78.0
    with pytest.raises(PastExtrapolationError):
        tree.lookup("world", "arm", 77 * S // 10)
    assert not tree.set_transform("world", "arm", 5 * S, shift(-1.0))
    assert len(tree._histories["arm"].stamps_ns) <= 22


def test_a_frozen_stamp_does_not_grow_the_history() -> None:
    tree = TfTree()
    for i in range(50):
        tree.set_transform("world", "arm", S, shift(i))
    assert tree.lookup("world", "arm", S)[0, 3] == 49.0
    assert len(tree._histories["arm"].stamps_ns) == 1


def test_a_new_parent_holds_from_its_own_sample_on() -> None:
    tree = moving((1 * S, 1.0), (2 * S, 2.0))
    tree.set_transform("hand", "arm", 3 * S, shift(7.0))
    tree.set_transform("hand", "arm", 4 * S, shift(8.0))
    tree.set_transform("world", "hand", 0, shift(100.0), static=True)
    assert tree.lookup("world", "arm", 2 * S + S // 2)[0, 3] == 2.0  # between the parents, the older sample
    assert tree.lookup("world", "arm", 3 * S + S // 2)[0, 3] == 107.5
    assert tree.lookup("world", "arm", 1 * S + S // 2)[0, 3] == 1.5


def test_static_frames_hold_at_any_time_and_the_last_word_counts() -> None:
    tree = TfTree()
    tree.set_transform("world", "camera", 5 * S, shift(1.0), static=True)
    assert tree.lookup("world", "camera", 0)[0, 3] == 1.0
    tree.set_transform("world", "camera", 1 * S, shift(2.0), static=True)
    assert tree.lookup("world", "camera", 10**18)[0, 3] == 2.0
    tree.set_transform("world", "camera", 3 * S, shift(3.0))  # it moves now
    with pytest.raises(PastExtrapolationError):
        tree.lookup("world", "camera", 0)


def test_latest_common_stamp() -> None:
    tree = moving((1 * S, 0.0), (5 * S, 0.0))
    tree.set_transform("arm", "hand", 3 * S, shift(1.0))
    tree.set_transform("world", "camera", 0, shift(1.0), static=True)
    assert tree.latest_common_stamp_ns("world", "arm") == 5 * S
    assert tree.latest_common_stamp_ns("camera", "hand") == 3 * S
    assert tree.latest_common_stamp_ns("hand", "arm") == 3 * S
    assert tree.latest_common_stamp_ns("world", "camera") == 0
    assert tree.latest_common_stamp_ns("arm", "arm") == 5 * S
    tree.lookup("camera", "hand", tree.latest_common_stamp_ns("camera", "hand"))


def test_a_loop_is_an_error_not_an_endless_walk() -> None:
    tree = TfTree()
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a"), ("x", "y")):
        tree.set_transform(parent, child, 0, shift(1.0), static=True)
    for target, source in (("x", "a"), ("a", "x")):
        with pytest.raises(TransformError, match="loop"):
            tree.lookup(target, source, 0)
        with pytest.raises(TransformError, match="loop"):
            tree.latest_common_stamp_ns(target, source)


def test_clear_forgets_what_moves() -> None:
    tree = moving((5 * S, 0.0))
    tree.set_transform("world", "camera", 0, shift(1.0), static=True)
    tree.clear()
    tree.lookup("world", "camera", 1)
    with pytest.raises(UnknownFrameError):
        tree.lookup("world", "arm", 5 * S)
    assert tree.set_transform("world", "arm", 1, shift(0.0))  # time began anew


def test_results_and_inputs_are_not_shared() -> None:
    pose = shift(1.0)
    tree = TfTree()
    tree.set_transform("world", "arm", 0, pose)
    pose[0, 3] = 9.0
    tree.lookup("world", "arm", 0)[0, 3] = 9.0
    assert tree.lookup("world", "arm", 0)[0, 3] == 1.0


@pytest.mark.parametrize(
    ("parent", "child", "pose"),
    [
        ("a", "a", np.eye(4)),
        ("", "a", np.eye(4)),
        ("a", "", np.eye(4)),
        ("a", "b", np.full((4, 4), np.nan)),
        ("a", "b", np.eye(3)),
    ],
)
def test_what_is_no_transform_is_refused(parent: str, child: str, pose: np.ndarray) -> None:
    with pytest.raises(ContractError):
        TfTree().set_transform(parent, child, 0, pose)
    with pytest.raises(ContractError):
        TfTree(history_s=0.0)
