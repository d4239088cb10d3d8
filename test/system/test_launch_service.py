"""The launch files under the real launch service, where launch_ros is installed: with ROS from apt, or by its sources.

Neither launch nor launch_ros is on PyPI. Both are pure Python and run beside the wheels of ROS: with `launch/launch` of
github.com/ros2/launch, `launch_ros/launch_ros` of github.com/ros2/launch_ros and `pip install osrf-pycommon` in one
folder, `PYTHONPATH=FOLDER scripts/test test/system/test_launch_service.py` runs these tests.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros.bringup import graph
from clamp_ros.contract.interfaces import JOINT_COMMANDS
from clamp_ros.ros.run import subscribe
from clamp_ros.share import share_folder

if importlib.util.find_spec("launch_ros") is None:
    pytest.skip("launch_ros is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow
START_S = 90.0
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

path, *words = sys.argv[1:]
arguments = [tuple(word.split(":=", 1)) for word in words]
service = LaunchService(argv=words)
service.include_launch_description(LaunchDescription([
    IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=arguments)
]))
sys.exit(service.run())
"""
"""What `ros2 launch` does, without ros2cli."""


class Launched:
    """A launch file that runs, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def text(self) -> str:
        """The log so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, words: str, count: int = 1) -> None:
        """Until the log says something so many times."""
        deadline = time.monotonic() + START_S
        while self.text.count(words) < count:
            assert time.monotonic() < deadline, f"waited in vain for {words!r}:\n{self.text}"
            time.sleep(0.05)

    def pids(self, name: str) -> list[int]:
        """Of the processes that were started for a node, in order."""
        lines = [line for line in self.text.splitlines() if f"[{name}-" in line and "process started with pid" in line]
        return [int(line.rsplit("[", 1)[1].rstrip("]")) for line in lines]

    def end(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(START_S)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts a launch file with arguments."""
    prefixes = [sysconfig.get_path("data"), os.environ.get("AMENT_PREFIX_PATH", "")]
    python_path = os.environ.get("PYTHONPATH", "")
    if importlib.util.find_spec("composition_interfaces") is None:  # of composable nodes, which nobody has here
        package = tmp_path / "absent" / "composition_interfaces"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "srv.py").write_text("class LoadNode:\n    Request = Response = object\n")
        python_path = os.pathsep.join([python_path, str(package.parent)])
    env = {
        **os.environ, "AMENT_PREFIX_PATH": os.pathsep.join(filter(None, prefixes)), "PYTHONPATH": python_path,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "ROS_LOG_DIR": str(tmp_path / "log"),
    }  # fmt: skip
    running = []

    def start(name: str, *words: str) -> Launched:
        path, log = share_folder() / "launch" / f"aloha_{name}.launch.py", tmp_path / "launch.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, path, *words],
                cwd=tmp_path, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )
        running.append(process)
        return Launched(process, log)

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def policy(tmp_path: Path) -> str:
    return f"policy:={build_tiny_artifact(tmp_path / 'tiny').folder}"


@pytest.mark.parametrize("name", sorted(graph.GRAPHS))
def test_a_launch_file_runs_its_graph_and_ends_cleanly(ros: Any, launch, policy, tmp_path, name):
    given = ["sim:=true", f"record_to:={tmp_path / 'bags'}"] + ([] if name == "teleop" else [policy])
    nodes = graph.GRAPHS[name][1](dict(word.split(":=", 1) for word in given))
    heard: list[Any] = []
    subscribe(ros.node(), JOINT_COMMANDS, heard.append)
    system = launch(name, *given)
    ros.spin_until(lambda: len(heard) > 20 or system.process.poll() is not None, START_S, "joint commands")
    assert all(len(system.pids(node.name)) == 1 for node in nodes), system.text
    assert system.end() == 0, system.text
    assert system.text.count("process has finished cleanly") == len(nodes), system.text


def test_a_node_that_may_be_is_started_again_and_the_death_of_another_ends_launch(launch, policy):
    system = launch("policy", "sim:=true", policy)
    system.wait_for("[policy_node]: policy ")
    os.kill(system.pids("policy_node")[0], signal.SIGKILL)
    system.wait_for("[policy_node]: policy ", count=2)
    assert len(system.pids("policy_node")) == 2
    os.kill(system.pids("mujoco_node")[0], signal.SIGKILL)
    assert system.process.wait(START_S) == 1, system.text
    assert "mujoco_node ended, and the system cannot go on without it" in system.text


@pytest.mark.parametrize(
    ("word", "complaint"),
    [("simm:=true", "unknown launch argument 'simm'; did you mean 'sim'?"), ("sim:=tru", '"tru" is not valid'),
     ("seed:=one", "seed:=one is not possible, expected a whole number")],
)  # fmt: skip
def test_a_wrong_argument_starts_nothing(launch, policy, word, complaint):
    system = launch("policy", *(["sim:=true"] if "sim:" not in word else []), policy, word)
    assert system.process.wait(START_S) == 1
    assert complaint in system.text, system.text
    assert "process started" not in system.text
