"""What pyproject.toml cannot say: the files a ROS package puts where `ros2 run` and `ros2 launch` look for them."""

from pathlib import Path

from setuptools import Distribution, find_packages, setup

ROOT = Path(__file__).parent
SHARE = "share/clamp_ros"


def files(pattern: str) -> list[str]:
    """Paths relative to this file, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_file())


def models() -> list[tuple[str, list[str]]]:
    """Each policy artifact in a folder of its own."""
    folders = sorted(path for path in (ROOT / "models").glob("*") if path.is_dir())
    return [(f"{SHARE}/models/{folder.name}", files(f"models/{folder.name}/*")) for folder in folders]


class RosDistribution(Distribution):
    """Lets editable installs carry the data files too: they ask for `has_data`, which setuptools does not define."""

    def has_data(self) -> bool:
        """Whether there are data files to install."""
        return self.has_data_files()


setup(
    distclass=RosDistribution,
    python_requires=">=3.10,<3.14",
    packages=[
        *find_packages(include=["clamp_ros", "clamp_ros.*"]),
        *find_packages(where="training", include=["clamp_training", "clamp_training.*"]),
    ],
    package_data={"": ["*.json", "*.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/clamp_ros"]),
        (SHARE, ["package.xml"]),
        (f"{SHARE}/launch", files("launch/*.launch.py")),
        (f"{SHARE}/config", files("config/*")),
        *models(),
        ("lib/clamp_ros", files("scripts/nodes/*")),
    ],
)
