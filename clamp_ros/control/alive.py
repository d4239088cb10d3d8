"""Which nodes have died or hang: each sends its health once a second, whatever else it does."""

from __future__ import annotations

from dataclasses import dataclass

from clamp_ros.contract.config import check, param

_GAP_S = 1.0
"""A watcher that looks no oftener has itself been hung or starved, and could hear nobody."""


@dataclass(frozen=True)
class AliveConfig:
    """Nodes whose silence matters."""

    required: tuple[str, ...] = param((), "nodes whose silence on /diagnostics is an emergency stop, once heard")
    watched: tuple[str, ...] = param((), "further nodes whose silence is said, and nothing more")
    silence_s: float = param(
        5.0, "how long such a node may be silent; a service may keep it busy", unit="s",
        minimum=2.0, maximum=60.0,
    )  # fmt: skip
    mourned: tuple[str, ...] = param(
        (), "nodes whose death is an emergency stop, though they were started again: nobody saw to what killed them"
    )

    def __post_init__(self) -> None:
        check(self)


class Heartbeats:
    """When each node that matters was last heard. A node that was never heard has not started yet."""

    def __init__(self, config: AliveConfig | None = None) -> None:
        self._config = config or AliveConfig()
        self._heard_s: dict[str, float] = {}
        self._process: dict[str, str] = {}
        self._died: dict[str, None] = {}
        self._watched_s: float | None = None

    def watch(self, now_s: float) -> None:
        """To be called several times a second: time in which the watcher did not run is nobody's silence."""
        gap_s = now_s - self._watched_s if self._watched_s is not None else 0.0
        self._watched_s = now_s
        if gap_s > _GAP_S:
            self._heard_s = {name: min(heard_s + gap_s, now_s) for name, heard_s in self._heard_s.items()}

    def beat(self, name: str, now_s: float, process: str = "") -> None:
        """A node was heard, in a process of its own; others than those of the parameters do not matter."""
        if name in self._config.required or name in self._config.watched:
            self._heard_s[name] = now_s
        if name in self._config.mourned:
            if self._process.get(name, process) != process:
                self._died[name] = None
            self._process[name] = process

    def died(self) -> str:
        """Which mourned nodes have died and begun anew since the last call, in words, or empty."""
        died, self._died = self._died, {}
        return f"{' and '.join(died)} died and had to be started again" if died else ""

    def dead(self, now_s: float) -> str:
        """Which required nodes have been silent for too long, in words, or empty."""
        silent = [f"{name} has been silent for {age_s:.1f} s" for name, age_s in self._silent(now_s, required=True)]
        return f"{', '.join(silent)}, limit {self._config.silence_s:.1f} s" if silent else ""

    def hung(self, now_s: float) -> str:
        """Which watched nodes have been silent for too long, in words that stay the same meanwhile, or empty."""
        silent = [name for name, _ in self._silent(now_s, required=False)]
        over = f"for over {self._config.silence_s:.1f} s: dead, hung, or starved"
        return f"nothing heard of {', '.join(silent)} {over}" if silent else ""

    def _silent(self, now_s: float, *, required: bool) -> list[tuple[str, float]]:
        ages = [(name, now_s - heard_s) for name, heard_s in self._heard_s.items()]
        return [
            (name, age_s) for name, age_s in ages
            if age_s > self._config.silence_s and (name in self._config.required) is required
        ]  # fmt: skip
