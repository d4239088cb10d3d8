"""From a session to cameras' poses: corners, a start, the joint adjustment, stray views set aside, and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.adjust import Adjusted, Prior, adjust
from clamp_ros.calibration.board import Board, Detection
from clamp_ros.calibration.problem import Matrix, Problem, View, start
from clamp_ros.calibration.session import Picture, Session
from clamp_ros.contract.errors import CalibrationError
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import angle_between

STRAY_PX = 3.0
"""A view off by more than this, and by `_STRAY_FACTOR` times the others, was of a moving arm or board."""
STRAY_RAD = 0.005
"""Or a wrist camera's view that fits only if a joint was elsewhere by more than this."""
_STRAY_FACTOR = 5.0
_STRAY_SHARE = 0.2
"""More strays than this are no strays: then the whole does not fit."""
_REWEIGHTINGS = 2
_SIGMA_RANGE_PX = (0.06, 2.0)
CHECK_PRIOR_M = 0.01
CHECK_PRIOR_RAD = 0.02
"""How far a camera may have drifted, give or take, before it is looked at."""


@dataclass(frozen=True, eq=False)
class Observed:
    """A session as the adjustment takes it.

    Attributes:
        board: the board.
        problem: the views.
        shots: names of the shots, by number.
        absences: why a camera did not see the board in a shot, in words.
        present: camera name to the pose that the running system had; only cameras that had one.
    """

    board: Board
    problem: Problem
    shots: list[str]
    absences: list[str]
    present: Mapping[str, Matrix]


def observe(session: Session, progress: Callable[[str], None] = lambda _: None) -> Observed:
    """Finds the board in every picture of a session.

    Args:
        session: the session.
        progress: told the name of each shot before it is looked at.

    Raises:
        CalibrationError: there is no shot, one is damaged, intrinsics change between shots, or no picture has a board.
    """
    paths = session.shots()
    if not paths:
        raise CalibrationError(f"{session.folder} has no shot; take some with `clamp calibrate capture`")
    pinholes: dict[str, Pinhole] = {}
    views, joints, absences, present = [], [], [], {}
    for number, path in enumerate(paths):
        progress(path.name)
        shot = session.read(path)
        joints.append(shot.joints)
        for camera, picture in shot.pictures.items():
            if pinholes.setdefault(camera, picture.pinhole) != picture.pinhole:
                raise CalibrationError(
                    f"{camera} has {picture.pinhole} in {path.name}, and {pinholes[camera]} before; a session needs "
                    "one resolution: take it anew"
                )
            if picture.frame_from_camera is not None:
                present[camera] = picture.frame_from_camera
            detection = session.board.detect(picture.color)
            if len(detection):
                views.append(view(number, camera, shot.place, session.board, detection, picture))
            else:
                absences.append(f"{path.name}, {camera}: {session.board.explain_absence(picture.color)}")
    if not views:
        raise CalibrationError("no picture shows the board:\n  " + "\n  ".join(absences))
    problem = Problem(session.mounts, pinholes, np.array(joints), views)
    return Observed(session.board, problem, [path.name for path in paths], absences, present)


def view(shot: int, camera: str, place: int, board: Board, detection: Detection, picture: Picture) -> View:
    """A view of what was found in a picture, with the depth that was measured at each corner."""
    depth = np.full(len(detection), np.nan)
    if picture.depth_mm is not None:
        columns, rows = np.rint(detection.pixels).astype(int).T
        height, width = picture.depth_mm.shape
        near = [
            picture.depth_mm[np.clip(rows + dv, 0, height - 1), np.clip(columns + du, 0, width - 1)]
            for dv in (-1, 0, 1) for du in (-1, 0, 1)
        ]  # fmt: skip
        patch = 0.001 * np.array(near, dtype=np.float64)
        whole = (patch > 0.0).all(axis=0)
        depth[whole] = np.median(patch[:, whole], axis=0)
    return View(shot, camera, place, board.corners_m[detection.ids], detection.pixels, depth)


@dataclass(frozen=True, eq=False)
class Solution:
    """What the adjustment says.

    Attributes:
        problem: without stray views.
        adjusted: the joint solution.
        strays: views set aside, in words.
        scale: true over stated size of the board, where cameras and arms are to agree; and its standard deviation.
        present: poses before, by camera; those that had one.
    """

    problem: Problem
    adjusted: Adjusted
    strays: list[str]
    scale: tuple[float, float]
    present: Mapping[str, Matrix]

    @property
    def cameras(self) -> Mapping[str, Matrix]:
        """Camera name to (4, 4) frame_from_camera."""
        return {camera: self.adjusted.estimate.cameras[camera] for camera in self.problem.cameras}

    @cached_property
    def figures(self) -> Mapping[str, Figures]:
        """Of each camera."""
        return {camera: _figures(self, camera) for camera in self.problem.cameras}


