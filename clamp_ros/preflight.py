"""What a machine must have before the arms are switched on: the checks of `clamp preflight` that need no ROS.

Each check looks at one thing and returns a `Check`; none changes anything but the disk check, which writes a file and
removes it. Paths of the system (``/sys``, ``/etc``, ``/dev``) are looked up below `root`, so that tests can have their
own. `clamp_ros.bringup.preflight` runs these and those of motors, cameras and policy.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from clamp_ros.share import share_folder

ROOT = Path("/")
LATENCY_MS = 1
SHARED_MEMORY_BYTES = 512 << 20
"""Eight processes with a segment of 32 MB each (`ros/fastdds.xml`), twice: a killed one leaves its own behind."""
RECEIVE_BUFFER_BYTES = 4 << 20
"""What `ros/fastdds.xml` asks the kernel for, for each socket."""
STEADY_SOURCES = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen")
CLOCK_STEP_S = 0.001
TRIAL_BYTES = 64 << 20
RULES = "99-aloha.rules"
REALSENSE_RULES = "99-realsense-libusb.rules"
_UNSYNCHRONISED = 0x40
_STATUS_OFFSET = 40  # of the int `status` in struct timex, on 64-bit Linux
_RELOAD = "sudo udevadm control --reload && sudo udevadm trigger"


class Verdict(Enum):
    """What came of a check."""

    OK = "ok"
    WARNING = "warning"
    """Worth knowing; the system runs."""
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: what it belongs to: config, policy, arms, cameras or machine.
        name: what it is.
        verdict: what came of it.
        found: what was seen, in words.
        fix: where it failed, a line for a shell that mends it, or helps to.
    """

    group: str
    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def failed(group: str, name: str, found: str, fix: str) -> Check:
    """A check that failed, and the line that mends it."""
    return Check(group, name, Verdict.FAILED, found, fix)


def fine(group: str, name: str, found: str) -> Check:
    """A check that found nothing wrong."""
    return Check(group, name, Verdict.OK, found)


