"""Configuration dataclasses check themselves, and unknown keys get the nearest valid name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from clamp_ros.contract.config import check, param, unknown_key
from clamp_ros.contract.errors import ConfigError


@dataclass(frozen=True)
class Config:
    rate_hz: float = param(10.0, "how often", unit="Hz", minimum=1.0, maximum=100.0)
    gain: float = param(0.0, "how much", minimum=0.0)
    loss: float = param(0.0, "how little", maximum=0.0)
    mode: str = param("slow", "how", choices=("slow", "fast"))
    limits: tuple[float, ...] = param((1.0, 2.0), "each joint's", minimum=0.0, maximum=3.0)
    cameras: tuple[str, ...] = param(("a",), "which", choices=("a", "b"))

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    "values",
    [{}, {"rate_hz": 1.0}, {"rate_hz": 100.0}, {"mode": "fast"}, {"limits": ()}, {"cameras": ("b", "a")}],
)
def test_values_in_range_are_accepted(values: dict) -> None:
    Config(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rate_hz": 0.5}, "rate_hz is 0.5, expected 1.0 to 100.0 Hz"),
        ({"rate_hz": float("nan")}, "rate_hz is nan"),
        ({"gain": -1.0}, "gain is -1.0, expected at least 0.0"),
        ({"loss": 1.0}, "loss is 1.0, expected at most 0.0"),
        ({"mode": "fats"}, "'slow', 'fast'"),
        ({"limits": (1.0, 4.0)}, "limits is 4.0"),
        ({"cameras": ("a", "c")}, "cameras is 'c'"),
    ],
)
def test_values_out_of_range_are_refused_with_what_was_expected(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Config(**values)


def test_an_unknown_key_gets_the_nearest_name() -> None:
    assert "did you mean 'voxel_m'?" in str(unknown_key("voxl_m", ["voxel_m", "seed"]))
    message = str(unknown_key("zzz", ["voxel_m", "seed"], "key"))
    assert "unknown key 'zzz'" in message and "seed, voxel_m" in message
