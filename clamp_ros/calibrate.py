"""`clamp calibrate`: print a board, take shots of it, compute the cameras' poses, and check them later.

    clamp calibrate board data/board.pdf
    clamp calibrate capture data/calibration/monday
    clamp calibrate solve data/calibration/monday --write
    clamp calibrate check data/calibration/friday

    clamp calibrate rehearse data/calibration/rehearsal     all of it in simulation, without a robot
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration import clouds, icp, quality
from clamp_ros.calibration.adjust import Adjusted
from clamp_ros.calibration.board import DICTIONARIES, Board
from clamp_ros.calibration.cameras_file import read_cameras, write_poses
from clamp_ros.calibration.capture import STILL_NS, STILL_RAD, Places, detect
from clamp_ros.calibration.printing import PAPERS_M, print_board
from clamp_ros.calibration.problem import Matrix
from clamp_ros.calibration.session import MOUNTS, Picture, Session, Shot
from clamp_ros.calibration.solve import Observed, Solution, check, observe, solve
from clamp_ros.contract.errors import CalibrationError, ConfigError, TransformError
from clamp_ros.contract.interfaces import CAMERAS, optical_frame
from clamp_ros.contract.robot import GRIPPER_INDICES
from clamp_ros.files import write_whole
from clamp_ros.record.episode import Episode, JointSeries
from clamp_ros.share import share_folder
from clamp_ros.verbs import VerbParser

EXIT_PROBLEM = 1
PAUSE_NS = 2 * STILL_NS
"""Arms that stand still for so long in a bag were put there for a shot."""
_ICP_SHOTS = 4
_GOOD_MM, _GOOD_DEG = 1.0, 0.1


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command sets `run`."""
    parser = VerbParser(
        prog="clamp calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    one = commands.add_parser("board", help="the ChArUco board at true scale, as PDF or PNG")
    one.add_argument("out", type=Path, metavar="FILE", help="ends in .pdf or .png")
    one.add_argument("--paper", default="a3", choices=tuple(PAPERS_M), help="landscape (%(default)s)")
    _add_board(one)
    one.set_defaults(run=_run_board)
    one = commands.add_parser("capture", help="take shots from a running system, one a key press")
    one.add_argument("session", type=Path, metavar="DIR", help="folder of the session; an existing one is gone on with")
    one.add_argument("--cameras", default=",".join(CAMERAS), metavar="A,B", help="%(default)s")
    one.add_argument("--sim", action="store_true", help="use simulated time")
    _add_config(one)
    _add_board(one)
    one.set_defaults(run=_run_capture)
    one = commands.add_parser("solve", help="compute the cameras' poses from a session, or from a bag")
    one.add_argument("source", type=Path, metavar="SESSION|BAG")
    one.add_argument("--write", action="store_true", help="put the poses into the cameras' file, unless they fail")
    one.add_argument("--icp", action="store_true", help="bring fixed cameras' clouds together (Open3D)")
    _add_config(one)
    _add_board(one)
    one.set_defaults(run=_run_solve)
    one = commands.add_parser("check", help="has a camera moved since? exit code 1 if so, or if it cannot be told")
    one.add_argument("source", type=Path, metavar="SESSION|BAG")
    _add_config(one)
    _add_board(one)
    one.set_defaults(run=_run_check)
    one = commands.add_parser("rehearse", help="a whole session in simulation, whose arms move by themselves; exit "
                              "code 1 if a camera does not come out to within 1 mm and 0.1 degrees")  # fmt: skip
    one.add_argument("folder", type=Path, metavar="DIR", help="folder of the session, a new one")
    one.add_argument("--places", type=int, default=4, metavar="N", help="of the board (%(default)s)")
    one.add_argument("--shots", type=int, default=3, metavar="N", help="at each place (%(default)s)")
    one.add_argument("--seed", type=int, default=0, help="of the arms' poses (%(default)s)")
    one.set_defaults(run=_run_rehearse)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="parameter file of camera_node (cameras.yaml)")


