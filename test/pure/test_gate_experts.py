"""What experts demonstrate, and so what policies learn, is within the gate's default limits: it passes unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.control.safety import SafetyGate, State
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.world import World


@pytest.mark.parametrize(
    ("task", "seed"),
    [("mug_on_plate", 0), ("pen_in_container", 0), ("plate_on_rack", 1), ("pen_in_container", 14), ("open_drawers", 0),
     ("close_drawers", 0), ("recycle_cans", 0)],
    ids=["fast", "near the table", "near itself", "handed over", "pulling", "pushing", "over bins"],
)
def test_an_experts_plan_passes_the_gate_unchanged(task: str, seed: int) -> None:
    world = World(task, look="primitive")
    world.reset(seed)
    plan = make_expert(world, np.random.default_rng([seed, 1])).plan
    gate, measured = SafetyGate(), REST_POSE
    gate.check(None, 0, measured)
    for tick, target in enumerate(plan, 1):
        result = gate.check(target, tick * CONTROL_PERIOD_NS, measured)
        assert result.state is State.RUNNING, result.reason
        assert result.command is not None
        measured = result.command
        np.testing.assert_allclose(measured, target, atol=1e-3 if tick < 10 else 1e-6, err_msg=f"row {tick}")
