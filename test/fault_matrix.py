"""The fault matrix: injects faults into the running system and tells what the arms did, when, and who said why.

    python test/fault_matrix.py                          # everything, each fault five times; an hour on two cores
    python test/fault_matrix.py --times 1 --group robot --only bus
    python test/fault_matrix.py --list

The table is printed, and written to --out as Markdown and JSON. The same command goes on where an interrupted one
stopped: all faults once, then all of them again. Exit code 1 if arms did not hold, a goal jumped, nobody
said why, or the system did not come back. Times are measured, not judged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clamp_ros.bringup.session import own_domain

GROUPS = ("sim", "start", "teleop", "robot")
RESULTS = "outcomes.jsonl"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often each fault is injected (%(default)s)")
    parser.add_argument("--group", choices=GROUPS, action="append", help="only this group; may be repeated")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only faults whose name matches")
    parser.add_argument("--patient", action="store_true", help="the drivers' deadlines of a busy machine")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a good recording (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/faults"), help="folder for the table (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget the outcomes that are in --out already")
    parser.add_argument("--work", type=Path, help="folder for logs, which stay, and recordings, which are used again")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    args = parser.parse_args()
    from faults import leader_faults, matrix, robot_faults, sim_faults, start_faults
    from faults.stack import running

    groups = [group for group in GROUPS if not args.group or group in args.group]
    pattern = re.compile(args.only)
    named = {
        "sim": sim_faults.sim_faults(), "start": start_faults.start_faults(), "teleop": leader_faults.teleop_faults(),
        "robot": robot_faults.robot_faults(),
    }  # fmt: skip
    chosen = {group: [fault for fault in named[group] if pattern.search(fault.name)] for group in groups}
    if args.list:
        for group, faults in chosen.items():
            print(*(f"{group}: {fault.name}" for fault in faults), sep="\n")
        print(sum(map(len, chosen.values())), "faults")
        return 0

    if args.fresh:
        (args.out / RESULTS).unlink(missing_ok=True)
    results = matrix.Results(args.out / RESULTS)

    def rows() -> list[matrix.Row]:
        shown = [
            (group, start_faults.shown(fault) if group == "start" else fault)
            for group, faults in chosen.items() for fault in faults
        ]  # fmt: skip
        return [
            matrix.Row(group, fault, done) for group, fault in shown if (done := results.of(group, fault.name))
        ]  # fmt: skip

    def tell(text: str) -> None:
        print(f"{time.monotonic() - started_s:6.0f} s  {text}", flush=True)
        _write(args.out, matrix, rows())

    started_s = time.monotonic()
    names = {group: [fault.name for fault in faults] for group, faults in chosen.items()}
    left = [group for group in groups if next(results.missing(group, names[group], args.times), None) is not None]
    with own_domain(), tempfile.TemporaryDirectory(prefix="faults-") as folder:
        scratch = args.work or Path(folder)
        recordings = scratch / "recordings"
        recorder = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "faults/recordings.py", recordings, str(args.seconds)]
        ) if {"start", "robot"} & set(left) and not recordings.exists() else None
        for group in left:
            faults = chosen[group]
            if group in ("start", "robot") and recorder is not None and recorder.wait() != 0:
                return 1
            if group == "start":
                start_faults.run(scratch / "start", recordings, faults, args.times, tell, results)
                continue
            patient = args.patient and group != "sim"
            with running(scratch / group, kind=group, patient=patient, recordings=recordings) as stack:
                tell(f"{group}: the system runs")
                matrix.run(stack, group, faults, args.times, tell, results)
    table = rows()
    print(matrix.markdown(table))
    wrong = [row for row in table if row.wrong]
    load = os.getloadavg()[0]
    print(f"{len(table)} faults, each {args.times} times; {len(wrong)} with something wrong; load {load:.1f}")
    return 1 if wrong else 0


def _write(out: Path, matrix: Any, rows: Sequence[Any]) -> None:
    """What there is so far, so that an interrupted run leaves it, too."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "faults.md").write_text(matrix.markdown(rows) + "\n")
    (out / "faults.json").write_text(json.dumps(matrix.as_data(rows), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
