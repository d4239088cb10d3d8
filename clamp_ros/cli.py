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
from clamp_ros.verbs import VerbParser

EXIT_PROBLEM = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_EPILOG = """\
examples:
  clamp demo                                               a policy does its task in simulation, with film and bag
  clamp up sim:=true task:=mug_on_plate_easy               the whole system, until Ctrl-C
  clamp demos --task mug_on_plate --episodes 150 --out data/mug
  clamp eval --task mug_on_plate_easy --episodes 50        score the shipped policy on unseen layouts
  clamp record --out data/episodes                         record a running system, with a live audit
  clamp bag recover data/episodes                          mend what a crash or a full disk has left
  clamp info data/mug/mug_on_plate_000000                  audit a bag

`clamp COMMAND --help` tells more about each.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each command sets `run`, which takes the parsed arguments."""
    parser = VerbParser(
        prog="clamp",
        description="Run, record, demonstrate and score policies that see in 3D, on ALOHA 2 or in simulation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clamp_ros {clamp_ros.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (summary, _) in _PASSED_ON.items():
        commands.add_parser(name, help=summary, add_help=False)
    for add in (_add_stop, _add_record, _add_replay, _add_info):
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
        name, _ = up.graph_name([word for word in words if not word.startswith("-")])
        print(f"usage: clamp up [{'|'.join(graph.GRAPHS)}] [name:=value ...]\n")
        print(f"Runs the nodes of `ros2 launch clamp_ros aloha_{name}.launch.py`; without a name the policy's.")
        print("Ctrl-C stops them; a second one kills them.\n\narguments:")
        print(up.describe(graph.GRAPHS[name][0]))
        return 0
    return up.up(words)


def _run_teleop(words: Sequence[str]) -> int:
    from clamp_ros.bringup import graph, up

    if {"-h", "--help", "--show-args"} & set(words):
        print("usage: clamp teleop [name:=value ...]\n")
        print("Runs the nodes of `ros2 launch clamp_ros aloha_teleop.launch.py`,")
        print("and reads the keys of `clamp keys` where there is a terminal. Ctrl-C stops them.\n\narguments:")
        print(up.describe(graph.TELEOP_ARGUMENTS))
        return 0
    from clamp_ros.bringup import keys

    return up.up(words, graph.aloha_teleop, keys.beside)


def _run_keys(words: Sequence[str]) -> int:
    from clamp_ros.bringup import keys

    if words:
        print(f"usage: clamp keys\n\nTeleoperation by single keys, beside a running system.\n{keys.HELP}")
        return 0 if {"-h", "--help"} & set(words) else EXIT_USER_ERROR
    return keys.main()


def _run_demo(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.bringup.demo").main(words)


def _run_preflight(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.bringup.preflight").main(words)


def _run_train(words: Sequence[str]) -> int:
    for module in ("torch", "clamp_training"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"`clamp train` needs {module}, which is not installed: pip install 'clamp_ros[training]'"
            )
    return importlib.import_module("clamp_training.cli").main(words)


def _run_calibrate(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.calibrate").main(words)


def _run_demos(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.demos.command").main(words)


def _run_bag(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.bags").main(words)


def _run_eval(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.score.command").evaluate(words)


def _run_report(words: Sequence[str]) -> int:
    return importlib.import_module("clamp_ros.score.command").report(words)


_PASSED_ON: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "up": ("run the system where there is no `ros2 launch`: clamp up sim:=true", _run_up),
    "teleop": ("move the robot, or its simulation, with the leader arms: clamp teleop sim:=true", _run_teleop),
    "keys": ("start, stop and discard teleoperation by keys or a foot pedal", _run_keys),
    "demo": ("watch the shipped policy do its task in simulation; leaves a film and a bag", _run_demo),
    "calibrate": ("tell where the cameras are, from pictures of a printed board", _run_calibrate),
    "preflight": ("check ports, motors, cameras, policy and machine before the robot moves", _run_preflight),
    "demos": ("make demonstrations with a scripted expert, one bag an episode; merge and score them", _run_demos),
    "bag": ("mend and audit bags; export to and import from other stacks' datasets", _run_bag),
    "eval": ("score policies over many unseen episodes", _run_eval),
    "report": ("make one HTML page of results of `clamp eval`", _run_report),
    "train": ("convert bags, pretrain encoders, train and export a policy (needs torch)", _run_train),
}
"""Commands whose arguments another module reads: their summary, and what takes the words after them."""


def _add_stop(commands: Any) -> None:
    parser = _command(
        commands, "stop", "emergency stop of a running system: the arms hold until it is released", _run_stop,
        "In the terminal of `clamp up`, the space bar does the same at once.",
    )  # fmt: skip
    parser.add_argument("--release", action="store_true", help="leave the stop; the policy may act again")


def _run_stop(args: argparse.Namespace) -> int:
    from clamp_ros.bringup.stop import stop

    done, text = stop(args.release)
    print(text, file=sys.stdout if done else sys.stderr)
    return 0 if done else EXIT_PROBLEM


def _add_record(commands: Any) -> None:
    parser = _command(
        commands, "record", "record a running system, one bag an episode", _run_record,
        "Records until Ctrl-C, and shows every topic's rate, gaps and losses meanwhile. With --services it waits for\n"
        "/record/start, stop, discard and keep instead. A bag is a rosbag2 directory that `ros2 bag`, rosbags and\n"
        "Foxglove read; the verdict on it is in its metadata.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("data/episodes"), help="folder for the bags (%(default)s)")
    parser.add_argument("--task", default="", help="for the bag's name and metadata; a simulation tells its own")
    parser.add_argument("--operator", default="", help="who moves the arms")
    parser.add_argument("--cameras", type=_names, default=("front_left", "back_right"), metavar="A,B",
                        help="cameras to record (front_left,back_right)")  # fmt: skip
    parser.add_argument("--images", default="raw", choices=("raw", "compressed"),
                        help="raw, or JPEG and PNG as the camera node offers them (%(default)s)")  # fmt: skip
    parser.add_argument("--compression", default="lz4", choices=("none", "lz4", "zstd"), help="%(default)s")
    parser.add_argument("--calibration", type=Path, action="append", default=[], metavar="FILE",
                        help="configuration to keep in the metadata; may be given again")  # fmt: skip
    parser.add_argument("--sim", action="store_true", help="stamp with simulated time")
    parser.add_argument("--services", action="store_true", help="wait for the services")
    parser.add_argument("--keep", type=float, default=0.0, metavar="S",
                        help="with --services: hold the last S seconds in memory for /record/keep")  # fmt: skip


def _run_record(args: argparse.Namespace) -> int:
    import json

    from clamp_ros.record.recorder_node import RecorderNode
    from clamp_ros.record.view import View
    from clamp_ros.ros.run import run_node

    if args.keep and not args.services:
        raise ConfigError("--keep needs --services: what is recorded from the start is kept anyway")
    parameters = {
        "folder": str(args.out), "task": args.task, "operator": args.operator, "cameras": list(args.cameras),
        "images": args.images, "compression": args.compression, "calibration": list(map(str, args.calibration)),
        "keep_s": args.keep, "auto_start": not args.services, "use_sim_time": args.sim,
    }  # fmt: skip
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
    view = View(sys.stdout)
    return run_node(lambda: RecorderNode(view.show), ["clamp record", "--ros-args", *words])


def _add_replay(commands: Any) -> None:
    parser = _command(
        commands, "replay", "play a bag's recorded commands, on the robot or in simulation", _run_replay,
        "On the system that runs (`clamp up`, or a launch file): the arms approach the recording's first pose,\n"
        "follow it through the safety gate, and hold its last pose. With --sim it starts a simulation of the bag's\n"
        "task and seed, and tells whether the task was done: exit code 1 if not.",
    )  # fmt: skip
    parser.add_argument("bag", type=Path)
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="of the recording (%(default)s)")
    parser.add_argument("--approach", type=float, default=0.4, metavar="RAD_S", help="fastest joint (%(default)s)")
    parser.add_argument("--sim", action="store_true", help="in a simulation of its own")
    parser.add_argument("--sim-time", action="store_true", help="the system that runs is a simulation")
    parser.add_argument("--record", type=Path, metavar="DIR", help="with --sim: record the replay into this folder")


def _run_replay(args: argparse.Namespace) -> int:
    from clamp_ros.bringup.replay import replay, replay_in_simulation

    parameters = {"bag": str(args.bag), "speed": args.speed, "approach_rad_s": args.approach}
    if not args.sim:
        if args.record is not None:
            raise ConfigError("--record needs --sim; on a running system use `clamp record`")
        return replay(parameters, args.sim_time)
    from clamp_ros.bringup.session import own_domain

    with own_domain():
        done = replay_in_simulation(parameters, Path("data/replay/log.txt"), args.record)
    where = f"; recorded to {done.bag}" if done.bag is not None else ""
    print(f"{args.bag}: {'success' if done.success else 'no success'} after {done.seconds:.1f} s{where}")
    return 0 if done.success else EXIT_PROBLEM


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