def table(checks: Sequence[Check]) -> str:
    """The checks as a table for a terminal; below each failure the line that mends it; the count at the end."""
    width = max((len(check.name) for check in checks), default=0)
    lines, group = [], ""
    for check in checks:
        if check.group != group:
            group = check.group
            lines.append(group)
        lines.append(f"  {check.verdict.value:<8} {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"  {'':<8} {'':<{width}}  $ {check.fix}")
    counts = {verdict: sum(check.verdict is verdict for check in checks) for verdict in Verdict}
    lines.append(", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count))
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """The checks for a program: whether all is well, and each of them."""
    rows = [{**asdict(check), "verdict": check.verdict.value.lower()} for check in checks]
    return json.dumps({"ok": not any_failed(checks), "checks": rows}, indent=2)


def any_failed(checks: Iterable[Check]) -> bool:
    """Whether the system should not be started."""
    return any(check.verdict is Verdict.FAILED for check in checks)


def serial_port(name: str, port: str, root: Path = ROOT) -> list[Check]:
    """An arm's serial port: that it is there, may be opened, and has a latency timer of 1 ms.

    Args:
        name: of the arm, for the report.
        port: its path, looked up below `root`.
        root: of the file system.
    """
    path = root / port.lstrip("/")
    if not path.exists():
        rules = "" if _rules(root) else f"{_install()} && "
        return [failed("arms", f"{name} port", f"{port} does not exist; is the arm plugged in and switched on?",
                       f"{rules}{_RELOAD}; ls -l /dev/ttyDXL_* /dev/ttyUSB*")]  # fmt: skip
    checks = []
    if os.access(path, os.R_OK | os.W_OK):
        checks.append(fine("arms", f"{name} port", port))
    else:
        group = _group_name(path.stat().st_gid)
        checks.append(failed("arms", f"{name} port", f"{port} belongs to the group {group}, and you may not open it",
                             f"sudo usermod -aG {group} $USER  # then log in again"))  # fmt: skip
    timer = root / "sys/class/tty" / path.resolve().name / "device/latency_timer"
    try:
        milliseconds = int(timer.read_text())
    except (OSError, ValueError):
        checks.append(Check("arms", f"{name} latency timer", Verdict.SKIPPED, "no FTDI adapter, so it has none"))
        return checks
    if milliseconds > LATENCY_MS:
        found = f"{milliseconds} ms, expected {LATENCY_MS}: the arm cannot be read 100 times a second"
        checks.append(failed("arms", f"{name} latency timer", found, f"echo {LATENCY_MS} | sudo tee {timer}"))
    else:
        checks.append(fine("arms", f"{name} latency timer", f"{milliseconds} ms"))
    return checks


def _install() -> str:
    return f"sudo cp {share_folder()}/config/{RULES} /etc/udev/rules.d/"


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _rules(root: Path) -> str:
    """The text of every udev rule for FTDI adapters that is installed."""
    texts = []
    for folder in ("etc/udev/rules.d", "lib/udev/rules.d", "usr/lib/udev/rules.d", "run/udev/rules.d"):
        for path in sorted((root / folder).glob("*.rules")):
            try:
                texts.append(path.read_text(errors="replace"))
            except OSError:
                continue
    return "\n".join(text for text in texts if "ttyDXL" in text)


def udev_rules(root: Path = ROOT) -> Check:
    """That the arms' udev rules are installed, with the adapters' own serial numbers."""
    text = _rules(root)
    if not text:
        found = f"{RULES} is not installed: ports have no names of their own, and 16 ms of latency"
        return failed("arms", "udev rules", found, f"{_install()} && {_RELOAD}")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    if any('"FT_FOLLOWER_' in line for line in lines):
        return failed("arms", "udev rules", f"{RULES} still has the serial numbers it came with",
                      f"sudoedit /etc/udev/rules.d/{RULES} && {_RELOAD}")  # fmt: skip
    return fine("arms", "udev rules", "installed")


def groups(names: Iterable[str] = ("dialout",), have: Iterable[int] | None = None, group: str = "arms") -> Check:
    """That this user is in the groups that own the devices, in this session; root need not be.

    Args:
        names: of the groups.
        have: numbers of the groups of this process; by default its own.
        group: what is reported on, arms or cameras.
    """
    numbers = set(os.getgroups() if have is None else have)
    if have is None and os.geteuid() == 0:
        return fine(group, "groups", "root")
    missing = []
    for name in names:
        try:
            if grp.getgrnam(name).gr_gid not in numbers:
                missing.append(name)
        except KeyError:
            missing.append(name)
    if missing:
        return failed(group, "groups", f"you are not in {', '.join(missing)}, or have not logged in since you are",
                      f"sudo usermod -aG {','.join(missing)} $USER  # then log in again")  # fmt: skip
    return fine(group, "groups", ", ".join(names))


def camera_access(root: Path = ROOT) -> Check:
    """That every RealSense that is plugged in may be opened: its USB device, and its video devices."""
    usb, video = [], []
    for device in _named(root / "sys/bus/usb/devices", "product"):
        with contextlib.suppress(OSError, ValueError):
            bus, number = (int((device / key).read_text()) for key in ("busnum", "devnum"))
            usb.append(root / f"dev/bus/usb/{bus:03d}/{number:03d}")
    for device in _named(root / "sys/class/video4linux", "name"):
        video.append(root / "dev" / device.name)
    closed = [path for path in (*usb, *video) if not os.access(path, os.R_OK | os.W_OK)]
    if not closed:
        if not usb:
            return Check("cameras", "camera access", Verdict.SKIPPED, "no RealSense is plugged in")
        return fine("cameras", "camera access", f"RealSense cameras plugged in: {len(usb)}, which you may open")
    found = f"you may not open {', '.join('/' + str(path.relative_to(root)) for path in closed)}"
    if set(closed) <= set(video):
        return failed("cameras", "camera access", found, "sudo usermod -aG video $USER  # then log in again")
    return failed("cameras", "camera access", found, f"sudo cp {REALSENSE_RULES} /etc/udev/rules.d/ && {_RELOAD}"
                  "  # the file is in librealsense's folder config")  # fmt: skip


def _named(folder: Path, key: str) -> list[Path]:
    """The devices of a folder of sysfs whose name, in the file `key`, is a RealSense's."""
    found = []
    for device in sorted(folder.glob("*")):
        with contextlib.suppress(OSError):
            if "RealSense" in (device / key).read_text(errors="replace"):
                found.append(device)
    return found


def shared_memory(root: Path = ROOT, needed_bytes: int = SHARED_MEMORY_BYTES) -> Check:
    """That /dev/shm holds the images of all processes."""
    try:
        free = shutil.disk_usage(root / "dev/shm").free
    except OSError as error:
        found = f"it is not there ({error.strerror}): no images can be sent"
        return failed("machine", "shared memory", found, "sudo mount -t tmpfs -o size=2G tmpfs /dev/shm")
    if free < needed_bytes:
        found = f"{free >> 20} MB free in /dev/shm, expected {needed_bytes >> 20}: images would be late or lost"
        return failed("machine", "shared memory", found, "sudo mount -o remount,size=2G /dev/shm; ls -l /dev/shm")
    return fine("machine", "shared memory", f"{free >> 20} MB free in /dev/shm")


def receive_buffers(root: Path = ROOT, needed_bytes: int = RECEIVE_BUFFER_BYTES) -> Check:
    """That small messages can wait in the kernel for a node, the recorder first of all, that is kept from running."""
    try:
        given = int((root / "proc/sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return Check("machine", "receive buffers", Verdict.SKIPPED, "net.core.rmem_max cannot be read")
    if given < needed_bytes:
        found = f"{given >> 10} KB a socket: joints that a hung recorder has not taken are lost sooner"
        fix = f"sudo sysctl -w net.core.rmem_max={needed_bytes}"
        return Check("machine", "receive buffers", Verdict.WARNING, found, fix)
    return fine("machine", "receive buffers", f"{given >> 10} KB a socket")


def clocks(root: Path = ROOT, wait_s: float = 0.05) -> list[Check]:
    """That time runs evenly, is not being set, and is kept by somebody.

    An unsynchronised clock is a warning only: all nodes are on this host. What hurts is a step while the arms move.
    """
    checks = []
    try:
        source = (root / "sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip()
    except OSError:
        source = ""
    if source and source not in STEADY_SOURCES:
        found = f"clock source {source} is slow to read, or unsteady; expected {' or '.join(STEADY_SOURCES[:3])}"
        checks.append(Check("machine", "clock source", Verdict.WARNING, found, "sudo dmesg | grep -i clocksource"))
    else:
        checks.append(fine("machine", "clock source", source or "unknown"))
    offset_s = time.time() - time.monotonic()
    time.sleep(wait_s)
    checks.append(clock_step(time.time() - time.monotonic() - offset_s))
    status = clock_status()
    if status is None:
        checks.append(Check("machine", "clock synchronised", Verdict.SKIPPED, "this system does not tell"))
    elif status & _UNSYNCHRONISED:
        checks.append(Check("machine", "clock synchronised", Verdict.WARNING,
                            "no time server sets the clock; bags of several machines will not fit together",
                            "sudo timedatectl set-ntp true"))  # fmt: skip
    else:
        checks.append(fine("machine", "clock synchronised", "yes"))
    return checks


def clock_step(step_s: float) -> Check:
    """Judges by how much the system's clock moved against the monotonic one while it was watched."""
    if abs(step_s) > CLOCK_STEP_S:
        return failed("machine", "clock steps", f"the system's clock jumped by {1e3 * step_s:.1f} ms while it was "
                      "watched; the arms hold at each jump", "timedatectl timesync-status; sudo systemctl restart "
                      "systemd-timesyncd")  # fmt: skip
    return fine("machine", "clock steps", f"none ({1e6 * step_s:.0f} us against the monotonic clock)")


def clock_status() -> int | None:
    """The kernel's `status` of the clock (adjtimex(2)); None where it does not tell."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
        return None
    return int.from_bytes(buffer.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")


def real_time(priority: int) -> Check:
    """Whether a thread of this user may have SCHED_FIFO, by giving it to one that ends at once."""
    refused: list[str] = []

    def attempt() -> None:
        try:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(priority))
        except OSError as error:
            refused.append(error.strerror or str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if refused:
        found = f"no SCHED_FIFO priority {priority} ({refused[0]}): the control loop jitters under load"
        fix = 'echo "$USER - rtprio 90" | sudo tee /etc/security/limits.d/99-clamp.conf  # then log in again'
        return failed("machine", "real-time right", found, fix)
    return fine("machine", "real-time right", f"SCHED_FIFO priority {priority}")


def disk(folder: Path, needed_mb_s: float, min_free_gb: float, trial_bytes: int = TRIAL_BYTES) -> list[Check]:
    """Free space where bags go, and how fast a file really reaches that disk.

    Args:
        folder: the recorder's; where it is not there yet, the nearest folder above it.
        needed_mb_s: raw data of the configured cameras.
        min_free_gb: the recorder's own limit.
        trial_bytes: what is written, synchronised and removed again.
    """
    elsewhere = "clamp preflight record_to:=/path/on/another/disk"
    while not folder.exists() and folder != folder.parent:  # the recorder makes it, on the same disk
        folder = folder.parent
    trial = folder / f".preflight-{os.getpid()}"
    try:
        free = shutil.disk_usage(folder).free
        block = os.urandom(1 << 20)
        start_s = time.monotonic()
        with trial.open("wb") as file:
            for _ in range(max(trial_bytes >> 20, 1)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        speed = max(trial_bytes, len(block)) / 1e6 / (time.monotonic() - start_s)
    except OSError as error:
        return [failed("machine", "record folder", f"{folder} cannot be written: {error.strerror or error}", elsewhere)]
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
    if free < 1e9 * min_free_gb:
        found = f"{1e-9 * free:.1f} GB free in {folder}, less than min_free_gb {min_free_gb:g}: the recorder refuses"
        space = failed("machine", "disk space", found, f"du -sh {folder}/* | sort -h; {elsewhere}")
    else:
        minutes = f", {free / 1e6 / needed_mb_s / 60.0:.0f} minutes of raw images" if needed_mb_s else ""
        space = fine("machine", "disk space", f"{1e-9 * free:.0f} GB free{minutes}")
    if speed < needed_mb_s:
        found = f"{speed:.0f} MB/s in {folder}; the cameras send {needed_mb_s:.0f} MB/s before compression"
        return [space, failed("machine", "disk speed", found, elsewhere)]
    return [space, fine("machine", "disk speed", f"{speed:.0f} MB/s; the cameras send {needed_mb_s:.0f} MB/s")]
