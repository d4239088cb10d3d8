"""The graph as data: what the arguments mean, and what is said about those that mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_artifact import TINY_CAMERA, TINY_CAMERAS, build_tiny_artifact

from clamp_ros.bringup import graph, up
from clamp_ros.contract.errors import ArtifactError, ConfigError
from clamp_ros.contract.tasks import TASK_NAMES
from clamp_ros.share import share_folder
from clamp_ros.sim.tasks import TASKS


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    build_tiny_artifact(folder)
    return str(folder)


def _by_name(**given: str) -> dict[str, graph.Node]:
    return {node.name: node for node in graph.aloha_policy({"sim": "true", **given})}


def test_the_simulation_is_set_to_what_the_policy_was_trained_on(policy):
    nodes = _by_name(policy=policy, task="mug_on_plate_easy", seed="7")
    assert list(nodes) == ["mujoco_node", "fusion_node", "policy_node", "control_node"]
    assert nodes["mujoco_node"].parameters == {
        "task": "mug_on_plate_easy", "cameras": list(TINY_CAMERAS), "seed": 7, "board": False, "robot_model": "",
        "assets": "",
        "width": TINY_CAMERA.width, "height": TINY_CAMERA.height, "image_rate_hz": 10,
    }  # fmt: skip
    assert nodes["fusion_node"].parameters["artifact"] == nodes["policy_node"].parameters["artifact"] == policy


def test_every_node_but_the_one_that_makes_time_runs_on_simulated_time(policy):
    nodes = _by_name(policy=policy, record="true")
    on_time = {name for name, node in nodes.items() if node.parameters.get("use_sim_time")}
    assert on_time == set(nodes) - {"mujoco_node"}


def test_commands_and_the_robot_are_never_restarted_behind_the_users_back(policy):
    assert not any(_by_name(policy=policy)[name].restart for name in ("mujoco_node", "control_node"))


def test_on_the_robot_drivers_take_the_place_of_the_simulation_and_the_policy_waits(policy, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("arm_node: {ros__parameters: {at_exit: sleep}}")
    nodes = _by_name(sim="false", policy=policy, config=str(mine))
    assert list(nodes) == ["camera_node", "arm_node", "fusion_node", "policy_node", "control_node"]
    config = share_folder() / "config"
    assert nodes["camera_node"].files == (config / "cameras.yaml", mine)
    assert nodes["camera_node"].parameters == {"cameras": list(TINY_CAMERAS)}
    assert nodes["arm_node"].files == (config / "arms.yaml", mine), "the user's file lies over the robot's"
    assert not nodes["arm_node"].restart, "arms do not begin anew by themselves"
    assert not any("use_sim_time" in node.parameters for node in nodes.values())
    assert nodes["policy_node"].parameters["enabled"] is False
    assert _by_name(sim="false", policy=policy, enabled="true")["policy_node"].parameters["enabled"] is True
    tolerances = {nodes[name].parameters["match_tolerance_s"] for name in ("fusion_node", "policy_node")}
    assert tolerances == {graph.FREE_RUNNING_S}


def test_arguments_reach_their_nodes(policy):
    nodes = _by_name(
        policy=policy, cameras="back_right, wrist_left", control="temporal_ensemble", enabled="false", record="true",
        record_to="bags",
    )  # fmt: skip
    assert nodes["fusion_node"].parameters["cameras"] == ["back_right", "wrist_left"]
    assert nodes["mujoco_node"].parameters["cameras"] == ["back_right", "wrist_left"]
    assert nodes["control_node"].parameters["mode"] == "temporal_ensemble"
    assert nodes["policy_node"].parameters["enabled"] is False
    assert nodes["recorder_node"].parameters["folder"] == "bags"


def test_a_person_may_stand_by_to_take_over_and_the_policy_has_the_arms(policy):
    nodes = _by_name(policy=policy, takeover="true", leaders="/dev/ttyOTHER")
    assert nodes["teleop_node"].parameters == {
        "use_sim_time": True, "left.port": "/dev/ttyOTHER_left", "right.port": "/dev/ttyOTHER_right",
    }  # fmt: skip
    assert "source" not in nodes["control_node"].parameters


def test_teleoperation_needs_no_policy_and_hands_the_arms_back_to_nobody():
    nodes = {node.name: node for node in graph.aloha_teleop({"sim": "true", "record": "true", "operator": "Ada"})}
    assert list(nodes) == ["mujoco_node", "control_node", "teleop_node", "recorder_node"]
    assert nodes["control_node"].parameters["source"] == "teleop"
    assert nodes["teleop_node"].parameters["hand_back"] == "teleop"
    assert nodes["teleop_node"].parameters["record"] is True
    assert nodes["recorder_node"].parameters["operator"] == "Ada"
    robot = {node.name: node for node in graph.aloha_teleop({})}
    assert list(robot) == ["camera_node", "arm_node", "control_node", "teleop_node"]
    assert robot["teleop_node"].parameters["left.port"] == "/dev/ttyDXL_leader_left"
    assert robot["teleop_node"].parameters["record"] is False


def test_a_recording_session_is_moved_by_the_policy_a_person_or_a_bag(policy, tmp_path):
    def made(**given: str) -> dict[str, graph.Node]:
        return {node.name: node for node in graph.aloha_record({"policy": policy, **given})}

    by_policy = made(sim="true", keep_s="7.5", compression="zstd")
    assert list(by_policy) == ["mujoco_node", "fusion_node", "policy_node", "control_node", "recorder_node"]
    recorder = by_policy["recorder_node"].parameters
    assert (recorder["keep_s"], recorder["compression"], recorder["use_sim_time"]) == (7.5, "zstd", True)
    assert recorder["operator"] and "calibration" not in recorder
    assert made(sim="true", operator="Ada")["recorder_node"].parameters["operator"] == "Ada"
    by_person = made(sim="true", by="teleop")
    assert list(by_person) == ["mujoco_node", "control_node", "teleop_node", "recorder_node"]
    assert by_person["teleop_node"].parameters["record"] is True
    by_bag = made(sim="true", by="replay", cameras="wrist_left")
    assert list(by_bag) == ["mujoco_node", "control_node", "recorder_node"]
    assert by_bag["control_node"].parameters["source"] == "replay"
    assert by_bag["recorder_node"].parameters["cameras"] == ["wrist_left"]
    robot = made(by="replay", images="compressed")
    assert list(robot) == ["camera_node", "arm_node", "control_node", "recorder_node"]
    assert robot["camera_node"].parameters["compressed"] is True
    config = share_folder() / "config"
    assert robot["recorder_node"].parameters["calibration"] == [str(config / f"{n}.yaml") for n in ("cameras", "arms")]


def test_the_tasks_offered_are_those_of_the_simulation():
    assert next(a for a in graph.ARGUMENTS if a.name == "task").choices == TASK_NAMES == tuple(TASKS)


def test_the_graph_is_read_without_a_simulator():
    """A launch file on a robot's computer imports the graph; MuJoCo need not be there."""
    code = "import sys, clamp_ros.bringup.graph; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"simm": "true"}, r"unknown launch argument 'simm'; did you mean 'sim'\?"),
        ({"sim": "yes"}, "sim:=yes is not possible, expected one of true, false"),
        ({"sim": "false", "arm_config": "arm"}, "arm_config:=arm does not exist; expected a ROS parameter file, or"),
        ({"sim": "false", "camera_config": "x.yaml"}, "camera_config:=x.yaml does not exist"),
        ({"policy": "nowhere"}, "no policy artifact at 'nowhere'"),
        ({"cameras": "front_leftt"}, r"unknown camera 'front_leftt'; did you mean 'front_left'\?"),
        ({"cameras": "front_left,front_left"}, "names a camera twice"),
        ({"seed": "one"}, "seed:=one is not possible, expected a whole number"),
        ({"config": "nowhere.yaml"}, "config:=nowhere.yaml does not exist; expected a ROS parameter file, or one of"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(policy, given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        graph.aloha_policy({"sim": "true", "policy": policy, **given})


def test_a_corrupt_policy_is_refused_before_anything_starts(tmp_path):
    build_tiny_artifact(tmp_path)
    with (tmp_path / "denoise.onnx").open("ab") as file:
        file.write(b"!")
    with pytest.raises(ArtifactError, match=r"denoise\.onnx is corrupt"):
        graph.aloha_policy({"sim": "true", "policy": str(tmp_path)})


def test_cameras_of_two_sizes_cannot_be_simulated(tmp_path):
    small = type(TINY_CAMERA)(212, 120, 156.3, 156.3, 105.5, 59.5, rgb=False)
    build_tiny_artifact(tmp_path, cameras={"front_left": TINY_CAMERA, "back_right": small})
    with pytest.raises(ConfigError, match="draws all cameras at one size"):
        graph.aloha_policy({"sim": "true", "policy": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mujoco_nod:\n  ros__parameters: {seed: 1}", r"unknown node in .*'mujoco_nod'; did you mean 'mujoco_node'\?"),
        ("mujoco_node:\n  seed: 1", "mujoco_node must hold the one key ros__parameters"),
        ("- a list", "must be a mapping of node names"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_parameter_file_for_other_nodes_is_refused(policy, tmp_path, text, complaint):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        graph.aloha_policy({"sim": "true", "policy": policy, "config": str(path)})


def test_a_parameter_file_is_found_by_its_shipped_name(policy):
    node = _by_name(policy=policy, config="sim_delays")["mujoco_node"]
    assert node.files == (share_folder() / "config" / "sim_delays.yaml",)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["sim=true"], "'sim=true' is not a launch argument, expected name:=value"), (["a:=1", "a:=2"], "given twice")],
)
def test_words_that_are_no_arguments(words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        up.parse_arguments(words)


def test_a_node_becomes_a_command_line():
    node = graph.Node(
        "n", "a.b", parameters={"text": "", "flag": True, "many": ["a", "b"], "one": 0.5}, remaps={"/x": "/y"},
        files=(Path("/z.yaml"),),
    )  # fmt: skip
    assert up.command(node)[1:] == [
        "-m", "a.b", "--ros-args", "-r", "__node:=n", "-p", 'text:=""', "-p", "flag:=true", "-p", 'many:=["a", "b"]',
        "-p", "one:=0.5", "-r", "/x:=/y", "--params-file", "/z.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("restart", "exit_code", "deaths", "again"),
    [(True, 1, 1, True), (True, -9, graph.RESTARTS, True), (True, 1, graph.RESTARTS + 1, False),
     (True, graph.EXIT_CONFIGURATION, 1, False), (False, 1, 1, False)],
)  # fmt: skip
def test_when_a_node_is_started_again(restart, exit_code, deaths, again):
    assert graph.Node("n", "m", restart=restart).restarts(exit_code, deaths) is again


@pytest.mark.parametrize("name", sorted(graph.GRAPHS))
@pytest.mark.parametrize("sim", ["true", "false"])
def test_no_node_can_hang_unsaid(name, sim):
    """The control node watches all others, by their word of every second; the arms' driver misses its commands."""
    given = {"sim": sim, **({} if name == "record" else {"record": "true"})}
    nodes = {node.name: node for node in graph.GRAPHS[name][1](given)}
    control = nodes.pop("control_node").parameters
    assert {*control["alive.watched"], *control.get("alive.required", [])} == set(nodes)
    assert {"mujoco_node", "arm_node"} & set(nodes)


@pytest.mark.parametrize(
    ("name", "given", "mourned"),
    [
        ("policy", {"sim": "true", "record": "true"}, None),
        ("policy", {"record": "true"}, {"camera_node", "fusion_node", "policy_node"}),
        ("policy", {"takeover": "true"}, {"camera_node", "fusion_node", "policy_node", "teleop_node"}),
        ("teleop", {"record": "true"}, {"camera_node", "teleop_node"}),
    ],
)
def test_on_the_robot_the_death_of_who_moves_the_arms_is_an_emergency(name, given, mourned):
    nodes = {node.name: node for node in graph.GRAPHS[name][1](given)}
    found = nodes["control_node"].parameters.get("alive.mourned")
    assert (None if found is None else set(found)) == mourned
