"""`clamp preflight` over emulated servos and a camera's recording, with one thing wrong at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hardware_emulation.leaders import HANDLE, leader
from hardware_emulation.motor import Joint, Servo
from hardware_emulation.rig import GRIPPER, MOTORS
from hardware_emulation.servos import Emulator, ServoBus, follower
from realsense_recording import Lens, record, shots
from tiny_artifact import build_tiny_artifact

from clamp_ros import cli
from clamp_ros.arm.bus import Bus
from clamp_ros.arm.registers import XC430_W150, XL430_W250, XM540_W270
from clamp_ros.bringup import graph, preflight
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import ARMS
from clamp_ros.policy.artifact import CameraSpec
from clamp_ros.preflight import Check, Verdict

LENS = Lens(64, 48, 50.0, 31.5, 23.5)
SPEC = CameraSpec(LENS.width, LENS.height, LENS.f, LENS.f, LENS.cx, LENS.cy, rgb=False)
POSE = {"position_m": [0.0, 0.0, 1.0], "quat_xyzw": [1.0, 0.0, 0.0, 0.0], "frame": "world"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good camera, one on USB 2, and one with another lens."""
    folder = tmp_path_factory.mktemp("recordings")
    other = replace(LENS, f=80.0)
    return {
        name: record(folder / f"{name}.db3", shots(range(1, 6), 1.2, 0.001, lens, lens), unit_m=0.001, color=lens,
                     depth=lens, name="D435", usb=usb)
        for name, lens, usb in (("good", LENS, "3.2"), ("usb2", LENS, "2.1"), ("lens", other, "3.2"))
    }  # fmt: skip


@dataclass
class Bench:
    """Two emulated arms, one camera, and the files that tell of them."""

    folder: Path
    left: ServoBus
    right: ServoBus
    leaders: tuple[ServoBus, ServoBus]
    camera: dict[str, Any]
    arms: dict[str, Any]
    handles: dict[str, Any]

    def given(self) -> dict[str, str]:
        """Launch arguments, and the files they name, as they are now."""
        for path, node, values in (
            (self.folder / "arms.yaml", "arm_node", self.arms),
            (self.folder / "leaders.yaml", "teleop_node", self.handles),
            (self.folder / "cameras.yaml", "/**", {"front_left": self.camera}),
        ):
            path.write_text(json.dumps({node: {"ros__parameters": values}}))  # JSON is YAML
        return {"policy": str(self.folder / "tiny"), "arm_config": str(self.folder / "arms.yaml"),
                "camera_config": str(self.folder / "cameras.yaml"), "record_to": str(self.folder)}  # fmt: skip

    def teleoperation(self) -> dict[str, str]:
        """Launch arguments of a graph that has leaders but no policy."""
        given = self.given()
        del given["policy"]
        return {**given, "leaders": str(self.folder / "leader"), "leader_config": str(self.folder / "leaders.yaml"),
                "cameras": "front_left"}  # fmt: skip

    def failures(self, given: dict[str, str] | None = None, name: str = "policy") -> dict[str, Check]:
        """What fails, by name; what a machine of tests lacks (rules, rights, a quick disk) aside."""
        checks = preflight.preflight(self.given() if given is None else given, name=name)
        failed = {check.name: check for check in checks if check.verdict is Verdict.FAILED and check.group != "machine"}
        failed.pop("udev rules", None)
        failed.pop("groups", None)
        assert all(check.fix for check in failed.values())
        return failed


@pytest.fixture
def bench(tmp_path: Path, recordings: dict[str, Path]) -> Iterator[Bench]:
    build_tiny_artifact(tmp_path / "tiny", cameras={"front_left": SPEC}, image_rate_hz=30.0)
    left, right, leaders = follower(), follower(), (leader(), leader(swapped={7: XL430_W250}))
    for name, bus in zip(ARMS, leaders, strict=True):
        (tmp_path / f"leader_{name}").symlink_to(bus.port)
    camera = {"recording": str(recordings["good"]), "width": LENS.width, "height": LENS.height, **POSE}
    sides = {"left": {"port": left.port, **GRIPPER}, "right": {"port": right.port, **GRIPPER}}
    handles = {"left": HANDLE, "right": HANDLE, "motors": MOTORS}
    with Emulator(left, right, *leaders):
        yield Bench(tmp_path, left, right, leaders, camera, {**sides, "motors": MOTORS}, handles)