def _add_board(parser: argparse.ArgumentParser) -> None:
    board = Board()
    group = parser.add_argument_group("the board; a session that exists knows its own")
    group.add_argument("--columns", type=int, default=board.columns, metavar="N", help="squares (%(default)s)")
    group.add_argument("--rows", type=int, default=board.rows, metavar="N", help="squares (%(default)s)")
    group.add_argument("--square-mm", type=float, default=1e3 * board.square_m, metavar="MM",
                       help="edge of a square as measured on the print (%(default)g)")  # fmt: skip
    group.add_argument("--marker-mm", type=float, default=0.0, metavar="MM", help="edge of a marker (0.74 of a square)")
    group.add_argument("--dictionary", default=board.dictionary, choices=DICTIONARIES, help="%(default)s")


def _board(args: argparse.Namespace) -> Board:
    return Board(args.columns, args.rows, round(1e-3 * args.square_mm, 9), round(1e-3 * args.marker_mm, 9),
                 args.dictionary)  # fmt: skip


def _config(args: argparse.Namespace) -> Path:
    return args.config or share_folder() / "config" / "cameras.yaml"


def _mounts(config: Path, cameras: Sequence[str]) -> dict[str, str]:
    """What cameras are mounted on, as their file says; as on an ALOHA 2 where it says nothing."""
    known = read_cameras(config)
    return {camera: known[camera].frame if camera in known else MOUNTS[camera] for camera in cameras}


def _run_board(args: argparse.Namespace) -> int:
    board = _board(args)
    print_board(board, args.out, args.paper)
    print(f"{args.out}: {board} on {args.paper}. Print it at 100 %, glue it onto something flat, measure a square,")
    print("and give what you measured as --square-mm where it is not what is said here.")
    return 0


def _run_capture(args: argparse.Namespace) -> int:
    from clamp_ros.calibration.capture_node import capture

    cameras = [name.strip() for name in args.cameras.split(",") if name.strip()]
    for camera in cameras:
        if camera not in CAMERAS:
            raise ConfigError(f"camera {camera!r} is not one of {', '.join(CAMERAS)}")
    mounts = _mounts(_config(args), cameras)
    board = _board(args)
    if (args.session / "session.json").is_file():
        board = Session.open(args.session).board
    parameters: dict[str, Any] = {
        "session": str(args.session), "cameras": cameras, "frames": list(mounts.values()), "use_sim_time": args.sim,
        **{f"board.{key}": value for key, value in board.to_dict().items()},
    }  # fmt: skip
    code = capture([f"{name}:={json.dumps(value)}" for name, value in parameters.items()])
    if code == 0 and Session.open(args.session).shots():
        print(f"next: clamp calibrate solve {args.session}")
    return code


def _run_rehearse(args: argparse.Namespace) -> int:
    from clamp_ros.bringup.rehearsal import rehearse
    from clamp_ros.bringup.session import own_domain

    with own_domain():
        found = rehearse(args.folder, places=args.places, shots=args.shots, seed=args.seed)
    good = len(found) == len(CAMERAS) and all(one.mm <= _GOOD_MM and one.deg <= _GOOD_DEG for one in found)
    return 0 if good else EXIT_PROBLEM


