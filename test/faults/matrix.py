"""Plays faults against a running `Stack`, one after the other, and tells what came of each."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from faults.seen import Mark, farthest_off, gate_held_s, held_since_s, largest_step
from faults.stack import Stack, SystemEndedError

from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.interfaces import RECORD_START, RECORD_STOP
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.record.messages import decode_joints
from clamp_ros.record.recover import recover

GOAL_MS = 40.0
STEP_RAD = 0.25
"""No goal may change by more at once: two late ticks at full speed, and where an arm stands behind its goal."""
STRAY_RAD = 0.15
"""What a foreign message asks for is farther from the policy's own way; a hold where an arm hangs is nearer."""
WATCH_S = 1.0
CALM_S = 6.0
_PAUSE_S = 3.0
_DIAGNOSTICS_S = 2.5
_RECORDER_S = 20.0


class Expect(Enum):
    """What the arms have to do."""

    HOLD = "hold"
    GO_ON = "go on"
    EITHER = "hold or go on"
    END = "hold, and the system ends"


def nothing(_: Stack) -> None:
    """Leaves things as they are."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: in words.
        inject: makes it.
        expect: what the arms have to do.
        says: pattern of what log, status or diagnostics have to say.
        restore: mends it, so that the system runs again.
        prompt: the arms have to hold at once: the goal of 40 ms applies. Else what was planned and checked before may
            run out first.
        patience_s: how long the hold and the word may take.
        foreign: it sends what nobody may follow, and what is told from the policy's own: no goal goes there.
    """

    name: str
    inject: Callable[[Stack], None]
    expect: Expect
    says: str
    restore: Callable[[Stack], None] = nothing
    prompt: bool = False
    patience_s: float = 12.0
    foreign: bool = False


@dataclass
class Outcome:
    """What one injection did.

    Attributes:
        began_ms: from the fault until the gate first said that it holds, and braked, or goals stayed out. None where
            the arms went on.
        held_ms: from the fault until no goal changed any more for `QUIET_S`: braking, within the gate's acceleration
            limits, was over, and no good message between the bad ones let them move. None where the arms went on.
        moved_rad: how far a joint was from where it stood at the fault, at most.
        step_rad: the largest change from one goal to the next.
        log: the first line that says why.
        diagnostics: the first status that is not OK.
        lost: joint commands and joint states that were published and are not in the bag, and how many were published.
        back_s: from mending it until both arms moved again; None where the system had to be started anew.
        wrong: what is not as it has to be; empty if all is.
    """

    began_ms: float | None = None
    held_ms: float | None = None
    moved_rad: float = 0.0
    step_rad: float = 0.0
    log: str = ""
    diagnostics: str = ""
    lost: tuple[int, int] | None = None
    back_s: float | None = None
    wrong: list[str] = field(default_factory=list)


def play(stack: Stack, fault: Fault) -> Outcome:
    """Injects a fault into the moving system, watches, mends it, and has the system move again."""
    outcome = Outcome()
    # what the fault before has left on /diagnostics, and in the log's own patience, is over
    stack.spin(CALM_S, lambda: not stack.complained(1.5))
    recording = _record(stack)
    stack.until_moving()
    mark = stack.mark()
    try:
        fault.inject(stack)
        _watch(stack, fault, mark, outcome)
    except SystemEndedError as error:
        outcome.wrong.append(str(error).splitlines()[0])
    _judge(stack, fault, mark, outcome)
    if recording is not None:
        outcome.lost = _lost(stack, recording)
    _mend(stack, fault, outcome)
    return outcome


def _record(stack: Stack) -> Path | None:
    stack.forget_bags()
    try:
        return Path(stack.call(RECORD_START, _RECORDER_S))
    except ClampError:
        return None


def _words(stack: Stack, mark: Mark) -> Iterable[str]:
    """What was said since, oldest first: log lines, statuses, diagnostics."""
    yield from stack.told(mark).splitlines()
    yield from (text for at_s, text in stack.seen.said if at_s >= mark.at_s)
    yield from (text for at_s, text in stack.seen.diagnostics if at_s >= mark.at_s)


def _said(stack: Stack, fault: Fault, mark: Mark) -> str:
    if not fault.says:
        return ""
    pattern = re.compile(fault.says)
    return next((line for line in _words(stack, mark) if pattern.search(line)), "")


