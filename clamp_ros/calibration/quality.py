"""What a calibration is worth: pass, weak or fail for each camera, with the reasons, and a report in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from clamp_ros.calibration.board import Board
from clamp_ros.calibration.problem import Problem
from clamp_ros.calibration.solve import Figures, Observed, Solution

SCALE_TOLERANCE = 0.003
"""A board whose size differs by more, and by more than three standard deviations, was measured wrongly."""
DRIFT_MM, DRIFT_DEG = 2.0, 0.2
"""More than this, and more than three standard deviations, is a drift."""


class Grade(IntEnum):
    """How good; the worst of several counts."""

    PASS = 0
    WEAK = 1
    FAIL = 2


@dataclass(frozen=True)
class Limit:
    """Bounds of one figure; `weak` and `fail` are the values beyond which it is."""

    what: str
    weak: float
    fail: float
    unit: str
    remedy: str
    at_least: bool = False

    def judge(self, value: float) -> tuple[Grade, str]:
        """The grade, and the reason for one that is not `PASS`."""
        worse = (lambda bound: not value >= bound) if self.at_least else (lambda bound: not value <= bound)
        grade = Grade.FAIL if worse(self.fail) else Grade.WEAK if worse(self.weak) else Grade.PASS
        shown = "undetermined" if np.isinf(value) else f"{value:.3g} {self.unit}".rstrip()
        bound = f"{'at least' if self.at_least else 'at most'} {self.weak:g} {self.unit}".rstrip()
        return grade, f"{self.what} {shown}, should be {bound}: {self.remedy}"


_MOTION = "the arm or the board moved, or the joints' zeros are off"
COMMON: Mapping[str, Limit] = {
    "views": Limit("views", 5, 3, "", "take more shots in which it sees the board", at_least=True),
    "rms_px": Limit("residual", 0.7, 2.0, "px", f"blurred pictures, a board that is not flat; or {_MOTION}"),
    "rms_mm": Limit("residual", 1.0, 3.0, "mm", _MOTION),
    "sigma_mm": Limit("uncertainty", 1.0, 3.0, "mm", "more shots, from more sides, with more of the board"),
    "sigma_deg": Limit("uncertainty", 0.1, 0.3, "deg", "more shots, from more sides, with more of the board"),
}
FIXED: Mapping[str, Limit] = {
    "places": Limit("places of the board", 2, 1, "", "move and tilt the board between shots", at_least=True),
    "coverage": Limit("coverage", 0.25, 0.08, "of the picture", "put the board where it has not been", at_least=True),
}
WRIST: Mapping[str, Limit] = {
    "turn_deg": Limit("turn of the gripper", 30.0, 15.0, "deg", "turn the wrist about more axes", at_least=True),
    "coverage": Limit("coverage", 0.5, 0.25, "of the picture", "bring the board into all its corners", at_least=True),
}


@dataclass(frozen=True)
class Verdict:
    """A grade with its reasons; none where it passes."""

    grade: Grade
    reasons: tuple[str, ...] = ()


def judge(figures: Figures, fixed: bool) -> Verdict:
    """One camera's verdict."""
    judged = [limit.judge(getattr(figures, name)) for name, limit in {**COMMON, **(FIXED if fixed else WRIST)}.items()]
    worst = max(grade for grade, _ in judged)
    return Verdict(worst, tuple(f"{reason} ({grade.name.lower()})" for grade, reason in judged if grade))


def judge_board(solution: Solution, board: Board) -> Verdict:
    """Whether the board is as large as it was said to be: the arms' motions measure it."""
    scale, sigma = solution.scale
    if abs(scale - 1.0) <= max(SCALE_TOLERANCE, 3.0 * sigma):
        return Verdict(Grade.PASS)
    return Verdict(
        Grade.FAIL,
        (
            f"the arms' motions say that a square is {1e3 * scale * board.square_m:.2f} mm (+-"
            f"{1e3 * sigma * board.square_m:.2f}), not {1e3 * board.square_m:g} mm: measure the print, it may have "
            "been scaled to fit the page, and give --square-mm; if it is right, the arms' joints have wrong zeros",
        ),
    )


def judge_drift(figures: Figures) -> Verdict:
    """Whether a camera is where its calibration says. PASS: it is; FAIL: it drifted; WEAK: these shots cannot tell."""
    moved, turned = figures.moved_mm, figures.moved_deg
    if moved > max(DRIFT_MM, 3.0 * figures.sigma_mm) or turned > max(DRIFT_DEG, 3.0 * figures.sigma_deg):
        return Verdict(Grade.FAIL, (f"moved by {moved:.1f} mm and {turned:.2f} deg: calibrate anew",))
    if figures.sigma_mm > DRIFT_MM or figures.sigma_deg > DRIFT_DEG:
        known = f"known to {figures.sigma_mm:.1f} mm and {figures.sigma_deg:.2f} deg only"
        return Verdict(Grade.WEAK, (f"{known}: take more shots, from more sides",))
    return Verdict(Grade.PASS)


