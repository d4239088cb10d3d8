"""The weight of an arm: the gradient of its energy, and the signs and directions of the contract."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clamp_ros.arm.gravity import GravityModel
from clamp_ros.contract.robot import ARM_SLICES, NUM_JOINTS
from clamp_ros.geometry.kinematics import ARM_CHAIN, world_from_gripper

JOINTS = arrays(np.float64, 6, elements=st.floats(-3.0, 3.0))
MODEL = GravityModel(2.6, 0.4, 1.4, 0.2)


@settings(max_examples=30)
@given(JOINTS)
def test_the_torques_are_the_gradient_of_the_energy(joints):
    step = 1e-6
    numeric = [
        (MODEL.energy(joints + step * unit) - MODEL.energy(joints - step * unit)) / (2.0 * step) for unit in np.eye(6)
    ]
    np.testing.assert_allclose(MODEL.torques(joints), numeric, atol=1e-8)


@settings(max_examples=30)
@given(JOINTS)
def test_one_kilogram_at_the_fingertips_weighs_what_forward_kinematics_says(joints):
    """The model's moments for a point mass, against the height of the gripper of the follower's measured chain."""
    lengths = np.array([offset for offset, _ in ARM_CHAIN])
    across, _, along = lengths[2]
    forearm = lengths[3][0] + lengths[4][0]
    hand = lengths[5][0] + 0.15
    model = GravityModel(9.81 * along, 9.81 * across, 9.81 * forearm, 9.81 * hand)

    def energy(q):
        vector = np.zeros(NUM_JOINTS)
        vector[ARM_SLICES["left"]][:6] = q
        return 9.81 * world_from_gripper("left", vector)[2, 3]

    start = np.zeros(6)
    assert model.energy(joints) - model.energy(start) == pytest.approx(energy(joints) - energy(start), abs=1e-9)


def test_by_hand():
    upright = MODEL.torques([0.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # forearm and hand straight out
    np.testing.assert_allclose(upright, [0.0, -(0.4 + 1.4 + 0.2), -(1.4 + 0.2), 0.0, -0.2, 0.0], atol=1e-12)
    hanging = MODEL.torques([0.0, 0.0, np.pi / 2, 0.0, 0.0, 0.0])  # forearm straight down: only the upper arm's offset
    np.testing.assert_allclose(hanging, [0.0, -0.4, 0.0, 0.0, 0.0, 0.0], atol=1e-12)
    rolled = MODEL.torques([0.0, 0.0, 0.0, np.pi / 2, np.pi / 2, 0.0])  # hand sideways: its weight turns the forearm
    np.testing.assert_allclose(rolled, [0.0, -1.8, -1.4, 0.2, 0.0, 0.0], atol=1e-12)
