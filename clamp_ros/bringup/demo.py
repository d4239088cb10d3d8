"""`clamp demo`: a policy does its task in simulation, through the whole ROS system, and tells what happens.

Starts the graph with the simulation and the recorder, lays out an episode, lets the policy act, and leaves a film of
what it saw, a bag, and the nodes' log. Needs neither a window nor a GPU.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.impl.logging_severity import LoggingSeverity

from clamp_ros.bringup.graph import ARGUMENTS, artifact_folder, resolve
from clamp_ros.bringup.picture import compose
from clamp_ros.bringup.session import START_TIMEOUT_S, Played, Session, own_domain
from clamp_ros.bringup.up import parse_arguments
from clamp_ros.contract.errors import ClampError, TransformError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    CONTROL_STATUS,
    RECORD_START,
    RECORD_STOP,
    VIEWS,
    color_topic,
    gripper_frame,
    object_frame,
    topic,
)
from clamp_ros.contract.robot import ARMS
from clamp_ros.policy.artifact import Artifact
from clamp_ros.ros.convert import array_from_image, stamp_ns
from clamp_ros.ros.run import Health, subscribe
from clamp_ros.ros.tf import TfListener
from clamp_ros.sim.film import Film
from clamp_ros.sim.tasks import TASKS, Task

FIRST_SEED = 1_000_000
"""Demonstrations were made with smaller seeds: the policy has never seen this layout."""
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
_LINE_PERIOD_S = 0.5
_LAST_PICTURE_S = 2.0


class Watcher:
    """What the system publishes while it works, as values: pictures, distances, control state, latency."""

    def __init__(self, session: Session, cameras: Sequence[str]) -> None:
        """Subscribes; `cameras` are those whose colour images are shown."""
        self._node = session.node
        self._node.get_logger().set_level(LoggingSeverity.ERROR)  # what is left over from before a reset is no news
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._cameras = tuple(cameras)
        self._tf = TfListener(self._node, Health(self._node))
        self.picture: NDArray[np.uint8] | None = None
        self.on_picture: Callable[[NDArray[np.uint8]], None] | None = None
        self.control = "waiting"
        self.latency_s: float | None = None
        for camera in cameras:
            subscribe(self._node, topic(color_topic(camera)), self._image_taker(camera))
        subscribe(self._node, VIEWS, self._on_views)
        subscribe(self._node, CONTROL_STATUS, self._on_control)
        subscribe(self._node, ACTION_CHUNK, self._on_chunk)

    def _image_taker(self, camera: str) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            self._images[camera] = array_from_image(message, "rgb8")

        return take

    def _on_views(self, message: Any) -> None:
        if len(self._images) < len(self._cameras):
            return
        images = {camera: self._images[camera] for camera in self._cameras}
        self.picture = compose(images, array_from_image(message, "32FC4"))
        if self.on_picture is not None:
            self.on_picture(self.picture)

    def _on_control(self, message: Any) -> None:
        self.control = message.message

    def _on_chunk(self, message: Any) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        self.latency_s = (now_ns - stamp_ns(message.header.stamp)) / 1e9

    def distance_m(self, first: str, second: str) -> float | None:
        """Distance between two frames now, or None while either is unknown."""
        try:
            tree = self._tf.tree
            pose = tree.lookup(first, second, tree.latest_common_stamp_ns(first, second))
        except TransformError:
            return None
        return float(np.linalg.norm(pose[:3, 3]))

    def line(self, state: dict[str, Any], task: type[Task]) -> str:
        """What is going on, in a line."""
        moved = object_frame(task.moved)
        hands = [self.distance_m(gripper_frame(arm), moved) for arm in ARMS]
        hand = min((distance for distance in hands if distance is not None), default=None)
        latency = "-" if self.latency_s is None else f"{1e3 * self.latency_s:.0f} ms"
        to_goal = "" if task.goal is None else (
            f"{task.moved} to {task.goal} {_cm(self.distance_m(object_frame(task.goal), moved))}  "
        )
        stage = task.stages[state["progress"]]
        return (
            f"{state['time_s']:5.1f} s  {stage:15}  hand to {task.moved} {_cm(hand)}  {to_goal}"
            f"chunk after {latency:>6}  "
            f"{state['real_time_factor']:.2f}x real time  control {self.control}"
        )


def _cm(distance_m: float | None) -> str:
    return "   - cm" if distance_m is None else f"{100.0 * distance_m:4.1f} cm"


def build_parser() -> argparse.ArgumentParser:
    """The command line of `clamp demo`."""
    defaults = resolve({})
    parser = argparse.ArgumentParser(
        prog="clamp demo",
        description="Watch a policy do its task in simulation, through the whole ROS system. No window, no GPU.\n"
        "Leaves a film of what the policy saw, a bag, and the nodes' log. Exit code 0: success; 1: not.",
        epilog="arguments of the form name:=value go to `clamp up`; see clamp up --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", default=defaults["task"], choices=sorted(TASKS), help="%(default)s")
    parser.add_argument("--policy", default="", help="policy folder, or name of a shipped one (named after the task)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="layout of the objects (%(default)s)")
    parser.add_argument("--seconds", type=float, help="simulated time until it counts as failed (the task's own)")
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder for what it leaves (%(default)s)")
    parser.add_argument("words", nargs="*", metavar="name:=value", help="launch arguments")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the demonstration and returns the exit code: 0 success, 1 failure, 130 interrupted.

    Raises:
        ClampError: it cannot start, or the system died; the message says why.
    """
    args = build_parser().parse_args(list(argv))
    resolve(parse_arguments(args.words), ARGUMENTS)  # a typing error should show before anything starts
    artifact = Artifact.load(artifact_folder(args.policy or args.task))
    out = args.out / f"{args.task}_{args.seed}_{datetime.now():%Y%m%d_%H%M%S}"
    words = [
        "sim:=true", "enabled:=false", "record:=true", f"record_to:={out.resolve()}", f"task:={args.task}",
        f"policy:={artifact.folder}", f"seed:={args.seed}", *args.words,
    ]  # fmt: skip
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does: the bag is closed
    try:
        with own_domain() as domain:
            _say(f"starting the system (ROS_DOMAIN_ID={domain}; its log is {out / 'log.txt'})")
            _say("seconds, but for the first time: a minute or two, to compile kernels and prepare meshes")
            with Session(words, out / "log.txt", "demo") as session:
                played = _play(session, artifact, args, out)
    except KeyboardInterrupt:
        _say(f"interrupted; {out} holds what there is")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    if session.exit_code != 0:
        _say(f"the system did not end cleanly (exit code {session.exit_code}); see {out / 'log.txt'}")
    return 0 if played.success else EXIT_FAILURE


