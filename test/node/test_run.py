"""Nodes as processes: signals, exit codes and messages; and the health report."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.duration import Duration
from rclpy.parameter import Parameter

from clamp_ros.contract.interfaces import DIAGNOSTICS, JOINT_COMMANDS, SERVICES, TOPICS
from clamp_ros.contract.robot import REST_POSE
from clamp_ros.ros.convert import joint_state_message, stamp_ns
from clamp_ros.ros.run import Health, advertise, interface_type, subscribe

TIMEOUT_S = 30.0
NODE = '''
import sys, time
from pathlib import Path
from dataclasses import dataclass
from rclpy.node import Node
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ContractError
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, run_node

@dataclass(frozen=True)
class Config:
    fail: str = param("", "how to fail", choices=("", "start", "callback", "defect", "hang", "talk"))
    rate_hz: float = param(10.0, "how often", unit="Hz", minimum=1.0)

    def __post_init__(self):
        check(self)

class Tester(Node):
    def __init__(self):
        super().__init__("tester")
        self.config = declare(self, Config)
        if self.config.fail == "start":
            raise ContractError("the start failed; do this")
        self.health = Health(self)
        self.create_timer(0.05, self.tick)

    def tick(self):
        if self.config.fail == "talk":
            for _ in range(2_000):  # 150 KB
                self.get_logger().warning("one of many lines that nobody reads")
            Path(sys.argv[0]).with_name("talked").touch()
            return
        print("ticking", flush=True)
        if self.config.fail == "callback":
            raise ContractError("the callback failed; do that")
        if self.config.fail == "defect":
            raise ZeroDivisionError("a defect")

    def close(self):
        self.health.publish()  # ROS is still up
        print("closing", flush=True)
        while self.config.fail == "hang":
            time.sleep(0.05)

sys.exit(run_node(Tester))
'''


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts the node above as a process; it is ended with the test."""
    script = tmp_path / "tester.py"
    script.write_text(NODE)
    processes: list[subprocess.Popen[str]] = []

    def start(*args: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(script), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_line(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        line = stream.readline()
        if text in line:
            return
        assert line, f"the node ended before it said {text!r}"
    pytest.fail(f"no {text!r} in {TIMEOUT_S} s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly(start: Any, number: signal.Signals) -> None:
    process = start()
    wait_line(process.stdout, "ticking")
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert "closing" in out
    assert err == ""


def test_a_log_that_nobody_reads_holds_nothing_up(start: Any, tmp_path: Path) -> None:
    """A launcher that is stopped, or that waits for its terminal, must not stop the arms' control."""
    process = start("--ros-args", "-p", "fail:=talk")
    deadline = time.monotonic() + TIMEOUT_S
    while not (tmp_path / "talked").exists():
        assert time.monotonic() < deadline and process.poll() is None, "the node waits for its reader"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert "one of many lines" in err


def test_an_inherited_deafness_to_sigint_is_cured(start: Any) -> None:
    """A shell's `&` starts children that ignore SIGINT."""
    process = start(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    wait_line(process.stdout, "ticking")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def test_a_second_signal_ends_a_node_that_hangs(start: Any) -> None:
    process = start("--ros-args", "-p", "fail:=hang")
    wait_line(process.stdout, "ticking")
    process.send_signal(signal.SIGINT)
    wait_line(process.stdout, "closing")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--ros-args", "-p", "fail:=start"], "the start failed; do this"),
        (["--ros-args", "-p", "fail:=callback"], "the callback failed; do that"),
        (["--ros-args", "-p", "rate_h:=3.0"], "unknown parameter of tester 'rate_h'; did you mean 'rate_hz'?"),
        (["--ros-args", "-p", "rate_hz:=0.5"], "rate_hz is 0.5, expected at least 1.0 Hz"),
        (["--ros-args", "-p", "rate_hz"], "ROS does not start"),
        (["--ros-args", "--params-file", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--ros-args", "-z"], "-z"),
        (["rate_hz:=3"], "unexpected arguments ['rate_hz:=3']"),
    ],
)
def test_the_users_mistakes_are_told_in_one_line_with_code_2(start: Any, args: list[str], says: str) -> None:
    process = start(*args)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert says in err
    told = [line for line in err.splitlines() if line.startswith("tester.py: error: ")]
    assert len(told) == 1
    assert "Traceback" not in err


def test_a_defect_keeps_its_traceback(start: Any) -> None:
    process = start("--ros-args", "-p", "fail:=defect")
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "Traceback" in err and "ZeroDivisionError: a defect" in err
    assert "closing" in out


def test_every_interface_of_the_table_exists() -> None:
    for row in (*TOPICS, *SERVICES):
        package, kind, name = row.type.split("/")
        assert getattr(importlib.import_module(f"{package}.{kind}"), name) is interface_type(row.type)


def test_publishers_and_subscriptions_of_the_table_match(ros: Any) -> None:
    node = ros.node()
    publishers = [advertise(node, row) for row in TOPICS]
    for row in TOPICS:
        subscribe(node, row, lambda message: None)
    ros.spin_until(lambda: all(p.get_subscription_count() == 1 for p in publishers), what="all topics to connect")


def values_of(status: Any) -> dict[str, str]:
    return {value.key: value.value for value in status.values}


def test_health_counts_measures_and_names_the_worst(ros: Any) -> None:
    health = Health(ros.node(), "part")
    health.count("late", 0)
    health.count("done", 2)
    health.gauge("points", 300.0)
    for sample in (5.0, 1.0, 3.0):
        health.sample("fuse_ms", sample)
    status = health.status()
    assert (status.name, status.level, status.message) == ("part", DiagnosticStatus.OK, "ok")
    assert values_of(status) == {
        "process": str(os.getpid()), "late": "0", "done": "2", "points": "300.000",
        "fuse_ms.median": "3.000", "fuse_ms.max": "5.000", "fuse_ms.count": "3",
    }  # fmt: skip
    assert "fuse_ms.median" not in values_of(health.status())

    health.fault("refused", "a frame was refused", 2)
    status = health.status()
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "a frame was refused")
    assert values_of(status)["refused"] == "2"

    health.hold("disk", "the disk is full", error=True)
    assert (health.status().level, health.status().message) == (DiagnosticStatus.ERROR, "the disk is full")
    health.hold("disk", None)
    assert health.status().level == DiagnosticStatus.WARN


def test_a_new_process_is_heard_of_soon_and_often(ros: Any) -> None:
    heard: list[Any] = []
    subscribe(ros.node("listener"), DIAGNOSTICS, heard.append)
    health = Health(ros.node("teller"))
    ros.spin_until(health._first.is_canceled, what="the reports of its beginning")
    assert health._firsts == 10
    ros.spin_until(lambda: heard, what="one of them")
    assert values_of(heard[0].status[0])["process"] == str(os.getpid())


def test_a_fault_passes_and_its_warning_is_not_repeated(ros: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = ros.node()
    logged: list[Any] = []
    subscribe_log(node, logged)
    publishers = lambda: node.count_publishers("/rosout")  # noqa: E731
    ros.spin_until(publishers, what="the log")
    monkeypatch.setattr(Health, "RECENT_S", 0.0)
    health = Health(node)
    for _ in range(5):
        health.fault("refused", "a frame was refused")
    health.fault("other", "something else")
    ros.spin_until(lambda: len(logged) >= 2, what="the warnings")
    assert [message.msg for message in logged] == ["a frame was refused [refused: 1]", "something else [other: 1]"]
    assert health.status().level == DiagnosticStatus.OK
    assert values_of(health.status())["refused"] == "5"


def subscribe_log(node: Any, logged: list[Any]) -> None:
    from rcl_interfaces.msg import Log
    from rclpy.qos import qos_profile_rosout_default

    node.create_subscription(Log, "/rosout", logged.append, qos_profile_rosout_default)


def test_health_is_published_though_simulated_time_stands_still(ros: Any) -> None:
    node = ros.node("simulated", parameter_overrides=[Parameter("use_sim_time", value=True)])
    listener = ros.node("listener")
    got: list[Any] = []
    subscribe(listener, DIAGNOSTICS, got.append)
    Health(node)
    ros.spin_until(lambda: len(got) >= 2, what="two reports")
    assert got[0].status[0].name == "simulated"


def test_a_reader_of_the_newest_finds_the_newest_alone_whatever_its_sender_keeps(ros):
    """A control loop that was kept from running acts on nothing stale; `test_recorder_node` has the other side."""
    sender, reader = ros.node("sender"), ros.node("reader")
    got: list[int] = []
    commands = advertise(sender, JOINT_COMMANDS)
    subscribe(reader, JOINT_COMMANDS, lambda message: got.append(stamp_ns(message.header.stamp)))
    ros.spin_until(commands.get_subscription_count, what="discovery")
    for i in range(1, 31):
        commands.publish(joint_state_message(REST_POSE, i))
    assert commands.wait_for_all_acked(Duration(seconds=20.0))
    ros.spin_until(lambda: 30 in got, what="the newest")
    assert got == [30]
