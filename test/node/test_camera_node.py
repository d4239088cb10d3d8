"""The camera node with recordings of emulated cameras, played by the SDK through the production pipeline."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from rclpy.parameter import Parameter
from realsense_recording import COLOR, DEPTH, SERIAL, Lens, record, shots

from clamp_ros.camera import rvl
from clamp_ros.camera.camera_node import CameraNode, CameraNodeConfig
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import (
    CAMERAS,
    DIAGNOSTICS,
    TF_STATIC,
    VIEWS,
    camera_info_topic,
    color_compressed_topic,
    color_topic,
    depth_compressed_topic,
    depth_metres_topic,
    depth_topic,
    gripper_frame,
    optical_frame,
    topic,
)
from clamp_ros.fusion.fusion_node import FusionNode
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import make
from clamp_ros.ros.convert import array_from_image, pinhole_from_camera_info, stamp_ns, transform_from_message
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import EXIT_USER_ERROR, subscribe
from clamp_ros.ros.tf import TfBroadcaster
from clamp_ros.share import share_folder

CORNER = Lens(64, 48, 50.0, 31.5, 23.5)
LEFT, WRIST = "front_left", "wrist_left"
POSES = {
    f"{LEFT}.position_m": [-0.6, -0.4, 0.7], f"{LEFT}.quat_xyzw": [-0.8, 0.45, -0.19, 0.34],
    f"{WRIST}.position_m": [-0.12, 0.0, 0.08], f"{WRIST}.quat_xyzw": [0.0, 0.0, 0.0, 1.0],
    f"{WRIST}.frame": "left/gripper",
}  # fmt: skip


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A D435 at a corner, 1.5 m from a wall, and a D405 on a wrist, 0.25 m from one; half a second each."""
    folder = tmp_path_factory.mktemp("recordings")
    corner = shots(range(1, 16), 1.5, 0.001, CORNER, CORNER)
    return {
        LEFT: record(folder / "d435.db3", corner, unit_m=0.001, color=CORNER, depth=CORNER, name="D435", usb="2.1"),
        WRIST: record(folder / "d405.db3", shots(range(1, 16), 0.25)),
    }


def parameters(recordings: dict[str, Path], *cameras: str, **values: Any) -> dict[str, Any]:
    sizes = {LEFT: (CORNER, CORNER), WRIST: (COLOR, DEPTH)}
    chosen: dict[str, Any] = {"cameras": list(cameras), "timeout_s": 0.3, "retry_s": 0.05, **POSES}
    for name in cameras:
        color, depth = sizes[name]
        chosen |= {
            f"{name}.recording": str(recordings[name]), f"{name}.warmup_frames": 0,
            f"{name}.width": color.width, f"{name}.height": color.height,
            f"{name}.depth_width": depth.width, f"{name}.depth_height": depth.height,
        }  # fmt: skip
    return {**chosen, **values}