def _watch(stack: Stack, fault: Fault, mark: Mark, outcome: Outcome) -> None:
    """Until the arms hold and somebody has said why, or patience ends; then a little for /diagnostics."""

    def settled() -> bool:
        held = stack.still() if fault.expect in (Expect.HOLD, Expect.END) else True
        ended = stack.ended or fault.expect is not Expect.END
        if not held or not ended or time.monotonic() - mark.at_s < WATCH_S:
            return False
        return not fault.says or bool(_said(stack, fault, mark))

    stack.spin(fault.patience_s, settled)
    if fault.expect is Expect.GO_ON:  # on a busy machine a chunk may be late, and the arms hold for a moment
        stack.spin(_PAUSE_S, lambda: not stack.still())
    held = stack.still()
    if held:
        since_s = held_since_s(stack.goals(mark.at_s), mark.at_s, time.monotonic())
        if since_s is not None:
            outcome.held_ms = 1e3 * (since_s - mark.at_s)
            gate_s = gate_held_s(stack.seen.said, mark.at_s)
            outcome.began_ms = 1e3 * (min(since_s, since_s if gate_s is None else gate_s) - mark.at_s)
    if held is not (fault.expect in (Expect.HOLD, Expect.END)) and fault.expect is not Expect.EITHER:
        outcome.wrong.append("the arms go on" if not held else "the arms hold")
    outcome.log = _said(stack, fault, mark)
    stack.spin(0.0 if stack.ended else _DIAGNOSTICS_S, lambda: _diagnosed(stack, mark))
    outcome.diagnostics = _diagnosed(stack, mark)
    if stack.ended is not (fault.expect is Expect.END):
        outcome.wrong.append("the system ended" if stack.ended else "the system did not end")


def _diagnosed(stack: Stack, mark: Mark) -> str:
    return next((text for at_s, text in stack.seen.diagnostics if at_s > mark.at_s), "")


def _judge(stack: Stack, fault: Fault, mark: Mark, outcome: Outcome) -> None:
    rows = stack.goals(mark.at_s)
    outcome.step_rad = largest_step(rows)
    measured = [row for at_s, row in stack.seen.measured if at_s >= mark.at_s]
    outcome.moved_rad = max((float(abs(row - mark.measured).max()) for row in measured), default=0.0)
    if outcome.step_rad > STEP_RAD:
        outcome.wrong.append(f"a goal jumped by {outcome.step_rad:.2f} rad")
    off_rad = farthest_off(rows) if fault.foreign else 0.0
    if off_rad > STRAY_RAD:
        outcome.wrong.append(f"a goal is {off_rad:.2f} rad off the policy's own way")
    if fault.says and not outcome.log:
        outcome.wrong.append(f"nobody said {fault.says!r}")


def _lost(stack: Stack, bag: Path) -> tuple[int, int] | None:
    """(published but not in the bag, published), of joint commands and joint states, as far as they were heard."""
    published = {name: set(stamps) for name, stamps in stack.seen.stamps.items()}
    if not stack.ended:
        with contextlib.suppress(ClampError):
            stack.quiet()
            stack.call(RECORD_STOP, _RECORDER_S, data=False)  # a request to one that was killed may be lost
    try:
        if not bag.is_dir():
            bag = recover(bag.with_name(f"{bag.name}.partial")).path
        with Episode.open(bag) as episode:
            lost = 0
            for name, stamps in published.items():
                inside = set()
                for _, cdr in episode.messages(name):
                    with contextlib.suppress(ClampError):
                        inside.add(decode_joints(cdr)[0])
                lost += len(stamps - inside)
        audit(bag)
    except (ClampError, OSError):
        return None
    return lost, sum(map(len, published.values()))


def _mend(stack: Stack, fault: Fault, outcome: Outcome) -> None:
    start_s = time.monotonic()
    try:
        stack.quiet()
        fault.restore(stack)
        stack.until_moving()
        outcome.back_s = time.monotonic() - start_s
    except (ClampError, OSError) as error:
        if fault.expect is not Expect.END:
            outcome.wrong.append(f"does not come back: {str(error).splitlines()[0]}")
        stack.stop()
        stack.start()


