"""The graph of a running system as plain data: which nodes, with which parameters, for which launch arguments.

The files in launch/ turn it into launch_ros actions and `clamp_ros.bringup.up` runs it where there is no launch;
neither knows a node's name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.tasks import TASK_NAMES
from clamp_ros.policy.artifact import Artifact, Manifest
from clamp_ros.share import models_folder, share_folder

PACKAGE = "clamp_ros"
RESTARTS = 3
"""How often a node that may be restarted is, before its death counts as the system's."""
RESTART_DELAY_S = 1.0
EXIT_CONFIGURATION = 2
"""A node's exit code for a fault that the user must mend (`ros.run.EXIT_USER_ERROR`): a restart would not help."""

FREE_RUNNING_S = 0.034
"""How far apart the images of one set may lie on the robot, whose cameras run free: a period at 30 Hz."""

_SWITCH = ("true", "false")


@dataclass(frozen=True)
class Argument:
    """A launch argument, ``name:=value`` on the command line.

    Attributes:
        name: as typed.
        default: value where it is not given; launch arguments are text.
        doc: what it does, for ``--show-args`` and ``--help``.
        choices: the values allowed, or none for any.
    """

    name: str
    default: str
    doc: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """One process of the system.

    Attributes:
        name: of the node and of its executable in lib/clamp_ros.
        module: whose `main` it runs, for where there is no launch.
        parameters: ROS parameters: bool, int, float, str, or a list of one of these.
        remaps: topic or service name to another.
        files: ROS parameter files laid over `parameters`.
        restart: started again when it dies, at most `RESTARTS` times; else its death ends the system.
        takes_stop: `ESTOP_SIGNAL` is its emergency stop.
    """

    name: str
    module: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remaps: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    restart: bool = False
    takes_stop: bool = False

    def restarts(self, exit_code: int, deaths: int) -> bool:
        """Whether it is started again after dying for the `deaths`-th time, the last one with `exit_code`."""
        return self.restart and exit_code != EXIT_CONFIGURATION and deaths <= RESTARTS


ARGUMENTS = (
    Argument("sim", "false", "simulate the robot and its cameras with MuJoCo; false drives the hardware", _SWITCH),
    Argument("task", "mug_on_plate_easy", "what is laid out in the simulation", TASK_NAMES),
    Argument("policy", "", "folder of the policy artifact, or the name of one that comes with the package; "
                           "empty takes the one named after the task"),
    Argument("cameras", "", f"physical cameras in use, of {', '.join(CAMERAS)}; comma-separated; empty: the policy's"),
    Argument("seed", "0", "layout of the first episode in the simulation; /sim/reset starts further ones"),
    Argument("board", "false", "lay a ChArUco board on the simulated table in place of the task's objects, for "
                               "`clamp calibrate`; other seeds move it", _SWITCH),
    Argument("robot_model", "", "MuJoCo Menagerie `aloha` folder to take the simulated robot from; empty: built in"),
    Argument("assets", "", "folder of simulated objects in place of our own, see docs/tasks.md; empty: ours"),
    Argument("control", "open_loop", "how chunks become commands", ("open_loop", "temporal_ensemble")),
    Argument("enabled", "auto", "let the policy act as soon as all is up; false waits for /policy/enable; auto does so "
                                "on the robot only", ("auto", *_SWITCH)),
    Argument("record", "false", "run the recorder, which waits for /record/start", _SWITCH),
    Argument("record_to", "data/episodes", "folder for the recorder's bags"),
    Argument("camera_config", "cameras", "the robot's cameras: a ROS parameter file, or the name of one in "
                                         "share/clamp_ros/config; sim:=false"),
    Argument("arm_config", "arms", "the robot's arms: a file as for camera_config; sim:=false"),
    Argument("takeover", "false", "run teleoperation beside the policy, so that a person can take over", _SWITCH),
    Argument("leaders", "/dev/ttyDXL_leader", "the leader arms' ports, without _left and _right"),
    Argument("leader_config", "leaders", "the leader arms: a file as for camera_config"),
    Argument("safety_config", "safety", "limits of the safety gate: a file as for camera_config"),
    Argument("config", "", "ROS parameter file laid over everything here, keyed by node name; a path, or the name of "
                           "one in share/clamp_ros/config"),
)
"""The arguments of the policy's graph."""

_SHARED = ("sim", "seed", "board", "robot_model", "assets", "record", "record_to", "camera_config", "arm_config",
           "leaders", "leader_config", "safety_config", "config")