class Cell:
    """The node, and one that hears everything it says."""

    def __init__(self, ros: Any, values: dict[str, Any], *names: str) -> None:
        self.ros = ros
        self.peer = ros.node("peer")
        self.heard: dict[str, list[Any]] = {}
        for row in (DIAGNOSTICS, TF_STATIC, *map(topic, names)):
            self.heard[row.name] = []
            subscribe(self.peer, row, self.heard[row.name].append)
        self.node = ros.add(CameraNode(parameter_overrides=[Parameter(k, value=v) for k, v in values.items()]))

    def until(self, condition: Any, what: str) -> None:
        self.ros.spin_until(condition, 30.0, what)

    def status(self) -> Any:
        """The newest report of the node on /diagnostics, or None."""
        rows = [s for array in self.heard[DIAGNOSTICS.name] for s in array.status if s.name == "camera_node"]
        return rows[-1] if rows else None

    def says(self, text: str, level: bytes) -> bool:
        return any(
            text in row.message and row.level == level for a in self.heard[DIAGNOSTICS.name] for row in a.status
        )

    def value(self, key: str) -> str | None:
        row = self.status()
        return next((v.value for v in row.values if v.key == key), None) if row else None

    def change(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.ros.call(self.peer, ChangeState, "/camera_node/change_state", request).success

    def state(self) -> int:
        return self.ros.call(self.peer, GetState, "/camera_node/get_state").current_state.id


def test_two_cameras_of_one_process_send_images_intrinsics_and_poses(ros, recordings):
    kinds = (color_topic, depth_topic, camera_info_topic, depth_metres_topic)
    names = {name: [kind(name) for kind in kinds] for name in (LEFT, WRIST)}
    cell = Cell(ros, parameters(recordings, LEFT, WRIST), *names[LEFT], *names[WRIST])
    cell.until(lambda: all(len(cell.heard[n]) >= 5 for row in names.values() for n in row), "five frames of each")
    for camera, lens, depth_mm in ((LEFT, CORNER, 1500), (WRIST, COLOR, 250)):
        color, depth, info, metres = ({stamp_ns(m.header.stamp): m for m in cell.heard[n]} for n in names[camera])
        stamps = sorted(color.keys() & depth.keys() & info.keys() & metres.keys())
        assert len(stamps) >= 4, "all four of one stamp"
        assert [stamp_ns(m.header.stamp) for m in cell.heard[color_topic(camera)]] == sorted(color)
        now = cell.node.get_clock().now().nanoseconds
        assert 0 < now - stamps[-1] < 60e9, "ROS time"
        for stamp in stamps:
            assert {m[stamp].header.frame_id for m in (color, depth, info, metres)} == {optical_frame(camera)}
            rgb = array_from_image(color[stamp], "rgb8")
            assert rgb.shape == (lens.height, lens.width, 3)
            assert np.all(rgb[..., 2] == 200) and np.all(rgb[..., 1] == 2 * rgb[..., 0])
            assert np.all(array_from_image(depth[stamp], "16UC1") == depth_mm)
            assert np.all(array_from_image(metres[stamp], "32FC1") == np.float32(depth_mm / 1000))
            pinhole = pinhole_from_camera_info(info[stamp])
            assert pinhole == Pinhole(lens.width, lens.height, lens.f, lens.f, lens.cx, lens.cy)
    cell.until(lambda: cell.heard[TF_STATIC.name], "the poses")
    poses = {t.child_frame_id: t for message in cell.heard[TF_STATIC.name] for t in message.transforms}
    assert {child: t.header.frame_id for child, t in poses.items()} == {
        optical_frame(LEFT): "world", optical_frame(WRIST): "left/gripper",
    }  # fmt: skip
    pose = transform_from_message(poses[optical_frame(WRIST)])[3]
    assert pose == pytest.approx(np.array([[1, 0, 0, -0.12], [0, 1, 0, 0], [0, 0, 1, 0.08], [0, 0, 0, 1]]))


def test_compressed_topics_are_what_the_standard_transports_read(ros, recordings):
    names = color_compressed_topic(WRIST), depth_compressed_topic(WRIST)
    cell = Cell(ros, parameters(recordings, WRIST, compressed=True), *names)
    cell.until(lambda: all(cell.heard[n] for n in names), "a compressed pair")
    color, depth = (cell.heard[n][0] for n in names)
    assert color.format == "rgb8; jpeg compressed bgr8" and depth.format == "16UC1; compressedDepth png"
    assert color.header.frame_id == depth.header.frame_id == optical_frame(WRIST)
    bgr = cv2.imdecode(np.frombuffer(bytes(color.data), np.uint8), cv2.IMREAD_UNCHANGED)
    assert bgr is not None and bgr.shape == (COLOR.height, COLOR.width, 3)
    assert np.abs(bgr[..., 0].astype(int) - 200).max() <= 3
    packed = bytes(depth.data)[struct.calcsize("iff") :]
    depth_mm = cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_UNCHANGED)
    assert depth_mm is not None and depth_mm.dtype == np.uint16 and np.all(depth_mm == 250)


