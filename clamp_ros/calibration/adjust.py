"""The joint adjustment: cameras, places of the board and joints at once, so that all corners fit their pixels best.

Bundle adjustment over SE(3) by Levenberg-Marquardt, with Huber's weights against stray corners. Poses are updated on
their right side: ``R <- R exp(w)``, ``t <- t + R v``. The joints are observations like the pixels: each shot's may move
by about `JOINT_SIGMA_RAD`, which is what an encoder's step and a gearbox's play leave open; what they do must then fit
every camera at once. They are eliminated shot by shot, which leaves some fifty unknowns.
Source: Triggs et al., Bundle adjustment: a modern synthesis, 1999.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.problem import Estimate, Matrix, Problem, View
from clamp_ros.contract.errors import CalibrationError
from clamp_ros.contract.robot import ARM_SLICES
from clamp_ros.geometry.kinematics import ARM_CHAIN, GRIPPER_LINK_FROM_GRIPPER, WORLD_FROM_BASE
from clamp_ros.geometry.transforms import axis_angle, invert, make

PIXEL_SIGMA = 0.25
"""Standard deviation of a corner's pixel, along either axis, where a view's own is not known yet."""
JOINT_SIGMA_RAD = 0.0007
"""Of a joint: rounding to its encoder's steps of 2 pi / 4096 has 0.00044 rad; the rest is for its gearbox."""
_HUBER = 2.0
_ITERATIONS = 40
_CONVERGED = 1e-6
"""Of the cost: what a step must gain for another one to be worth it."""
_SINGULAR = 1e-11
"""Of the scaled normal matrix's eigenvalues: below it, nothing was seen of a direction."""
_ARM_JOINTS = len(ARM_CHAIN)


@dataclass(frozen=True, eq=False)
class Adjusted:
    """The solution.

    Attributes:
        estimate: the poses.
        cost: weighted sum of squares, robust; to compare solutions of one problem by.
        residuals: (N, 2) pixels of each view, seen minus computed, in the order of `Problem.views`.
        depths: (N,) computed depth of each view's corners, m.
        covariances: camera name to (6, 6) of (v, w), m and rad in the camera's own axes; infinite where undetermined.
        scale_sigma: standard deviation of the estimate's scale; 0 where it was held.
    """

    estimate: Estimate
    cost: float
    residuals: list[Matrix]
    depths: list[NDArray[np.float64]]
    covariances: Mapping[str, Matrix]
    scale_sigma: float


@dataclass(frozen=True)
class Prior:
    """What is believed of cameras' poses before: they are at `cameras`, give or take."""

    cameras: Mapping[str, Matrix]
    sigma_m: float
    sigma_rad: float


def adjust(
    problem: Problem,
    begin: Estimate,
    *,
    free: Iterable[str] | None = None,
    prior: Prior | None = None,
    free_scale: bool = False,
    sigmas_px: Sequence[float] | None = None,
) -> Adjusted:
    """Finds the best fit near a start.

    Args:
        problem: what was seen; every camera and place of it has a pose in `begin`.
        begin: where to start; it is not changed.
        free: cameras whose poses are unknown; by default all. The others are held.
        prior: belief about free cameras.
        free_scale: the board's size is unknown too.
        sigmas_px: standard deviation of each view's pixels; by default `PIXEL_SIGMA`.

    Raises:
        CalibrationError: at the start the board is behind a camera.
    """
    sigmas = [PIXEL_SIGMA] * len(problem.views) if sigmas_px is None else list(sigmas_px)
    system = _System(problem, begin, problem.cameras if free is None else tuple(free), prior, free_scale, sigmas)
    estimate = system.copy(begin)
    fit = system.fit(estimate)
    if not np.isfinite(fit.cost):
        raise CalibrationError("the start puts the board behind a camera that saw it")
    normal = system.linearise(estimate, fit)
    damping = 1e-4
    for _ in range(_ITERATIONS):
        candidate, length = system.moved(estimate, normal, damping)
        new = system.fit(candidate)
        if not new.cost < fit.cost:
            if damping > 1e6 or length < 1e-9:
                break
            damping *= 10.0
            continue
        converged = fit.cost - new.cost < _CONVERGED * fit.cost + 1e-9
        estimate, fit, damping = candidate, new, max(0.1 * damping, 1e-9)
        normal = system.linearise(estimate, fit)
        if converged:
            break
    covariance = system.covariance(normal, fit.cost)
    covariances = {name: covariance[part, part] for name, part in system.camera_part.items()}
    scale_sigma = 0.0 if system.scale_part is None else float(np.sqrt(covariance[-1, -1]))
    residuals, depths = [view.residual for view in fit.views], [view.points[:, 2] for view in fit.views]
    return Adjusted(estimate, fit.cost, residuals, depths, covariances, scale_sigma)