@dataclass
class Row:
    """One fault and all its outcomes."""

    group: str
    fault: Fault
    outcomes: list[Outcome]

    @property
    def began_ms(self) -> list[float]:
        """Times until the arms began to hold, where they did."""
        return [outcome.began_ms for outcome in self.outcomes if outcome.began_ms is not None]

    @property
    def held_ms(self) -> list[float]:
        """Times until the arms were told to stand still, where they were."""
        return [outcome.held_ms for outcome in self.outcomes if outcome.held_ms is not None]

    @property
    def wrong(self) -> list[str]:
        """What was not as it had to be, each once."""
        return list(dict.fromkeys(text for outcome in self.outcomes for text in outcome.wrong))

    def cells(self) -> dict[str, str]:
        """The row of the table."""
        held, times = self.held_ms, len(self.outcomes)
        first = next((outcome for outcome in self.outcomes if outcome.log), self.outcomes[0])
        lost = [outcome.lost for outcome in self.outcomes if outcome.lost is not None]
        back = [outcome.back_s for outcome in self.outcomes if outcome.back_s is not None]
        did = f"held {len(held)}/{times}" if held else f"went on {times}/{times}"
        began = self.began_ms
        within = sum(time_ms <= GOAL_MS for time_ms in began)
        return {
            "group": self.group,
            "fault": self.fault.name,
            "arms": did,
            "held from ms, median (max)": _median_max(began),
            "within 40 ms": f"{within}/{len(began)}" if self.fault.prompt and began else "",
            "at rest after ms": _median_max(held),
            "moved rad": f"{max(outcome.moved_rad for outcome in self.outcomes):.2f}",
            "largest step rad": f"{max(outcome.step_rad for outcome in self.outcomes):.2f}",
            "log or status": _short(first.log),
            "/diagnostics": _short(next((o.diagnostics for o in self.outcomes if o.diagnostics), "")),
            "bag lost": f"{max(part for part, _ in lost)} of {max(whole for _, whole in lost)}" if lost else "no bag",
            "back after s": f"{statistics.median(back):.1f}" if back else "started anew",
            "wrong": "; ".join(self.wrong),
        }


def _median_max(times_ms: Sequence[float]) -> str:
    return f"{statistics.median(times_ms):.0f} ({max(times_ms):.0f})" if times_ms else ""


def _short(text: str, length: int = 110) -> str:
    text = re.sub(r"\[(INFO|WARN|ERROR)\] \[[\d.]+\] ", r"\1 ", text)
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= length else text[: length - 3] + "..."


class Results:
    """Every outcome so far, a line of JSON each, so that the same command goes on where an interrupted one stopped."""

    def __init__(self, path: Path) -> None:
        """Reads what there is at `path`."""
        self._path = path
        self._rows: dict[tuple[str, str], list[Outcome]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            values = entry["outcome"]
            values["lost"] = None if values["lost"] is None else tuple(values["lost"])
            self.of(entry["group"], entry["fault"]).append(Outcome(**values))

    def of(self, group: str, fault: str) -> list[Outcome]:
        """The outcomes of a fault."""
        return self._rows.setdefault((group, fault), [])

    def add(self, group: str, fault: str, outcome: Outcome) -> None:
        """Keeps one more."""
        self.of(group, fault).append(outcome)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"group": group, "fault": fault, "outcome": asdict(outcome)}) + "\n")

    def missing(self, group: str, names: Iterable[str], times: int) -> Iterator[str]:
        """Names to be played, in rounds of all: what is interrupted has seen as many faults as it could."""
        names = list(names)
        for n in range(1, times + 1):
            yield from (name for name in names if len(self.of(group, name)) < n)


def run(
    stack: Stack, group: str, faults: Sequence[Fault], times: int, tell: Callable[[str], None], results: Results
) -> None:
    """Plays each fault until it has `times` outcomes; a system that ends or does not come back is started anew."""
    by_name = {fault.name: fault for fault in faults}
    for name in results.missing(group, by_name, times):
        try:
            outcome = play(stack, by_name[name])
        except ClampError as error:
            outcome = Outcome(wrong=[f"not played: {str(error).splitlines()[0]}"])
            stack.stop()
            stack.start()
        results.add(group, name, outcome)
        tell_of(Row(group, by_name[name], [outcome]), tell)


def tell_of(row: Row, tell: Callable[[str], None]) -> None:
    """A line about an outcome."""
    cells = row.cells()
    held = cells["held from ms, median (max)"]
    wrong = f"; WRONG: {cells['wrong']}" if cells["wrong"] else ""
    tell(f"{row.group}: {row.fault.name}: {cells['arms']}, {held or '-'} ms; {cells['log or status']}{wrong}")


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines: list[str] = []
    for row in rows:
        cells = row.cells()
        if not lines:
            lines = [f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}"]
        lines.append(f"| {' | '.join(cells.values())} |")
    return "\n".join(lines)


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table and every outcome, for JSON."""
    return [{**row.cells(), "outcomes": [asdict(outcome) for outcome in row.outcomes]} for row in rows]
