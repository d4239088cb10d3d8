"""The whole calibration in MuJoCo: rendered boards, noise, a wrong start; known poses come out. And by the command."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from calibration_scene import Noise, Scene, board_places, mounts
from calibration_synthetic import TRUTH, shifted

from clamp_ros import calibrate, cli
from clamp_ros.bringup.rehearsal import rehearse
from clamp_ros.calibration import clouds, icp, quality
from clamp_ros.calibration.adjust import adjust
from clamp_ros.calibration.board import Board
from clamp_ros.calibration.cameras_file import read_cameras, write_poses
from clamp_ros.calibration.capture import STILL_RAD
from clamp_ros.calibration.poses import looking_poses
from clamp_ros.calibration.problem import Estimate, start
from clamp_ros.calibration.session import Session, Shot
from clamp_ros.calibration.solve import Observed, Solution, distance, observe, solve
from clamp_ros.contract.errors import CalibrationError
from clamp_ros.contract.interfaces import (
    CAMERAS,
    JOINT_STATES,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
)
from clamp_ros.contract.robot import ARMS, LOWER_LIMITS, UPPER_LIMITS
from clamp_ros.geometry.transforms import apply, axis_angle, invert, make
from clamp_ros.record import messages
from clamp_ros.record.episode import JointSeries
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import EpisodeWriter
from clamp_ros.share import share_folder
from clamp_ros.sim.simulation import Simulation, SimulationConfig
from clamp_ros.sim.tasks.task import object_pose

BOARD = Board()
SIZE = (848, 480)
PLACES, SHOTS = 4, 3


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Twelve shots of a board at four places, by four cameras with noise, with joints as encoders tell them."""
    session = Session.create(tmp_path_factory.mktemp("calibration") / "session", BOARD, mounts())
    rng = np.random.default_rng(7)
    with Scene(BOARD, *SIZE) as scene:
        for place, world_from_board in enumerate(board_places(BOARD, PLACES)):
            for joints in looking_poses(BOARD, scene.cameras, world_from_board, SHOTS, rng):
                session.add(scene.shoot(joints, world_from_board, place, rng))
    return session


@pytest.fixture(scope="module")
def observed(session: Session) -> Observed:
    return observe(session)


@pytest.fixture(scope="module")
def solution(observed: Observed) -> Solution:
    return solve(observed, shifted(TRUTH))


def test_known_poses_are_recovered_within_a_millimetre_and_a_tenth_of_a_degree(observed, solution):
    assert set(solution.cameras) == set(TRUTH)
    for name, pose in solution.cameras.items():
        mm, deg = distance(pose, TRUTH[name])
        figures = solution.figures[name]
        print(f"{name}: {mm:.2f} mm, {deg:.3f} deg; said +-{figures.sigma_mm:.2f} mm, +-{figures.sigma_deg:.3f} deg")
        assert mm < 1.0 and deg < 0.1, name
        assert figures.moved_mm == pytest.approx(20.0, abs=2.0)
        assert abs(figures.depth_mm) < 2.0, "depth agrees with the corners"
    report = quality.report(observed, solution)
    assert report.grade is not quality.Grade.FAIL, report.text
    assert report.board.grade is quality.Grade.PASS


def test_clouds_lie_on_one_another_afterwards(session, solution):
    shot = session.read(session.shots()[0])
    before = clouds.clouds(shot, solution.problem, shifted(TRUTH))
    after = clouds.clouds(shot, solution.problem, solution.cameras)
    assert clouds.disagreement_mm(after) < 2.0 < clouds.disagreement_mm(before)
    image = clouds.overlay(before, after, (0.0, 0.0, 0.0))
    half = image.shape[1] // 2
    assert image.shape[2] == 3 and np.ptp(image[:, :half]) > 100 and np.ptp(image[:, half:]) > 100
    assert np.isnan(clouds.disagreement_mm({})) and clouds.overlay({}, after, (0.0, 0.0, 0.0)).shape == image.shape


