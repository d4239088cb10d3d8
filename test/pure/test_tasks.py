"""Layouts, objects and the success of Mug on Plate, tested at its edges both ways."""

from __future__ import annotations

import json
from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from clamp_ros.contract.robot import GRIPPER_INDICES, REST_POSE
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.tasks.grid import BOTTOM_Y_M, COLUMNS_X_M, JITTER_M, TOP_Y_M
from clamp_ros.sim.tasks.mug_on_plate import HANDS_OFF_M, UPRIGHT_RAD
from clamp_ros.sim.tasks.objects import (
    BANANA_LENGTH_M,
    BOWL_RADIUS_M,
    CONTAINER_RADIUS_M,
    MUG_HANDLE_REACH_M,
    PEN_LENGTH_M,
    PLATE_RADIUS_M,
    PLATE_WELL_HEIGHT_M,
    PLATE_WELL_RADIUS_M,
)
from clamp_ros.sim.tasks.shapes import lathe, tube
from clamp_ros.sim.tasks.task import touching
from clamp_ros.sim.world import World

BOUNDING_RADII_M = {
    "plate": PLATE_RADIUS_M,
    "bowl": BOWL_RADIUS_M,
    "container": CONTAINER_RADIUS_M,
    "mug": MUG_HANDLE_REACH_M,
    "pen": 0.5 * PEN_LENGTH_M,
    "banana": 0.5 * BANANA_LENGTH_M,
}


@pytest.fixture(scope="module")
def grid_world() -> World:
    return World("mug_on_plate", look="primitive")


@pytest.fixture(scope="module")
def world() -> World:
    return World("mug_on_plate_easy", look="primitive")


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume within a closed surface; positive if its faces look outwards."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6.0)


def test_lathe_encloses_the_volume_of_a_cylinder() -> None:
    vertices, faces = lathe([(0.0, 0.0), (0.03, 0.0), (0.03, 0.1), (0.0, 0.1)], 200)
    assert volume(vertices, faces) == pytest.approx(np.pi * 0.03**2 * 0.1, rel=1e-3)


def test_tube_encloses_the_volume_of_an_elliptic_rod() -> None:
    path = np.stack([np.linspace(0.0, 0.2, 5), np.zeros(5), np.zeros(5)], axis=1)
    vertices, faces = tube(path, np.tile((0.01, 0.02), (5, 1)), sides=200)
    assert volume(vertices, faces) == pytest.approx(np.pi * 0.01 * 0.02 * 0.2, rel=1e-3)


def test_names_are_those_of_the_table_of_tasks() -> None:
    assert all(name == task.name and task.description and task.max_seconds > 0 for name, task in TASKS.items())


def test_what_is_moved_and_where_to_are_objects_of_the_task() -> None:
    for task in TASKS.values():
        assert task.moved in task.objects and (task.goal is None or task.goal in task.objects), task.name


def test_rows_hold_what_the_paper_puts_there_and_every_cell_is_used(grid_world: World) -> None:
    seen = set()
    for seed in range(60):
        grid_world.task.reset(grid_world.model, grid_world.data, np.random.default_rng(seed))
        mujoco.mj_kinematics(grid_world.model, grid_world.data)
        poses = grid_world.object_poses()
        for name, pose in poses.items():
            column = int(np.argmin(np.abs(np.array(COLUMNS_X_M) - pose[0, 3])))
            row = TOP_Y_M if name in ("plate", "bowl", "container") else BOTTOM_Y_M
            assert abs(pose[0, 3] - COLUMNS_X_M[column]) <= JITTER_M
            assert abs(pose[1, 3] - row) <= JITTER_M
            seen.add((name, column))
        for name, pose in poses.items():
            for other, other_pose in poses.items():
                gap = float(np.linalg.norm(pose[:2, 3] - other_pose[:2, 3]))
                assert name == other or gap > BOUNDING_RADII_M[name] + BOUNDING_RADII_M[other], (seed, name, other)
    assert len(seen) == 18


def test_yaw_covers_the_whole_turn(grid_world: World) -> None:
    yaws = []
    for seed in range(60):
        grid_world.task.reset(grid_world.model, grid_world.data, np.random.default_rng(seed))
        mujoco.mj_kinematics(grid_world.model, grid_world.data)
        yaws += [np.arctan2(pose[1, 0], pose[0, 0]) for pose in grid_world.object_poses().values()]
    counts, _ = np.histogram(yaws, bins=8, range=(-np.pi, np.pi))
    assert counts.min() > 0.5 * len(yaws) / 8


def test_objects_rest_on_the_table_without_sinking(grid_world: World) -> None:
    grid_world.reset(3)
    before = grid_world.object_poses()
    for _ in range(25):
        grid_world.step(REST_POSE)
    for name, pose in grid_world.object_poses().items():
        assert abs(pose[2, 3] - TABLE_TOP_M) < 0.0015, name
        assert np.linalg.norm(pose[:3, 3] - before[name][:3, 3]) < 0.0005, name


