"""`clamp replay`: plays a bag on a running system, or on a simulation of its own from the bag's task and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.parameter import Parameter

from clamp_ros.bringup.session import START_TIMEOUT_S, Session
from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import CONTROL_STATUS, RECORD_START, RECORD_STOP
from clamp_ros.contract.tasks import TASK_NAMES
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.replay import load_commands
from clamp_ros.record.replay_node import ReplayNode
from clamp_ros.ros.run import run_node, subscribe
from clamp_ros.sim.tasks.assets import check_assets

_PLAY_TIMEOUT_S = 1800.0
_CAMERA = "front_left"


@dataclass(frozen=True)
class Replayed:
    """How a replay in simulation ended: whether the task is done, and the bag it was recorded to, or None."""

    success: bool
    seconds: float
    bag: Path | None


def replay(parameters: Mapping[str, Any], sim_time: bool) -> int:
    """Plays a bag on the system that runs, and returns the process's exit code.

    Args:
        parameters: of the replay node.
        sim_time: whether that system is a simulation.

    Raises:
        RecordError: the bag cannot be replayed.
    """
    load_commands(parameters["bag"])  # told before ROS starts
    values = {**parameters, "use_sim_time": sim_time}
    words = [word for name, value in values.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
    return run_node(ReplayNode, ["clamp replay", "--ros-args", *words])


def replay_in_simulation(parameters: Mapping[str, Any], log: Path, record_to: Path | None = None) -> Replayed:
    """Starts a simulation of the bag's task and seed, plays the bag there, and tells whether the task was done.

    Args:
        parameters: of the replay node.
        log: file that takes the simulation's output.
        record_to: folder for a bag of the replay; None records none.

    Raises:
        RecordError: the bag cannot be replayed, does not tell its task and seed, its objects are no longer what they
            were, or the replay was broken off.
        SimulationError: its objects are gone.
        SystemDiedError: the simulation did not come up, or ended.
    """
    metadata, _ = load_commands(parameters["bag"])
    if metadata.task not in TASK_NAMES or metadata.seed is None:
        raise RecordError(
            f"{parameters['bag']} is of task {metadata.task!r} with seed {metadata.seed}; a simulation needs one of"
            f" {', '.join(TASK_NAMES)}, and a seed"
        )
    words = ["sim:=true", "by:=replay", f"task:={metadata.task}", f"seed:={metadata.seed}", f"cameras:={_CAMERA}"]
    words.append(f"record_to:={record_to or log.parent}")
    if "assets" in metadata.extra:
        words.append(f"assets:={_assets(parameters['bag'], metadata)}")
    ended: list[RecordError | None] = []
    with Session(["record", *words], log, name="replay_session") as session:
        state: dict[str, str] = {}
        subscribe(session.node, CONTROL_STATUS, lambda message: state.update(says=message.message))
        session.spin_until(lambda: session.task_state and "says" in state, START_TIMEOUT_S, "the simulation came up")
        if record_to is not None:
            session.call(RECORD_START)
        values = {**parameters, "use_sim_time": True}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        session.add(ReplayNode(ended.append, parameter_overrides=overrides))
        session.spin_until(lambda: ended, _PLAY_TIMEOUT_S, "the end of the replay")
        success = ended[0] is None and bool(session.task_state["success"])
        bag = Path(session.call(RECORD_STOP, data=success)) if record_to is not None else None
        if ended[0] is not None:
            raise ended[0]
        return Replayed(success, session.task_state["time_s"], bag)


def _assets(bag: str, metadata: EpisodeMetadata) -> str:
    """The folder of a bag's objects that are not our own."""
    recorded = metadata.extra["assets"]
    found = check_assets(metadata.task, recorded["folder"])
    changed = [name for name, digest in recorded["sha256"].items() if found["sha256"].get(name) != digest]
    changed += [name for name in found["sha256"] if name not in recorded["sha256"]]
    if changed:
        raise RecordError(
            f"{bag} was recorded with other objects than {recorded['folder']} holds now: {', '.join(changed)} changed, "
            "came or went; bring back what was there"
        )
    return recorded["folder"]
