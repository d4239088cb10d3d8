"""The command `clamp`: thin sub-commands over the package. What a command needs is imported when it runs.

Exit codes: 0 done; 1 it ran, and the answer is no (an audit found problems, a node died); 2 the user must mend
something, which one line on stderr names.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import clamp_ros
from clamp_ros.contract.errors import ClampError, ConfigError
from clamp_ros.contract.tasks import TASK_NAMES

EXIT_PROBLEM = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_EPILOG = """\
examples:
  clamp demo                                               a policy does its task in simulation, with film and bag
  clamp up sim:=true task:=mug_on_plate_easy               the whole system, until Ctrl-C
  clamp demos --task mug_on_plate --episodes 150 --out data/mug
  clamp eval --task mug_on_plate_easy --episodes 50        score the shipped policy on unseen layouts
  clamp info data/mug/mug_on_plate_000000                  audit a bag

`clamp COMMAND --help` tells more about each.
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest valid command."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each command sets `run`, which takes the parsed arguments."""
    parser = _Parser(
        prog="clamp",
        description="Run, record, demonstrate and score policies that see in 3D, on ALOHA 2 or in simulation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clamp_ros {clamp_ros.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (summary, _) in _PASSED_ON.items():
        commands.add_parser(name, help=summary, add_help=False)
    for add in (_add_record, _add_eval, _add_info):
        add(commands)
    return parser


def _command(commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], int], more: str) -> Any:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{more}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _run_up(words: Sequence[str]) -> int:
    from clamp_ros.bringup import graph, up

    if {"-h", "--help", "--show-args"} & set(words):
        print("usage: clamp up [name:=value ...]\n\nRuns the nodes of `ros2 launch clamp_ros aloha_policy.launch.py`.")
        print("Ctrl-C stops them; a second one kills them.\n\narguments:")
        print(up.describe(graph.ARGUMENTS))
        return 0
    return up.up(words)


def _run_demo(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.bringup.demo").main(words)


def _run_train(words: Sequence[str]) -> int:
    for module in ("torch", "clamp_training"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"`clamp train` needs {module}, which is not installed: pip install 'clamp_ros[training]'"
            )
    return importlib.import_module("clamp_training.cli").main(words)


def _run_demos(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.demos.command").main(words)


_PASSED_ON: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "up": ("run the system where there is no `ros2 launch`: clamp up sim:=true", _run_up),
    "demo": ("watch the shipped policy do its task in simulation; leaves a film and a bag", _run_demo),
    "demos": ("make demonstrations with a scripted expert, one bag an episode; merge and score them", _run_demos),
    "train": ("convert bags, pretrain encoders, train and export a policy (needs torch)", _run_train),
}
"""Commands whose arguments another module reads: their summary, and what takes the words after them."""


def _add_record(commands: Any) -> None:
    parser = _command(
        commands, "record", "record a running system, one bag an episode", _run_record,
        "Records until Ctrl-C. With --services it waits for /record/start, /record/stop and /record/discard instead.\n"
        "A bag is a rosbag2 directory that `ros2 bag`, rosbags and Foxglove read.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("data/episodes"), help="folder for the bags (%(default)s)")
    parser.add_argument("--task", default="", help="for the bag's name and metadata; a simulation tells its own")
    parser.add_argument("--operator", default="", help="who moves the arms")
    parser.add_argument("--cameras", type=_names, default=("front_left", "back_right"), metavar="A,B",
                        help="cameras to record (front_left,back_right)")  # fmt: skip
    parser.add_argument("--compression", default="lz4", choices=("none", "lz4", "zstd"), help="%(default)s")
    parser.add_argument("--sim", action="store_true", help="stamp with simulated time")
    parser.add_argument("--services", action="store_true", help="wait for the services")
    parser.add_argument("--recover", type=Path, metavar="BAG.partial", help="make a bag readable that was not finished")


def _run_record(args: argparse.Namespace) -> int:
    if args.recover is not None:
        from clamp_ros.record.recover import recover

        recovery = recover(args.recover)
        lost = "; its end is missing" if recovery.truncated else ""
        print(f"{recovery.path}: {recovery.message_count} messages{lost}")
        return 0
    import json

    from clamp_ros.record.recorder_node import RecorderNode
    from clamp_ros.ros.run import run_node

    parameters = {
        "folder": str(args.out), "task": args.task, "operator": args.operator, "cameras": list(args.cameras),
        "compression": args.compression, "auto_start": not args.services, "use_sim_time": args.sim,
    }  # fmt: skip
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
    return run_node(RecorderNode, ["clamp record", "--ros-args", *words])


def _add_eval(commands: Any) -> None:
    parser = _command(
        commands, "eval", "score a policy over many unseen episodes", _run_eval,
        "Prints the success rate with its 95 % Wilson interval. Plays in process, with the code of the nodes, in\n"
        "simulated time; with --ros through the whole running system. The same command goes on where an interrupted\n"
        "one stopped. An episode that fails for any reason counts as a failure.",
    )  # fmt: skip
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASK_NAMES)}")
    parser.add_argument(
        "--artifact", metavar="A", help="policy folder, or name of a shipped one (named after the task)"
    )
    parser.add_argument("--episodes", type=int, default=50, metavar="N", help="%(default)s")
    parser.add_argument("--seed", type=int, metavar="S", help="first seed (1000000, unseen by demonstrations)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results (data/eval/ARTIFACT_TASK.json)")
    parser.add_argument("--video", type=Path, metavar="DIR", help="film every episode into this folder")
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="processes (%(default)s)")
    parser.add_argument("--mode", default="open_loop", choices=("open_loop", "temporal_ensemble"), help="%(default)s")
    parser.add_argument("--execute-steps", type=int, default=25, metavar="N", help="actions of a chunk (%(default)s)")
    parser.add_argument("--latency-ticks", type=int, default=3, metavar="N",
                        help="20 ms ticks from observation to chunk, in process (%(default)s)")  # fmt: skip
    parser.add_argument("--ros", action="store_true", help="through the whole ROS system")