@dataclass(frozen=True)
class Figures:
    """How well a camera's pose is known.

    Attributes:
        views, places, corners: how many pictures show the board, at how many of its places, with how many corners.
        turn_deg: for a wrist camera, the largest turn of the gripper between two of its views of one place.
        coverage: share of a 4 x 3 division of the picture in which corners were seen.
        rms_px, worst_px: root mean square over corners, and of the worst view.
        rms_mm: the same at the distance of the corner.
        depth_mm, depth_spread_mm: median of measured minus computed depth, and its median absolute deviation; NaN
            without depth.
        sigma_mm, sigma_deg: standard deviation of the pose, all directions together; infinite where undetermined.
        moved_mm, moved_deg: from the pose before; NaN where there was none.
    """

    views: int
    places: int
    corners: int
    turn_deg: float
    coverage: float
    rms_px: float
    worst_px: float
    rms_mm: float
    depth_mm: float
    depth_spread_mm: float
    sigma_mm: float
    sigma_deg: float
    moved_mm: float
    moved_deg: float


def solve(observed: Observed, present: Mapping[str, Matrix] | None = None) -> Solution:
    """The poses of all cameras that saw the board.

    Args:
        observed: what was seen.
        present: poses before, by camera, to start from besides a start from nothing, and to compare with; by default
            those that the running system had.

    Raises:
        CalibrationError: no wrist camera saw the board, or what was seen does not determine the poses.
    """
    problem = observed.problem
    present = dict(observed.present if present is None else present)
    if all(problem.arm(camera) is None for camera in problem.cameras):
        raise CalibrationError(
            f"the board was seen by {', '.join(problem.cameras)} only: without a wrist camera nothing ties it to the "
            "robot's frame; take shots in which a wrist camera sees it too"
        )
    best = _best(problem, present)
    problem, best, strays = _without_strays(observed, best)
    for _ in range(_REWEIGHTINGS):  # a board seen at a grazing angle, or blurred, has corners that count less
        best = adjust(problem, best.estimate, sigmas_px=view_sigmas_px(best))
    scaled = adjust(problem, best.estimate, sigmas_px=view_sigmas_px(best), free_scale=True)
    return Solution(problem, best, strays, (scaled.estimate.scale, scaled.scale_sigma), present)


def check(observed: Observed, present: Mapping[str, Matrix]) -> tuple[Solution, Adjusted]:
    """How far cameras have drifted from a calibration.

    Cameras may move by `CHECK_PRIOR_M` and `CHECK_PRIOR_RAD`, give or take, so that a few shots do: what they do not
    determine stays as it was, and its standard deviation shows it.

    Args:
        observed: new shots; one is enough to see a drift, three or more tell whose.
        present: the calibration: frame_from_camera of every camera that saw the board.

    Returns:
        The solution, whose `present` is the calibration, and how the calibration as it is fits what was seen.

    Raises:
        CalibrationError: a camera has no calibration.
    """
    problem = observed.problem
    missing = [camera for camera in problem.cameras if camera not in present]
    if missing:
        raise CalibrationError(f"{', '.join(missing)} has no calibration to check; run `clamp calibrate solve` first")
    begin = start(problem, present)
    as_is = adjust(problem, begin, free=())
    prior = Prior(present, CHECK_PRIOR_M, CHECK_PRIOR_RAD)
    moved = adjust(problem, as_is.estimate, prior=prior)
    return Solution(problem, moved, [], (1.0, 0.0), dict(present)), as_is


def _best(problem: Problem, present: Mapping[str, Matrix]) -> Adjusted:
    """The better of the solutions from nothing and from the poses before."""
    found, failures = [], []
    for known in (None, present) if present else (None,):
        try:
            found.append(adjust(problem, start(problem, known)))
        except CalibrationError as error:
            failures.append(str(error))
    if not found:
        raise CalibrationError(failures[0])
    return min(found, key=lambda adjusted: adjusted.cost)