def test_depth_by_rvl_is_what_the_cameras_see(ros, recordings):
    rvl.decode(rvl.encode(np.zeros((1, 1), np.uint16)))  # compiled beforehand: that may take long on a busy machine
    name = depth_compressed_topic(WRIST)
    cell = Cell(ros, parameters(recordings, WRIST, compressed=True, depth_compression="rvl"), name)
    cell.until(lambda: cell.heard[name], "compressed depth")
    depth = cell.heard[name][0]
    assert depth.format == "16UC1; compressedDepth rvl"
    depth_mm = rvl.decode(np.frombuffer(bytes(depth.data)[struct.calcsize("iff") :], np.uint8))
    assert depth_mm.shape == (COLOR.height, COLOR.width) and np.all(depth_mm == 250)


def test_fusion_takes_what_the_cameras_send(ros, recordings):
    # Both look straight down: the corner's wall is a plane at z = 0.1 m, the wrist's a smaller one at z = 0.15 m.
    down = [1.0, 0.0, 0.0, 0.0]
    poses = {f"{LEFT}.position_m": [0.0, 0.0, 1.6], f"{LEFT}.quat_xyzw": down,
             f"{WRIST}.position_m": [0.0, 0.0, 0.1], f"{WRIST}.quat_xyzw": down}  # fmt: skip
    cell = Cell(ros, parameters(recordings, LEFT, WRIST, **poses), VIEWS.name, depth_topic(LEFT), depth_topic(WRIST))
    at = {"left": (-0.1, 0.0, 0.3), "right": (0.1, 0.0, 0.3)}
    grippers = [("world", gripper_frame(arm), make(translation=position)) for arm, position in at.items()]
    TfBroadcaster(cell.peer).send_static(grippers, 0)
    fusion = {"cameras": [LEFT, WRIST], "match_tolerance_s": 0.034}  # these cameras run free
    ros.add(FusionNode(parameter_overrides=[Parameter(k, value=v) for k, v in fusion.items()]))
    ros.spin_until(lambda: cell.heard[VIEWS.name], 180.0, "views, whose kernels may have to be compiled first")
    message = cell.heard[VIEWS.name][-1]
    views = array_from_image(message, "32FC4")
    heights = views[..., 3][views[..., 0] > 0.0]
    planes = np.abs(heights[:, None] - (0.1, 0.15)) < 2e-3
    assert planes.any(axis=1).all() and (planes.sum(axis=0) > 100).all()
    taken = {stamp_ns(m.header.stamp) for name in (LEFT, WRIST) for m in cell.heard[depth_topic(name)]}
    assert stamp_ns(message.header.stamp) in taken


def test_a_camera_that_falls_silent_is_told_and_comes_back(ros, recordings):
    cell = Cell(ros, parameters(recordings, WRIST), color_topic(WRIST))
    cell.until(lambda: cell.heard[color_topic(WRIST)], "the first frame")
    cell.until(lambda: cell.says(f"{WRIST} sent nothing new for 0.3 s: unplugged or stuck", DiagnosticStatus.WARN),
               "the silence on /diagnostics")  # fmt: skip
    cell.until(lambda: int(cell.value(f"{WRIST}.opened") or 0) >= 2, "the camera to be opened again")
    before = len(cell.heard[color_topic(WRIST)])
    cell.until(lambda: len(cell.heard[color_topic(WRIST)]) > before, "frames after it came back")
    stamps = [stamp_ns(m.header.stamp) for m in cell.heard[color_topic(WRIST)]]
    assert stamps == sorted(set(stamps)), "no stamp comes twice, and none runs back"
    assert int(cell.value(f"{WRIST}.failures") or 0) >= 1


