"""The runner behind `clamp up`: logs, signals, restarts and exit codes, with small programs in place of nodes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DRIVER = """
import json, sys
from clamp_ros.bringup import up
from clamp_ros.bringup.graph import Node
up.RESTART_DELAY_S, up.GRACE_S = 0.05, 1.0
sys.exit(up.Runner([Node(**node) for node in json.loads(sys.argv[1])]).run())
"""

PROGRAMS = {
    # notes the signal that ends it, and ends well
    "waits": """
import os, pathlib, signal, sys
def end(number, frame):
    pathlib.Path(f"waits.{number}").touch()
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
pathlib.Path("waits.up").touch()
print("waits is up", os.getpid(), flush=True)
while True:
    signal.pause()
""",
    "dies": """
import os, pathlib, sys
while not pathlib.Path("waits.up").exists():
    os.sched_yield()
print("last words without a newline", end="", flush=True)
sys.exit(3)
""",
    "killed": "import os; print('one more start', flush=True); os.kill(os.getpid(), 9)",
    "misconfigured": "import sys; sys.exit(2)",
    # takes its time to listen for the emergency stop
    "stops": """
import pathlib, signal, sys
from clamp_ros.contract.interfaces import ESTOP_SIGNAL
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while signal.sigwait({ESTOP_SIGNAL}):
    pathlib.Path("stopped").touch()
    print("stopped", flush=True)
    signal.pause()
""",
    # says more than any terminal takes
    "talks": """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for _ in range(20_000):
    print("one of many lines", flush=True)
pathlib.Path("talked").touch()
signal.pause()
""",
    # deaf to signals, with a child that would hold the arms' bus
    "deaf": """
import signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
signal.pause()
""",
}


@pytest.fixture
def start(tmp_path: Path):
    """Starts the runner on programs, given as (name, restart); its working folder is tmp_path."""
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(text)
    running: list[subprocess.Popen[str]] = []

    def start(*programs: tuple[str, bool]) -> subprocess.Popen[str]:
        nodes = [{"name": name, "module": name, "restart": restart} for name, restart in programs]
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(nodes)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"the runner ended without saying {text!r}")


def _await(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        os.sched_yield()


def _gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "\nState:\tZ" in status.read_text()


def test_the_space_bar_stops_the_arms_and_nothing_else(tmp_path):
    (tmp_path / "stops.py").write_text(PROGRAMS["stops"])
    (tmp_path / "waits.py").write_text(PROGRAMS["waits"])
    nodes = [{"name": "stops", "module": "stops", "takes_stop": True}, {"name": "waits", "module": "waits"}]
    user, terminal = pty.openpty()
    runner = subprocess.Popen(
        [sys.executable, "-c", DRIVER.replace("])]).run()", "])], terminal=0).run()"), json.dumps(nodes)],
        cwd=tmp_path, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
    )  # fmt: skip
    os.close(terminal)
    try:
        _read_until(runner, "space bar: emergency stop")
        _await((tmp_path / "waits.up").exists)
        os.write(user, b"x \n")
        assert "emergency stop sent to stops" in _read_until(runner, "emergency stop sent")
        assert "stopped" in _read_until(runner, "[stops]"), "though it came before the node was ready"
        runner.send_signal(signal.SIGTERM)
        output, _ = runner.communicate(timeout=10)
        assert runner.returncode == 0, output
        assert (tmp_path / f"waits.{int(signal.SIGTERM)}").exists(), "the other node never noticed"
    finally:
        runner.kill()
        os.close(user)


def test_a_terminal_that_takes_nothing_keeps_no_one_from_stopping(tmp_path):
    """Ctrl-S, a pager, a connection that stalls: nodes go on, and so does the space bar."""
    for name in ("stops", "talks"):
        (tmp_path / f"{name}.py").write_text(PROGRAMS[name])
    nodes = [{"name": "stops", "module": "stops", "takes_stop": True}, {"name": "talks", "module": "talks"}]
    user, terminal = pty.openpty()
    runner = subprocess.Popen(
        [sys.executable, "-c", DRIVER.replace("])]).run()", "])], terminal=0).run()"), json.dumps(nodes)],
        cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
    )  # fmt: skip
    os.close(terminal)
    try:
        _await((tmp_path / "talked").exists, 20.0)
        os.write(user, b" ")
        _await((tmp_path / "stopped").exists)
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(10) == 0
    finally:
        runner.kill()
        os.close(user)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_node_and_the_exit_is_clean(start, tmp_path, number):
    runner = start(("waits", False))
    assert _read_until(runner, "waits is up").startswith("[waits] waits is up")
    runner.send_signal(number)
    assert runner.wait(10) == 0
    assert (tmp_path / f"waits.{int(number)}").exists()


def test_the_death_of_a_required_node_ends_all_with_an_exit_code(start, tmp_path):
    runner = start(("waits", True), ("dies", False))
    output, _ = runner.communicate(timeout=10)
    assert runner.returncode == 1
    assert "[dies]  last words without a newline\n" in output
    assert "dies ended with exit code 3, and the system cannot go on without it; stopping" in output
    assert (tmp_path / f"waits.{int(signal.SIGTERM)}").exists()


def test_a_restartable_node_is_restarted_three_times_and_no_more(start):
    runner = start(("waits", False), ("killed", True))
    output, _ = runner.communicate(timeout=20)
    assert runner.returncode == 1
    assert output.count("one more start") == 4
    assert "killed was killed by SIGKILL; starting it again (3 of 3)" in output
    assert "killed was killed by SIGKILL, and the system cannot go on without it; stopping" in output


def test_what_the_user_must_mend_is_not_tried_again(start):
    runner = start(("misconfigured", True))
    output, _ = runner.communicate(timeout=10)
    assert runner.returncode == 2
    assert "starting it again" not in output


def test_a_deaf_node_is_killed_with_its_children(start):
    runner = start(("deaf", False))
    child = int(_read_until(runner, "child").split()[-1])
    runner.send_signal(signal.SIGINT)
    output, _ = runner.communicate(timeout=10)
    assert runner.returncode == 1
    assert "deaf did not end within 1 s and is killed" in output
    _await(lambda: _gone(child))


def test_nodes_do_not_outlive_a_killed_runner(start, tmp_path):
    runner = start(("waits", False))
    node = int(_read_until(runner, "waits is up").split()[-1])
    runner.kill()
    _await(lambda: _gone(node))
    assert (tmp_path / f"waits.{int(signal.SIGTERM)}").exists()
