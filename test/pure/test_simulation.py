"""The simulation's clockwork: pacing, latency, what is due when, and one world seen through it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from clamp_ros.contract.errors import ConfigError, ContractError, SimulationError
from clamp_ros.contract.robot import CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.sim.render import Renderer
from clamp_ros.sim.simulation import START_NS, DelayLine, Pacer, Simulation, SimulationConfig

SMALL = {"look": "primitive", "width": 64, "height": 48, "cameras": ("front_left", "wrist_right"), "render_workers": 1}


def test_a_pacer_keeps_to_its_factor() -> None:
    pacer = Pacer(0.5)
    now = 100.0
    for _ in range(50):
        now += pacer.wait_s(now)
        pacer.ticked(now)
    assert now == pytest.approx(100.0 + 49 * 0.04)
    assert pacer.factor == pytest.approx(0.5)


def test_a_pacer_makes_up_for_a_short_stall_but_not_for_a_long_one() -> None:
    pacer = Pacer(1.0, max_lag_s=0.11)
    pacer.wait_s(0.0)
    pacer.ticked(0.0)
    assert pacer.wait_s(0.07) == 0.0  # two ticks are owed by now, and made at once
    pacer.ticked(0.07)
    assert pacer.wait_s(0.07) == 0.0
    pacer.ticked(0.07)
    pacer.ticked(0.07)
    assert pacer.wait_s(0.07) == pytest.approx(0.01)
    assert pacer.wait_s(50.0) == 0.0
    ticks = 0
    while pacer.wait_s(50.0) == 0.0:
        pacer.ticked(50.0)
        ticks += 1
    assert ticks == 6  # what fits into the lag, and the one that is due


def test_a_pacer_without_a_factor_never_waits_and_forgets_what_was_before_a_pause() -> None:
    pacer = Pacer(0.0)
    for now in (0.0, 0.001, 0.002):
        assert pacer.wait_s(now) == 0.0
        pacer.ticked(now)
    assert pacer.factor == pytest.approx(20.0)
    pacer.restart()
    assert pacer.factor == 0.0


def test_a_delay_line_keeps_order_and_delay() -> None:
    line: DelayLine[str] = DelayLine(2)
    line.push(0, "a")
    line.push(1, "b")
    assert line.pop_due(1) == []
    assert line.pop_due(3) == ["a", "b"]
    line.push(4, "c")
    line.clear()
    assert line.pop_due(100) == []


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="image_rate_hz is 30, expected one of 1, 2, 5, 10, 25, 50"):
        SimulationConfig(image_rate_hz=30)
    with pytest.raises(ConfigError, match=r"front_left_m is .*expected 3 numbers"):
        SimulationConfig(front_left_m=(1.0, 2.0))
    with pytest.raises(ConfigError, match="cameras is 'head'"):
        SimulationConfig(cameras=("head",))
    with pytest.raises(ConfigError, match="expected different ones"):
        SimulationConfig(cameras=("front_left", "front_left")).camera_configs()
    config = SimulationConfig(corner_fovy_deg=60.0, width=100, depth_noise_m=0.002, cameras=("back_right",))
    (camera,) = config.camera_configs().values()
    assert (camera.fovy_deg, camera.width, camera.faults.noise_m) == (60.0, 100, 0.002)


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    simulation = Simulation(SimulationConfig(**SMALL))
    yield simulation
    simulation.close()
    simulation.close()


def test_every_tick_has_joints_and_every_fifth_pictures(simulation: Simulation) -> None:
    simulation.reset(3)
    stamps, picture_stamps = [], []
    for _ in range(11):
        samples, pictures = simulation.joint_samples(), simulation.pictures()
        assert [sample.stamp_ns for sample in samples] == [simulation.stamp_ns]
        assert {picture.stamp_ns for picture in pictures} <= {simulation.stamp_ns}
        assert not simulation.pictures()  # each once
        stamps.append(simulation.stamp_ns)
        picture_stamps += [(p.camera.name, p.stamp_ns) for p in pictures]
        simulation.step(REST_POSE)
    assert stamps == [START_NS + i * CONTROL_PERIOD_NS for i in range(11)]
    assert picture_stamps == [
        (camera, START_NS + i * CONTROL_PERIOD_NS) for i in (0, 5, 10) for camera in ("front_left", "wrist_right")
    ]


def test_pictures_are_those_of_their_stamp(simulation: Simulation) -> None:
    """The world moves on while a picture is drawn; it shows the state that it is stamped with."""
    simulation.reset(4)
    with Renderer(simulation.world.model, simulation.cameras.values()) as renderer:
        want = renderer.render(simulation.world.data, "wrist_right")
        away = np.array(REST_POSE)
        away[7] = 1.0
        for _ in range(4):
            simulation.step(away)
        (got,) = [picture for picture in simulation.pictures() if picture.camera.name == "wrist_right"]
    assert got.stamp_ns == START_NS
    np.testing.assert_array_equal(got.color, want[0])
    np.testing.assert_array_equal(got.depth_mm, want[1])


def test_a_reset_drops_what_was_under_way_and_repeats_to_the_bit(simulation: Simulation) -> None:
    runs = []
    for _ in range(2):
        simulation.reset(8)
        for _ in range(7):
            simulation.step(REST_POSE)
        pictures = simulation.pictures()
        assert [picture.stamp_ns for picture in pictures] == [START_NS] * 2 + [START_NS + 5 * CONTROL_PERIOD_NS] * 2
        runs.append((simulation.joint_samples()[-1].positions, pictures[-1].depth_mm))
        simulation.step(REST_POSE)
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


def test_a_refused_target_moves_nothing(simulation: Simulation) -> None:
    simulation.reset(1)
    bad = np.array(REST_POSE)
    bad[0] = np.nan
    with pytest.raises(ContractError, match="left/waist"):
        simulation.step(bad)
    bad[0] = 9.0
    with pytest.raises(SimulationError, match="outside its limits"):
        simulation.step(bad)
    assert simulation.stamp_ns == START_NS


def test_the_task_state_is_plain_and_comes_at_10_hz(simulation: Simulation) -> None:
    simulation.reset(5)
    told = []
    for _ in range(11):
        told.append(simulation.task_state())
        simulation.step(REST_POSE)
    assert [i for i, state in enumerate(told) if state] == [0, 5, 10]
    state = told[10]
    assert state is not None
    assert (state["task"], state["seed"], state["success"], state["progress"]) == ("mug_on_plate", 5, False, 0)
    assert state["time_s"] == pytest.approx(0.2)


def test_the_task_state_is_told_at_every_image_besides() -> None:
    def ticks(**changes: object) -> list[int]:
        simulation = Simulation(SimulationConfig(**{**SMALL, **changes}))
        try:
            simulation.reset(5)
            told = []
            for tick in range(11):
                if simulation.task_state() is not None:
                    told.append(tick)
                simulation.step(REST_POSE)
        finally:
            simulation.close()
        return told

    assert ticks(image_rate_hz=25) == [0, 2, 4, 5, 6, 8, 10]
    assert ticks(image_rate_hz=5) == [0, 5, 10]
    assert ticks(image_rate_hz=25, cameras=()) == [0, 5, 10], "no image, no more than its own rate"


def test_latency_delays_publication_and_not_stamps() -> None:
    simulation = Simulation(SimulationConfig(**SMALL, image_latency_s=0.14, joint_latency_s=0.04, image_rate_hz=25))
    try:
        simulation.reset(0)
        joints, pictures = [], []
        for tick in range(12):
            joints += [(tick, sample.stamp_ns) for sample in simulation.joint_samples()]
            pictures += [(tick, p.stamp_ns) for p in simulation.pictures() if p.camera.name == "front_left"]
            simulation.step(REST_POSE)
    finally:
        simulation.close()
    assert joints == [(tick, START_NS + (tick - 2) * CONTROL_PERIOD_NS) for tick in range(2, 12)]
    assert pictures == [(tick, START_NS + (tick - 7) * CONTROL_PERIOD_NS) for tick in (7, 9, 11)]


def test_without_cameras_nothing_is_drawn() -> None:
    simulation = Simulation(SimulationConfig(look="primitive", cameras=()))
    simulation.reset(0)
    simulation.step(REST_POSE)
    assert simulation.pictures() == []
    simulation.close()
