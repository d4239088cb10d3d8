"""The command line of `clamp bag` and its verbs."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import CAMERAS
from clamp_ros.verbs import VerbParser

_MORE = """\
verbs:
  recover BAGS...                        make a bag of what a crash, a SIGKILL or a full disk has left in NAME.partial:
                                         all but the last chunk; a folder stands for every unfinished bag in it
  audit BAGS...                          read whole bags, as `clamp info` does
  export BAGS... --to FORMAT --out DIR   ALOHA HDF5 files, or a LeRobot dataset, of bags
  import FILES... --from FORMAT --out DIR  bags of such

`clamp bag VERB --help` tells more about each.
"""
_RECOVER = """\
Makes a bag of what a crash, a SIGKILL or a full disk has left in NAME.partial: all but the last chunk. A folder stands
for every unfinished bag in it."""
_EXPORT = """\
Writes bags as a dataset of another stack: a row for each command, 50 a second, with depth. The same command goes on
where an interrupted one stopped. What the format has no place for is told at the end; see docs/datasets.md."""
_IMPORT = """\
Makes bags of a dataset of another stack, one an episode, that everything here reads as it reads a recorded one. The
same command goes on where an interrupted one stopped. What an export of this stack says itself need not be told."""
_FORMATS = ("aloha_hdf5", "lerobot")
_NEEDS = {"aloha_hdf5": "h5py", "lerobot": "pyarrow"}


def main(words: Sequence[str]) -> int:
    """Runs the words after `clamp bag`; returns the exit code."""
    first = words[0] if words else ""
    if first in _VERBS:
        return _VERBS[first](words[1:])
    if first and not first.startswith("-"):
        raise ConfigError(f"clamp bag has no verb {first!r}; verbs are: {', '.join(_VERBS)}")
    _parser("", f"Mends, audits and converts bags.\n\n{_MORE}").parse_args(words or ["--help"])
    return 0


def _parser(name: str, description: str) -> VerbParser:
    return VerbParser(
        prog=f"clamp bag{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _recover(words: Sequence[str]) -> int:
    parser = _parser(" recover", _RECOVER)
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="NAME.partial, or a folder of them")
    parser.add_argument("--to", type=Path, metavar="DIR", help="onto another disk, where this one is full")
    args = parser.parse_args(words)
    from clamp_ros.record.recover import recover, unfinished

    for path in unfinished(args.bags):
        recovery = recover(path, args.to)
        lost = "; its end is missing" if recovery.truncated else ""
        print(f"{recovery.path}: {recovery.message_count} messages{lost}")
    return 0


def _audit(words: Sequence[str]) -> int:
    parser = _parser(" audit", "Reads whole bags, as `clamp info` does; exit code 1 if one has problems.")
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="a bag, or a folder of them")
    args = parser.parse_args(words)
    from clamp_ros import info

    told = [info.about(path) for path in args.bags]
    print("\n".join(text for text, _ in told))
    return 0 if all(good for _, good in told) else 1


def _export(words: Sequence[str]) -> int:
    parser = _parser(" export", _EXPORT)
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="bags, and folders of bags")
    parser.add_argument("--to", required=True, choices=_FORMATS, help="ALOHA HDF5 files, or a LeRobot v3.0 dataset")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset")
    args = parser.parse_args(words)
    _check_installed(args.to)
    from clamp_ros.interchange.convert import export_bags

    told = export_bags(args.bags, args.to, args.out)
    print(told.text(args.out))
    return 1 if told.refused else 0


def _import(words: Sequence[str]) -> int:
    parser = _parser(" import", _IMPORT)
    parser.add_argument("sources", nargs="+", type=Path, metavar="PATH", help=".hdf5 files or folders, or datasets")
    parser.add_argument("--from", dest="format", required=True, choices=_FORMATS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the bags")
    parser.add_argument("--task", default="", help="for the bags' metadata, in place of the dataset's")
    parser.add_argument("--camera", action="append", default=[], metavar="THEIRS=OURS",
                        help="which camera of this stack one of theirs is; none after = leaves it out")  # fmt: skip
    parser.add_argument("--intrinsics", action="append", default=[], metavar="OURS=FX,FY,CX,CY",
                        help="of a camera, in pixels; training needs them")  # fmt: skip
    parser.add_argument("--gripper", default="range", choices=("range", "metres"),
                        help="their unit: 0 to 1 as ALOHA has it, or a finger's position (%(default)s)")  # fmt: skip
    parser.add_argument("--colors", default="rgb", choices=("rgb", "bgr"), help="order in HDF5 images (%(default)s)")
    parser.add_argument(
        "--image-every", type=int, default=1, metavar="N", help="take every N-th row's images (%(default)s)"
    )
    parser.add_argument("--compression", default="zstd", choices=("none", "lz4", "zstd"), help="%(default)s")
    args = parser.parse_args(words)
    if args.image_every < 1:
        raise ConfigError(f"--image-every is {args.image_every}, expected at least 1")
    _check_installed(args.format)
    from clamp_ros.interchange.aloha import Foreign
    from clamp_ros.interchange.convert import import_episodes

    cameras = dict(_pair(text, "--camera") for text in args.camera)
    intrinsics = {name: _four(name, value) for name, value in (_pair(text, "--intrinsics") for text in args.intrinsics)}
    foreign = Foreign(cameras, intrinsics, args.gripper, args.colors, args.image_every, args.task)
    told = import_episodes(args.sources, args.format, args.out, foreign, args.compression)
    print(told.text(args.out))
    return 1 if told.refused else 0


_VERBS = {"recover": _recover, "audit": _audit, "export": _export, "import": _import}


def _check_installed(format_: str) -> None:
    if importlib.util.find_spec(_NEEDS[format_]) is None:
        raise ConfigError(
            f"{format_} needs {_NEEDS[format_]}, which is not installed: pip install 'clamp_ros[datasets]'"
        )


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{option} is {text!r}, expected NAME=VALUE")
    return name, value


def _four(name: str, text: str) -> tuple[float, float, float, float]:
    if name not in CAMERAS:
        raise unknown_key(name, CAMERAS, "camera of --intrinsics")
    try:
        fx, fy, cx, cy = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"--intrinsics {name}={text}: expected FX,FY,CX,CY in pixels") from None
    return fx, fy, cx, cy