def _run_eval(args: argparse.Namespace) -> int:
    from clamp_ros.bringup.graph import artifact_folder
    from clamp_ros.evaluate import FIRST_SEED, evaluate
    from clamp_ros.rollout import RolloutConfig

    if args.episodes < 1:
        raise ConfigError(f"--episodes is {args.episodes}, expected at least 1")
    artifact = artifact_folder(args.artifact or args.task)
    first = FIRST_SEED if args.seed is None else args.seed
    seeds = range(first, first + args.episodes)
    way = "_ros" if args.ros else ""
    out = args.out or Path("data/eval") / f"{artifact.name}_{args.task}{way}.json"
    rollout = RolloutConfig(args.mode, args.execute_steps, args.latency_ticks)
    if args.ros:
        if args.video is not None:
            raise ConfigError("--video films in process only; leave --ros out, or use `clamp demo`")
        from clamp_ros.bringup.evaluate import evaluate_ros

        results = evaluate_ros(artifact, args.task, seeds, out, rollout=rollout)
    else:
        results = evaluate(artifact, args.task, seeds, out, rollout=rollout, workers=args.workers, video=args.video)
    print(results.text(seeds))
    return 0


def _add_info(commands: Any) -> None:
    parser = _command(
        commands, "info", "tell about a policy, a bag, a folder of bags, or this machine", _run_info,
        "Without a path: what is installed here and what is missing. A bag is audited: exit code 1 if it has problems.",
    )  # fmt: skip
    parser.add_argument("path", nargs="?", type=Path, help="policy folder, bag, or folder of bags")


def _run_info(args: argparse.Namespace) -> int:
    from clamp_ros import info

    if args.path is None:
        print(info.environment())
        return 0
    text, good = info.about(args.path)
    print(text)
    return 0 if good else EXIT_PROBLEM


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check_command(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Refuses an unknown command with the nearest one, which argparse does not do."""
    known = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    first = next(iter(words), "")
    if first and not first.startswith("-") and first not in known:
        near = difflib.get_close_matches(first, known, n=1)
        hint = f"did you mean `clamp {near[0]}`?" if near else f"commands are: {', '.join(known)}"
        raise ConfigError(f"there is no command {first!r}; {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default this process's, and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        _check_command(words, parser)
        if words and words[0] in _PASSED_ON:
            return _PASSED_ON[words[0]][1](words[1:])
        args = parser.parse_args(words)
        if args.command is None:
            parser.print_help()
            return 0
        return args.run(args)
    except ClampError as error:
        print(f"clamp: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("clamp: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
