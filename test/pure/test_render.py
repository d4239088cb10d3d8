"""Cameras and pictures: poses, depth against ray casting, faults, and the pool against the renderer."""

from __future__ import annotations

import gc
import os
import signal

import mujoco
import numpy as np
import pytest

from clamp_ros.contract.errors import ConfigError, SimulationError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.contract.robot import REST_POSE
from clamp_ros.geometry.transforms import angle_between, apply
from clamp_ros.sim import cameras as camera_module
from clamp_ros.sim import render
from clamp_ros.sim.cameras import (
    DEFAULT_CAMERAS,
    OPTICAL_FROM_GL,
    CameraConfig,
    DepthFaults,
    default_cameras,
    fixed_camera,
    select_cameras,
)
from clamp_ros.sim.render import FAR_M, NEAR_M, Renderer, depth_mm_from_zbuffer, with_faults
from clamp_ros.sim.render_pool import RenderPool
from clamp_ros.sim.robot_model import TABLE_TOP_M, build_robot_spec


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return build_robot_spec("primitive").compile()


@pytest.fixture(scope="module")
def data(model: mujoco.MjModel) -> mujoco.MjData:
    data = mujoco.MjData(model)
    pose = np.array(REST_POSE)
    pose[:6] += (0.3, 0.25, -0.2, 0.4, 0.5, -0.3)
    data.qpos[:] = np.concatenate([np.append(pose[i:i + 7], pose[i + 6]) for i in (0, 7)])
    mujoco.mj_forward(model, data)
    return data