def test_all_is_well_and_nothing_was_written_to_a_motor(bench, capsys):
    before = [bytes(servo.table[:64]) for bus in (bench.left, bench.right) for servo in bus.servos]
    assert bench.failures() == {}
    assert [bytes(servo.table[:64]) for bus in (bench.left, bench.right) for servo in bus.servos] == before
    assert 3 not in bench.left.instructions, "no write instruction"
    words = ["preflight", "--json", *(f"{name}:={value}" for name, value in bench.given().items())]
    code = cli.main(words)
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["ok"] else 1)
    shown = {check["name"]: check for check in report["checks"]}
    assert len([name for name in shown if name.startswith(("left ", "right "))]) == 2 * (9 + 2)
    assert shown["left elbow_shadow"]["found"] == "XM540-W270, id 5, firmware 46, 12.0 V, 32 C, torque off"
    assert shown["front_left USB"]["found"] == "3.2" and shown["front_left lens"]["verdict"] == "ok"


def motor_silent(bus: ServoBus) -> None:
    bus[4].silent = True


def motor_of_another_model(bus: ServoBus) -> None:
    bus.servos[7] = Servo(8, XC430_W150.number, Joint())


def two_of_one_id(bus: ServoBus) -> None:
    bus.servos.append(Servo(6, bus[6].model.number, Joint()))


def motor_overloaded(bus: ServoBus) -> None:
    bus[2].fail(0x20)


def supply_weak(bus: ServoBus) -> None:
    bus[1].put(present_input_voltage=98)


def motor_hot(bus: ServoBus) -> None:
    bus[9].put(present_temperature=71)


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        (motor_silent, "right elbow", "motor 4 (XM540-W270) does not answer"),
        (motor_of_another_model, "right wrist_rotate", "model number 1070, expected 1020 (XM430-W350)"),
        (two_of_one_id, "right forearm_roll", "two motors share the id"),
        (motor_overloaded, "right shoulder", "overload; XM540-W270, id 2"),
        (supply_weak, "right waist", "9.8 V, 32 C, torque off; expected 11 to 14 V"),
        (motor_hot, "right gripper", "hotter than hot_c 65"),
    ],
)
def test_a_faulty_motor_is_named_and_no_other(bench, fault, name, words):
    fault(bench.right)
    failures = bench.failures()
    assert list(failures) == [name]
    assert words in failures[name].found


def test_a_port_that_is_gone_leaves_its_motors_out(bench):
    bench.arms["left"]["port"] = "/dev/ttyDXL_nowhere"
    bench.arms["right"]["port"] = "/dev/ttyDXL_elsewhere"
    failures = bench.failures()
    assert failures["left port"].found.startswith("/dev/ttyDXL_nowhere does not exist")
    assert set(failures) == {"left port", "right port"}


def test_a_port_that_somebody_drives_is_not_touched(bench):
    holder = Bus(bench.left.port, {}, reply_s=0.01, retry_s=0.0)
    holder.open()
    try:
        failures = bench.failures()
    finally:
        holder.close()
    assert list(failures) == ["left bus"] and failures["left bus"].fix == f"fuser -v {bench.left.port}"


@pytest.mark.parametrize(
    ("recording", "name", "words"),
    [
        ("usb2", "front_left USB", "USB 2.1, expected 3"),
        ("lens", "front_left lens", "has fx 80.0"),
        ("nothing", "front_left", "there is no file"),
    ],
)
def test_a_faulty_camera_is_named(bench, recordings, recording, name, words):
    bench.camera["recording"] = str(recordings.get(recording, "/nowhere.db3"))
    failures = bench.failures()
    assert list(failures) == [name] and words in failures[name].found


def test_settings_that_do_not_fit_the_policy_are_told_before_anything_starts(bench):
    bench.camera |= {"width": 96, "height": 64}
    for key in ("position_m", "quat_xyzw"):
        del bench.camera[key]
    failures = bench.failures()
    assert set(failures) == {"front_left size", "front_left pose", "front_left"}
    assert failures["front_left size"].found == "96x64; the policy was trained on 64x48"
    assert "it offers 64x48" in failures["front_left"].found


def test_a_corrupt_policy_is_told_and_the_arms_are_looked_at_all_the_same(bench):
    with (bench.folder / "tiny" / "denoise.onnx").open("ab") as file:
        file.write(b"\0")
    bench.left[1].silent = True
    bench.camera["recording"] = "/nowhere.db3"
    failures = bench.failures()
    assert "is corrupt" in failures["artifact"].found and "left waist" in failures
    assert "front_left" in failures


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hold_after", 0.1, "unknown parameter of arm_node 'hold_after'; did you mean 'hold_after_s'?"),
        ("rate_hz", 20, "rate_hz is 20, expected 50 to 250 Hz"),
        ("at_exit", 3, "at_exit is 3, expected str; put text in quotes"),
    ],
)
def test_a_parameter_file_is_read_as_its_node_will_read_it(bench, key, value, words):
    bench.arms[key] = value
    failures = bench.failures()
    assert failures["arm_node"].found == words
    assert failures["arm_node"].fix.endswith("arms.yaml")


