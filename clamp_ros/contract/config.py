"""How a node's configuration is written: a frozen dataclass of `param` fields with default, unit and range.

`clamp_ros.ros.params.declare` declares ROS parameters from such a dataclass; `check` is used without ROS.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import field, fields
from typing import Any

from clamp_ros.contract.errors import ConfigError


def param(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A dataclass field that describes itself; lists are given as tuples."""
    metadata = {"doc": doc, "unit": unit, "minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Checks every field of a `param` dataclass against its range and choices; call it from `__post_init__`.

    Raises:
        ConfigError: a value is outside its range or not among the choices.
    """
    for f in fields(config):
        value, meta = getattr(config, f.name), f.metadata
        for item in value if isinstance(value, tuple) else (value,):
            if meta.get("choices") is not None and item not in meta["choices"]:
                raise ConfigError(f"{f.name} is {item!r}, expected one of {', '.join(map(repr, meta['choices']))}")
            low, high = meta.get("minimum"), meta.get("maximum")
            if (low is not None and not item >= low) or (high is not None and not item <= high):
                bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
                bounds = f"{bounds} {meta['unit']}".strip()
                raise ConfigError(f"{f.name} is {item!r}, expected {bounds}")


def unknown_key(key: str, known: Iterable[str], what: str = "parameter") -> ConfigError:
    """The error for a key nobody knows, with the nearest valid name."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}"
    return ConfigError(f"unknown {what} {key!r}; {hint}")
