"""The checks of the machine, on a file system of the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clamp_ros import preflight
from clamp_ros.preflight import Check, Verdict
from clamp_ros.ros.environment import PROFILE
from clamp_ros.share import share_folder

PORT = "/dev/ttyDXL_follower_left"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine on which all is well."""
    for folder in ("dev/shm", "etc/udev/rules.d", "sys/class/tty/ttyUSB7/device",
                   "sys/devices/system/clocksource/clocksource0"):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dev/ttyUSB7").touch()
    (tmp_path / PORT.lstrip("/")).symlink_to("ttyUSB7")
    (tmp_path / "sys/class/tty/ttyUSB7/device/latency_timer").write_text("1\n")
    (tmp_path / "sys/devices/system/clocksource/clocksource0/current_clocksource").write_text("tsc\n")
    rules = (share_folder() / "config" / preflight.RULES).read_text()
    (tmp_path / "etc/udev/rules.d/99-aloha.rules").write_text(rules.replace("FT_", "FT5NVA"))
    return tmp_path


def verdicts(checks: list[Check]) -> list[str]:
    return [check.verdict.value for check in checks]


def test_a_port_as_it_should_be(root):
    assert verdicts(preflight.serial_port("left", PORT, root)) == ["ok", "ok"]
    assert preflight.udev_rules(root).verdict is Verdict.OK


def test_a_missing_port_names_itself_and_asks_for_the_rules_only_where_they_are_missing(root):
    (root / PORT.lstrip("/")).unlink()
    (check,) = preflight.serial_port("left", PORT, root)
    assert check.verdict is Verdict.FAILED and PORT in check.found and "cp " not in check.fix
    (root / "etc/udev/rules.d/99-aloha.rules").unlink()
    (check,) = preflight.serial_port("left", PORT, root)
    assert check.fix.startswith("sudo cp ") and "udevadm trigger" in check.fix
    assert Path(check.fix.split()[2]).is_file(), "the line can be typed as it stands"


def test_a_latency_timer_of_16_ms_is_set_by_the_line_given(root):
    timer = root / "sys/class/tty/ttyUSB7/device/latency_timer"
    timer.write_text("16\n")
    _, check = preflight.serial_port("left", PORT, root)
    assert check.verdict is Verdict.FAILED and check.found.startswith("16 ms")
    os.system(check.fix.replace("sudo ", "") + " > /dev/null")  # noqa: S605 (the line is ours)
    assert verdicts(preflight.serial_port("left", PORT, root)) == ["ok", "ok"]


def test_a_port_of_another_group_says_which(root, monkeypatch):
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)
    check = preflight.serial_port("left", PORT, root)[0]
    owner = preflight._group_name((root / "dev/ttyUSB7").stat().st_gid)
    assert check.verdict is Verdict.FAILED
    assert check.fix == f"sudo usermod -aG {owner} $USER  # then log in again"


def test_rules_with_the_serial_numbers_they_came_with_are_not_enough(root):
    path = root / "etc/udev/rules.d/99-aloha.rules"
    path.write_text((share_folder() / "config" / preflight.RULES).read_text())
    check = preflight.udev_rules(root)
    assert check.verdict is Verdict.FAILED and check.fix.startswith("sudoedit")


def test_groups_are_those_of_this_session():
    number = preflight.grp.getgrnam("dialout").gr_gid
    assert preflight.groups(have=[number]).verdict is Verdict.OK
    check = preflight.groups(have=[])
    assert check.verdict is Verdict.FAILED and "dialout" in check.fix
    check = preflight.groups(("video",), have=[], group="cameras")
    assert check.group == "cameras" and check.fix.startswith("sudo usermod -aG video $USER")


def test_a_camera_that_may_not_be_opened_is_named_with_the_line_that_opens_it(root, monkeypatch):
    assert preflight.camera_access(root).verdict is Verdict.SKIPPED
    devices = {"sys/bus/usb/devices/2-1/product": "Intel(R) RealSense(TM) Depth Camera 405\n",
               "sys/bus/usb/devices/2-1/busnum": "2\n", "sys/bus/usb/devices/2-1/devnum": "13\n",
               "sys/bus/usb/devices/2-2/product": "Another camera\n",
               "sys/class/video4linux/video4/name": "Intel(R) RealSense(TM) Depth Ca\n",
               "sys/class/video4linux/video9/name": "Another camera\n",
               "dev/bus/usb/002/013": "", "dev/video4": ""}  # fmt: skip
    for path, text in devices.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    assert preflight.camera_access(root).verdict is Verdict.OK
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: path.name != "video4")
    check = preflight.camera_access(root)
    assert (check.verdict, check.group, check.found) == (Verdict.FAILED, "cameras", "you may not open /dev/video4")
    assert check.fix.startswith("sudo usermod -aG video $USER")
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: path.name == "video4")
    check = preflight.camera_access(root)
    assert check.found == "you may not open /dev/bus/usb/002/013" and preflight.REALSENSE_RULES in check.fix