def test_masses_are_those_of_table_ware(grid_world: World) -> None:
    for name, low, high in (("plate", 0.1, 0.6), ("bowl", 0.05, 0.4), ("container", 0.05, 0.3), ("mug", 0.08, 0.35),
                            ("pen", 0.008, 0.05), ("banana", 0.05, 0.25)):
        assert low < float(grid_world.model.body(name).mass[0]) < high, name


Change = Callable[[World], None]


def settled_on_plate(world: World, change: Change | None = None, offset_m: float = 0.0, settle: bool = True) -> None:
    """Stands the mug on the plate, offset along x, changes what the test asks for, and lets things come to rest."""
    world.reset(0)
    plate, mug = (world.model.joint(name).qposadr[0] for name in ("plate", "mug"))
    world.data.qpos[mug : mug + 3] = world.data.qpos[plate : plate + 3] + np.array([offset_m, 0.0, PLATE_WELL_HEIGHT_M])
    if settle:
        for _ in range(25):
            world.step(REST_POSE)
    if change is not None:
        change(world)
    mujoco.mj_fwdPosition(world.model, world.data)


def spin(world: World, speed: float) -> None:
    start = world.model.joint("mug").dofadr[0]
    world.data.qvel[start + 5] = speed


def lift(world: World, height_m: float) -> None:
    world.data.qpos[world.model.joint("mug").qposadr[0] + 2] += height_m


def tilt(world: World, angle_rad: float) -> None:
    start = world.model.joint("mug").qposadr[0]
    world.data.qpos[start + 3 : start + 7] = (np.cos(0.5 * angle_rad), 0.0, np.sin(0.5 * angle_rad), 0.0)


def bring_gripper(world: World, distance_m: float) -> None:
    """Moves mug and plate together under the right gripper, so that its fingertips are straight above."""
    tips = world.data.site("right/gripper").xpos.copy()
    plate, mug = (world.model.joint(name).qposadr[0] for name in ("plate", "mug"))
    shift = tips - np.array([0.0, 0.0, distance_m]) - world.data.qpos[mug : mug + 3]
    for start in (plate, mug):
        world.data.qpos[start : start + 3] += shift


def test_a_mug_standing_on_the_plate_is_done(world: World) -> None:
    settled_on_plate(world)
    assert world.success()
    assert world.task.stages[world.progress()] == "done"


@pytest.mark.parametrize(("offset_m", "done"), [(0.015, True), (-0.02, True), (0.14, False)])
def test_the_mug_must_stand_on_the_plate(world: World, offset_m: float, done: bool) -> None:
    settled_on_plate(world, offset_m=offset_m)
    assert world.success() is done


@pytest.mark.parametrize(("change", "done"), [
    (lambda w: spin(w, 0.03), True),
    (lambda w: spin(w, 0.10), False),
    (lambda w: lift(w, 0.002), False),
    (lambda w: tilt(w, 1.5 * UPRIGHT_RAD), False),
], ids=["nearly at rest", "turning", "hovering", "tilted"])
def test_at_rest_upright_and_touching(world: World, change: Change, done: bool) -> None:
    settled_on_plate(world, change)
    assert world.success() is done


def test_a_mug_leaning_on_the_plate_is_told_as_plain_values(world: World) -> None:
    def lean(w: World) -> None:
        tilt(w, 1.5 * UPRIGHT_RAD)
        lift(w, 0.002)  # the low edge of its foot touches the plate, and nothing else

    settled_on_plate(world, lean)
    assert touching(world.model, world.data, "mug") == {"plate"}
    assert json.dumps([world.success(), world.progress()]) == "[false, 0]"


def test_a_mug_beside_the_plate_is_not_done(world: World) -> None:
    world.reset(0)
    assert not world.success()
    assert world.task.stages[world.progress()] == "idle"


def test_a_plate_in_the_air_is_not_done(world: World) -> None:
    settled_on_plate(world, lambda w: bring_gripper(w, HANDS_OFF_M + 0.02))
    assert not world.success()


@pytest.mark.parametrize(("margin_m", "done"), [(0.01, True), (-0.01, False)])
def test_hands_must_be_off(world: World, margin_m: float, done: bool) -> None:
    settled_on_plate(world)
    origin = world.data.body("mug").xpos.copy()
    site = world.model.site("right/gripper").id
    assert world.success()
    # the predicate reads the fingertips' place alone: put the site there, leave the arm
    world.data.site_xpos[site] = origin + np.array([0.0, 0.0, HANDS_OFF_M + margin_m])
    assert world.success() is done


def test_the_table_under_the_mug_spoils_it(world: World) -> None:
    settled_on_plate(world, offset_m=PLATE_RADIUS_M + 0.01)
    assert np.linalg.norm(world.data.body("mug").xpos[:2] - world.data.body("plate").xpos[:2]) > PLATE_WELL_RADIUS_M
    assert not world.success()


def test_success_is_a_function_of_the_state(world: World) -> None:
    settled_on_plate(world)
    state = world.get_state()
    world.reset(5)
    assert not world.success()
    world.set_state(state)
    assert world.success()


def test_grippers_are_at_rest_position_after_reset(world: World) -> None:
    world.reset(1)
    grippers = list(GRIPPER_INDICES)
    np.testing.assert_allclose(world.joint_positions[grippers], REST_POSE[grippers], atol=1e-3)