def _without_strays(observed: Observed, best: Adjusted) -> tuple[Problem, Adjusted, list[str]]:
    problem, strays = observed.problem, []
    allowed = int(_STRAY_SHARE * len(problem.views))
    while len(strays) < allowed:
        excess = {
            "px": (np.array([_rms(residual) for residual in best.residuals]), STRAY_PX),
            "mrad": (1e3 * np.array([_joint_error(problem, best, view) for view in problem.views]), 1e3 * STRAY_RAD),
        }
        off, worst, unit = max(
            (float(value[i]) / max(bound, _STRAY_FACTOR * float(np.median(value[value > 0.0]))), i, unit)
            for unit, (value, bound) in excess.items() if (value > 0.0).any() for i in [int(np.argmax(value))]
        )  # fmt: skip
        if off < 1.0:
            break
        view = problem.views[worst]
        rest = [v for v in problem.views if v is not view]
        if not any(v.camera == view.camera for v in rest) or not any(v.place == view.place for v in rest):
            break  # nothing would be left of it
        by = f"{excess[unit][0][worst]:.1f} {unit}"
        strays.append(f"{observed.shots[view.shot]}, {view.camera}: off by {by}; did something move?")
        problem = Problem(problem.mounts, problem.pinholes, problem.joints, rest)
        best = adjust(problem, best.estimate)
    return problem, best, strays


def _joint_error(problem: Problem, adjusted: Adjusted, view: View) -> float:
    """The largest correction, rad, of the joints that a view's camera hangs on; 0 for a fixed camera."""
    arm = problem.arm(view.camera)
    return 0.0 if arm is None else float(np.abs(adjusted.estimate.joints[view.shot, arm]).max())


def view_sigmas_px(adjusted: Adjusted) -> list[float]:
    """Standard deviation of each view's pixels, along either axis, by the median: a few strays do not count."""
    # of a two-dimensional normal distribution's length, the median is 1.177 standard deviations
    sigmas = (float(np.median(np.linalg.norm(residual, axis=1))) / 1.177 for residual in adjusted.residuals)
    return [min(max(sigma, _SIGMA_RANGE_PX[0]), _SIGMA_RANGE_PX[1]) for sigma in sigmas]


def _rms(residual: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.sum(residual**2, axis=-1))))


def distance(a: Matrix, b: Matrix) -> tuple[float, float]:
    """How far two poses are apart: millimetres and degrees."""
    return 1e3 * float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.rad2deg(angle_between(a, b)))


def _figures(solution: Solution, camera: str) -> Figures:
    problem, adjusted = solution.problem, solution.adjusted
    mine = [i for i, view in enumerate(problem.views) if view.camera == camera]
    views = [problem.views[i] for i in mine]
    residuals = [adjusted.residuals[i] for i in mine]
    pinhole = problem.pinholes[camera]
    millimetres = [
        1e3 * residual * adjusted.depths[i][:, None] / (pinhole.fx, pinhole.fy)
        for i, residual in zip(mine, residuals, strict=True)
    ]
    depth = np.concatenate([1e3 * (problem.views[i].depth_m - adjusted.depths[i]) for i in mine])
    depth = depth[np.isfinite(depth)]
    pixels = np.concatenate([view.pixels for view in views])
    cells = {(int(4 * u / pinhole.width), int(3 * v / pinhole.height)) for u, v in pixels}
    covariance = adjusted.covariances.get(camera, np.zeros((6, 6)))
    before = solution.present.get(camera)
    moved = (np.nan, np.nan) if before is None else distance(before, adjusted.estimate.cameras[camera])
    return Figures(
        views=len(views),
        places=len({view.place for view in views}),
        corners=len(pixels),
        turn_deg=_turn_deg(problem, views),
        coverage=len(cells) / 12,
        rms_px=_rms(np.concatenate(residuals)),
        worst_px=max(map(_rms, residuals)),
        rms_mm=_rms(np.concatenate(millimetres)),
        depth_mm=float(np.median(depth)) if len(depth) else np.nan,
        depth_spread_mm=float(np.median(np.abs(depth - np.median(depth)))) if len(depth) else np.nan,
        sigma_mm=1e3 * float(np.sqrt(np.trace(covariance[:3, :3]))),
        sigma_deg=float(np.rad2deg(np.sqrt(np.trace(covariance[3:, 3:])))),
        moved_mm=moved[0],
        moved_deg=moved[1],
    )


def _turn_deg(problem: Problem, views: list[View]) -> float:
    poses = [(view.place, problem.world_from_mount(view)) for view in views]
    turns = [
        angle_between(a, b) for i, (place, a) in enumerate(poses) for other, b in poses[:i] if place == other
    ]  # fmt: skip
    return float(np.rad2deg(max(turns, default=0.0)))

