"""The graph of a running system as plain data: which nodes, with which parameters, for which launch arguments.

`launch/aloha_policy.launch.py` turns it into launch_ros actions and `clamp_ros.bringup.up` runs it where there is no
launch; neither knows a node's name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import CAMERAS
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
    """

    name: str
    module: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remaps: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    restart: bool = False

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
    Argument("robot_model", "", "MuJoCo Menagerie `aloha` folder to take the simulated robot from; empty: built in"),
    Argument("control", "open_loop", "how chunks become commands", ("open_loop", "temporal_ensemble")),
    Argument("enabled", "auto", "let the policy act as soon as all is up; false waits for /policy/enable; auto does so "
                                "on the robot only", ("auto", *_SWITCH)),
    Argument("record", "false", "run the recorder, which waits for /record/start", _SWITCH),
    Argument("record_to", "data/episodes", "folder for the recorder's bags"),
    Argument("camera_config", "cameras", "the robot's cameras: a ROS parameter file, or the name of one in "
                                         "share/clamp_ros/config; sim:=false"),
    Argument("arm_config", "arms", "the robot's arms: a file as for camera_config; sim:=false"),
    Argument("config", "", "ROS parameter file laid over everything here, keyed by node name; a path, or the name of "
                           "one in share/clamp_ros/config"),
)
"""The arguments of the policy's graph."""


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
        *(_simulation(values, manifest, cameras, files) if sim else _hardware(values, cameras, files)),
        Node(
            "fusion_node", "clamp_ros.fusion.fusion_node", files=files, restart=True,
            parameters={**clock, "artifact": folder, "cameras": cameras, **matching},
        ),
        Node(
            "policy_node", "clamp_ros.policy.policy_node", files=files, restart=True,
            parameters={**clock, "artifact": folder, "enabled": enabled, **matching, **_replanning(values)},
        ),
        Node(
            "control_node", "clamp_ros.control.control_node", files=files,
            parameters={**clock, "mode": values["control"]},
        ),
    ]
    if values["record"] == "true":
        nodes.append(
            Node(
                "recorder_node", "clamp_ros.record.recorder_node", files=files, restart=True,
                parameters={**clock, "cameras": cameras, "folder": values["record_to"], "operator": manifest.name},
            )
        )
    _check_sections(files, nodes)
    return tuple(nodes)


def _simulation(
    values: Mapping[str, str], manifest: Manifest, cameras: list[str], files: tuple[Path, ...]
) -> tuple[Node, ...]:
    parameters = {
        "task": values["task"],
        "cameras": cameras,
        "seed": _integer("seed", values["seed"]),
        "robot_model": values["robot_model"],
        **_images(manifest),
    }
    return (Node("mujoco_node", "clamp_ros.sim.mujoco_node", files=files, parameters=parameters),)


def _hardware(values: Mapping[str, str], cameras: list[str], files: tuple[Path, ...]) -> tuple[Node, ...]:
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