def test_the_command_computes_writes_and_checks(session, tmp_path, capsys):
    folder = tmp_path / "session"
    shutil.copytree(session.folder, folder)
    config = tmp_path / "cameras.yaml"
    config.write_text((share_folder() / "config/cameras.yaml").read_text())
    write_poses(config, shifted(TRUTH), mounts(), "a guess")
    common = [str(folder), "--config", str(config)]
    assert cli.main(["calibrate", "check", *common]) == 1
    assert "verdict: drifted" in capsys.readouterr().out
    assert cli.main(["calibrate", "solve", *common, "--write"]) == 0
    out = capsys.readouterr().out
    assert "the old file is cameras.yaml." in out and "moved by" in out
    for name, mounted in read_cameras(config).items():
        assert mounted.frame_from_camera is not None
        mm, deg = distance(mounted.frame_from_camera, TRUTH[name])
        assert mm < 1.0 and deg < 0.1
    result = json.loads((folder / "calibration.json").read_text())
    assert set(result["cameras"]) == set(TRUTH) and result["grade"] in ("pass", "weak")
    assert (folder / "report.txt").read_text().startswith("camera ")
    assert cv2.imread(str(folder / "overlay.png")) is not None
    assert cli.main(["calibrate", "check", *common]) == 0
    assert "verdict: in place" in capsys.readouterr().out


def test_the_simulation_lays_a_board_where_its_cameras_see_it():
    """`clamp up sim:=true board:=true`: corners are where the poses of board and cameras say; other seeds move it."""
    config = SimulationConfig(
        board=True, look="primitive", cameras=("front_left", "back_right"), width=SIZE[0], height=SIZE[1],
        render_workers=1,
    )  # fmt: skip
    simulation, places = Simulation(config), []
    try:
        for seed in range(4):
            simulation.reset(seed)
            world_from_board = object_pose(simulation.world.data, "charuco")
            places.append(world_from_board)
            for picture in simulation.pictures():
                seen = BOARD.detect(picture.color)
                camera_from_world = invert(simulation.world.world_from_camera(picture.camera.name))
                corners = apply(camera_from_world @ world_from_board, BOARD.corners_m[seen.ids])
                expected, _ = picture.camera.pinhole.project(corners)
                assert len(seen) > 20, (seed, picture.camera.name)
                assert np.abs(seen.pixels - expected).max() < 1.5
    finally:
        simulation.close()
    assert simulation.task_state() is not None
    assert max(distance(place, places[0])[0] for place in places) > 10.0


def test_what_fails_is_not_written(session, tmp_path, capsys):
    folder = tmp_path / "session"
    shutil.copytree(session.folder, folder)
    content = json.loads((folder / "session.json").read_text())
    content["board"] |= {"square_m": 0.036, "marker_m": 0.0266}
    (folder / "session.json").write_text(json.dumps(content))
    config = tmp_path / "cameras.yaml"
    config.write_text((share_folder() / "config/cameras.yaml").read_text())
    before = config.read_text()
    assert cli.main(["calibrate", "solve", str(folder), "--config", str(config), "--write"]) == 2
    out, err = capsys.readouterr()
    assert "a square is 38.0" in out and "not 36 mm" in out
    assert "is left as it was" in err and config.read_text() == before