@dataclass(frozen=True, eq=False)
class _Chain:
    """An arm in a shot: (4, 4) gripper, (6, 3) points on the joints' axes and (6, 3) their directions, world frame."""

    world_from_gripper: Matrix
    origins: Matrix
    axes: Matrix


@dataclass(frozen=True, eq=False)
class _ViewFit:
    """A view with an estimate: (N, 2) seen minus computed; (N, 3) points of the camera's frame, and of the world."""

    residual: Matrix
    points: Matrix
    world: Matrix
    camera_from_world: Matrix


@dataclass(frozen=True, eq=False)
class _Fit:
    """All views with an estimate; the cost is infinite where the board is behind a camera."""

    cost: float
    views: list[_ViewFit]
    chains: dict[tuple[int, str], _Chain]


@dataclass(frozen=True, eq=False)
class _Normal:
    """Normal equations with each shot's joints eliminated: they touch one arm's views of one shot only (Schur).

    Attributes:
        matrix, gradient: of cameras, places and scale.
        joints: (shot, arm) to (columns, coupling (6, columns), inverse (6, 6), gradient (6,)), to find their steps by.
    """

    matrix: Matrix
    gradient: NDArray[np.float64]
    joints: dict[tuple[int, str], tuple[NDArray[np.int64], Matrix, Matrix, NDArray[np.float64]]]