TELEOP_ARGUMENTS = (
    Argument("task", "mug_on_plate_easy", "what is laid out in the simulation, or on the table: the bags' task"),
    Argument("cameras", "front_left,back_right", f"physical cameras in use, of {', '.join(CAMERAS)}; comma-separated"),
    Argument("operator", "", "who moves the leaders, for the bags"),
    *(argument for argument in ARGUMENTS if argument.name in _SHARED),
)
"""The arguments of teleoperation's graph."""

RECORD_ARGUMENTS = (
    Argument("by", "policy", "who moves the arms: the policy, a person with the leader arms, or a bag by "
                             "`clamp replay`", ("policy", "teleop", "replay")),
    *(argument for argument in ARGUMENTS if argument.name != "record"),
    Argument("operator", "", "who moves the arms, for the bags; empty: the policy's name"),
    Argument("images", "raw", "of cameras in the bags: raw, or compressed; the simulation has raw ones only",
             ("raw", "compressed")),
    Argument("compression", "lz4", "of the bags' chunks", ("none", "lz4", "zstd")),
    Argument("keep_s", "5", "seconds that are held in memory between episodes, for /record/keep; 0 holds none"),
)
"""The arguments of a recording session's graph: the policy's, and the recorder's."""


def resolve(given: Mapping[str, str], arguments: Sequence[Argument] = ARGUMENTS) -> dict[str, str]:
    """Every argument's value.

    Args:
        given: what the user typed.
        arguments: what there is.

    Raises:
        ConfigError: an argument is unknown (with the nearest name) or its value is not among the choices.
    """
    known = {argument.name: argument for argument in arguments}
    for name, value in given.items():
        if name not in known:
            raise unknown_key(name, known, "launch argument")
        choices = known[name].choices
        if choices and value not in choices:
            raise ConfigError(f"{name}:={value} is not possible, expected one of {', '.join(choices)}")
    return {name: given.get(name, argument.default) for name, argument in known.items()}


