"""Which nodes have died: each sends its health once a second, whatever else it does."""

from __future__ import annotations

from dataclasses import dataclass

from clamp_ros.contract.config import check, param


@dataclass(frozen=True)
class AliveConfig:
    """Nodes whose death is an emergency."""

    required: tuple[str, ...] = param((), "nodes whose silence on /diagnostics is an emergency stop, once heard")
    silence_s: float = param(
        5.0, "how long a required node may be silent; a service may keep it busy", unit="s",
        minimum=2.0, maximum=60.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)


class Heartbeats:
    """When each required node was last heard. A node that was never heard has not started yet."""

    def __init__(self, config: AliveConfig | None = None) -> None:
        self._config = config or AliveConfig()
        self._heard_s: dict[str, float] = {}

    def beat(self, name: str, now_s: float) -> None:
        """A node was heard; others than the required ones do not matter."""
        if name in self._config.required:
            self._heard_s[name] = now_s

    def dead(self, now_s: float) -> str:
        """Who has been silent for too long, in words, or empty."""
        limit_s = self._config.silence_s
        ages = {name: now_s - heard_s for name, heard_s in self._heard_s.items()}
        silent = [f"{name} has been silent for {age_s:.1f} s" for name, age_s in ages.items() if age_s > limit_s]
        return f"{', '.join(silent)}, limit {limit_s:.1f} s" if silent else ""