def test_sim_leaves_the_hardware_out(tmp_path):
    build_tiny_artifact(tmp_path / "tiny")
    given = {"sim": "true", "policy": str(tmp_path / "tiny"), "record_to": str(tmp_path)}
    checks = preflight.preflight(given)
    assert {check.group for check in checks} == {"config", "policy", "machine"}
    assert not [check for check in checks if check.verdict is Verdict.FAILED and check.group != "machine"]


@pytest.mark.parametrize("sim", ["true", "false"])
@pytest.mark.parametrize(
    ("name", "given"),
    [("policy", {"takeover": "false"}), ("policy", {"takeover": "true", "record": "true"}), ("teleop", {}),
     ("teleop", {"record": "true"}), ("record", {"by": "policy", "takeover": "true"}), ("record", {"by": "teleop"}),
     ("record", {"by": "replay"})],
)  # fmt: skip
def test_every_node_of_every_graph_has_its_configuration_checked(tmp_path, name, given, sim):
    assert name in graph.GRAPHS
    build_tiny_artifact(tmp_path / "tiny")
    given = {**given, "sim": sim, "record_to": str(tmp_path)}
    if name != "teleop":
        given["policy"] = str(tmp_path / "tiny")
    nodes = {node.name for node in graph.GRAPHS[name][1](given)}
    checks = preflight.preflight({**given, "leaders": "/dev/ttyDXL_nowhere"}, name=name)
    assert {check.name for check in checks if check.group == "config"} == nodes
    (speed,) = (check.found for check in checks if check.name == "disk speed")
    assert not speed.endswith("send 0 MB/s"), "cameras, simulated or not"
    leaders = {f"{arm} leader port" for arm in ARMS if "teleop_node" in nodes}
    assert {check.name for check in checks if check.name.endswith("leader port")} == leaders


def test_the_graphs_tested_are_all():
    assert graph.GRAPHS.keys() == {"policy", "teleop", "record"}


@pytest.mark.parametrize("name", ["teleop", "record"])
def test_leaders_are_looked_at_as_followers_are_and_not_written_to(bench, name, capsys):
    given = bench.teleoperation() | ({"by": "teleop"} if name == "record" else {})
    before = [bytes(servo.table[:64]) for bus in bench.leaders for servo in bus.servos]
    assert bench.failures(given, name) == {}
    assert [bytes(servo.table[:64]) for bus in bench.leaders for servo in bus.servos] == before
    assert not any(3 in bus.instructions for bus in bench.leaders), "no write instruction"
    cli.main(["preflight", name, "--json", *(f"{key}:={value}" for key, value in given.items())])
    shown = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert shown["left leader waist"]["found"] == "XM430-W350, id 1, firmware 46, 12.0 V, 32 C, torque off"
    assert shown["right leader wrist_angle"]["found"].startswith("XL430-W250, id 7"), "leaders differ"
    assert "left waist" in shown and "front_left" in shown and "artifact" not in shown


def test_a_faulty_leader_is_named_also_where_the_policy_is_the_rule(bench):
    left, right = bench.leaders
    left[4].silent = True
    right.servos[0] = Servo(1, XM540_W270.number, Joint())
    right[3].fail(0x20)
    bench.handles["left"] = {"handle_closed_rad": 0.5, "handle_open_rad": 0.5}
    given = {**bench.teleoperation(), "policy": str(bench.folder / "tiny"), "takeover": "true"}
    failures = bench.failures(given)
    assert set(failures) == {"left leader elbow", "right leader waist", "left leader gripper"}
    assert failures["right leader waist"].found == "motor 1 has model number 1120, expected 1020 (XM430-W350)"
    (warned,) = (c for c in preflight.preflight(given) if c.name == "right leader shoulder_shadow")
    assert warned.verdict is Verdict.WARNING and warned.found.startswith("overload; "), "its node restarts it"


def test_without_the_policy_and_in_simulation_leaders_are_looked_at_all_the_same(bench):
    bench.leaders[0][2].silent = True
    given = {**bench.teleoperation(), "policy": "/nowhere", "takeover": "true"}
    assert {"artifact", "left leader shoulder"} == bench.failures(given).keys()
    assert {"artifact", "left leader shoulder"} == bench.failures({**given, "sim": "true"}).keys()
    del given["policy"]
    del given["takeover"]
    assert {"left leader shoulder"} == bench.failures({**given, "sim": "true"}, "teleop").keys()


def test_cameras_by_serial_number_need_their_rights(bench):
    names = {check.name: check.group for check in preflight.preflight(bench.given())}
    assert "camera access" not in names
    bench.camera["recording"] = ""
    bench.camera["serial"] = "000"
    checks = [check for check in preflight.preflight(bench.given()) if check.group == "cameras"]
    assert {"groups", "camera access"} < {check.name for check in checks}


def test_a_mistake_on_the_command_line_is_one_line(capsys):
    assert cli.main(["preflight", "simm:=true"]) == 2
    assert "did you mean 'sim'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"nor a system; did you mean 'teleop'\?"):
        preflight.main(["telop"])