def aloha_policy(given: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes that run the policy on the robot, or on its simulation.

    Args:
        given: launch arguments by name; those absent have their defaults.

    Raises:
        ConfigError: an argument is unknown or impossible.
    """
    values = resolve(given)
    sim = values["sim"] == "true"
    artifact = Artifact.load(artifact_folder(values["policy"] or values["task"]))
    manifest, folder = artifact.manifest, str(artifact.folder)
    cameras = _cameras(values["cameras"]) or list(manifest.cameras)
    files = _parameter_files("config", values["config"])
    clock = {"use_sim_time": True} if sim else {}
    matching = {} if sim else {"match_tolerance_s": FREE_RUNNING_S}
    enabled = sim if values["enabled"] == "auto" else values["enabled"] == "true"
    nodes = [
        *(_simulation(values, cameras, files, _images(manifest)) if sim else hardware(values, cameras, files)),
        Node(
            "fusion_node", "clamp_ros.fusion.fusion_node", files=files, restart=True,
            parameters={**clock, "artifact": folder, "cameras": cameras, **matching},
        ),
        Node(
            "policy_node", "clamp_ros.policy.policy_node", files=files, restart=True,
            parameters={**clock, "artifact": folder, "enabled": enabled, **matching, **_replanning(values)},
        ),
        _control(values, files, {**clock, "mode": values["control"]}),
    ]
    if values["takeover"] == "true":
        nodes.append(_teleop(values, files, clock))
    if values["record"] == "true":
        nodes.append(_recorder(values, files, {**clock, "cameras": cameras, "operator": manifest.name}))
    _check_sections(files, nodes)
    return _watched(nodes)


def aloha_teleop(given: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes by which a person moves the robot, or its simulation, with the leader arms.

    Args:
        given: launch arguments by name, of `TELEOP_ARGUMENTS`; those absent have their defaults.

    Raises:
        ConfigError: an argument is unknown or impossible.
    """
    values = resolve(given, TELEOP_ARGUMENTS)
    sim, record = values["sim"] == "true", values["record"] == "true"
    cameras = _cameras(values["cameras"])
    files = _parameter_files("config", values["config"])
    clock = {"use_sim_time": True} if sim else {}
    nodes = [
        *(_simulation(values, cameras, files, {}) if sim else hardware(values, cameras, files)),
        _control(values, files, {**clock, "source": "teleop"}),
        _teleop(values, files, {**clock, "hand_back": "teleop", "record": record}),
    ]  # fmt: skip
    if record:
        told = {"cameras": cameras, "operator": values["operator"], "task": values["task"]}
        nodes.append(_recorder(values, files, {**clock, **told}))
    _check_sections(files, nodes)
    return _watched(nodes)


def aloha_record(given: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes of a recording session: arms, cameras, who moves the arms, and the recorder, set as one likes.

    Args:
        given: launch arguments by name, of `RECORD_ARGUMENTS`; those absent have their defaults.

    Raises:
        ConfigError: an argument is unknown or impossible.
    """
    values = resolve(given, RECORD_ARGUMENTS)
    if values["sim"] == "true" and values["images"] == "compressed":
        raise ConfigError("images:=compressed needs the robot's cameras; the simulation publishes raw images only")
    if values["by"] == "replay":
        nodes = _replay(values)
    else:
        arguments, make = GRAPHS[values["by"]]
        own = {argument.name for argument in arguments}
        nodes = make({"record": "true", **{name: text for name, text in values.items() if name in own and text}})
    more = {name: values[name] for name in ("images", "compression")} | {"keep_s": _seconds("keep_s", values["keep_s"])}
    if values["operator"]:
        more["operator"] = values["operator"]
    changes = {"recorder_node": more, "camera_node": {"compressed": True} if values["images"] == "compressed" else {}}
    return tuple(replace(node, parameters={**node.parameters, **changes.get(node.name, {})}) for node in nodes)


def _replay(values: Mapping[str, str]) -> tuple[Node, ...]:
    """Arms that wait for `clamp replay`, cameras, and the recorder."""
    cameras = _cameras(values["cameras"]) or list(CAMERAS)
    files = _parameter_files("config", values["config"])
    sim = values["sim"] == "true"
    clock = {"use_sim_time": True} if sim else {}
    nodes = (
        *(_simulation(values, cameras, files, {}) if sim else hardware(values, cameras, files)),
        _control(values, files, {**clock, "source": "replay"}),
        _recorder(values, files, {**clock, "cameras": cameras}),
    )
    _check_sections(files, nodes)
    return _watched(nodes)


GRAPHS: dict[str, tuple[tuple[Argument, ...], Callable[[Mapping[str, str]], tuple[Node, ...]]]] = {
    "policy": (ARGUMENTS, aloha_policy),
    "teleop": (TELEOP_ARGUMENTS, aloha_teleop),
    "record": (RECORD_ARGUMENTS, aloha_record),
}
"""Every graph, for launch/aloha_NAME.launch.py and `clamp up NAME`: its arguments, and what makes its nodes."""


def _control(values: Mapping[str, str], files: tuple[Path, ...], parameters: Mapping[str, Any]) -> Node:
    """The death of the robot's arms is an emergency stop; the simulation's ends the system."""
    safety_files = _parameter_files("safety_config", values["safety_config"])
    required = {} if values["sim"] == "true" else {"alive.required": ["arm_node"]}
    return Node(
        "control_node", "clamp_ros.control.control_node", files=(*safety_files, *files), takes_stop=True,
        parameters={**parameters, **required},
    )  # fmt: skip


def _watched(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Has the control node say when it hears nothing of another node; the arms' driver says so of the control node."""
    others = [node.name for node in nodes if node.name != "control_node"]

    def told(node: Node) -> Node:
        required = node.parameters.get("alive.required", [])
        watched = [name for name in others if name not in required]
        return replace(node, parameters={**node.parameters, "alive.watched": watched})

    return tuple(told(node) if node.name == "control_node" else node for node in nodes)


def _teleop(values: Mapping[str, str], files: tuple[Path, ...], parameters: Mapping[str, Any]) -> Node:
    """Begins anew after a death, since it begins idle and the control node holds meanwhile."""
    ports = {f"{arm}.port": f"{values['leaders']}_{arm}" for arm in ARMS}
    leader_files = _parameter_files("leader_config", values["leader_config"])
    return Node(
        "teleop_node", "clamp_ros.arm.teleop_node", files=(*leader_files, *files), restart=True,
        parameters={**ports, **parameters},
    )  # fmt: skip


def _recorder(values: Mapping[str, str], files: tuple[Path, ...], parameters: Mapping[str, Any]) -> Node:
    """What the robot's cameras and arms are set to goes into every bag."""
    parameters = {**parameters, "folder": values["record_to"]}
    if values["sim"] == "false":
        names = ("camera_config", "arm_config")
        parameters["calibration"] = [str(path) for name in names for path in _parameter_files(name, values[name])]
    return Node("recorder_node", "clamp_ros.record.recorder_node", files=files, restart=True, parameters=parameters)


def _simulation(
    values: Mapping[str, str], cameras: list[str], files: tuple[Path, ...], images: Mapping[str, Any]
) -> tuple[Node, ...]:
    parameters = {
        "task": values["task"],
        "cameras": cameras,
        "board": values["board"] == "true",
        "seed": _integer("seed", values["seed"]),
        "robot_model": values["robot_model"],
        "assets": values["assets"],
        **images,
    }
    return (Node("mujoco_node", "clamp_ros.sim.mujoco_node", files=files, parameters=parameters),)


def hardware(values: Mapping[str, str], cameras: list[str], files: tuple[Path, ...]) -> tuple[Node, ...]:
    """The drivers. A camera that died is opened again by a new process; arms must not move behind the user's back."""
    camera_files = _parameter_files("camera_config", values["camera_config"])
    arm_files = _parameter_files("arm_config", values["arm_config"])
    return (
        Node(
            "camera_node", "clamp_ros.camera.camera_node", files=(*camera_files, *files), restart=True,
            parameters={"cameras": cameras},
        ),
        Node("arm_node", "clamp_ros.arm.arm_node", files=(*arm_files, *files)),
    )  # fmt: skip


def _replanning(values: Mapping[str, str]) -> dict[str, Any]:
    """Ensembling averages the chunks of as many observations as there are; open loop keeps the node's own pace."""
    return {"execute_steps": 1, "continue_chunks": False} if values["control"] == "temporal_ensemble" else {}


def artifact_folder(policy: str) -> Path:
    """The folder of a policy given by path, or by the name of one that comes with the package.

    Raises:
        ConfigError: there is neither.
    """
    for folder in (Path(policy), models_folder() / policy):
        if (folder / "manifest.json").is_file():
            return folder.resolve()
    shipped = sorted(path.parent.name for path in models_folder().glob("*/manifest.json"))
    raise ConfigError(
        f"no policy artifact at {policy!r}: expected a folder with a manifest.json, or the name of one that comes with "
        f"the package: {', '.join(shipped) or '(none)'}; unless you name one, it is the one of the task's name"
    )


def _images(manifest: Manifest) -> dict[str, Any]:
    """Parameters that make the simulated cameras send what the policy was trained on."""
    sizes = {(camera.width, camera.height) for camera in manifest.cameras.values()}
    if len(sizes) != 1 or not manifest.image_rate_hz.is_integer():
        raise ConfigError(
            f"the policy {manifest.name!r} wants images of {sorted(sizes)} at {manifest.image_rate_hz} Hz; "
            "the simulation draws all cameras at one size and a whole rate"
        )
    width, height = sizes.pop()
    return {"width": width, "height": height, "image_rate_hz": int(manifest.image_rate_hz)}


def _cameras(text: str) -> list[str]:
    cameras = [name.strip() for name in text.split(",") if name.strip()]
    for name in cameras:
        if name not in CAMERAS:
            raise unknown_key(name, CAMERAS, "camera")
    if len(set(cameras)) != len(cameras):
        raise ConfigError(f"cameras:={text} names a camera twice")
    return cameras


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}:={text} is not possible, expected a whole number") from None


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}:={text} is not possible, expected a number of seconds") from None


def _parameter_files(argument: str, text: str) -> tuple[Path, ...]:
    if not text:
        return ()
    folder = share_folder() / "config"
    for path in (Path(text), folder / f"{text}.yaml"):
        if path.is_file():
            return (path.resolve(),)
    shipped = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(f"{argument}:={text} does not exist; expected a ROS parameter file, or one of: {shipped}")


def _check_sections(files: Sequence[Path], nodes: Sequence[Node]) -> None:
    """Refuses a parameter file that addresses a node which does not run; the nodes refuse unknown parameters."""
    names = {node.name for node in nodes}
    for path in files:
        for section, content in load_parameter_file(path).items():
            if section not in names:
                raise unknown_key(section, names, f"node in {path}")
            if not isinstance(content, dict) or set(content) != {"ros__parameters"}:
                raise ConfigError(f"{path}: {section} must hold the one key ros__parameters")


def load_parameter_file(path: Path) -> dict[str, Any]:
    """A ROS parameter file as a mapping of node names.

    Raises:
        ConfigError: it is not YAML, or not such a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of node names, each with ros__parameters")
    return content