def test_wrist_cameras_stand_where_menagerie_has_them(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    for arm in ("left", "right"):
        camera = data.camera(f"wrist_cam_{arm}")
        want = np.eye(4)
        want[:3, :3], want[:3, 3] = camera.xmat.reshape(3, 3), camera.xpos
        got = DEFAULT_CAMERAS[f"wrist_{arm}"].world_from_camera(data)
        assert np.linalg.norm(got[:3, 3] - camera.xpos) < 1e-6
        assert angle_between(got, want @ OPTICAL_FROM_GL) < 1e-5


def test_cameras_in_the_model_have_the_same_poses(data: mujoco.MjData) -> None:
    for name, config in DEFAULT_CAMERAS.items():
        camera, pose = data.camera(name), config.world_from_camera(data)
        np.testing.assert_allclose(pose[:3, 3], camera.xpos, atol=1e-6)
        np.testing.assert_allclose(pose[:3, :3], camera.xmat.reshape(3, 3) @ OPTICAL_FROM_GL[:3, :3], atol=1e-6)


def test_corner_cameras_look_at_the_tables_centre() -> None:
    for name in ("front_left", "back_right"):
        camera = DEFAULT_CAMERAS[name]
        centre = np.linalg.inv(camera.frame_from_camera) @ (0.0, 0.0, 0.0, 1.0)
        pixel, depth = camera.pinhole.project(centre[:3])
        np.testing.assert_allclose(pixel, (211.5, 119.5), atol=1e-9)
        assert depth == pytest.approx(np.linalg.norm((0.61, 0.37, 0.70)))


def test_configurations_are_checked_and_travel_as_json() -> None:
    camera = default_cameras(width=64, faults=DepthFaults(noise_m=0.002, seed=3))["wrist_left"]
    assert CameraConfig.from_dict(camera.to_dict()) == camera
    assert tuple(DEFAULT_CAMERAS) == CAMERAS
    with pytest.raises(ConfigError, match="expected one of world, left/gripper, right/gripper"):
        CameraConfig("c", "head", (0, 0, 0), (0, 0, 0, 1), 50.0)
    with pytest.raises(ConfigError, match="fovy_deg of camera c is 200"):
        fixed_camera("c", (0, 0, 1), (0, 1, 0), 200.0)
    with pytest.raises(ConfigError, match="0x240 pixels"):
        fixed_camera("c", (0, 0, 1), (0, 1, 0), 50.0, width=0)
    with pytest.raises(ConfigError, match="hole_fraction=2"):
        DepthFaults(hole_fraction=2)
    with pytest.raises(ConfigError, match="expected different ones of"):
        select_cameras(["front_left", "front_left"], DEFAULT_CAMERAS)


def test_depth_equals_ray_casting(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Depth is within 1 mm of a ray cast through the pixel's centre, but where the ray grazes an edge."""
    with Renderer(model, DEFAULT_CAMERAS.values()) as renderer:
        for name, camera in DEFAULT_CAMERAS.items():
            _, depth_mm = renderer.render(data, name)
            pose = camera.world_from_camera(data)
            group = np.array([1, 1, 1, 0, 0, 0], dtype=np.uint8)
            hit = np.zeros(1, dtype=np.int32)
            errors = []
            for v in range(4, camera.height, 12):
                for u in range(4, camera.width, 12):
                    ray = camera.pinhole.deproject((u, v), 1.0)
                    direction = pose[:3, :3] @ (ray / np.linalg.norm(ray))
                    distance = mujoco.mj_ray(model, data, pose[:3, 3], direction, group, 1, -1, hit)
                    z_mm = 1000.0 * distance / np.linalg.norm(ray)
                    if 0 < z_mm < 3000.0:
                        errors.append(abs(float(depth_mm[v, u]) - z_mm))
            assert len(errors) > 150
            assert np.quantile(errors, 0.97) < 1.0, name


def test_depth_lies_on_the_table_to_the_millimetre(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    camera = fixed_camera("top", (0.0, -0.27, 0.8), (0.0, -0.26, 0.0), 12.0)
    with Renderer(model, [camera]) as renderer:
        _, depth_mm = renderer.render(data, "top")
    v, u = np.mgrid[0:camera.height, 0:camera.width]
    points = camera.pinhole.deproject(np.stack([u, v], axis=-1), 0.001 * depth_mm)
    z = apply(camera.world_from_camera(data), points)[..., 2]
    assert np.abs(z - TABLE_TOP_M).max() < 0.0006  # half a millimetre of rounding


def test_the_sky_has_no_depth_and_the_colour_is_upright(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    camera = fixed_camera("out", (0.0, -1.0, 0.2), (0.0, -2.0, 0.1), 60.0)
    with Renderer(model, [camera]) as renderer:
        color, depth_mm = renderer.render(data, "out")
    assert (color[:60] == render.SKY_RGB).all()
    assert color.shape == (240, 424, 3) and color.dtype == np.uint8 and depth_mm.dtype == np.uint16
    assert not depth_mm[:60].any()  # sky above, floor below
    assert depth_mm[-1].all()
    assert color[-40:].mean() < np.mean(render.SKY_RGB) - 40


def test_zbuffer_to_millimetres_by_hand() -> None:
    z = np.array([NEAR_M, 0.5, 1.2342, FAR_M])
    zbuffer = (NEAR_M * (FAR_M - z) / (z * (FAR_M - NEAR_M))).astype(np.float32)
    assert zbuffer[0] == 1.0 and zbuffer[-1] == 0.0
    np.testing.assert_array_equal(depth_mm_from_zbuffer(zbuffer), [10, 500, 1234, 0])


def test_faults_are_seeded_and_of_the_size_asked_for() -> None:
    depth = np.full((240, 424), 1000, np.uint16)
    depth[:10] = 0
    depth[10:20] = 60

    def camera(**faults: float) -> CameraConfig:
        return fixed_camera("c", (0, 0, 1), (0, 1, 0), 50.0, faults=DepthFaults(**faults))  # pyright: ignore[reportArgumentType]

    assert with_faults(depth, camera(seed=5), 0) is depth
    noisy = with_faults(depth, camera(noise_m=0.005, seed=5), 0)
    np.testing.assert_array_equal(noisy, with_faults(depth, camera(noise_m=0.005, seed=5), 0))
    assert (noisy != with_faults(depth, camera(noise_m=0.005, seed=5), 1)).any()
    assert (noisy != with_faults(depth, camera(noise_m=0.005, seed=6), 0)).any()
    assert noisy[20:].std() == pytest.approx(5.0, rel=0.1)
    assert not noisy[:10].any()
    holed = with_faults(depth, camera(hole_fraction=0.1, min_m=0.1), 0)
    assert (holed[20:] == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert not holed[10:20].any()
    assert set(np.unique(holed)) == {0, 1000}


def test_an_unknown_camera_is_named(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    with Renderer(model, DEFAULT_CAMERAS.values()) as renderer, pytest.raises(SimulationError, match="no camera 'top'"):
        renderer.render(data, "top")


def test_a_machine_without_opengl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_LIBRARIES", {"egl": "libnone.so.1", "osmesa": "libnone.so.2"})
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(SimulationError, match=r"apt-get install libegl1 .* or libosmesa6"):
        render.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(SimulationError, match="MUJOCO_GL is 'glfw', expected egl or osmesa"):
        render.choose_backend()


def test_a_forgotten_renderer_is_freed(model: mujoco.MjModel) -> None:
    renderer = Renderer(model, DEFAULT_CAMERAS.values())
    renderer.close()
    renderer.close()
    del renderer
    gc.collect()


def test_the_pool_draws_what_the_renderer_draws(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    configs = default_cameras(faults=DepthFaults(noise_m=0.002, hole_fraction=0.01, seed=1))
    with RenderPool(model, configs.values(), workers=2) as pool, Renderer(model, configs.values()) as renderer:
        pictures = pool.render(data, frame=7)
        assert tuple(pictures) == CAMERAS
        for name, (color, depth_mm) in pictures.items():
            want_color, want_depth = renderer.render(data, name, frame=7)
            np.testing.assert_array_equal(color, want_color)
            np.testing.assert_array_equal(depth_mm, want_depth)
        assert tuple(pool.render(data, ["wrist_left"])) == ("wrist_left",)
        pool.submit(data)
        assert pool.busy
        with pytest.raises(SimulationError, match="still pending"):
            pool.submit(data)
        assert len(pool.collect()) == 4 and not pool.busy
        with pytest.raises(SimulationError, match="no pictures were asked for"):
            pool.collect()
        with pytest.raises(SimulationError, match="no camera 'top'"):
            pool.submit(data, ["top"])


def test_a_dead_or_stuck_worker_is_an_error_and_not_a_hang(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    cameras = [DEFAULT_CAMERAS["front_left"]]
    with RenderPool(model, cameras) as pool:
        pid = pool._workers[0]._process.pid
        os.kill(pid, signal.SIGSTOP)
        pool.submit(data)
        with pytest.raises(SimulationError, match="was not done drawing front_left in time"):
            pool.collect(timeout_s=0.2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SimulationError, match="ended with code -9"):
            pool.render(data)


def test_camera_frames_are_those_of_the_contract() -> None:
    assert {camera.frame for camera in DEFAULT_CAMERAS.values()} == set(camera_module.FRAMES)
