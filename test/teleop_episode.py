"""A teleoperated episode through the whole stack in simulation, with the figures of each step.

    python test/teleop_episode.py [--task mug_on_plate_easy] [--seed 3] [--out data/teleop]

Emulated leader arms on the wire, and hands on them that do the task as its scripted expert does; `clamp up teleop` with
the recorder; the bag's audit; its replay in a simulation of its own; and its conversion for training. Exit code 1 where
a step did not do what it has to. Nothing is judged by a clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clamp_ros.bringup.replay import replay_in_simulation
from clamp_ros.bringup.session import START_TIMEOUT_S, Session, own_domain
from clamp_ros.bringup.up import die_with_parent
from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.interfaces import (
    CONTROL_STATUS,
    JOINT_COMMANDS,
    LEADER_STATES,
    TELEOP_START,
    TELEOP_STATUS,
    TELEOP_STOP,
)
from clamp_ros.contract.robot import ARMS, GRIPPER_INDICES, VELOCITY_LIMITS
from clamp_ros.demos import DemoConfig, Demonstrator
from clamp_ros.record import messages
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.record.replay import load_commands
from clamp_ros.ros.run import subscribe

LEADERS = Path(__file__).parent / "hardware_emulation" / "leaders.py"
PATIENT: dict[str, Any] = {
    "control_node": {"stale_after_s": 1.0},
    "teleop_node": {
        "motors": {"reply_s": 0.1, "retry_s": 0.5, "watchdog_s": 2.5, "fresh_s": 1.0, "silent_s": 20.0},
        "law": {"leader_lost_s": 5.0, "take_s": 30.0, "align_s": 120.0},
        "command_timeout_s": 5.0,
        "answer_s": 120.0,
    },
}
"""Deadlines of a busy machine, on which simulated time is slow and emulated motors answer late."""
_IS_ARM = np.isin(np.arange(14), GRIPPER_INDICES, invert=True)
_WAIT_S = 240.0
_HOLD_S = 4.0
_DONE_S = 0.5
_MB = 1e6


@dataclass
class Step:
    """What a step of an episode's life did: figures to read, and what was not as it has to be."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The row of the table."""
        shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in self.figures.items())  # fmt: skip
        return f"| {self.name} | {shown} | {'; '.join(self.wrong) or 'good'} |"


def expert_hands(task: str, seed: int, folder: Path, slower: float) -> NDArray[np.float64]:
    """(N, 14) 20 ms apart: the commands of the task's scripted expert, slowed down, after a while at rest."""
    row = Demonstrator(DemoConfig(task, ("front_left",), image_rate_hz=1, look="primitive")).demonstrate(seed, folder)
    if not row["success"]:
        raise ClampError(f"the expert of {task} fails at seed {seed}: {row['reason']}; take another seed")
    return slowed(load_commands(folder)[1].positions, slower)


def slowed(rows: NDArray[np.float64], slower: float) -> NDArray[np.float64]:
    """(N, 14) rows that take `slower` times as long, after `_HOLD_S` at the first."""
    at = np.arange(0.0, len(rows) - 1, 1.0 / slower)
    between = np.array([np.interp(at, np.arange(len(rows)), column) for column in rows.T]).T
    return np.vstack([np.tile(rows[0], (round(50 * _HOLD_S), 1)), between, rows[-1:]])