def _run_solve(args: argparse.Namespace) -> int:
    session = _session(args)
    config = _config(args)
    observed = _observe(session)
    solution = solve(observed, _present(config, observed))
    report = quality.report(observed, solution)
    text, cameras = report.text, dict(solution.cameras)
    if args.icp:
        best = sorted(range(len(observed.shots)), key=lambda i: -_corners(solution, i))[:_ICP_SHOTS]
        refined = icp.refine(solution, [session.read(session.folder / observed.shots[i]) for i in best])
        cameras, text = dict(refined.cameras), "\n".join((text, *refined.messages))
    print(text)
    result = report.to_dict(solution)
    for name, pose in cameras.items():
        result["cameras"][name]["frame_from_camera"] = pose.tolist()
    picture = session.folder / "overlay.png"
    _write_picture(picture, _overlay(session, observed, solution, cameras))
    write_whole(session.folder / "calibration.json", (json.dumps(result, indent=1) + "\n").encode())
    write_whole(session.folder / "report.txt", f"{text}\n".encode())
    print(f"{session.folder}: report.txt, calibration.json, overlay.png")
    failed = [name for name, verdict in report.cameras.items() if verdict.grade is quality.Grade.FAIL]
    if args.write:
        if failed or report.board.grade is quality.Grade.FAIL:
            raise CalibrationError(f"{config} is left as it was: {', '.join(failed) or 'the board'} failed, see above")
        note = f"calibrated {time.strftime('%Y-%m-%d')}, {report.grade.name.lower()}"
        backup = write_poses(config, cameras, session.mounts, note)
        print(f"{config}: poses of {', '.join(cameras)} written, the old file is {backup.name}")
        print("camera_node reads them when it is started again")
    elif not failed:
        print(f"to use it: clamp calibrate solve {args.source} --write")
    return EXIT_PROBLEM if report.grade is quality.Grade.FAIL else 0


def _run_check(args: argparse.Namespace) -> int:
    session = _session(args)
    observed = _observe(session)
    solution, as_is = check(observed, _present(_config(args), observed))
    report = quality.report_drift(observed, solution, _rms_px(as_is))
    print(report.text)
    return 0 if report.grade is quality.Grade.PASS else EXIT_PROBLEM


def _rms_px(adjusted: Adjusted) -> float:
    return float(np.sqrt(np.mean(np.concatenate([np.sum(r**2, axis=1) for r in adjusted.residuals]))))


def _observe(session: Session) -> Observed:
    end = "\r" if sys.stderr.isatty() else ""
    return observe(session, lambda name: print(f"{name} {end}", end=end, file=sys.stderr) if end else None)


def _present(config: Path, observed: Observed) -> dict[str, Matrix]:
    """The calibration in use: the file's, and where it has none what the running system had."""
    present = dict(observed.present)
    for name, mounted in read_cameras(config).items():
        if mounted.frame_from_camera is not None and mounted.frame == observed.problem.mounts.get(name):
            present[name] = mounted.frame_from_camera
    return present


def _corners(solution: Solution, shot: int) -> int:
    return sum(len(view.pixels) for view in solution.problem.views if view.shot == shot)


def _overlay(
    session: Session, observed: Observed, solution: Solution, cameras: Mapping[str, Matrix]
) -> NDArray[np.uint8]:
    """Of the shot in which most of the board was seen."""
    number = max(range(len(observed.shots)), key=lambda i: _corners(solution, i))
    shot = session.read(session.folder / observed.shots[number])
    board = solution.adjusted.estimate.boards.get(shot.place, np.eye(4))
    middle = np.array([*(0.5 * extent for extent in observed.board.size_m), 0.0, 1.0])
    problem = solution.problem
    before = {name: pose for name, pose in solution.present.items() if name in cameras}
    centre = (board @ middle)[:3].tolist()
    return clouds.overlay(clouds.clouds(shot, problem, before), clouds.clouds(shot, problem, cameras), centre)


def _write_picture(path: Path, image: NDArray[np.uint8]) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise CalibrationError(f"{path} cannot be written")


def _session(args: argparse.Namespace) -> Session:
    """The session that is named, or one made of the bag that is."""
    source: Path = args.source
    if (source / "session.json").is_file():
        return Session.open(source)
    if (source / "metadata.yaml").is_file():
        return session_from_bag(source, source.parent / f"{source.name}_calibration", _board(args), _config(args))
    raise CalibrationError(f"{source} is neither a session of `clamp calibrate capture` nor a bag with a metadata.yaml")


