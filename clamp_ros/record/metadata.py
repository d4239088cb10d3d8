"""What a bag says about itself: the episode's own facts, and rosbag2's metadata.yaml around them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

import clamp_ros
from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import TOPICS, Qos

OUTCOMES = ("success", "failure", "unknown", "interrupted")
METADATA_FILE = "metadata.yaml"
UNCOMMITTED = "-dirty)"
"""How a version ends that no commit holds."""
_ROSBAG2_VERSION = 9
_MAX_CALIBRATION = 100_000
_INFINITE = {"sec": 9223372036, "nsec": 854775807}


@lru_cache(maxsize=1)
def software_version() -> str:
    """The package's version and, in a git checkout, the commit: `0.1.0 (1a2b3c4-dirty)`."""
    root = Path(clamp_ros.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # a folder, or a file in a worktree
        return clamp_ros.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return clamp_ros.__version__
    return f"{clamp_ros.__version__} ({done.stdout.strip()})"


@dataclass(frozen=True)
class EpisodeMetadata:
    """An episode's facts, kept in the bag's custom data.

    Attributes:
        task: the task's name, or empty.
        seed: of the simulated world; None on the robot.
        outcome: one of OUTCOMES.
        cameras: physical cameras whose images are in the bag.
        operator: who or what moved the arms: a person's name, `expert` or a policy's name.
        software_version: of clamp_ros, with the commit where it is known.
        calibration: the configuration files in force, by name: their `sha256` and `content`.
        audit: the recorder's verdict: `verdict` (good or poor), `problems` and the figures of each topic.
        extra: anything else, JSON values.
    """

    task: str = ""
    seed: int | None = None
    outcome: str = "unknown"
    cameras: tuple[str, ...] = ()
    operator: str = ""
    software_version: str = field(default_factory=software_version)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise RecordError(f"outcome is {self.outcome!r}, expected one of {', '.join(OUTCOMES)}")

    def with_outcome(self, outcome: str) -> EpisodeMetadata:
        """The same facts with another outcome."""
        return replace(self, outcome=outcome)

    def to_custom_data(self) -> dict[str, str]:
        """rosbag2's custom data maps strings to strings; each value is JSON under the key `clamp.<field>`."""
        return {f"clamp.{key}": json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_custom_data(cls, custom: Mapping[str, str] | None) -> EpisodeMetadata:
        """The inverse of `to_custom_data`; keys of others are ignored, so that any rosbag2 bag can be opened.

        Raises:
            RecordError: a value is not what it should be.
        """
        values: dict[str, Any] = {}
        try:
            for name in cls.__dataclass_fields__:
                if f"clamp.{name}" in (custom or {}):
                    values[name] = json.loads((custom or {})[f"clamp.{name}"])
        except (json.JSONDecodeError, TypeError) as error:
            raise RecordError(f"custom data clamp.{name} is not JSON: {error}") from error
        values["cameras"] = tuple(values.get("cameras", ()))
        return cls(**values)


@dataclass(frozen=True)
class TopicInfo:
    """A recorded topic: its name, message type, type hash, and number of messages."""

    name: str
    type: str
    hash: str
    count: int


def qos_profiles(topic: str) -> list[dict[str, Any]]:
    """The profile a topic is offered with, as rosbag2 writes it, so that `ros2 bag play` offers the same."""
    qos = next((t.qos for t in TOPICS if t.name == topic), Qos.STATE)
    reliability, durability, depth = qos.value.split(":")[0].split(", ")
    return [
        {
            "history": "keep_last",
            "depth": int(depth.removeprefix("depth ")),
            "reliability": reliability.replace(" ", "_"),
            "durability": durability.replace(" ", "_"),
            "deadline": dict(_INFINITE),
            "lifespan": dict(_INFINITE),
            "liveliness": "automatic",
            "liveliness_lease_duration": dict(_INFINITE),
            "avoid_ros_namespace_conventions": False,
        }
    ]


def calibration(files: Iterable[Path]) -> dict[str, dict[str, str]]:
    """What `EpisodeMetadata.calibration` holds, of files as they are now.

    Raises:
        RecordError: a file cannot be read as text, or is too long to be a calibration.
    """
    found = {}
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"the calibration {path} cannot be read: {error}") from error
        if len(text) > _MAX_CALIBRATION:
            raise RecordError(f"the calibration {path} has {len(text)} characters, expected {_MAX_CALIBRATION} at most")
        found[path.name] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}
    return found


def bag_information(
    mcap_name: str, topics: Iterable[TopicInfo], start_ns: int, end_ns: int, custom: Mapping[str, str]
) -> dict[str, Any]:
    """rosbag2's metadata, version 9, of a bag of one MCAP file."""
    topics = list(topics)
    count = sum(t.count for t in topics)
    start = {"nanoseconds_since_epoch": start_ns}
    duration = {"nanoseconds": end_ns - start_ns}
    return {
        "version": _ROSBAG2_VERSION,
        "storage_identifier": "mcap",
        "duration": duration,
        "starting_time": start,
        "message_count": count,
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": t.name,
                    "type": t.type,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": qos_profiles(t.name),
                    "type_description_hash": t.hash,
                },
                "message_count": t.count,
            }
            for t in topics
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [mcap_name],
        "files": [
            {
                "path": mcap_name,
                "starting_time": dict(start),
                "duration": dict(duration),
                "message_count": count,
            }
        ],
        "custom_data": dict(custom),
        "ros_distro": "kilted",
    }


def dump_yaml(value: Any) -> str:
    """YAML without anchors, in the order given."""

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(value, Dumper=Plain, sort_keys=False, default_flow_style=False)


def read_bag_information(directory: Path) -> dict[str, Any]:
    """The content of a bag's metadata.yaml.

    Raises:
        RecordError: there is no bag here, it was never finished, or its metadata is damaged.
    """
    path = directory / METADATA_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if any(directory.glob("*.mcap")):
            hint = "was not finished (a crash or a full disk?); `clamp bag recover` makes it readable"
        else:
            hint = "is not a bag: expected a directory with metadata.yaml and an .mcap file"
        raise RecordError(f"{directory} {hint}") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    try:
        information = yaml.safe_load(text)
        information = information["rosbag2_bagfile_information"]
        if information["storage_identifier"] != "mcap" or len(information["relative_file_paths"]) != 1:
            raise RecordError(f"{directory} is not a bag of one MCAP file; convert it with `ros2 bag convert`")
        return information
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error