@contextlib.contextmanager
def leaders(folder: Path, hands: NDArray[np.float64], more: dict[str, Any] | None = None) -> Iterator[list[str]]:
    """Serves two emulated leaders with (N, 14) hands on them; gives the launch arguments that find them.

    Args:
        folder: for the ports and the parameter file.
        hands: positions 20 ms apart.
        more: parameters of nodes beside `PATIENT`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "hands.npy", hands)
    sections = {name: {"ros__parameters": values} for name, values in {**PATIENT, **(more or {})}.items()}
    config = folder / "patient.yaml"
    config.write_text(json.dumps(sections))  # JSON is YAML
    prefix = folder / "leader"
    emulation = subprocess.Popen(
        [sys.executable, LEADERS, prefix, folder / "hands.npy"], stdout=subprocess.PIPE, preexec_fn=die_with_parent
    )
    try:
        assert emulation.stdout is not None
        for arm in ARMS:
            assert f"leader_{arm} -> " in emulation.stdout.readline().decode()
        yield [f"leaders:={prefix}", f"config:={config}"]
    finally:
        emulation.kill()
        emulation.communicate()


class Operator:
    """Starts and stops teleoperation in a session, and hears what it and the control node do."""

    def __init__(self, session: Session) -> None:
        """Subscribes."""
        self.session = session
        self.said: dict[str, str] = {}
        subscribe(session.node, CONTROL_STATUS, lambda message: self.said.update(control=message.message))
        subscribe(session.node, TELEOP_STATUS, lambda message: self.said.update(teleop=message.message))

    def start(self) -> None:
        """Takes over, asking again as long as something is not up yet; returns once the followers follow."""
        refusals: list[str] = []

        def started() -> bool:
            try:
                self.session.call(TELEOP_START, _WAIT_S)
            except ClampError as error:
                refusals.append(str(error))
                return False
            return True

        self.session.spin_until(started, START_TIMEOUT_S, "the start of teleoperation")
        self.session.spin_until(lambda: self.said.get("teleop") == "following", _WAIT_S, "the followers to follow")

    def stop(self, success: bool) -> None:
        """Hands back."""
        self.session.call(TELEOP_STOP, _WAIT_S, data=success)


def teleoperate(words: list[str], out: Path, seconds: float) -> tuple[Step, Path]:
    """A session of `clamp up teleop`: until the task is done, or the hands have ended.

    Args:
        words: launch arguments.
        out: takes the log, and the bag below `bags`.
        seconds: of the hands, by the wall's clock.
    """
    begun_s = time.monotonic()
    bags = out / "bags"
    everything = ["teleop", "sim:=true", "operator:=hands", "record:=true", f"record_to:={bags.resolve()}", *words]
    with Session(everything, out / "teleop.log", "operator") as session:
        operator = Operator(session)
        operator.start()
        start_s, start_sim_s = time.monotonic(), session.task_state.get("time_s", 0.0)
        done_s: list[float] = []

        def over() -> bool:
            if not session.task_state.get("success"):
                done_s.clear()
            elif not done_s:
                done_s.append(time.monotonic())
            ended = operator.said["teleop"] != "following" or time.monotonic() - start_s > seconds
            return ended or bool(done_s and time.monotonic() - done_s[0] > _DONE_S)

        session.spin_until(over, seconds + _WAIT_S, "the end of the hands")
        teleop, success = operator.said["teleop"], bool(session.task_state.get("success"))
        real_s, sim_s = time.monotonic() - start_s, session.task_state["time_s"] - start_sim_s
        operator.stop(success)
        session.spin_until(lambda: list(bags.glob("*/metadata.yaml")), _WAIT_S, "the bag")
    (bag,) = (path.parent for path in bags.glob("*/metadata.yaml"))
    step = Step("teleoperated", {
        "s until it follows": start_s - begun_s, "s followed": real_s, "s simulated": sim_s, "task done": success,
    })  # fmt: skip
    if teleop != "following":
        step.wrong.append(f"it ended by itself: {teleop}")
    if session.exit_code != 0:
        step.wrong.append(f"the system ended with exit code {session.exit_code}")
    return step, bag


def recorded(bag: Path) -> Step:
    """What the recorder said live, and what a look at the commands and leaders in the bag tells."""
    with Episode.open(bag) as episode:
        live, commands, measured = episode.metadata.audit, episode.commands, episode.joint_states
        leader = [messages.decode_joints(cdr)[:2] for _, cdr in episode.messages(LEADER_STATES.name)]
        count = sum(info.count for info in episode.topics.values())
    stamps, told = commands.stamps_ns, commands.positions
    speeds = np.abs(np.diff(told, axis=0)) / (VELOCITY_LIMITS * np.diff(stamps)[:, None] / 1e9)
    of_leader = np.array([stamp for stamp, _ in leader])
    hands = np.array([np.interp(stamps, of_leader, column) for column in np.array([row for _, row in leader]).T]).T
    followed = (stamps >= of_leader[0]) & (np.cumsum(np.abs(hands - told)[:, _IS_ARM].max(axis=1) < 0.05) > 0)
    behind = np.abs(hands - told)[followed][:, _IS_ARM].max(axis=1)
    arms = np.array([np.interp(stamps, measured.stamps_ns, column) for column in measured.positions.T]).T
    size = sum(path.stat().st_size for path in bag.iterdir())
    dropped = sum(row["dropped"] + row["lost"] for row in live["topics"].values())
    step = Step("recorded", {
        "messages": count, "lost": dropped, "MB": size / _MB, "live verdict": live["verdict"],
        "fastest command / limit": float(speeds.max()), "behind the leaders rad, median": float(np.median(behind)),
        "max": float(behind.max()), "arms behind commands rad, max": float(np.abs(arms - told)[:, _IS_ARM].max()),
    })  # fmt: skip
    if speeds.max() > 1.0 + 1e-6:
        step.wrong.append("a command jumps")
    return step


def audited(bag: Path) -> Step:
    """The audit of the whole bag, as of `clamp info`."""
    report = audit(bag)
    rates = {topic.name: topic.rate_hz for topic in report.topics}
    gaps = sum(topic.gaps for topic in report.topics if topic.name in (JOINT_COMMANDS.name, "/joint_states"))
    figures = {"s": report.duration_s, "topics": len(rates), "joint commands Hz": rates[JOINT_COMMANDS.name]}
    return Step("audited", {**figures, "gaps of joints": gaps}, list(report.problems))


def replayed(bag: Path, out: Path, success: bool) -> Step:
    """Played again in a simulation of its own, and recorded; it has to end as the episode did."""
    begun_s = time.monotonic()
    done = replay_in_simulation({"bag": str(bag)}, out / "replay.log", out / "replay")
    assert done.bag is not None
    first, again = load_commands(bag)[1].positions, load_commands(done.bag)[1].positions
    far = max(float(np.abs(again - pose).max(axis=1).min()) for pose in first[::10])
    step = Step("replayed", {
        "s": time.monotonic() - begun_s, "s simulated": done.seconds, "task done": done.success,
        "farthest from the recording rad": far,
    })  # fmt: skip
    if done.success is not success:
        step.wrong.append(f"the task is {'done' if done.success else 'not done'}, other than in the recording")
    return step


def converted(bags: Path, out: Path, experiment: str) -> Step:
    """Converted by `clamp train convert`, and read as training reads it."""
    from clamp_training.config import load_experiment
    from clamp_training.store import Store, new_fusion

    begun_s = time.monotonic()
    store = out / "store"
    words = ["train", "convert", str(bags), "--out", str(store), "--experiment", experiment, "--workers", "1"]
    done = subprocess.run([sys.executable, "-m", "clamp_ros.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return Step("converted", {"exit code": done.returncode}, [done.stderr.strip().splitlines()[-1]])
    seconds = time.monotonic() - begun_s
    rows = Store([store])
    views = rows.views(len(rows) - 1, new_fusion(load_experiment(experiment).fusion))
    actions = rows.stacked("actions")
    seen = float((views[..., 0] > 0).mean())
    step = Step("converted", {
        "s": seconds, "observations": len(rows), "MB": sum(path.stat().st_size for path in store.iterdir()) / _MB,
        "actions": actions.shape, "share of the last view that is seen": seen,
    })  # fmt: skip
    if not np.isfinite(actions).all() or seen == 0.0:
        step.wrong.append("actions are not finite, or nothing is seen")
    return step


def life(
    task: str, seed: int, hands: NDArray[np.float64], out: Path, experiment: str, more: dict[str, Any] | None = None
) -> list[Step]:
    """Every step of an episode's life.

    Args:
        task: that is laid out.
        seed: of its layout.
        hands: (N, 14) of the leaders, 20 ms apart.
        out: folder for everything it leaves.
        experiment: of `clamp train convert`.
        more: parameters of nodes.
    """
    with own_domain():
        with leaders(out, hands, more) as found:
            words = [f"task:={task}", f"seed:={seed}", *found]
            first, bag = teleoperate(words, out, 0.02 * len(hands))
        steps = [first, recorded(bag), audited(bag), replayed(bag, out, bool(first.figures["task done"]))]
    return [*steps, converted(out / "bags", out, experiment)]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mug_on_plate_easy", help="%(default)s")
    parser.add_argument("--seed", type=int, default=3, help="of the layout (%(default)s)")
    parser.add_argument(
        "--slower", type=float, default=4.0, metavar="X",
        help="how much slower the hands are than the expert, since simulated time may be slow (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--experiment", default="mug_on_plate_easy", help="of the conversion (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/teleop"), help="folder (%(default)s)")
    args = parser.parse_args()
    out = args.out / f"{args.task}_{args.seed}_{time.strftime('%Y%m%d_%H%M%S')}"
    out.mkdir(parents=True)
    hands = expert_hands(args.task, args.seed, out / "expert", args.slower)
    print(f"hands of {0.02 * len(hands):.0f} s; logs, bags and store go to {out}", flush=True)
    try:
        steps = life(args.task, args.seed, hands, out, args.experiment)
    except ClampError as error:
        print(f"teleop_episode: error: {error}", file=sys.stderr)
        return 1
    if not steps[0].figures["task done"]:
        steps[0].wrong.append("the task was not done")
    table = "\n".join(["| step | figures | verdict |", "|---|---|---|", *(step.line() for step in steps)])
    (out / "episode.md").write_text(table + "\n")
    print(table)
    return 1 if any(step.wrong for step in steps) else 0


if __name__ == "__main__":
    sys.exit(main())