def test_shared_memory_is_enough_for_the_images_or_not(root):
    assert preflight.shared_memory(root, needed_bytes=1).verdict is Verdict.OK
    check = preflight.shared_memory(root, needed_bytes=1 << 62)
    assert check.verdict is Verdict.FAILED and "remount" in check.fix
    (root / "dev/shm").rmdir()
    assert preflight.shared_memory(root).verdict is Verdict.FAILED


def test_receive_buffers_are_as_large_as_our_profile_asks_for_or_told_to_be_small(root):
    assert f"<receiveBufferSize>{preflight.RECEIVE_BUFFER_BYTES}</receiveBufferSize>" in PROFILE.read_text()
    assert preflight.receive_buffers(root).verdict is Verdict.SKIPPED
    limit = root / "proc/sys/net/core/rmem_max"
    limit.parent.mkdir(parents=True)
    limit.write_text("212992\n")
    check = preflight.receive_buffers(root)
    assert (check.verdict, check.fix) == (Verdict.WARNING, "sudo sysctl -w net.core.rmem_max=4194304")
    limit.write_text("4194304\n")
    assert preflight.receive_buffers(root).verdict is Verdict.OK


def test_clocks_are_watched_and_a_jump_is_a_failure(root):
    source, steps, _ = preflight.clocks(root, wait_s=0.0)
    assert (source.verdict, steps.verdict) == (Verdict.OK, Verdict.OK)
    (root / "sys/devices/system/clocksource/clocksource0/current_clocksource").write_text("acpi_pm\n")
    assert preflight.clocks(root, wait_s=0.0)[0].verdict is Verdict.WARNING
    check = preflight.clock_step(-0.25)
    assert check.verdict is Verdict.FAILED and "-250.0 ms" in check.found


def test_no_right_to_real_time_is_a_failure_with_the_line_that_gives_it(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(preflight.os, "sched_setscheduler", refuse)
    check = preflight.real_time(25)
    assert check.verdict is Verdict.FAILED and "rtprio" in check.fix


def test_a_disk_is_really_written_to_and_left_as_it_was(tmp_path):
    folder = tmp_path / "not" / "yet"
    space, speed = preflight.disk(folder, needed_mb_s=0.001, min_free_gb=0.0, trial_bytes=1 << 20)
    assert (space.verdict, speed.verdict) == (Verdict.OK, Verdict.OK)
    assert list(tmp_path.iterdir()) == []
    space, speed = preflight.disk(folder, needed_mb_s=1e9, min_free_gb=1e9, trial_bytes=1 << 20)
    assert (space.verdict, speed.verdict) == (Verdict.FAILED, Verdict.FAILED)
    assert "1000000000 MB/s" in speed.found
    assert preflight.disk(folder, needed_mb_s=0.0, min_free_gb=0.0, trial_bytes=1)[0].found.endswith(" GB free")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    (check,) = preflight.disk(file, needed_mb_s=1.0, min_free_gb=0.0, trial_bytes=1)
    assert check.verdict is Verdict.FAILED and str(file) in check.found


def test_the_report_puts_each_fix_below_its_failure_and_counts():
    checks = [preflight.fine("arms", "left waist", "12.0 V"), preflight.failed("arms", "left elbow", "gone", "ls /dev")]
    lines = preflight.table(checks).splitlines()
    assert lines[0] == "arms" and lines[1].split() == ["ok", "left", "waist", "12.0", "V"]
    assert lines[2].startswith("  FAILED   left elbow") and lines[3].strip() == "$ ls /dev"
    assert lines[4] == "1 ok, 1 FAILED"
    report = json.loads(preflight.as_json(checks))
    assert not report["ok"] and report["checks"][1]["fix"] == "ls /dev"
    assert not preflight.any_failed(checks[:1])