def session_from_bag(bag: Path, folder: Path, board: Board, config: Path) -> Session:
    """A session with one shot for each pause of the arms in a bag; one that is there already is read as it is.

    Args:
        bag: a recorded bag with the cameras' topics and /joint_states.
        folder: of the session.
        board: the board.
        config: the cameras' parameter file, which says what they are mounted on.

    Raises:
        CalibrationError: the arms never pause, or no camera was recorded.
        RecordError: the bag is damaged.
    """
    if (folder / "session.json").is_file():
        session = Session.open(folder)
        if session.board != board:
            raise CalibrationError(f"{folder} was made with a board of {session.board}; remove it to use {board}")
        return session
    with Episode.open(bag) as episode:
        cameras = [camera for camera in episode.cameras if camera in CAMERAS]
        if not cameras:
            raise CalibrationError(f"{bag} has no colour and depth of a camera; record it with `clamp record`")
        spans = pauses(episode.joint_states)
        if not spans:
            raise CalibrationError(
                f"the arms never stand still for {1e-9 * PAUSE_NS:g} s in {bag}: pause at each pose when you record"
            )
        session = Session.create(folder, board, _mounts(config, cameras))
        places = Places()
        for first, last in spans:
            shot = _shot(episode, cameras, session.mounts, first, last)
            if shot is not None:
                place = places.follow(detect(board, shot), session.mounts, unknown_is_new=True)
                session.add(Shot(shot.stamp_ns, shot.joints, place, shot.pictures))
    print(f"{folder}: {len(session.shots())} shots from {bag}")
    return session


def pauses(joints: JointSeries) -> list[tuple[int, int]]:
    """First and last stamps of the times in which the arms stood still for `PAUSE_NS` or more."""
    arms = np.delete(joints.positions, GRIPPER_INDICES, axis=1)
    stamps = joints.stamps_ns
    spans: list[tuple[int, int]] = []
    first = 0
    low = high = arms[:1].copy()
    for i in range(len(stamps) + 1):
        if i < len(stamps):
            new_low, new_high = np.minimum(low, arms[i]), np.maximum(high, arms[i])
            if (new_high - new_low).max() <= STILL_RAD:
                low, high = new_low, new_high
                continue
        if i and stamps[i - 1] - stamps[first] >= PAUSE_NS:
            spans.append((int(stamps[first]), int(stamps[i - 1])))
        if i < len(stamps):
            first, low, high = i, arms[i : i + 1].copy(), arms[i : i + 1].copy()
    return spans


def _shot(
    episode: Episode, cameras: Sequence[str], mounts: Mapping[str, str], first: int, last: int
) -> Shot | None:  # fmt: skip
    """The pictures nearest to a pause's middle; None if there is none within it."""
    middle = (first + last) // 2
    pictures: dict[str, Picture] = {}
    for camera in cameras:
        frames = episode.frames(camera)
        inside = np.flatnonzero((frames.stamps_ns >= first) & (frames.stamps_ns <= last))
        if not len(inside):
            continue
        i = int(inside[np.argmin(np.abs(frames.stamps_ns[inside] - middle))])
        stamp = int(frames.stamps_ns[i])
        try:
            pose = episode.tf.lookup(mounts[camera], optical_frame(camera), stamp)
        except TransformError:
            pose = None
        pictures[camera] = Picture(stamp, np.array(frames.color(i)), np.array(frames.depth_mm(i)), frames.pinhole, pose)
    if not pictures:
        return None
    joints = episode.joint_states
    window = joints.positions[(joints.stamps_ns >= first) & (joints.stamps_ns <= last)]
    return Shot(max(p.stamp_ns for p in pictures.values()), window.mean(axis=0), 0, pictures)


def main(words: Sequence[str]) -> int:
    """Runs the words after `clamp calibrate` and returns the exit code."""
    args = build_parser().parse_args(list(words))
    return args.run(args)
