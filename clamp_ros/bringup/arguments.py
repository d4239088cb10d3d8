"""Launch arguments of the graphs, and how their text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.contract.tasks import TASK_NAMES
from clamp_ros.share import share_folder

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


def camera_names(text: str) -> list[str]:
    """Physical cameras, from text with commas between them.

    Raises:
        ConfigError: there is no such camera, or one is named twice.
    """
    cameras = [name.strip() for name in text.split(",") if name.strip()]
    for name in cameras:
        if name not in CAMERAS:
            raise unknown_key(name, CAMERAS, "camera")
    if len(set(cameras)) != len(cameras):
        raise ConfigError(f"cameras:={text} names a camera twice")
    return cameras


def whole_number(name: str, text: str) -> int:
    """An argument that is a whole number.

    Raises:
        ConfigError: it is not.
    """
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}:={text} is not possible, expected a whole number") from None


def seconds(name: str, text: str) -> float:
    """An argument that is a number of seconds.

    Raises:
        ConfigError: it is not.
    """
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}:={text} is not possible, expected a number of seconds") from None


def parameter_files(argument: str, text: str) -> tuple[Path, ...]:
    """A ROS parameter file given by path, or by the name of one in share/clamp_ros/config; none for no text.

    Raises:
        ConfigError: there is neither.
    """
    if not text:
        return ()
    folder = share_folder() / "config"
    for path in (Path(text), folder / f"{text}.yaml"):
        if path.is_file():
            return (path.resolve(),)
    shipped = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(f"{argument}:={text} does not exist; expected a ROS parameter file, or one of: {shipped}")


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
