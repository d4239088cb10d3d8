"""Plays a scripted expert, and holds it to the limits and the smoothness of what a policy may learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clamp_ros.contract.robot import CONTROL_RATE_HZ, LOWER_LIMITS, REST_POSE, UPPER_LIMITS, VELOCITY_LIMITS
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.world import World


def play(scene: World, seed: int, change: Callable[[np.ndarray], None] = lambda action: None) -> list[int]:
    """The progress after every tick of an episode in which `change` alters each action in place."""
    scene.reset(seed)
    expert = make_expert(scene, np.random.default_rng([seed, 1]))
    plan = expert.plan
    speed = np.diff(plan, axis=0, prepend=REST_POSE[None]) * CONTROL_RATE_HZ
    assert ((plan >= LOWER_LIMITS) & (plan <= UPPER_LIMITS)).all()
    assert (np.abs(speed) <= VELOCITY_LIMITS).all()
    assert np.abs(np.diff(speed, axis=0)).max() < 0.6  # rad/s within a tick: 30 rad/s^2
    np.testing.assert_allclose(plan[-1], REST_POSE, atol=2e-3)
    assert len(plan) / CONTROL_RATE_HZ < scene.task.max_seconds
    seen = []
    while not expert.done:
        action = expert.act()
        change(action)
        scene.step(action)
        seen.append(scene.progress())
    return seen
