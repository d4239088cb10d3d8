"""A teleoperated episode is recorded, audited, replayed and converted: `test/teleop_episode.py` with a short motion."""

from __future__ import annotations

import numpy as np
import pytest
from teleop_episode import life, slowed

from clamp_ros.contract.robot import REST_POSE

RIGHT_WAIST = 7


@pytest.mark.long
@pytest.mark.usefixtures("ros_domain_id")
def test_what_a_person_did_comes_out_as_training_data(tmp_path):
    hands = np.tile(REST_POSE, (100, 1))
    hands[:, RIGHT_WAIST] = 0.2 * np.sin(np.linspace(0.0, 2.0 * np.pi, 100))
    steps = life("mug_on_plate_easy", 3, slowed(hands, 2.0), tmp_path, "mug_on_plate_easy")
    assert [step.wrong for step in steps] == [[]] * 5, "\n".join(step.line() for step in steps)
    figures = {step.name: step.figures for step in steps}
    assert figures["teleoperated"]["task done"] is figures["replayed"]["task done"] is False
    assert figures["recorded"]["fastest command / limit"] <= 1.0 and figures["recorded"]["lost"] == 0
    assert figures["replayed"]["farthest from the recording rad"] < 0.05
    assert figures["converted"]["observations"] > 5


def test_slower_hands_go_the_same_way():
    rows = np.linspace(REST_POSE, REST_POSE + 0.1, 11)
    slow = slowed(rows, 4.0)
    moving = slow[np.abs(slow - rows[0]).max(axis=1) > 0.0]
    assert np.abs(np.diff(moving, axis=0)).max() == pytest.approx(0.01 / 4.0)
    assert np.array_equal(slow[0], rows[0]) and np.array_equal(slow[-1], rows[-1])
