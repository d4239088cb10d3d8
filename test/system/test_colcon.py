"""Installed by colcon or by pip, the package is where ros2 looks for it, and brings no ROS of its own to colcon's.

`colcon build` runs as it would in a workspace, on a copy of the files that git knows; `ros2 run` and `ros2 launch` find
packages by the ament index, executables in lib/clamp_ros, and launch files in share/clamp_ros.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from clamp_ros.bringup import graph
from clamp_ros.share import share_folder

ROOT = Path(__file__).parents[2]
NODES = {path.name for path in (ROOT / "scripts" / "nodes").iterdir()}


def _copy(target: Path) -> Path:
    """The checkout's files, without what lies about in it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("models/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The install prefix of the package after `colcon build`."""
    workspace = tmp_path_factory.mktemp("workspace")
    _copy(workspace / "src" / "clamp_ros")
    result = subprocess.run(
        [sys.executable, "-m", "colcon", "build", "--event-handlers", "console_direct+"],
        cwd=workspace, capture_output=True, text=True, check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace / "install" / "clamp_ros"


def _assert_ros2_finds_it(prefix: Path) -> None:
    assert (prefix / "share" / "ament_index" / "resource_index" / "packages" / "clamp_ros").is_file()
    share, executables = prefix / "share" / "clamp_ros", prefix / "lib" / "clamp_ros"
    assert (share / "package.xml").read_text() == (ROOT / "package.xml").read_text()
    for folder, pattern in (("launch", "*.launch.py"), ("config", "*.yaml")):
        shipped = {path.name for path in (ROOT / folder).glob(pattern)}
        assert shipped
        assert {path.name for path in (share / folder).glob(pattern)} == shipped
    assert {path.name for path in executables.iterdir()} == NODES
    for path in executables.iterdir():
        assert os.access(path, os.X_OK)
        assert path.read_text().startswith("#!/usr/bin/env python3\n")


def test_colcon_puts_everything_where_ros2_looks(prefix):
    _assert_ros2_finds_it(prefix)


def test_pip_puts_everything_where_ros2_looks():
    _assert_ros2_finds_it(Path(sysconfig.get_path("data")))


def test_colcon_installs_our_packages_alone(prefix):
    # wheels of ROS beside them would shadow the ROS of the system
    site = next(prefix.glob("lib/python3*/site-packages"), None) or next(prefix.glob("**/dist-packages"))
    packages = {path.name for path in site.iterdir() if path.suffix not in (".egg-info", ".dist-info")}
    assert packages == {"clamp_ros", "clamp_training"}


def test_the_colcon_install_runs_by_its_own_files(prefix, tmp_path):
    site = next(prefix.glob("lib/python3*/site-packages"), None) or next(prefix.glob("**/dist-packages"))
    code = """
import clamp_ros.share, clamp_ros.sim.figures
from clamp_ros.bringup import graph
print(clamp_ros.share.share_folder())
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, check=False,
    )
    assert result.stdout.strip() == str(prefix / "share" / "clamp_ros"), result.stderr
    assert {path.relative_to(site) for path in site.rglob("*.json")} == {
        path.relative_to(ROOT) for path in (ROOT / "clamp_ros").rglob("*.json")
    }


def test_an_executable_starts_its_node(prefix, tmp_path):
    site = next(prefix.glob("lib/python3*/site-packages"), None) or next(prefix.glob("**/dist-packages"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        [prefix / "lib" / "clamp_ros" / "control_node", "--ros-args", "-p", "execute_step:=3"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site), "PATH": path},
        capture_output=True, text=True, check=False,
    )
    assert (result.returncode, result.stdout) == (graph.EXIT_CONFIGURATION, "")
    assert "unknown parameter of control_node 'execute_step'; did you mean 'execute_steps'?" in result.stderr


def test_a_checkout_is_its_own_share_folder():
    assert share_folder() == ROOT
