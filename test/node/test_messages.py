"""tf2_msgs generated from the wheels: it travels, is cached, and its absence is explained."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clamp_ros.contract.errors import ClampError
from clamp_ros.ros import messages

TYPE_HASH = "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"
"""Of tf2_msgs/msg/TFMessage as ROS's own packages have it: nodes of both kinds talk to each other."""


def test_tf_message_travels_with_the_hash_of_ros(ros):
    from geometry_msgs.msg import TransformStamped
    from tf2_msgs.msg import TFMessage  # pyright: ignore[reportMissingImports]

    node, received = ros.node(), []
    node.create_subscription(TFMessage, "/tf", received.append, 10)
    publisher = node.create_publisher(TFMessage, "/tf", 10)
    ros.spin_until(lambda: publisher.get_subscription_count() == 1)
    message = TFMessage(transforms=[TransformStamped(child_frame_id="left/gripper")])
    message.transforms[0].transform.translation.x = 0.25
    publisher.publish(message)
    ros.spin_until(lambda: received)
    assert received[0] == message
    assert str(node.get_publishers_info_by_topic("/tf")[0].topic_type_hash) == TYPE_HASH


def test_rmw_finds_every_typesupport_it_looks_for(ros_domain_id):
    # one that is missing is reported only when the next endpoint fails to find its own
    code = """
from clamp_ros.ros import messages
messages.ensure()
import rclpy
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage
rclpy.init()
node = rclpy.create_node("test")
node.create_publisher(TFMessage, "/tf", 1)
node.create_subscription(Clock, "/clock", print, 1)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


_SPEC = importlib.util.find_spec("tf2_msgs")
GENERATED = _SPEC is not None and _SPEC.origin is not None and Path(_SPEC.origin).is_relative_to(messages.cache_root())


def _run(code: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        capture_output=True, text=True, check=False,
    )


IMPORT = """
from clamp_ros.ros import messages
messages.ensure()
from tf2_msgs.msg import TFMessage
print(TFMessage.__module__)
"""


@pytest.mark.skipif(not GENERATED, reason="this ROS brings its own tf2_msgs")
class TestGenerated:
    def test_processes_that_start_at_once_share_one_build_and_later_ones_need_no_compiler(self, tmp_path):
        with_compiler = [
            subprocess.Popen(
                [sys.executable, "-c", IMPORT], env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
                stdout=subprocess.PIPE, text=True,
            )
            for _ in range(2)
        ]
        assert [process.communicate()[0].strip() for process in with_compiler] == ["tf2_msgs.msg._tf_message"] * 2
        entries = {path.name for path in (tmp_path / "clamp_ros" / "messages").iterdir()}
        assert entries == {"lock", messages.version_key()}
        cached = _run(IMPORT, tmp_path, PATH="")
        assert cached.returncode == 0, cached.stderr

    def test_without_a_compiler_it_says_what_to_install_and_leaves_nothing(self, tmp_path):
        result = _run(IMPORT, tmp_path, PATH="")
        assert "ClampError: tf2_msgs is not on PyPI" in result.stderr
        assert "lacks gcc, g++" in result.stderr
        assert "sudo apt-get install -y gcc g++ python3-dev" in result.stderr
        assert not list((tmp_path / "clamp_ros" / "messages").glob(messages.version_key()))

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "clamp_ros").write_text("a file where a folder is needed")
        result = _run(IMPORT, tmp_path)
        assert "ClampError: cannot write the message cache" in result.stderr
        assert "set XDG_CACHE_HOME" in result.stderr


def test_the_key_changes_with_the_versions(monkeypatch):
    before = messages.version_key()
    monkeypatch.setattr(messages.metadata, "version", lambda name: "0.0.0")
    assert messages.version_key() != before


def test_without_ros_it_says_where_to_get_it(monkeypatch):
    def missing(name: str) -> str:
        raise messages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(messages, "installed", lambda package: False)
    monkeypatch.setattr(messages.metadata, "version", missing)
    with pytest.raises(ClampError, match=r"no ROS 2 found .* source /opt/ros"):
        messages.ensure()
