"""The command line of `clamp demos` and its verbs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.tasks import TASK_NAMES

_MORE = """\
Keeps successes only. Episodes are played in process and hold the topics of the live simulation. The same command goes
on where an interrupted one stopped; demos.jsonl in the folder tells of every seed, sheet.html shows them.

also:
  clamp demos score --task all --seeds 200       how good the experts are, as a table
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def main(words: Sequence[str]) -> int:
    """Runs the words after `clamp demos`; returns the exit code."""
    first = words[0] if words else ""
    if first in _VERBS:
        return _VERBS[first](words[1:])
    if first and not first.startswith("-"):
        raise ConfigError(f"clamp demos has no verb {first!r}; verbs are: {', '.join(_VERBS)}")
    return _make(words)


def _parser(name: str, description: str) -> _Parser:
    return _Parser(
        prog=f"clamp demos{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_look(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--look", default="auto", choices=("auto", "mesh", "primitive"), help="of the robot")


def _make(words: Sequence[str]) -> int:
    parser = _parser("", f"Makes demonstrations with a scripted expert, one bag an episode.\n\n{_MORE}")
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASK_NAMES)}")
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="how many successes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the bags")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="first seed (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="W", help="processes (%(default)s)")
    parser.add_argument("--cameras", type=_names, default=("front_left", "back_right"), metavar="A,B",
                        help="cameras to render (front_left,back_right)")  # fmt: skip
    parser.add_argument("--image-rate", type=int, default=5, metavar="HZ", help="images a second (%(default)s)")
    _add_look(parser)
    parser.add_argument(
        "--compression", default="zstd", choices=("none", "lz4", "zstd"), help="of the bags (%(default)s)"
    )
    parser.add_argument("--randomise", default="", metavar="ASPECTS", help="vary the episodes: all, or some of light,"
                        " colours, camera, depth, latency; light=0.5 is half as much (nothing)")  # fmt: skip
    args = parser.parse_args(words)
    from clamp_ros.demos.make import make_demos
    from clamp_ros.demos.recording import DemoConfig
    from clamp_ros.sim.randomise import Randomisation

    randomise = Randomisation.parse(args.randomise)
    config = DemoConfig(args.task, args.cameras, args.image_rate, args.look, args.compression, randomise)
    summary = make_demos(config, args.episodes, args.out, seed=args.seed, workers=args.workers).to_dict()
    print(
        f"{args.out}: {summary['episodes']} episodes of {summary['mean_seconds']} s, {summary['megabytes']} MB, from"
        f" {summary['attempts']} seeds; made {summary['made_in_this_run']} now at"
        f" {summary['episodes_per_minute']} a minute"
    )
    return 0


def _score(words: Sequence[str]) -> int:
    from clamp_ros.demos.score import FIRST_SEED, score, table

    parser = _parser(" score", "Plays the experts without pictures and prints how often they succeed. The results file"
                               " is gone on with.")  # fmt: skip
    parser.add_argument("--task", default="all", help=f"all, or names of {', '.join(TASK_NAMES)}")
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, metavar="S", help="first seed (%(default)s)")
    parser.add_argument("--controls", type=int, metavar="N", help="seeds with the gripper kept open (a tenth)")
    parser.add_argument("--out", type=Path, default=Path("data/experts.jsonl"), help="results (%(default)s)")
    _add_look(parser)
    args = parser.parse_args(words)
    tasks = TASK_NAMES if args.task == "all" else _names(args.task)
    controls = args.seeds // 10 if args.controls is None else args.controls
    rows = []
    for rows in score(tasks, range(args.seed, args.seed + args.seeds), controls, args.out, args.look):
        print(f"\r{len(rows)} episodes", end="", flush=True)
    print(f"\n{table(rows)}")
    return 0


_VERBS = {"score": _score}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