def test_a_camera_that_is_not_there_is_an_error_after_the_deadline_and_sends_nothing(ros, recordings):
    values = parameters(recordings, LEFT, **{f"{LEFT}.recording": "", f"{LEFT}.serial": "999", "deadline_s": 0.2})
    cell = Cell(ros, values, color_topic(LEFT))
    cell.until(lambda: cell.says(f"{LEFT}: no RealSense with serial 999; connected:", DiagnosticStatus.ERROR), "error")
    assert cell.state() == State.PRIMARY_STATE_ACTIVE, "it may be plugged in yet"
    assert cell.heard[color_topic(LEFT)] == []


def test_faults_of_frames_are_counted_on_diagnostics(ros, tmp_path):
    path = record(tmp_path / "faulty.db3", shots([1, 2, 3, 3, 3, 4, 5, 9, 10, 11, 12]))
    cell = Cell(ros, parameters({WRIST: path}, WRIST, deadline_s=60.0), color_topic(WRIST))
    cell.until(lambda: int(cell.value(f"{WRIST}.frozen") or 0) and int(cell.value(f"{WRIST}.dropped") or 0), "counts")
    assert int(cell.value(f"{WRIST}.dropped") or 0) >= 3
    cell.until(lambda: int(cell.value(f"{WRIST}.frames") or 0) >= 5, "frames")
    assert float(cell.value(f"{WRIST}.age_ms.median") or 0.0) >= 0.0


def test_a_slow_link_and_a_missing_calibration_are_named(ros, recordings):
    poses = {f"{LEFT}.position_m": [], f"{LEFT}.quat_xyzw": []}
    values = {k: v for k, v in parameters(recordings, LEFT).items() if k not in poses}
    cell = Cell(ros, values, color_topic(LEFT))
    cell.until(lambda: cell.heard[color_topic(LEFT)], "a frame")
    cell.until(lambda: cell.value(f"{LEFT}.device") is not None, "the device's description")
    assert cell.value(f"{LEFT}.device") == f"D435, serial {SERIAL}, firmware 5.15.1, USB 2.1"
    held = [text for _, text in cell.node.health._held.values()]
    assert f"{LEFT} is on USB 2.1: plug it into a USB 3 port" in held
    assert any(text.startswith(f"{LEFT} has no pose in config/cameras.yaml: calibrate it") for text in held)
    assert all(not message.transforms for message in cell.heard[TF_STATIC.name]), "no pose is made up"


