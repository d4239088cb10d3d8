"""Where the package's data files are: launch, config and models, in a checkout as well as after pip or colcon."""

from __future__ import annotations

from pathlib import Path

import clamp_ros
from clamp_ros.contract.errors import ClampError


def share_folder() -> Path:
    """The folder that holds ``package.xml``, ``launch``, ``config`` and ``models``.

    A checkout (editable install, `colcon build --symlink-install`) is its own; an installed package has
    ``<prefix>/share/clamp_ros`` somewhere above it.

    Raises:
        ClampError: there is none, so the installation is incomplete.
    """
    package = Path(clamp_ros.__file__).resolve().parent
    if (package.parent / "package.xml").is_file():
        return package.parent
    for prefix in package.parents:
        if (prefix / "share" / "clamp_ros" / "package.xml").is_file():
            return prefix / "share" / "clamp_ros"
    raise ClampError(f"no share/clamp_ros above {package}; install clamp_ros again, with pip or with colcon")


def models_folder() -> Path:
    """The folder of the policy artifacts that come with the package; each is a folder of its own."""
    return share_folder() / "models"
