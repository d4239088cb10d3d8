"""The command lines of `clamp eval` and `clamp report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.tasks import TASK_NAMES
from clamp_ros.verbs import VerbParser


def _parser(name: str, description: str) -> VerbParser:
    return VerbParser(
        prog=f"clamp {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def evaluate(words: Sequence[str]) -> int:
    """Runs the words after `clamp eval`; returns the exit code."""
    parser = _parser(
        "eval",
        "Score policies over many unseen episodes.\n\n"
        "Prints the success rate with its 95 % Wilson interval. Plays in process, with the code of the nodes, in\n"
        "simulated time; with --ros through the whole running system. The same command goes on where an interrupted\n"
        "one stopped. An episode that fails for any reason counts as a failure. Several artifacts play the same seeds\n"
        "and are compared; those that are checkpoints of one training run make a curve, whose maximum is told.",
    )
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASK_NAMES)}")
    parser.add_argument(
        "--artifact", nargs="+", metavar="A", default=[],
        help="policy folders, folders of such (checkpoints), or names of shipped ones (named after the task)",
    )  # fmt: skip
    parser.add_argument("--episodes", type=int, metavar="N", help="50, or as many as --seeds are")
    parser.add_argument("--seed", type=int, metavar="S", help="first seed (1000000, unseen by demonstrations)")
    parser.add_argument("--seeds", nargs="+", metavar="A-B", help="seeds and ranges, in place of --episodes and --seed")
    parser.add_argument("--out", type=Path, default=Path("data/eval"), metavar="PATH",
                        help="folder for the results, or a .json file for one artifact (%(default)s)")  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="PAGE", help="HTML page of the results, as of `clamp report`")
    parser.add_argument("--video", type=Path, metavar="DIR", help="film episodes into this folder")
    parser.add_argument("--films", default="all", choices=("all", "failures"), help="to keep (%(default)s)")
    parser.add_argument("--pictures", default=True, action=argparse.BooleanOptionalAction, help="of failures (yes)")
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="processes (%(default)s)")
    parser.add_argument("--stall", type=float, default=300.0, metavar="S",
                        help="seconds without a tick that fail an episode, in process (%(default)s)")  # fmt: skip
    parser.add_argument("--mode", default="open_loop", choices=("open_loop", "temporal_ensemble"), help="%(default)s")
    parser.add_argument("--execute-steps", type=int, default=25, metavar="N", help="actions of a chunk (%(default)s)")
    parser.add_argument("--latency-ticks", type=int, default=3, metavar="N",
                        help="20 ms ticks from observation to chunk, in process (%(default)s)")  # fmt: skip
    parser.add_argument("--assets", type=Path, metavar="DIR", help="objects in place of our own, see docs/tasks.md")
    parser.add_argument("--ros", action="store_true", help="through the whole ROS system")
    return _evaluate(parser.parse_args(words))


def _evaluate(args: argparse.Namespace) -> int:
    if args.task not in TASK_NAMES:  # before the artifact, which is looked for by the task's name
        raise unknown_key(args.task, TASK_NAMES, "task")
    seeds = _eval_seeds(args)
    if args.ros and args.video is not None:
        raise ConfigError("--video films in process only; leave --ros out, or use `clamp demo`")
    from clamp_ros import evaluate as scoring
    from clamp_ros.rollout import RolloutConfig
    from clamp_ros.score import runs

    assets = "" if args.assets is None else str(args.assets.resolve())
    rollout = RolloutConfig(args.mode, args.execute_steps, args.latency_ticks, assets=assets)
    watching = scoring.Watching(args.video, args.films, args.pictures)
    artifacts = [folder for word in args.artifact or [args.task] for folder in _artifact_folders(word)]
    planned = scoring.plan(artifacts, args.task, scoring.ROS if args.ros else scoring.IN_PROCESS, rollout, args.out)
    for warning in (warning for _, begun in planned for warning in begun.warnings(seeds)):
        print(f"clamp: warning: {warning}", file=sys.stderr)
    results = []
    for artifact, begun in planned:
        if args.ros:
            from clamp_ros.bringup.evaluate import evaluate_ros

            found = evaluate_ros(
                artifact, args.task, seeds, begun.path, rollout=rollout, pictures=args.pictures
            )
        else:
            found = scoring.evaluate(
                artifact, args.task, seeds, begun.path,
                rollout=rollout, watching=watching, workers=args.workers, stall_s=args.stall,
            )  # fmt: skip
        print(found.text(seeds))
        results.append(found)
    if len(results) > 1:
        print(runs.words(runs.group(results)))
    if args.report is not None:
        from clamp_ros.score.page import write_page

        write_page([found.path for found in results], args.report)
        print(f"report: {args.report}")
    return 0


def _eval_seeds(args: argparse.Namespace) -> Sequence[int]:
    if args.episodes is not None and args.episodes < 1:
        raise ConfigError(f"--episodes is {args.episodes}, expected at least 1")
    from clamp_ros.score.seeds import FIRST_SEED, parse_seeds

    if args.seeds is None:
        first = FIRST_SEED if args.seed is None else args.seed
        return range(first, first + (args.episodes or 50))
    seeds = parse_seeds(args.seeds)
    if args.seed is not None or args.episodes not in (None, len(seeds)):
        raise ConfigError(f"--seeds names {len(seeds)} seeds; leave --seed and --episodes out beside it")
    return seeds


def _artifact_folders(word: str) -> list[Path]:
    """A policy's folder; of a folder of policies, each of theirs."""
    from clamp_ros.bringup.graph import artifact_folder

    folder = Path(word)
    found = [] if (folder / "manifest.json").exists() else sorted(folder.glob("*/manifest.json"))
    return [path.parent.resolve() for path in found] or [artifact_folder(word)]


def report(words: Sequence[str]) -> int:
    """Runs the words after `clamp report`; returns the exit code."""
    parser = _parser(
        "report",
        "Make one HTML page of results of `clamp eval`.\n\n"
        "Tables of method by task with the maximum over checkpoints, curves over training steps, paired comparisons,\n"
        "failures with their pictures, and every episode. The page stands by itself: no scripts, nothing to load.",
    )
    parser.add_argument("results", nargs="+", type=Path, help="files of `clamp eval`, or folders of such")
    parser.add_argument("--out", type=Path, default=Path("data/eval/report.html"), metavar="PAGE", help="%(default)s")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="failures shown of each run (%(default)s)")
    args = parser.parse_args(words)
    from clamp_ros.score.page import write_page

    files = [file for path in args.results for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    write_page(files, args.out, args.pictures)
    print(f"{args.out}: {len(files)} results")
    return 0
