"""Domain randomisation: drawn by seed, aspect by aspect, within bounds, and never in the physics."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import REST_POSE
from clamp_ros.geometry.transforms import angle_between
from clamp_ros.sim.cameras import DEFAULT_CAMERAS, CameraConfig, DepthFaults, fixed_camera
from clamp_ros.sim.randomise import Randomisation, Randomiser, set_appearance
from clamp_ros.sim.render import Renderer, with_faults
from clamp_ros.sim.simulation import Simulation, SimulationConfig
from clamp_ros.sim.world import World

ASPECTS = ("light", "colours", "camera", "depth", "latency")


@pytest.fixture(scope="module")
def world() -> World:
    return World("mug_on_plate_easy", look="primitive")


def randomiser(world: World, **strengths: float) -> Randomiser:
    return Randomiser(Randomisation(**strengths), world.model, DEFAULT_CAMERAS)


def test_words_become_strengths() -> None:
    assert Randomisation.parse("") == Randomisation()
    assert not Randomisation().active
    assert Randomisation.parse("light, camera=0.5") == Randomisation(light=1.0, camera=0.5)
    assert Randomisation.parse("all,depth=0") == Randomisation(1.0, 1.0, 1.0, 0.0, 1.0)
    with pytest.raises(ConfigError, match="unknown aspect of --randomise 'lights'; did you mean 'light'"):
        Randomisation.parse("lights")
    with pytest.raises(ConfigError, match="strength of depth is 'much'"):
        Randomisation.parse("depth=much")
    with pytest.raises(ConfigError, match=r"camera is 4.0, expected 0.0 to 3.0"):
        Randomisation.parse("camera=4")


def test_without_strength_a_scene_is_the_model_s_own(world: World) -> None:
    scene = randomiser(world).scene(7)
    before = world.model.mat_rgba.copy(), world.model.light_dir.copy(), world.model.light_diffuse.copy()
    set_appearance(world.model, scene.appearance)
    for was, now in zip(before, (world.model.mat_rgba, world.model.light_dir, world.model.light_diffuse), strict=True):
        np.testing.assert_allclose(now, was, atol=1e-6)
    faultless = {name: replace(camera, faults=DepthFaults(seed=7)) for name, camera in DEFAULT_CAMERAS.items()}
    assert scene.cameras == faultless
    assert (scene.image_latency_s, scene.joint_latency_s) == (0.0, 0.0)


def test_a_seed_decides_and_no_aspect_changes_another(world: World) -> None:
    everything = randomiser(world, **dict.fromkeys(ASPECTS, 1.0))
    one, again, other = everything.scene(3), everything.scene(3), everything.scene(4)
    np.testing.assert_array_equal(one.appearance, again.appearance)
    assert one.to_dict() == again.to_dict()
    assert (one.appearance != other.appearance).any()
    assert one.cameras != other.cameras
    split = 4 * world.model.nmat
    colours = randomiser(world, colours=1.0).scene(3)
    light = randomiser(world, light=1.0).scene(3)
    np.testing.assert_array_equal(colours.appearance[:split], one.appearance[:split])
    np.testing.assert_array_equal(light.appearance[split:], one.appearance[split:])
    assert randomiser(world, camera=1.0, depth=1.0).scene(3).cameras == one.cameras
    assert randomiser(world, latency=1.0).scene(3).image_latency_s == one.image_latency_s > 0.0


@pytest.mark.parametrize("seed", range(8))
def test_draws_stay_within_what_is_promised(world: World, seed: int) -> None:
    scene = randomiser(world, **dict.fromkeys(ASPECTS, 1.0)).scene(seed)
    assert ((scene.appearance[: 4 * world.model.nmat] >= 0.0) & (scene.appearance[: 4 * world.model.nmat] <= 1.0)).all()
    assert 0.0 <= scene.image_latency_s <= 0.15 and 0.0 <= scene.joint_latency_s <= 0.04
    for name, camera in scene.cameras.items():
        usual = DEFAULT_CAMERAS[name]
        share = 1.0 if usual.frame == "world" else 0.33
        moved = np.abs(np.subtract(camera.position_m, usual.position_m))
        assert 0.0 < np.linalg.norm(moved) <= share * 0.020 * np.sqrt(3.0) + 1e-9
        turned = angle_between(camera.frame_from_camera, usual.frame_from_camera)
        assert turned <= share * np.deg2rad(2.0) * np.sqrt(3.0) + 1e-6
        assert abs(camera.fovy_deg / usual.fovy_deg - 1.0) <= 0.02 + 1e-9
        assert 0.3 * 0.007 <= camera.faults.noise_m <= 1.5 * 0.007
        assert CameraConfig.from_dict(camera.to_dict()) == camera


def test_pictures_change_and_physics_does_not(world: World) -> None:
    camera = DEFAULT_CAMERAS["front_left"]
    with Renderer(world.model, [camera]) as renderer:
        pictures, states = [], []
        for scene in (randomiser(world).scene(1), randomiser(world, light=1.0, colours=1.0).scene(1)):
            set_appearance(world.model, scene.appearance)
            world.reset(1)
            for _ in range(5):
                world.step(REST_POSE)
            states.append(world.get_state())
            pictures.append(renderer.render(world.data, "front_left", 0))
    np.testing.assert_array_equal(*states)
    (color, depth), (other_color, other_depth) = pictures
    np.testing.assert_array_equal(depth, other_depth)
    assert np.abs(color.astype(int) - other_color).mean() > 3.0


def stereo(**faults: float) -> CameraConfig:
    return fixed_camera("c", (0, 0, 1), (0, 1, 0), 42.0, faults=DepthFaults(**faults))  # pyright: ignore[reportArgumentType]


def step_picture() -> np.ndarray:
    """A wall at 1 m, and before it, from column 200 to 260, something at 0.5 m."""
    depth = np.full((240, 424), 1000, np.uint16)
    depth[:, 200:260] = 500
    return depth


def test_the_second_imager_s_shadow_is_as_wide_as_the_disparities_differ() -> None:
    camera = stereo(baseline_m=0.05)
    width = camera.pinhole.fx * 0.05 * (1.0 / 0.5 - 1.0 / 1.0)
    assert 15.0 < width < 16.0  # pixels
    out = with_faults(step_picture(), camera, 0)
    missing = np.flatnonzero(out[100] == 0)
    np.testing.assert_array_equal(missing, np.arange(200 - 16 + 1, 200))  # at the left of the nearer thing alone
    assert set(np.unique(out)) == {0, 500, 1000}
    assert (with_faults(np.full((240, 424), 800, np.uint16), camera, 0) == 800).all()


def test_ragged_edges_are_at_edges_alone_and_seeded() -> None:
    depth = step_picture()
    out = with_faults(depth, stereo(edge_px=1.0, seed=4), 0)
    np.testing.assert_array_equal(out, with_faults(depth, stereo(edge_px=1.0, seed=4), 0))
    changed = np.flatnonzero((out != depth).any(axis=0))
    assert len(changed) > 2
    assert (np.minimum(abs(changed - 199.5), abs(changed - 259.5)) < 6.0).all()
    assert 0.2 < (out[:, 199] != depth[:, 199]).mean() < 0.5
    with pytest.raises(ConfigError, match=r"edge_px 0\.\.10"):
        stereo(edge_px=11.0)


def test_the_simulation_changes_its_scene_at_a_reset() -> None:
    config = SimulationConfig(
        task="mug_on_plate_easy", look="primitive", width=64, height=48, cameras=("front_left",), render_workers=1,
        randomise_light=1.0, randomise_colours=1.0, randomise_camera=1.0, randomise_latency=1.0,
    )  # fmt: skip
    simulation, model = Simulation(config), World(config.task, look="primitive").model
    try:
        seen = []
        for seed in (1, 2, 1):
            simulation.reset(seed)
            scene = Randomiser(config.randomisation, model, config.camera_configs()).scene(seed)
            assert simulation.cameras == scene.cameras
            pictures = simulation.pictures()
            while not pictures:
                simulation.step(REST_POSE)
                pictures = simulation.pictures()
            ticks = round((simulation.stamp_ns - pictures[0].stamp_ns) / 20e6)
            assert ticks == round(50 * scene.image_latency_s)
            assert pictures[0].camera == simulation.cameras["front_left"]
            seen.append(pictures[0].color)
        np.testing.assert_array_equal(seen[0], seen[2])
        assert np.abs(seen[0].astype(int) - seen[1]).mean() > 3.0
        while simulation.task_state() is None:
            simulation.step(REST_POSE)
        assert (simulation.task_state() or {})["randomised"] == asdict(config.randomisation)
    finally:
        simulation.close()