class _System:
    """The unknowns' places in the vector of steps, and the equations for them."""

    def __init__(
        self, problem: Problem, begin: Estimate, free: tuple[str, ...], prior: Prior | None, free_scale: bool,
        sigmas_px: list[float],
    ) -> None:  # fmt: skip
        self._problem = problem
        self._sigmas_px = sigmas_px
        self._prior = prior
        self.size = 0
        self.camera_part = {name: self._part(6) for name in problem.cameras if name in free}
        self._board_part = {place: self._part(6) for place in sorted({view.place for view in problem.views})}
        self.scale_part = self._part(1) if free_scale else None
        self._groups: dict[tuple[int, str], list[int]] = {}
        self._rest: list[int] = []
        for i, view in enumerate(problem.views):
            arm = problem.arm(view.camera)
            if arm is None:
                self._rest.append(i)
            else:
                self._groups.setdefault((view.shot, arm), []).append(i)
        missing = [name for name in problem.cameras if name not in begin.cameras]
        missing += [f"place {place}" for place in self._board_part if place not in begin.boards]
        if missing:
            raise CalibrationError(f"the start says nothing of {', '.join(missing)}")

    def _part(self, size: int) -> slice:
        self.size += size
        return slice(self.size - size, self.size)

    def copy(self, estimate: Estimate) -> Estimate:
        joints = {key: estimate.joints.get(key, np.zeros(_ARM_JOINTS)).copy() for key in self._groups}
        return Estimate(dict(estimate.cameras), dict(estimate.boards), joints, estimate.scale)

    def moved(self, estimate: Estimate, normal: _Normal, damping: float) -> tuple[Estimate, float]:
        """The estimate after a damped step, and the step's largest number."""
        damped = normal.matrix + damping * np.diag(np.diag(normal.matrix) + 1e-12)
        step = np.asarray(np.linalg.solve(damped, -normal.gradient), dtype=np.float64)
        joints = {
            key: -inverse @ (gradient + coupling @ step[columns])
            for key, (columns, coupling, inverse, gradient) in normal.joints.items()
        }
        largest = max(float(np.abs(s).max(initial=0.0)) for s in (step, *joints.values()))
        return self.stepped(estimate, step, joints), largest

    def stepped(
        self, estimate: Estimate, step: NDArray[np.float64], joints: Mapping[tuple[int, str], NDArray[np.float64]]
    ) -> Estimate:
        new = self.copy(estimate)
        for name, part in self.camera_part.items():
            new.cameras[name] = _moved(new.cameras[name], step[part])
        for place, part in self._board_part.items():
            new.boards[place] = _moved(new.boards[place], step[part])
        for key, change in joints.items():
            new.joints[key] = new.joints[key] + change
        if self.scale_part is not None:
            new.scale += float(step[self.scale_part][0])
        return new

    def fit(self, estimate: Estimate) -> _Fit:
        chains = {}
        for (shot, arm), correction in estimate.joints.items():
            joints = np.array(self._problem.joints[shot])
            joints[ARM_SLICES[arm]][:_ARM_JOINTS] += correction
            chains[shot, arm] = chain(arm, joints)
        views, cost = [], 0.0
        for view, sigma in zip(self._problem.views, self._sigmas_px, strict=True):
            fit = self._fit_view(estimate, view, chains)
            views.append(fit)
            e = np.linalg.norm(fit.residual, axis=1) / sigma
            if not np.isfinite(e).all():  # behind the camera
                return _Fit(np.inf, views, chains)
            cost += float(np.sum(np.where(e <= _HUBER, e * e, 2.0 * _HUBER * e - _HUBER**2)))
        cost += sum(float(np.sum((j / JOINT_SIGMA_RAD) ** 2)) for j in estimate.joints.values())
        cost += sum(float(np.sum(r**2)) for _, r in self._prior_residuals(estimate))
        return _Fit(cost, views, chains)

    def _fit_view(self, estimate: Estimate, view: View, chains: Mapping[tuple[int, str], _Chain]) -> _ViewFit:
        world_from_camera = estimate.cameras[view.camera]
        arm = self._problem.arm(view.camera)
        if arm is not None:
            world_from_camera = chains[view.shot, arm].world_from_gripper @ world_from_camera
        board = estimate.boards[view.place]
        world = estimate.scale * view.points_m @ board[:3, :3].T + board[:3, 3]
        camera_from_world = invert(world_from_camera)
        points = world @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        pixels, _ = self._problem.pinholes[view.camera].project(points)
        return _ViewFit(view.pixels - pixels, points, world, camera_from_world)

    def _prior_residuals(self, estimate: Estimate) -> list[tuple[slice, NDArray[np.float64]]]:
        if self._prior is None:
            return []
        out = []
        for name, part in self.camera_part.items():
            if name in self._prior.cameras:
                difference = invert(self._prior.cameras[name]) @ estimate.cameras[name]
                turned = np.asarray(cv2.Rodrigues(difference[:3, :3])[0]).ravel()
                out.append((part, np.concatenate([difference[:3, 3] / self._prior.sigma_m,
                                                  turned / self._prior.sigma_rad])))  # fmt: skip
        return out

    def linearise(self, estimate: Estimate, fit: _Fit) -> _Normal:
        """The equations around an estimate."""
        matrix, gradient = np.zeros((self.size, self.size)), np.zeros(self.size)
        joints = {}

        def add(i: int) -> tuple[NDArray[np.int64], Matrix, Matrix, NDArray[np.float64]]:
            """Adds a view; gives its columns, its part of the joints' equations, and their gradient."""
            view, residual, sigma = self._problem.views[i], fit.views[i].residual, self._sigmas_px[i]
            e = np.linalg.norm(residual, axis=1) / sigma
            weight = np.repeat(np.where(e <= _HUBER, 1.0, _HUBER / np.maximum(e, 1e-12)), 2) / sigma**2
            columns, outer, inner = self.jacobian(estimate, view, fit.views[i], fit.chains)
            matrix[np.ix_(columns, columns)] += (outer.T * weight) @ outer
            gradient[columns] -= (outer.T * weight) @ residual.ravel()
            weighted = inner.T * weight
            return columns, weighted @ outer, weighted @ inner, -weighted @ residual.ravel()

        for i in self._rest:
            add(i)
        for key, views in self._groups.items():
            inner = np.eye(_ARM_JOINTS) / JOINT_SIGMA_RAD**2
            inner_gradient = estimate.joints[key] / JOINT_SIGMA_RAD**2
            coupling = np.zeros((_ARM_JOINTS, self.size))
            for i in views:
                columns, coupled, block, slope = add(i)
                coupling[:, columns] += coupled
                inner, inner_gradient = inner + block, inner_gradient + slope
            columns = np.flatnonzero(coupling.any(axis=0))
            coupling, inverse = coupling[:, columns], np.linalg.inv(inner)
            matrix[np.ix_(columns, columns)] -= coupling.T @ inverse @ coupling
            gradient[columns] -= coupling.T @ inverse @ inner_gradient
            joints[key] = columns, coupling, inverse, inner_gradient
        for part, residual in self._prior_residuals(estimate):
            assert self._prior is not None  # noqa: S101 (it has residuals)
            sigma = np.repeat([self._prior.sigma_m, self._prior.sigma_rad], 3)
            matrix[part, part] += np.diag(1.0 / sigma**2)
            gradient[part] += residual / sigma  # a small turn's vector is its own derivative
        return _Normal(matrix, gradient, joints)

    def jacobian(
        self, estimate: Estimate, view: View, fit: _ViewFit, chains: Mapping[tuple[int, str], _Chain]
    ) -> tuple[NDArray[np.int64], Matrix, Matrix]:
        """Columns, (2N, columns) derivatives of the computed pixels by the steps, and (2N, 6) by the joints."""
        pinhole = self._problem.pinholes[view.camera]
        x, y, z = fit.points.T
        zero = np.zeros_like(z)
        pixel = np.stack(
            [np.stack([pinhole.fx / z, zero, -pinhole.fx * x / z**2], axis=1),
             np.stack([zero, pinhole.fy / z, -pinhole.fy * y / z**2], axis=1)], axis=1
        )  # fmt: skip
        rotation = fit.camera_from_world[:3, :3]
        blocks: list[tuple[slice, Matrix]] = []  # (N, 3, columns) derivatives of the points in the camera's frame
        if view.camera in self.camera_part:
            eye = np.broadcast_to(-np.eye(3), (len(z), 3, 3))
            blocks.append((self.camera_part[view.camera], np.concatenate([eye, _cross(fit.points)], axis=2)))
        board = rotation @ estimate.boards[view.place][:3, :3]
        scaled = estimate.scale * view.points_m
        by_board = np.concatenate([np.broadcast_to(board, (len(z), 3, 3)), -board @ _cross(scaled)], axis=2)
        blocks.append((self._board_part[view.place], by_board))
        if self.scale_part is not None:
            blocks.append((self.scale_part, (view.points_m @ board.T)[..., None]))
        columns = np.concatenate([np.arange(part.start, part.stop) for part, _ in blocks])
        outer = (pixel @ np.concatenate([block for _, block in blocks], axis=2)).reshape(2 * len(z), len(columns))
        arm = self._problem.arm(view.camera)
        if arm is None:
            return columns, outer, np.zeros((2 * len(z), _ARM_JOINTS))
        carried = chains[view.shot, arm]
        swept = np.cross(carried.axes[None], fit.world[:, None] - carried.origins[None])  # of points on the gripper
        inner = pixel @ -np.einsum("ij,nkj->nik", rotation, swept)
        return columns, outer, inner.reshape(2 * len(z), _ARM_JOINTS)

    def covariance(self, normal: _Normal, cost: float) -> Matrix:
        """(size, size), scaled by the misfit where that is larger than expected."""
        if not self.size:
            return np.zeros((0, 0))
        scale = 1.0 / np.sqrt(np.maximum(np.diag(normal.matrix), 1e-300))
        values, vectors = np.linalg.eigh(normal.matrix * np.outer(scale, scale))
        good = values > _SINGULAR * values[-1]
        inverse = (vectors[:, good] / values[good]) @ vectors[:, good].T
        observations = sum(2 * len(view.pixels) for view in self._problem.views)
        misfit = cost / max(observations - self.size, 1)  # a joint's correction brings its own observation
        covariance = max(1.0, misfit) * inverse * np.outer(scale, scale)
        unseen = np.abs(vectors[:, ~good]).max(axis=1, initial=0.0) > 1e-4
        covariance[unseen, unseen] = np.inf
        return covariance


def chain(arm: str, joints: NDArray[np.float64]) -> _Chain:
    """An arm's gripper and joint axes, of a (14,) joint vector."""
    pose = WORLD_FROM_BASE[arm]
    origins, axes = [], []
    for (offset, axis), angle in zip(ARM_CHAIN, joints[ARM_SLICES[arm]].tolist(), strict=False):
        origins.append(pose[:3, :3] @ offset + pose[:3, 3])
        axes.append(pose[:3, :3] @ axis)
        pose = pose @ make(axis_angle(axis, angle), offset)
    return _Chain(pose @ GRIPPER_LINK_FROM_GRIPPER, np.array(origins), np.array(axes))


def _moved(pose: Matrix, step: NDArray[np.float64]) -> Matrix:
    rotation = pose[:3, :3] @ cv2.Rodrigues(step[3:])[0]
    return make(rotation, pose[:3, 3] + pose[:3, :3] @ step[:3])


def _cross(points: Matrix) -> Matrix:
    """(N, 3, 3) matrices that take w to points x w."""
    x, y, z = points.T
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
