"""What a calibration reads and writes: sessions, the cameras' parameter file, shots of a running system."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from calibration_synthetic import BOARD, PINHOLES, TRUTH, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from clamp_ros.calibration.board import Board
from clamp_ros.calibration.cameras_file import read_cameras, write_poses
from clamp_ros.calibration.capture import MOVED_PX, STILL_NS, STILL_RAD, Capture, Places, continue_places
from clamp_ros.calibration.session import MOUNTS, Picture, Session, Shot
from clamp_ros.contract.errors import CalibrationError, ConfigError, ContractError
from clamp_ros.contract.robot import REST_POSE
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import axis_angle, make
from clamp_ros.share import share_folder

SMALL = Pinhole(32, 24, 30.0, 30.0, 15.5, 11.5)
POSE = make(axis_angle((0, 0, 1), 0.3), (0.1, -0.2, 1 / 3))


def shot(place: int = 0, value: int = 7, depth: bool = True) -> Shot:
    color = np.full((24, 32, 3), (value, 50, 200), np.uint8)
    depth_mm = np.full((24, 32), 1234, np.uint16) if depth else None
    return Shot(5, REST_POSE, place, {"front_left": Picture(5, color, depth_mm, SMALL, POSE if depth else None)})


def test_a_session_keeps_what_it_was_given_and_can_be_gone_on_with(tmp_path: Path):
    folder = tmp_path / "a" / "session"
    session = Session.create(folder, BOARD, MOUNTS)
    session.add(shot())
    session.add(shot(1, 8, depth=False))
    again = Session.create(folder, BOARD, MOUNTS)
    assert [path.name for path in again.shots()] == ["shot_000", "shot_001"]
    first, second = (again.read(path) for path in again.shots())
    np.testing.assert_array_equal(first.joints, REST_POSE)
    seen = first.pictures["front_left"]
    np.testing.assert_array_equal(seen.color, shot().pictures["front_left"].color)
    assert seen.depth_mm is not None and (seen.depth_mm == 1234).all() and seen.pinhole == SMALL
    np.testing.assert_array_equal(seen.frame_from_camera, POSE)  # pyright: ignore[reportArgumentType]
    assert second.place == 1 and second.pictures["front_left"].depth_mm is None
    assert second.pictures["front_left"].frame_from_camera is None


def test_undone_shots_are_set_aside_and_their_numbers_used_again(tmp_path: Path):
    session = Session.create(tmp_path / "s", BOARD, MOUNTS)
    assert session.discard_last() is None
    for _ in range(2):
        session.add(shot())
        aside = session.discard_last()
        assert aside is not None and aside.name == "discarded_000" and (aside / "shot.json").is_file()
    assert session.add(shot()).name == "shot_000"


def test_a_shot_that_was_broken_off_is_none(tmp_path: Path):
    session = Session.create(tmp_path / "s", BOARD, MOUNTS)
    session.add(shot())
    (session.folder / ".shot_001.partial").mkdir()
    (session.folder / "shot_001").mkdir()
    assert len(session.shots()) == 1
    with pytest.raises(CalibrationError, match="without a picture"):
        session.add(Shot(1, REST_POSE, 0, {}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"joints": [float("nan")] * 14}, "joints is not finite at: left/waist"),
        ({"joints": [0.0] * 6}, r"joints has shape \(6,\)"),
        ({"cameras": None}, "is of no use"),
        ({"place": -1}, "place of the board is -1"),
        ({"cameras": {"front_left": {"pinhole": {"width": 0}}}}, "is of no use"),
    ],
)
def test_a_damaged_shot_is_named(tmp_path: Path, damage, message):
    session = Session.create(tmp_path / "s", BOARD, MOUNTS)
    path = session.add(shot())
    content = json.loads((path / "shot.json").read_text())
    (path / "shot.json").write_text(json.dumps({**content, **damage}))
    with pytest.raises(CalibrationError, match=message) as caught:
        session.read(path)
    assert "shot_000" in str(caught.value) and "set it aside" in str(caught.value)


def test_a_picture_of_another_size_or_none_is_named(tmp_path: Path):
    session = Session.create(tmp_path / "s", BOARD, MOUNTS)
    path = session.add(shot())
    cv2.imwrite(str(path / "front_left.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(CalibrationError, match="a picture of front_left is 4x4, its intrinsics are for 32x24"):
        session.read(path)
    (path / "front_left.png").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"front_left.png cannot be read"):
        session.read(path)


def test_a_session_is_of_one_board_and_its_cameras(tmp_path: Path):
    folder = tmp_path / "s"
    Session.create(folder, BOARD, MOUNTS)
    with pytest.raises(CalibrationError, match=r"is a session with a board of 10x7 squares of 38 mm.*not with 8x5"):
        Session.create(folder, Board(8, 5), MOUNTS)
    with pytest.raises(CalibrationError, match="camera 'top' is not one of front_left"):
        Session.create(tmp_path / "t", BOARD, {"top": "world"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(CalibrationError, match="something else than a session"):
        Session.create(tmp_path / "full", BOARD, MOUNTS)
    with pytest.raises(CalibrationError, match="cannot be read"):
        Session.open(tmp_path / "nothing")
    (folder / "session.json").write_text('{"format": 9}')
    with pytest.raises(CalibrationError, match="has format 9, this version reads 1"):
        Session.open(folder)
    (folder / "session.json").write_text('{"format": 1, "board": {}}')
    with pytest.raises(CalibrationError, match="is damaged"):
        Session.open(folder)


# The cameras' file.


@pytest.fixture
def cameras_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "cameras.yaml"
    path.write_text((share_folder() / "config/cameras.yaml").read_text())
    return path


def test_poses_go_into_the_repositorys_file_and_nothing_else_changes(cameras_yaml: Path):
    before = cameras_yaml.read_text()
    backup = write_poses(cameras_yaml, TRUTH, MOUNTS, "calibrated today")
    assert backup.read_text() == before and backup.parent == cameras_yaml.parent
    for name, mounted in read_cameras(cameras_yaml).items():
        assert mounted.frame == MOUNTS[name]
        assert mounted.frame_from_camera is not None
        np.testing.assert_allclose(mounted.frame_from_camera, TRUTH[name], atol=1e-6)
    lines = cameras_yaml.read_text().splitlines()
    assert [line for line in lines if not line.strip().startswith(("position_m:", "quat_xyzw:"))] == before.splitlines()
    once = len(lines)
    second = write_poses(cameras_yaml, {"front_left": POSE}, MOUNTS, "again")
    assert len(cameras_yaml.read_text().splitlines()) == once, "a pose takes the place of the one before"
    assert second != backup and backup.read_text() == before, "a backup is never written over"
    assert not list(cameras_yaml.parent.glob(".*"))


@settings(max_examples=12)
@given(st.lists(st.floats(-5.0, 5.0), min_size=3, max_size=3), st.floats(-3.0, 3.0))
def test_any_pose_is_read_back(tmp_path_factory, position, angle):
    path = tmp_path_factory.mktemp("c") / "cameras.yaml"
    path.write_text("/**:\n  ros__parameters:\n    wrist_left:\n      frame: left/gripper")
    pose = make(axis_angle((0.6, 0.0, 0.8), angle), position)
    write_poses(path, {"wrist_left": pose}, MOUNTS, "a # b: c")
    read = read_cameras(path)["wrist_left"].frame_from_camera
    assert read is not None
    np.testing.assert_allclose(read, pose, atol=2e-6)
    content = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]["wrist_left"]
    assert all(type(v) is float for key in ("position_m", "quat_xyzw") for v in content[key]), "rcl tells 1 from 1.0"


def test_values_over_several_lines_and_links_are_replaced(tmp_path: Path):
    real = tmp_path / "real.yaml"
    real.write_text(
        "# mine\ncamera_node:\n  ros__parameters:\n    front_left:\n      position_m:\n        - 1.0\n"
        "        - 2.0 # y\n        - 3.0\n      quat_xyzw: [0.0, 0.0,\n"
        "        0.0, 1.0]\n      frame: world\n      width: 640 # px\n"
    )
    link = tmp_path / "link.yaml"
    link.symlink_to(real)
    write_poses(link, {"front_left": POSE}, MOUNTS, "n")
    assert link.is_symlink()
    text = real.read_text()
    assert text.startswith("# mine\n") and "width: 640 # px" in text and "2.0 # y" not in text
    read = read_cameras(real)["front_left"].frame_from_camera
    assert read is not None
    np.testing.assert_allclose(read, POSE, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/**:\n  ros__parameters:\n    front_left: {frame: world}\n", "must be written over several lines"),
        ("/**:\n  ros__parameters:\n    back_right:\n      frame: world\n", "has 0 sections for front_left"),
        ("/**:\n  ros__parameters:\n    front_left:\n      frame: left/gripper\n", "is mounted on left/gripper in"),
        ("a: [", "cannot be read as YAML"),
        ("a: 1\n", "names none of front_left"),
        ("/**:\n  ros__parameters:\n    front_left:\n      frame: world\n      position_m: [1.0]\n", "has no pose"),
    ],
)
def test_a_file_that_cannot_be_edited_stays_as_it_is(tmp_path: Path, text, message):
    path = tmp_path / "cameras.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_poses(path, {"front_left": POSE}, MOUNTS, "n")
    assert path.read_text() == text and [p.name for p in tmp_path.iterdir()] == ["cameras.yaml"]


# Shots of a running system.


def running(capture: Capture, until_ns: int, move: float = 0.0, cameras: tuple[str, ...] = ("front_left",)) -> None:
    """Joints at 100 Hz and a picture of each camera at `until_ns`."""
    color, depth = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32), np.uint16)
    for stamp in range(until_ns - 2 * STILL_NS, until_ns + 1, 10_000_000):
        capture.add_joints(stamp, REST_POSE + (move if stamp > until_ns - STILL_NS // 2 else 0.0))
    for camera in cameras:
        capture.add_color(camera, until_ns, color)
        capture.add_depth(camera, until_ns, depth)
        capture.add_pinhole(camera, until_ns, SMALL)


NOW = 10_000_000_000


def test_a_shot_has_the_joints_of_its_pictures():
    capture = Capture(("front_left", "back_right"))
    assert not capture.ready(NOW)
    running(capture, NOW, move=0.5 * STILL_RAD)
    assert not capture.ready(NOW), "back_right has not come"
    taken, missing = capture.take(NOW, 3, {"front_left": POSE})
    assert missing == ["back_right"] and taken.place == 3 and taken.stamp_ns == NOW
    assert 0.0 < (taken.joints - REST_POSE).max() < 0.5 * STILL_RAD, "a mean"
    assert taken.pictures["front_left"].frame_from_camera is POSE
    running(capture, NOW + 1, cameras=("back_right",))
    assert capture.ready(NOW)
    assert not capture.ready(NOW + 2), "pictures from before the key was pressed do not count"


def test_no_shot_of_a_moving_arm_nor_without_joints():
    capture = Capture(("front_left",))
    with pytest.raises(CalibrationError, match="no picture came from front_left"):
        capture.take(NOW, 0, {})
    running(capture, NOW, move=2.0 * STILL_RAD)
    with pytest.raises(CalibrationError, match=r"left/\w+ moved by 0.0080 rad .* let the arms come to rest"):
        capture.take(NOW, 0, {})
    capture.clear()
    capture.add_color("front_left", NOW, np.zeros((24, 32, 3), np.uint8))
    capture.add_pinhole("front_left", NOW, SMALL)
    with pytest.raises(CalibrationError, match=r"0 joint states came in the 0.25 s"):
        capture.take(NOW, 0, {})
    with pytest.raises(ContractError, match="not finite at: left/waist"):
        capture.add_joints(NOW, np.full(14, np.nan))


def test_memory_is_bounded():
    capture = Capture(("front_left",))
    for i in range(5000):
        capture.add_joints(i, REST_POSE)
        capture.add_pinhole("front_left", i, SMALL)
    assert len(capture._joints) <= 2000 and len(capture._frames["front_left"]) <= 8


def board_at(x_m: float) -> Shot:
    pose = make(translation=(x_m - 0.19, -0.13, 0.7))
    pinhole = PINHOLES["front_left"]
    return Shot(1, REST_POSE, 0, {"front_left": Picture(1, picture(BOARD, pinhole, pose), None, pinhole)})


def test_fixed_cameras_see_whether_the_board_was_moved(tmp_path: Path):
    here, there = (BOARD.detect(board_at(x).pictures["front_left"].color) for x in (0.0, 0.01))
    moved = here.moved_px(there)
    assert moved is not None and moved > MOVED_PX
    places = Places()
    unknown = {"unknown_is_new": False}
    assert [places.follow({"front_left": d}, MOUNTS, **unknown) for d in (here, here, there, there)] == [0, 0, 1, 1]
    assert places.follow({}, MOUNTS, **unknown) == 1, "nobody saw it: the operator would have said so"
    assert places.follow({"front_left": here}, MOUNTS, **unknown) == 2
    assert places.new() == 3
    assert places.follow({"front_left": here}, MOUNTS, **unknown) == 3, "said, and now seen"
    bag = Places()
    assert [bag.follow(d, MOUNTS, unknown_is_new=True) for d in ({}, {}, {"front_left": here})] == [0, 1, 2]
    # a session that is gone on with knows where the board lay
    session = Session.create(tmp_path / "s", BOARD, MOUNTS)
    assert continue_places(session).place == 0
    session.add(Shot(1, REST_POSE, 4, board_at(0.0).pictures))
    assert continue_places(session).follow({"front_left": here}, MOUNTS, **unknown) == 4
    assert continue_places(session).follow({"front_left": there}, MOUNTS, **unknown) == 5
