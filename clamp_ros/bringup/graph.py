"""The graph of a running system as plain data: which nodes, with which parameters, for which launch arguments.

The files in launch/ turn it into launch_ros actions and `clamp_ros.bringup.up` runs it where there is no launch;
neither knows a node's name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clamp_ros.bringup.arguments import (
    ARGUMENTS,
    RECORD_ARGUMENTS,
    TELEOP_ARGUMENTS,
    Argument,
    camera_names,
    load_parameter_file,
    parameter_files,
    resolve,
    seconds,
    whole_number,
)
from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.contract.robot import ARMS
from clamp_ros.policy.artifact import Artifact, Manifest
from clamp_ros.share import models_folder

PACKAGE = "clamp_ros"
RESTARTS = 3
"""How often a node that may be restarted is, before its death counts as the system's."""
RESTART_DELAY_S = 1.0
EXIT_CONFIGURATION = 2
"""A node's exit code for a fault that the user must mend (`ros.run.EXIT_USER_ERROR`): a restart would not help."""

FREE_RUNNING_S = 0.034
"""How far apart the images of one set may lie on the robot, whose cameras run free: a period at 30 Hz."""

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


def aloha_policy(given: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes that run the policy on the robot, or on its simulation.

    Args:
        given: launch arguments by name; those absent have their defaults.

    Raises:
        ConfigError: an argument is unknown or impossible.
    """
    values = resolve(given)
    artifact = Artifact.load(artifact_folder(values["policy"] or values["task"]))
    manifest, folder = artifact.manifest, str(artifact.folder)
    cell = _Cell(values, camera_names(values["cameras"]) or list(manifest.cameras))
    matching = {} if cell.sim else {"match_tolerance_s": FREE_RUNNING_S}
    enabled = cell.sim if values["enabled"] == "auto" else values["enabled"] == "true"
    nodes = [
        *cell.body(_images(manifest) if cell.sim else {}),
        Node(
            "fusion_node", "clamp_ros.fusion.fusion_node", files=cell.files, restart=True,
            parameters={**cell.clock, "artifact": folder, "cameras": cell.cameras, **matching},
        ),
        Node(
            "policy_node", "clamp_ros.policy.policy_node", files=cell.files, restart=True,
            parameters={**cell.clock, "artifact": folder, "enabled": enabled, **matching, **_replanning(values)},
        ),
        cell.control(mode=values["control"]),
    ]  # fmt: skip
    if values["takeover"] == "true":
        nodes.append(cell.teleop())
    if values["record"] == "true":
        nodes.append(cell.recorder(operator=manifest.name))
    return cell.checked(nodes)


def aloha_teleop(given: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes by which a person moves the robot, or its simulation, with the leader arms.

    Args:
        given: launch arguments by name, of `TELEOP_ARGUMENTS`; those absent have their defaults.

    Raises:
        ConfigError: an argument is unknown or impossible.
    """
    values = resolve(given, TELEOP_ARGUMENTS)
    cell, record = _Cell(values, camera_names(values["cameras"])), values["record"] == "true"
    nodes = [*cell.body(), cell.control(source="teleop"), cell.teleop(hand_back="teleop", record=record)]
    if record:
        nodes.append(cell.recorder(operator=values["operator"], task=values["task"]))
    return cell.checked(nodes)


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
        cell = _Cell(values, camera_names(values["cameras"]) or list(CAMERAS))
        nodes = cell.checked([*cell.body(), cell.control(source="replay"), cell.recorder()])
    else:
        arguments, make = GRAPHS[values["by"]]
        own = {argument.name for argument in arguments}
        nodes = make({"record": "true", **{name: text for name, text in values.items() if name in own and text}})
    more = {name: values[name] for name in ("images", "compression")} | {"keep_s": seconds("keep_s", values["keep_s"])}
    if values["operator"]:
        more["operator"] = values["operator"]
    changes = {"recorder_node": more, "camera_node": {"compressed": True} if values["images"] == "compressed" else {}}
    return tuple(replace(node, parameters={**node.parameters, **changes.get(node.name, {})}) for node in nodes)


GRAPHS: dict[str, tuple[tuple[Argument, ...], Callable[[Mapping[str, str]], tuple[Node, ...]]]] = {
    "policy": (ARGUMENTS, aloha_policy),
    "teleop": (TELEOP_ARGUMENTS, aloha_teleop),
    "record": (RECORD_ARGUMENTS, aloha_record),
}
"""Every graph, for launch/aloha_NAME.launch.py and `clamp up NAME`: its arguments, and what makes its nodes."""


@dataclass(frozen=True)
class _Cell:
    """What the nodes of one graph share: the arguments' values and the cameras in use."""

    values: Mapping[str, str]
    cameras: list[str]

    @property
    def sim(self) -> bool:
        return self.values["sim"] == "true"

    @property
    def clock(self) -> dict[str, Any]:
        return {"use_sim_time": True} if self.sim else {}

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's file, over every node's parameters."""
        return self._file("config")

    def _file(self, argument: str) -> tuple[Path, ...]:
        return parameter_files(argument, self.values[argument])

    def body(self, images: Mapping[str, Any] | None = None) -> tuple[Node, ...]:
        """Arms and cameras: the drivers, or the simulation, whose `images` are of a size and rate."""
        return self._simulation(images or {}) if self.sim else self._hardware()

    def _simulation(self, images: Mapping[str, Any]) -> tuple[Node, ...]:
        values = self.values
        parameters = {
            "task": values["task"],
            "cameras": self.cameras,
            "board": values["board"] == "true",
            "seed": whole_number("seed", values["seed"]),
            "robot_model": values["robot_model"],
            "assets": values["assets"],
            **images,
        }
        return (Node("mujoco_node", "clamp_ros.sim.mujoco_node", files=self.files, parameters=parameters),)

    def _hardware(self) -> tuple[Node, ...]:
        """A camera that died is opened again by a new process; arms must not move behind the user's back."""
        return (
            Node(
                "camera_node", "clamp_ros.camera.camera_node", files=(*self._file("camera_config"), *self.files),
                restart=True, parameters={"cameras": self.cameras},
            ),
            Node("arm_node", "clamp_ros.arm.arm_node", files=(*self._file("arm_config"), *self.files)),
        )  # fmt: skip

    def control(self, **parameters: Any) -> Node:
        """The death of the robot's arms is an emergency stop; the simulation's ends the system."""
        required = {} if self.sim else {"alive.required": ["arm_node"]}
        return Node(
            "control_node", "clamp_ros.control.control_node", takes_stop=True,
            files=(*self._file("safety_config"), *self.files), parameters={**self.clock, **parameters, **required},
        )  # fmt: skip

    def teleop(self, **parameters: Any) -> Node:
        """Begins anew after a death, since it begins idle and the control node holds meanwhile."""
        ports = {f"{arm}.port": f"{self.values['leaders']}_{arm}" for arm in ARMS}
        return Node(
            "teleop_node", "clamp_ros.arm.teleop_node", restart=True,
            files=(*self._file("leader_config"), *self.files), parameters={**ports, **self.clock, **parameters},
        )  # fmt: skip

    def recorder(self, **parameters: Any) -> Node:
        """What the robot's cameras and arms are set to goes into every bag."""
        told = {**self.clock, "cameras": self.cameras, **parameters, "folder": self.values["record_to"]}
        if not self.sim:
            told["calibration"] = [str(p) for name in ("camera_config", "arm_config") for p in self._file(name)]
        return Node("recorder_node", "clamp_ros.record.recorder_node", files=self.files, restart=True, parameters=told)

    def checked(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """The graph, whose control node says when it hears nothing of another node; the arms' driver says so of it.

        On the robot the death of a node that the motion depends on is an emergency stop, though it is started again.

        Raises:
            ConfigError: the user's file addresses a node that does not run.
        """
        _check_sections(self.files, nodes)
        others = [node for node in nodes if node.name != "control_node"]

        def told(node: Node) -> Node:
            required = node.parameters.get("alive.required", [])
            alive: dict[str, Any] = {"alive.watched": [other.name for other in others if other.name not in required]}
            # the recorder's death moves nothing; a simulation's arms hurt nobody
            mourned = [other.name for other in others if other.restart and other.name != "recorder_node"]
            if mourned and not self.sim:
                alive["alive.mourned"] = mourned
            return replace(node, parameters={**node.parameters, **alive})

        return tuple(told(node) if node.name == "control_node" else node for node in nodes)


def drivers(values: Mapping[str, str], cameras: list[str]) -> tuple[Node, ...]:
    """The nodes of the policy's graph that drive devices: followers and cameras, and leaders where it has them.

    Args:
        values: of every argument of the policy's graph.
        cameras: in use.

    Raises:
        ConfigError: a parameter file does not exist.
    """
    cell = _Cell(values, cameras)
    leaders = (cell.teleop(),) if values["takeover"] == "true" else ()
    return (*(() if cell.sim else cell.body()), *leaders)


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


def _check_sections(files: Sequence[Path], nodes: Sequence[Node]) -> None:
    """Refuses a parameter file that addresses a node which does not run; the nodes refuse unknown parameters."""
    names = {node.name for node in nodes}
    for path in files:
        for section, content in load_parameter_file(path).items():
            if section not in names:
                raise unknown_key(section, names, f"node in {path}")
            if not isinstance(content, dict) or set(content) != {"ros__parameters"}:
                raise ConfigError(f"{path}: {section} must hold the one key ros__parameters")
