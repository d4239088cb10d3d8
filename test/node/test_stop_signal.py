"""The emergency stop by signal, to processes that pass for control nodes, and to some that do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clamp_ros.control.stop_signal import send_stop_signal

WAITS = """
import signal, threading
stopped = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: stopped.set())
print("ready", flush=True)
stopped.wait()
print("stopped", flush=True)
"""
SLEEPS = """
import time
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def process(path: Path, code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A script that has said that it is ready."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    child = subprocess.Popen([sys.executable, path, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def test_the_executable_of_this_domain_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process(tmp_path / "lib" / "clamp_ros" / "control_node", WAITS) as node:
        assert send_stop_signal({"ROS_DOMAIN_ID": "231"}) == []
        assert send_stop_signal() == [node.pid]
        assert node.stdout is not None and node.stdout.readline() == "stopped\n"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("lib/clamp_ros/control_node", SLEEPS, ()),  # it would die of it
        ("lib/other/control_node", WAITS, ()),
        ("lib/clamp_ros/mujoco_node", WAITS, ()),
        ("find.py", WAITS, ("clamp_ros.control.control_node",)),
    ],
)
def test_others_do_not(tmp_path: Path, name: str, code: str, words: tuple[str, ...]) -> None:
    with process(tmp_path / name, code, *words) as child:
        assert send_stop_signal() == []
        assert child.poll() is None
