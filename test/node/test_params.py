"""From configuration dataclasses to ROS parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rcl_interfaces.msg import ParameterType
from rclpy.parameter import Parameter

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ConfigError
from clamp_ros.ros.params import declare


@dataclass(frozen=True)
class Lens:
    fovy_deg: float = param(42.0, "vertical field of view", unit="deg", minimum=1.0, maximum=179.0)


@dataclass(frozen=True)
class Config:
    rate_hz: float = param(10.0, "how often", unit="Hz", minimum=1.0, maximum=100.0)
    count: int = param(3, "how many", minimum=1)
    gain: float = param(0.5, "how much", minimum=0.0)
    name: str = param("", "of the robot")
    mode: str = param("slow", "how", choices=("slow", "fast"))
    on: bool = param(True, "whether")
    cameras: tuple[str, ...] = param(("a", "b"), "which")
    offset_m: tuple[float, ...] = param((0.0, 0.0, 0.0), "where", unit="m")
    lens: Lens = field(default_factory=lambda: Lens(50.0))

    def __post_init__(self) -> None:
        check(self)


def configure(ros: Any, *overrides: tuple[str, Any], **options: Any) -> tuple[Any, Config]:
    node = ros.node("tester", parameter_overrides=[Parameter(n, value=v) for n, v in overrides], **options)
    return node, declare(node, Config)


def test_defaults_are_declared_and_returned(ros: Any) -> None:
    node, config = configure(ros)
    assert config == Config()
    assert node.get_parameter("rate_hz").value == 10.0
    assert list(node.get_parameter("cameras").value) == ["a", "b"]
    assert node.get_parameter("lens.fovy_deg").value == 50.0


def test_overrides_are_applied(ros: Any) -> None:
    node, config = configure(
        ros, ("rate_hz", 20), ("cameras", ["c"]), ("offset_m", [1, 2, 3]), ("on", False), ("lens.fovy_deg", 60.0),
        ("mode", "fast"),
    )  # fmt: skip
    assert config.rate_hz == 20.0 and isinstance(config.rate_hz, float)
    assert config.cameras == ("c",)
    assert config.offset_m == (1.0, 2.0, 3.0) and all(isinstance(v, float) for v in config.offset_m)
    assert config.on is False
    assert config.lens == Lens(60.0)
    assert config.mode == "fast"
    assert node.get_parameter("rate_hz").value == 20.0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("rat_hz", 3.0, "unknown parameter of tester 'rat_hz'; did you mean 'rate_hz'"),
        ("lens.fovy", 3.0, "did you mean 'lens.fovy_deg'"),
        ("rate_hz", "fast", "rate_hz is 'fast', expected float"),
        ("rate_hz", True, "rate_hz is True, expected float"),
        ("rate_hz", 1000.0, "expected 1.0 to 100.0 Hz"),
        ("rate_hz", float("nan"), "finite"),
        ("gain", float("inf"), "finite"),
        ("count", 2.5, "count is 2.5, expected int"),
        ("count", True, "count is True, expected int"),
        ("count", 0, "at least 1"),
        ("name", 123, "name is 123, expected str; put text in quotes"),
        ("mode", "fats", "'slow', 'fast'"),
        ("cameras", "a", "cameras is 'a', expected a list of str"),
        ("on", "true", "on is 'true', expected bool"),
        ("lens.fovy_deg", [1.0], "expected float"),
    ],
)
def test_a_wrong_override_fails_at_start(ros: Any, name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configure(ros, (name, value))


def test_an_empty_list_in_a_file_is_an_empty_list(ros: Any, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("tester:\n  ros__parameters:\n    cameras: []\n    lens: {fovy_deg: 7.0}\n")
    _, config = configure(ros, cli_args=["--ros-args", "--params-file", str(path)])
    assert config.cameras == ()
    assert config.lens == Lens(7.0)
    path.write_text("tester2:\n  ros__parameters:\n    rate_hz: []\n")
    node = ros.node("tester2", cli_args=["--ros-args", "--params-file", str(path)])
    with pytest.raises(ConfigError, match=r"rate_hz is \[\], expected float"):
        declare(node, Config)


def test_what_rclpy_declares_passes(ros: Any) -> None:
    configure(
        ros, ("use_sim_time", True), ("start_type_description_service", False),
        ("qos_overrides./tf.subscription.depth", 5),
    )  # fmt: skip


def test_descriptors_carry_text_unit_range_and_choices(ros: Any) -> None:
    node, _ = configure(ros)
    rate = node.describe_parameter("rate_hz")
    assert rate.description == "how often [Hz]"
    assert rate.type == ParameterType.PARAMETER_DOUBLE
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (1.0, 100.0)
    assert node.describe_parameter("count").integer_range[0].from_value == 1
    assert node.describe_parameter("mode").additional_constraints == "one of slow, fast"
    assert node.describe_parameter("cameras").type == ParameterType.PARAMETER_STRING_ARRAY


def test_parameters_are_read_only_unless_settable(ros: Any) -> None:
    node = ros.node("tester")
    declare(node, Config, settable=("count",))
    assert not node.set_parameters([Parameter("rate_hz", value=20.0)])[0].successful
    assert node.set_parameters([Parameter("count", value=7)])[0].successful
    assert node.get_parameter("count").value == 7
    assert not node.set_parameters([Parameter("count", value=0)])[0].successful