@dataclass(frozen=True)
class Report:
    """The verdicts and the text.

    Attributes:
        grade: the worst of all.
        cameras: verdict of each camera that saw the board.
        board: of the board's size.
        missing: cameras of the session that never saw the board, or too little of it.
        text: everything, for people.
    """

    grade: Grade
    cameras: Mapping[str, Verdict]
    board: Verdict
    missing: tuple[str, ...]
    text: str

    def to_dict(self, solution: Solution) -> dict[str, Any]:
        """Plain JSON values: verdicts, figures and poses."""
        cameras = {}
        for name, verdict in self.cameras.items():
            figures = {k: v if np.isfinite(v) else None for k, v in asdict(solution.figures[name]).items()}
            cameras[name] = {
                "grade": verdict.grade.name.lower(), "reasons": list(verdict.reasons),
                "frame": solution.problem.mounts[name], "frame_from_camera": solution.cameras[name].tolist(), **figures,
            }  # fmt: skip
        return {
            "grade": self.grade.name.lower(), "cameras": cameras, "missing": list(self.missing),
            "board": {"reasons": list(self.board.reasons), "scale": solution.scale[0], "sigma": solution.scale[1]},
            "strays": solution.strays,
        }  # fmt: skip


def report(observed: Observed, solution: Solution) -> Report:
    """The verdict on a calibration."""
    problem = solution.problem
    cameras = {name: judge(figures, problem.arm(name) is None) for name, figures in solution.figures.items()}
    board = judge_board(solution, observed.board)
    missing = tuple(name for name in problem.mounts if name not in problem.cameras)
    lines = _table(solution, cameras)
    lines += [f"{name:12} FAIL   it never saw the board" for name in missing]
    lines += [f"board        {board.grade.name}   {reason}" for reason in board.reasons]
    lines += _arms(problem, solution)
    lines += [f"set aside: {stray}" for stray in solution.strays]
    lines += _absences(observed)
    grade = Grade.FAIL if missing else max([board.grade, *(verdict.grade for verdict in cameras.values())])
    lines.append(f"verdict: {grade.name.lower()}")
    return Report(grade, cameras, board, missing, "\n".join(lines))


def report_drift(observed: Observed, solution: Solution, rms_px: float) -> Report:
    """The verdict on a calibration that is in use; rms_px is the residual of the calibration as it is."""
    cameras = {name: judge_drift(figures) for name, figures in solution.figures.items()}
    missing = tuple(name for name in solution.problem.mounts if name not in solution.problem.cameras)
    now = np.sqrt(np.mean(np.concatenate([np.sum(r**2, axis=1) for r in solution.adjusted.residuals])))
    lines = [f"the calibration as it is fits to {rms_px:.2f} px; with cameras free to move, {now:.2f} px"]
    words = {Grade.PASS: "in place", Grade.WEAK: "cannot tell", Grade.FAIL: "DRIFTED"}
    for name, figures in solution.figures.items():
        verdict = cameras[name]
        lines.append(
            f"{name:12} {words[verdict.grade]:12} {figures.moved_mm:6.2f} mm {figures.moved_deg:6.3f} deg  (+-"
            f"{figures.sigma_mm:.2f} mm, +-{figures.sigma_deg:.3f} deg)  {'; '.join(verdict.reasons)}".rstrip()
        )
    lines += [f"{name:12} cannot tell  it did not see the board" for name in missing]
    lines += _absences(observed)
    grade = max([*(verdict.grade for verdict in cameras.values()), *(Grade.WEAK for _ in missing)])
    lines.append(f"verdict: {words[grade].lower()}")
    return Report(grade, cameras, Verdict(Grade.PASS), missing, "\n".join(lines))


def _table(solution: Solution, cameras: Mapping[str, Verdict]) -> list[str]:
    lines = [
        "camera       verdict  views places  residual      worst    depth        uncertainty         moved by",
    ]
    for name, figures in solution.figures.items():
        depth = f"{figures.depth_mm:+5.1f}+-{figures.depth_spread_mm:.1f} mm"
        if np.isnan(figures.depth_mm):
            depth = f"{'-':^{len(depth)}}"
        moved = "-" if np.isnan(figures.moved_mm) else f"{figures.moved_mm:.1f} mm {figures.moved_deg:.2f} deg"
        lines.append(
            f"{name:12} {cameras[name].grade.name:7} {figures.views:5} {figures.places:5}   {figures.rms_px:.2f} px "
            f"{figures.rms_mm:.2f} mm {figures.worst_px:.2f} px {depth} {figures.sigma_mm:.2f} mm "
            f"{figures.sigma_deg:.3f} deg   {moved}"
        )
        lines += [f"             - {reason}" for reason in cameras[name].reasons]
    return lines


def _arms(problem: Problem, solution: Solution) -> list[str]:
    """What the joints had to be corrected by: far more than an encoder's step means zeros that are off."""
    lines = []
    for arm in ("left", "right"):
        corrections = [value for (_, name), value in solution.adjusted.estimate.joints.items() if name == arm]
        if corrections:
            rms = 1e3 * float(np.sqrt(np.mean(np.square(corrections))))
            mean = 1e3 * np.abs(np.mean(corrections, axis=0)).max()
            note = "; the same way in all shots: its zeros seem off" if mean > 1.0 and mean > 0.7 * rms else ""
            lines.append(f"{arm} arm: joints corrected by {rms:.2f} mrad rms{note}")
    return lines


def _absences(observed: Observed, most: int = 8) -> Sequence[str]:
    lines = [f"no board: {line}" for line in observed.absences[:most]]
    rest = len(observed.absences) - most
    return [*lines, f"no board: {rest} more"] if rest > 0 else lines