def test_errors_are_one_line(tmp_path, capsys):
    for words, message in (
        (["solve", str(tmp_path)], "is neither a session of `clamp calibrate capture` nor a bag"),
        (["board", str(tmp_path / "b.svg")], "ends in .pdf or .png"),
        (["board", str(tmp_path / "b.pdf"), "--paper", "a5"], "invalid choice: 'a5'"),
        (["capture", str(tmp_path / "s"), "--cameras", "top"], "camera 'top' is not one of"),
        ([], "arguments are required"),
    ):
        assert cli.main(["calibrate", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert cli.main(["calibrate", "board", str(tmp_path / "b.pdf"), "--square-mm", "36"]) == 0
    assert "10x7 squares of 36 mm" in capsys.readouterr().out
    session = Session.create(tmp_path / "empty", BOARD, mounts())
    assert cli.main(["calibrate", "solve", str(session.folder)]) == 2
    assert "has no shot" in capsys.readouterr().err


def test_a_bag_becomes_a_session_at_its_pauses(session, tmp_path, capsys):
    """Each shot is played as a pause of half a second and more, with the arms moving in between."""
    shots = [session.read(path) for path in session.shots()[:4]]
    bag = tmp_path / "bag"
    writer = EpisodeWriter(bag, EpisodeMetadata(task="", cameras=tuple(TRUTH)), compression="lz4", wait=True)
    stamp = 1_000_000_000
    for shot in shots:
        for tick in range(100):  # a second at rest, a second on the way, at 50 Hz
            moving = max(0, tick - 50) * 0.01
            cdr = messages.encode_joints(stamp, np.clip(shot.joints + moving, LOWER_LIMITS, UPPER_LIMITS))
            writer.write(JOINT_STATES.name, JOINT_STATES.type, stamp, cdr)
            if tick == 25:
                for name, seen in shot.pictures.items():
                    assert seen.depth_mm is not None
                    frame = optical_frame(name)
                    color, depth = (messages.encode_color(stamp, frame, seen.color),
                                    messages.encode_depth(stamp, frame, seen.depth_mm))  # fmt: skip
                    writer.write(color_topic(name), messages.IMAGE, stamp, color)
                    writer.write(depth_topic(name), messages.IMAGE, stamp, depth)
                    info = messages.encode_camera_info(stamp, frame, seen.pinhole)
                    writer.write(camera_info_topic(name), messages.CAMERA_INFO, stamp, info)
            stamp += 20_000_000
    writer.close("success")
    config = tmp_path / "cameras.yaml"
    config.write_text((share_folder() / "config/cameras.yaml").read_text())
    write_poses(config, TRUTH, mounts(), "true")
    cli.main(["calibrate", "check", str(bag), "--config", str(config)])
    assert f"{len(shots)} shots from" in capsys.readouterr().out
    made = Session.open(tmp_path / "bag_calibration")
    read = [made.read(path) for path in made.shots()]
    assert [shot.place for shot in read] == [shot.place for shot in shots], "fixed cameras saw the board being moved"
    for got, given in zip(read, shots, strict=True):
        np.testing.assert_allclose(got.joints, given.joints, atol=STILL_RAD)
        np.testing.assert_array_equal(got.pictures["front_left"].color, given.pictures["front_left"].color)


def test_pauses_are_where_the_arms_stand_still():
    stamps = np.arange(0, 4_000_000_000, 20_000_000)
    moving = np.where((stamps > 1_000_000_000) & (stamps < 2_000_000_000), stamps * 1e-9, 0.0)
    positions = np.zeros((len(stamps), 14))
    positions[:, 2] = moving
    positions[:, 6] = stamps * 1e-11  # a gripper may move
    spans = calibrate.pauses(JointSeries(stamps, positions, positions))
    assert spans == [(0, 1_000_000_000), (2_000_000_000, int(stamps[-1]))]
    assert calibrate.pauses(JointSeries(stamps[:0], positions[:0], positions[:0])) == []


# ICP.


def test_icp_without_open3d_or_without_relief_changes_nothing(session, solution, monkeypatch):
    shots = [session.read(session.shots()[0])]
    monkeypatch.setitem(__import__("sys").modules, "open3d", None)
    refined = icp.refine(solution, shots)
    assert not refined.used and refined.cameras == solution.cameras
    assert "Open3D is not there" in refined.messages[0] and "pip install open3d-cpu" in refined.messages[0]


@pytest.fixture(scope="module")
def with_boxes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Solution, list[Shot]]:
    """A solution at the true poses, of two shots with boxes on the table and depth without noise."""
    session = Session.create(tmp_path_factory.mktemp("boxes") / "session", BOARD, mounts())
    rng = np.random.default_rng(1)
    with Scene(BOARD, 640, 360, boxes=True, depth_faults=False) as scene:
        place = board_places(BOARD, 1)[0]
        for joints in looking_poses(BOARD, scene.cameras, place, 2, rng):
            session.add(scene.shoot(joints, place, 0, rng, Noise(0.0, 0.0, 0.0)))
    observed = observe(session)
    begin = start(observed.problem, TRUTH)
    adjusted = adjust(observed.problem, begin, free=())
    return Solution(observed.problem, adjusted, [], (1.0, 0.0), {}), [session.read(path) for path in session.shots()]


def test_icp_is_used_where_it_helps(with_boxes):
    pytest.importorskip("open3d")
    solution, shots = with_boxes
    # front_left saw six corners, which hardly notice that it is off
    few = next(v for v in solution.problem.views if v.camera == "front_left")
    few = replace(few, points_m=few.points_m[:6], pixels=few.pixels[:6], depth_m=few.depth_m[:6])
    views = [*(v for v in solution.problem.views if v.camera != "front_left"), few]
    off = TRUTH["front_left"] @ make(axis_angle((1.0, 0.0, 0.0), 0.003), (0.0, 0.0, 0.003))
    problem = replace(solution.problem, views=views)
    adjusted = adjust(problem, Estimate({**TRUTH, "front_left": off}, solution.adjusted.estimate.boards), free=())
    refined = icp.refine(Solution(problem, adjusted, [], (1.0, 0.0), {}), shots)
    assert refined.used and "ICP front_left: used: clouds nearer by" in refined.messages[0], refined.messages
    before, after = (distance(pose, TRUTH["front_left"]) for pose in (off, refined.cameras["front_left"]))
    assert after[0] < 0.7 * before[0], "nearer to the truth, of which ICP knows nothing"
    assert refined.cameras["wrist_left"] is solution.cameras["wrist_left"]


def test_icp_leaves_a_good_camera_alone(with_boxes):
    pytest.importorskip("open3d")
    solution, shots = with_boxes
    for message in icp.refine(solution, shots).messages:
        assert "not used, it does not help" in message


@pytest.mark.parametrize("off", [-0.005, 0.005])
def test_icp_does_not_hide_a_depth_of_another_scale(with_boxes, off):
    """Half a percent: the clouds do come nearer when the camera is moved along its axis, and corners hardly object."""
    pytest.importorskip("open3d")
    solution, shots = with_boxes
    scaled = []
    for shot in shots:
        picture = shot.pictures["front_left"]
        depth_mm = np.round((1.0 + off) * picture.depth_mm).astype(np.uint16)
        scaled.append(replace(shot, pictures={**shot.pictures, "front_left": replace(picture, depth_mm=depth_mm)}))
    refined = icp.refine(solution, scaled)
    (message,) = [text for text in refined.messages if text.startswith("ICP front_left")]
    told = re.search(r"not used, its depth is off by ([+-][0-9.]+)%", message)
    assert told is not None, message
    assert float(told.group(1)) == pytest.approx(100.0 * off, abs=0.15), message
    assert refined.cameras["front_left"] is solution.cameras["front_left"]


@pytest.mark.slow
@pytest.mark.usefixtures("ros_domain_id")
def test_a_session_is_rehearsed_without_a_robot(tmp_path):
    """Arms go through the gate, shots come from the topics; of one place wrist cameras come out well."""
    told: list[str] = []
    found = {one.camera: one for one in rehearse(tmp_path, places=1, shots=3, seed=1, say=told.append)}
    assert set(found) == set(CAMERAS)
    assert all(found[f"wrist_{arm}"].mm < 1.0 and found[f"wrist_{arm}"].deg < 0.1 for arm in ARMS)
    assert all(one.mm < 5.0 and one.deg < 0.5 for one in found.values())
    assert sum("views so far" in text for text in told) == 3 and any("verdict" in text for text in told)
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    with pytest.raises(CalibrationError, match="holds a session already"):
        rehearse(tmp_path)
    with pytest.raises(CalibrationError, match="places is 9"):
        rehearse(tmp_path / "other", places=9)
    with pytest.raises(CalibrationError, match="seed -1"):
        rehearse(tmp_path / "other", seed=-1)
    with pytest.raises(CalibrationError, match="cannot be made"):
        rehearse(tmp_path / "log.txt")