def test_a_lifecycle_manager_may_drive_it(ros, recordings):
    cell = Cell(ros, parameters(recordings, WRIST, autostart=False), color_topic(WRIST))
    assert cell.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert cell.change(Transition.TRANSITION_CONFIGURE)
    assert cell.node.count_publishers(color_topic(WRIST)) == 1
    assert cell.change(Transition.TRANSITION_ACTIVATE)
    cell.until(lambda: cell.heard[color_topic(WRIST)], "a frame")
    streamer = cell.node._streamers[WRIST]
    assert cell.change(Transition.TRANSITION_DEACTIVATE)
    cell.until(lambda: cell.node._cameras[WRIST]._pipeline is None, "the camera to be closed")
    opened = streamer.opened
    assert cell.change(Transition.TRANSITION_ACTIVATE)
    cell.until(lambda: streamer.opened > opened, "the camera to be opened again")
    assert cell.change(Transition.TRANSITION_DEACTIVATE)
    assert cell.change(Transition.TRANSITION_CLEANUP)
    cell.until(lambda: not cell.peer.count_publishers(color_topic(WRIST)), "the topics to end")
    cell.until(lambda: not streamer._thread.is_alive(), "the thread to end")
    assert cell.change(Transition.TRANSITION_CONFIGURE) and cell.change(Transition.TRANSITION_ACTIVATE)
    before = len(cell.heard[color_topic(WRIST)])
    cell.until(lambda: len(cell.heard[color_topic(WRIST)]) > before, "frames of the second life")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cameras": ["front_lft"]}, "unknown camera 'front_lft'; did you mean 'front_left'"),
        ({"cameras": [LEFT, LEFT]}, r"cameras are \['front_left', 'front_left'\], expected different ones"),
        ({"cameras": []}, r"cameras are \[\], expected different ones"),
        ({"front_lft.serial": "1"}, "'front_lft.serial'; did you mean 'front_left.serial'"),
        ({"front_left.serial": 128422271521}, "front_left.serial is 128422271521, expected str; put text in quotes"),
        ({"front_left.width": 3}, "front_left.width is 3, expected 16 to 4096 px"),
        ({"cameras": [LEFT, WRIST], f"{LEFT}.serial": "7", f"{WRIST}.serial": "7"},
         "wrist_left and front_left both have serial '7'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_at_start(ros, values, says):
    overrides = [Parameter(k, value=v) for k, v in values.items() if v != []]
    overrides += [Parameter(k, Parameter.Type.STRING_ARRAY, v) for k, v in values.items() if v == []]
    with pytest.raises(ConfigError, match=says):
        CameraNode(parameter_overrides=overrides)


def run(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "clamp_ros.camera.camera_node", "--ros-args", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def as_arguments(values: dict[str, Any]) -> list[str]:
    texts = {key: yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for key, value in values.items()}
    return [word for key, text in texts.items() for word in ("-p", f"{key}:={text}")]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({f"{LEFT}.recording": ""}, "front_left.serial is missing; give the number"),
        ({f"{LEFT}.width": 640}, "front_left: colour 640x48 at 30 Hz is not possible with D435"),
    ],
)
def test_a_process_that_cannot_do_what_it_is_told_says_so_and_ends(ros_domain_id, recordings, values, says):
    process = run(*as_arguments(parameters(recordings, LEFT, **values)))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_USER_ERROR, output
    assert f"error: {says}" in output and "Traceback" not in output


def test_a_process_ends_at_once_when_it_is_told_to(ros_domain_id, recordings):
    process = run(*as_arguments(parameters(recordings, WRIST)))
    assert process.stdout is not None
    heard = next((line for line in process.stdout if f"{WRIST} streams: Intel RealSense D405" in line), None)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert heard is not None and process.returncode == 0, output


def test_a_call_of_the_sdk_that_never_returns_ends_the_process():
    # PyDLL keeps Python's lock, as the SDK does while it opens a camera: no thread of Python's could end this.
    script = (
        "import ctypes; from clamp_ros.camera.camera_node import Opening\n"
        "with Opening(0.5): ctypes.PyDLL(None).sleep(600)\n"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1 and "Timeout" in process.stderr


def test_calls_of_the_sdk_that_return_end_nothing():
    script = "import time; from clamp_ros.camera.camera_node import Opening; o = Opening(1.0)\n" + 3 * (
        "with o: pass\n"
    ) + "time.sleep(1.5); print('alive')"  # fmt: skip
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout == "alive\n"


def test_the_deployments_file_is_taken_once_it_has_serial_numbers(ros, tmp_path):
    path = share_folder() / "config" / "cameras.yaml"
    content = yaml.safe_load(path.read_text())
    sections = content["/**"]["ros__parameters"]
    assert set(sections) == set(CAMERAS)
    for i, name in enumerate(CAMERAS):
        sections[name]["serial"] = f"{i}"
    mine = tmp_path / "cameras.yaml"
    mine.write_text(yaml.safe_dump(content))
    shell = ros.add(Node("camera_node", cli_args=["--ros-args", "--params-file", str(mine)]))
    config = declare(shell, CameraNodeConfig)
    for name, section in sections.items():
        settings = config.settings()[name]
        assert {key: getattr(settings, key) for key in section} == section
        assert settings.frame == ("world" if name in ("front_left", "back_right") else name.split("_")[1] + "/gripper")


def test_the_nodes_sections_are_the_contracts_cameras():
    assert set(CameraNodeConfig(cameras=CAMERAS).settings()) == set(CAMERAS)