def _play(session: Session, artifact: Artifact, args: argparse.Namespace, out: Path) -> Played:
    task = TASKS[args.task]
    watcher = Watcher(session, list(artifact.manifest.cameras))
    session.spin_until(lambda: watcher.picture is not None, START_TIMEOUT_S, "the first views of the scene")
    picture = watcher.picture
    if picture is None:
        raise ClampError("the views are gone")
    session.reset(args.seed)
    bag = session.call(RECORD_START)
    _say(f"{task.description} Layout {args.seed}, policy {artifact.manifest.name}.")
    height, width = picture.shape[:2]
    fps = round(artifact.manifest.image_rate_hz)
    story = _Story(watcher, task)
    with Film(out / "film.mp4", width, height, fps=fps, lines=2) as film:
        watcher.on_picture = lambda shown: film.add(shown, [task.description, story.caption])
        played = session.play(args.seconds or task.max_seconds, story.tell)
        stage = task.stages[played.progress]
        verdict = f"success after {played.seconds:.1f} s" if played.success else (
            f"no success within {played.seconds:.1f} s; it came as far as: {stage}"
        )
        watcher.on_picture = None
        for _ in range(round(_LAST_PICTURE_S * fps)):
            film.add(watcher.picture if watcher.picture is not None else picture, [task.description, verdict])
    session.call(RECORD_STOP, data=played.success)
    _say(verdict)
    _say(f"film  {out / 'film.mp4'}")
    _say(f"bag   {bag}")
    return played


class _Story:
    """Tells an episode as it goes: a line at every new stage, and between them now and then."""

    def __init__(self, watcher: Watcher, task: type[Task]) -> None:
        self._watcher = watcher
        self._task = task
        self._last: tuple[str, float] | None = None
        self.caption = ""

    def tell(self, state: dict[str, Any]) -> None:
        stage = self._task.stages[state["progress"]]
        self.caption = self._watcher.line(state, self._task)
        if self._last is None or stage != self._last[0] or state["time_s"] - self._last[1] >= _LINE_PERIOD_S:
            self._last = stage, state["time_s"]
            _say(self.caption)


def _say(text: str) -> None:
    print(text, flush=True)
