"""The emergency stop without a network: the signal to the control nodes on this machine that wait for it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clamp_ros.contract.interfaces import ESTOP_SIGNAL

_MODULE = "clamp_ros.control.control_node"
_DOMAIN = "ROS_DOMAIN_ID"


def send_stop_signal(environment: Mapping[str, str] = os.environ) -> list[int]:
    """Sends the emergency stop to every control node of this user, on this machine and in this ROS domain.

    It arrives at once: nobody has to be discovered, and no message can be lost. A process that does not catch it yet,
    and would die of it, gets none.

    Args:
        environment: whose domain counts.

    Returns:
        Process ids of the nodes that it was sent to.
    """
    sent, domain = [], _number(environment.get(_DOMAIN))
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            if _runs_control_node(words) and _domain_of(folder) == domain and _catches(folder):
                os.kill(int(folder.name), ESTOP_SIGNAL)
                sent.append(int(folder.name))
    return sent


def _runs_control_node(words: Sequence[str]) -> bool:
    """`python -m` and the module, or the executable that ROS installs, by itself or after its interpreter."""
    if any(pair == ("-m", _MODULE) for pair in itertools.pairwise(words)):
        return True
    return any(Path(word).parts[-2:] == ("clamp_ros", "control_node") for word in words[:2])


def _domain_of(folder: Path) -> int:
    for entry in (folder / "environ").read_text(errors="replace").split("\0"):
        name, _, value = entry.partition("=")
        if name == _DOMAIN:
            return _number(value)
    return 0


def _number(domain: str | None) -> int:
    """As ROS reads it."""
    return int(domain) if domain and domain.isdigit() else 0


def _catches(folder: Path) -> bool:
    """Whether the process has a handler for the signal."""
    for line in (folder / "status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (ESTOP_SIGNAL - 1) & 1)
    return False
