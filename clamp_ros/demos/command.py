"""The command line of `clamp demos` and its verbs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.tasks import TASK_NAMES
from clamp_ros.verbs import VerbParser

if TYPE_CHECKING:
    from clamp_ros.demos.folder import Summary
    from clamp_ros.demos.recording import DemoConfig

_MORE = """\
Keeps successes only. Episodes are played in process and hold the topics of the live simulation. The same command goes
on where an interrupted one stopped; demos.jsonl in the folder tells of every seed, sheet.html shows them.

also:
  clamp demos render DIR --out OTHER             bags with pictures of a folder made with --states-only
  clamp demos merge A B --out C                  join the folders of --shard 1/2 and --shard 2/2
  clamp demos sheet DIR                          write DIR/sheet.html anew
  clamp demos pictures --out tasks.png           how each task starts and ends
  clamp demos score --task all --seeds 200       how good the experts are, as a table
"""


def main(words: Sequence[str]) -> int:
    """Runs the words after `clamp demos`; returns the exit code."""
    first = words[0] if words else ""
    if first in _VERBS:
        return _VERBS[first](words[1:])
    if first and not first.startswith("-"):
        raise ConfigError(f"clamp demos has no verb {first!r}; verbs are: {', '.join(_VERBS)}")
    return _make(words)


def _parser(name: str, description: str) -> VerbParser:
    return VerbParser(
        prog=f"clamp demos{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_look(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--look", default="auto", choices=("auto", "mesh", "primitive"), help="of the robot")


def _add_assets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--assets", type=_folder, metavar="DIR", help="objects in place of our own, see docs/tasks.md")


def _make(words: Sequence[str]) -> int:
    parser = _parser("", f"Makes demonstrations with a scripted expert, one bag an episode.\n\n{_MORE}")
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASK_NAMES)}")
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="how many successes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the bags")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="first seed (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="W", help="processes (%(default)s)")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N",
                        help="make share I of N of the episodes, from seeds of its own (1/1)")  # fmt: skip
    parser.add_argument("--states-only", action="store_true", help="no pictures now; see `clamp demos render`")
    _add_look(parser)
    _add_assets(parser)
    _add_pictures(parser)
    args = parser.parse_args(words)
    from clamp_ros.demos.make import make_demos

    config = _config(args, args.task, args.look, args.states_only, args.assets)
    summary = make_demos(config, args.episodes, args.out, seed=args.seed, workers=args.workers, shard=args.shard)
    return _tell(summary, args.out)


def _render(words: Sequence[str]) -> int:
    parser = _parser(" render", "Makes bags with pictures of a folder that was made with --states-only: the same bags,"
                                " to the bit, as if they had been made with pictures at once.")  # fmt: skip
    parser.add_argument("source", type=Path, help="folder of states")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the bags")
    parser.add_argument("--workers", type=int, default=2, metavar="W", help="processes (%(default)s)")
    _add_pictures(parser)
    args = parser.parse_args(words)
    from clamp_ros.demos.folder import config_of
    from clamp_ros.demos.make import render_demos

    stored = config_of(args.source)
    config = _config(args, stored.task, stored.look, assets=stored.assets)
    return _tell(render_demos(args.source, config, args.out, workers=args.workers), args.out)


def _merge(words: Sequence[str]) -> int:
    parser = _parser(" merge", "Joins folders of demonstrations of one task and one configuration, made from different"
                               " seeds. They stay as they are.")  # fmt: skip
    parser.add_argument("folders", nargs="+", type=Path, help="two or more")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result")
    args = parser.parse_args(words)
    from clamp_ros.demos.merge import merge

    return _tell(merge(args.folders, args.out), args.out)


def _sheet(words: Sequence[str]) -> int:
    parser = _parser(" sheet", "Writes sheet.html into a folder of demonstrations: start and end of each episode.")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(words)
    from clamp_ros.demos.sheet import write_sheet

    print(write_sheet(args.folder))
    return 0


def _pictures(words: Sequence[str]) -> int:
    parser = _parser(" pictures", "Draws how an episode of each task starts and ends, when its expert plays it.")
    parser.add_argument("--task", default="all", help=f"all, or names of {', '.join(TASK_NAMES)}")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the layouts (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/tasks.png"), help="picture, .png or .jpg (%(default)s)")
    _add_look(parser)
    _add_assets(parser)
    args = parser.parse_args(words)
    from clamp_ros.demos.sheet import write_grid

    write_grid(_tasks(args.task), args.out, seed=args.seed, look=args.look, assets=args.assets)
    print(args.out)
    return 0


def _tell(summary: Summary, folder: Path) -> int:
    from clamp_ros.demos.sheet import write_sheet

    values = summary.to_dict()
    rate = (
        f"; made {values['made_in_this_run']} now at {values['episodes_per_minute']} a minute" if summary.wall_s else ""
    )
    print(
        f"{folder}: {values['episodes']} episodes of {values['mean_seconds']} s, {values['megabytes']} MB, from"
        f" {values['attempts']} seeds{rate}; look at {write_sheet(folder)}"
    )
    return 0


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cameras", type=_names, default=("front_left", "back_right"), metavar="A,B",
                        help="cameras to render (front_left,back_right)")  # fmt: skip
    parser.add_argument("--image-rate", type=int, default=5, metavar="HZ", help="images a second (%(default)s)")
    parser.add_argument(
        "--compression", default="zstd", choices=("none", "lz4", "zstd"), help="of the bags (%(default)s)"
    )
    parser.add_argument("--randomise", default="", metavar="ASPECTS", help="vary the episodes: all, or some of light,"
                        " colours, camera, depth, latency; light=0.5 is half as much (nothing)")  # fmt: skip


def _config(
    args: argparse.Namespace, task: str, look: str, states_only: bool = False, assets: Path | str | None = None
) -> DemoConfig:
    from clamp_ros.demos.recording import DemoConfig
    from clamp_ros.sim.randomise import Randomisation

    randomise = Randomisation.parse(args.randomise)
    return DemoConfig(task, args.cameras, args.image_rate, look, args.compression, randomise, states_only,
                      str(assets or ""))  # fmt: skip


def _score(words: Sequence[str]) -> int:
    from clamp_ros.demos.score import FIRST_SEED, score, table

    parser = _parser(" score", "Plays the experts without pictures and prints how often they succeed. The results file"
                               " is gone on with.")  # fmt: skip
    parser.add_argument("--task", default="all", help=f"all, or names of {', '.join(TASK_NAMES)}")
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, metavar="S", help="first seed (%(default)s)")
    parser.add_argument("--controls", type=int, metavar="N", help="seeds of the control (a tenth)")
    parser.add_argument("--out", type=Path, default=Path("data/experts.jsonl"), help="results (%(default)s)")
    _add_look(parser)
    _add_assets(parser)
    args = parser.parse_args(words)
    controls = args.seeds // 10 if args.controls is None else args.controls
    rows = []
    seeds = range(args.seed, args.seed + args.seeds)
    for rows in score(_tasks(args.task), seeds, controls, args.out, args.look, args.assets):
        print(f"\r{len(rows)} episodes", end="", flush=True)
    print(f"\n{table(rows)}")
    return 0


_VERBS = {"render": _render, "merge": _merge, "sheet": _sheet, "pictures": _pictures, "score": _score}


def _tasks(text: str) -> tuple[str, ...]:
    return TASK_NAMES if text == "all" else _names(text)


def _folder(text: str) -> Path:
    return Path(text).resolve()


def _shard(text: str) -> tuple[int, int]:
    index, _, shards = text.partition("/")
    return int(index), int(shards)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
