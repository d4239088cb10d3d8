"""The joint adjustment: cameras, places of the board and joints at once, so that all corners fit their pixels best.

Bundle adjustment over SE(3) by Levenberg-Marquardt, with Huber's weights against stray corners. Poses are updated on
their right side: ``R <- R exp(w)``, ``t <- t + R v``. The joints are observations like the pixels: each shot's may move
by about `JOINT_SIGMA_RAD`, which is what an encoder's step and a gearbox's play leave open; what they do must then fit
every camera at once. Normal equations are gathered view by view; there are a few hundred unknowns.
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
from clamp_ros.contract.robot import ARM_SLICES, NUM_JOINTS
from clamp_ros.geometry.kinematics import ARM_CHAIN, WORLD_FROM_BASE, world_from_gripper
from clamp_ros.geometry.transforms import axis_angle, invert, make

PIXEL_SIGMA = 0.25
"""Standard deviation of a corner's pixel, along either axis, where a view's own is not known yet."""
JOINT_SIGMA_RAD = 0.0007
"""Of a joint: rounding to its encoder's steps of 2 pi / 4096 has 0.00044 rad; the rest is for its gearbox."""
_HUBER = 2.0
_ITERATIONS = 60
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
    normal, gradient, cost = system.linearise(estimate)
    if not np.isfinite(cost):
        raise CalibrationError("the start puts the board behind a camera that saw it")
    damping = 1e-4
    for _ in range(_ITERATIONS):
        scaled = normal + damping * np.diag(np.diag(normal) + 1e-12)
        step = np.asarray(np.linalg.solve(scaled, -gradient), dtype=np.float64)
        candidate = system.moved(estimate, step)
        new_cost = system.cost(candidate)
        if not new_cost < cost:
            if damping > 1e8 or np.abs(step).max(initial=0.0) < 1e-10:
                break
            damping *= 10.0
            continue
        converged = cost - new_cost < 1e-9 * cost
        estimate, damping = candidate, max(0.1 * damping, 1e-9)
        normal, gradient, cost = system.linearise(estimate)
        if converged:
            break
    residuals, depths = zip(*(system.residual(estimate, view)[:2] for view in problem.views), strict=True)
    covariance = system.covariance(normal, estimate)
    covariances = {name: covariance[part, part] for name, part in system.camera_part.items()}
    scale_sigma = 0.0 if system.scale_part is None else float(np.sqrt(covariance[-1, -1]))
    return Adjusted(estimate, cost, list(residuals), list(depths), covariances, scale_sigma)


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
        moved = sorted({(v.shot, arm) for v in problem.views if (arm := problem.arm(v.camera)) is not None})
        self._joint_part = {key: self._part(_ARM_JOINTS) for key in moved}
        self.scale_part = self._part(1) if free_scale else None
        missing = [name for name in problem.cameras if name not in begin.cameras]
        missing += [f"place {place}" for place in self._board_part if place not in begin.boards]
        if missing:
            raise CalibrationError(f"the start says nothing of {', '.join(missing)}")

    def _part(self, size: int) -> slice:
        self.size += size
        return slice(self.size - size, self.size)

    def copy(self, estimate: Estimate) -> Estimate:
        joints = {key: estimate.joints.get(key, np.zeros(_ARM_JOINTS)).copy() for key in self._joint_part}
        return Estimate(dict(estimate.cameras), dict(estimate.boards), joints, estimate.scale)

    def moved(self, estimate: Estimate, step: NDArray[np.float64]) -> Estimate:
        new = self.copy(estimate)
        for name, part in self.camera_part.items():
            new.cameras[name] = _moved(new.cameras[name], step[part])
        for place, part in self._board_part.items():
            new.boards[place] = _moved(new.boards[place], step[part])
        for key, part in self._joint_part.items():
            new.joints[key] = new.joints[key] + step[part]
        if self.scale_part is not None:
            new.scale += float(step[self.scale_part][0])
        return new

    def residual(self, estimate: Estimate, view: View) -> tuple[Matrix, NDArray[np.float64], Matrix, Matrix, Matrix]:
        """(N, 2) seen minus computed, (N,) depths, (N, 3) points of the camera's frame and of the world, (4, 4)."""
        pinhole = self._problem.pinholes[view.camera]
        world_from_camera = self._world_from_mount(estimate, view) @ estimate.cameras[view.camera]
        board = estimate.boards[view.place]
        world = estimate.scale * view.points_m @ board[:3, :3].T + board[:3, 3]
        camera_from_world = invert(world_from_camera)
        points = world @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        pixels, z = pinhole.project(points)
        return view.pixels - pixels, z, points, world, camera_from_world

    def _joints(self, estimate: Estimate, shot: int, arm: str) -> NDArray[np.float64]:
        joints = np.array(self._problem.joints[shot])
        joints[ARM_SLICES[arm]][:_ARM_JOINTS] += estimate.joints[shot, arm]
        return joints

    def _world_from_mount(self, estimate: Estimate, view: View) -> Matrix:
        arm = self._problem.arm(view.camera)
        return np.eye(4) if arm is None else world_from_gripper(arm, self._joints(estimate, view.shot, arm))

    def cost(self, estimate: Estimate) -> float:
        total = 0.0
        for view, sigma in zip(self._problem.views, self._sigmas_px, strict=True):
            residual, *_ = self.residual(estimate, view)
            e = np.linalg.norm(residual, axis=1) / sigma
            if not np.isfinite(e).all():  # behind the camera
                return np.inf
            total += float(np.sum(np.where(e <= _HUBER, e * e, 2.0 * _HUBER * e - _HUBER**2)))
        total += sum(float(np.sum((j / JOINT_SIGMA_RAD) ** 2)) for j in estimate.joints.values())
        return total + sum(float(np.sum(r**2)) for _, r in self._prior_residuals(estimate))

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

    def linearise(self, estimate: Estimate) -> tuple[Matrix, NDArray[np.float64], float]:
        """Normal matrix, gradient (of half the cost) and cost."""
        normal, gradient = np.zeros((self.size, self.size)), np.zeros(self.size)
        for view, sigma in zip(self._problem.views, self._sigmas_px, strict=True):
            residual, _, points, world, camera_from_world = self.residual(estimate, view)
            e = np.linalg.norm(residual, axis=1) / sigma
            weight = np.repeat(np.where(e <= _HUBER, 1.0, _HUBER / np.maximum(e, 1e-12)), 2) / sigma**2
            columns, jacobian = self._jacobian(estimate, view, points, world, camera_from_world)
            weighted = jacobian.T * weight
            normal[np.ix_(columns, columns)] += weighted @ jacobian
            gradient[columns] -= weighted @ residual.ravel()
        for key, part in self._joint_part.items():
            normal[part, part] += np.eye(_ARM_JOINTS) / JOINT_SIGMA_RAD**2
            gradient[part] += estimate.joints[key] / JOINT_SIGMA_RAD**2
        for part, residual in self._prior_residuals(estimate):
            assert self._prior is not None  # noqa: S101 (it has residuals)
            sigma = np.repeat([self._prior.sigma_m, self._prior.sigma_rad], 3)
            normal[part, part] += np.diag(1.0 / sigma**2)
            gradient[part] += residual / sigma  # a small turn's vector is its own derivative
        return normal, gradient, self.cost(estimate)

    def _jacobian(
        self, estimate: Estimate, view: View, points: Matrix, world: Matrix, camera_from_world: Matrix
    ) -> tuple[NDArray[np.int64], Matrix]:
        """Columns, and (2N, columns) derivatives of the computed pixels by the steps."""
        pinhole = self._problem.pinholes[view.camera]
        x, y, z = points.T
        zero = np.zeros_like(z)
        pixel = np.stack(
            [np.stack([pinhole.fx / z, zero, -pinhole.fx * x / z**2], axis=1),
             np.stack([zero, pinhole.fy / z, -pinhole.fy * y / z**2], axis=1)], axis=1
        )  # fmt: skip
        rotation = camera_from_world[:3, :3]
        blocks: list[tuple[slice, Matrix]] = []  # (N, 3, columns) derivatives of the points in the camera's frame
        if view.camera in self.camera_part:
            eye = np.broadcast_to(-np.eye(3), (len(z), 3, 3))
            blocks.append((self.camera_part[view.camera], np.concatenate([eye, _cross(points)], axis=2)))
        board = rotation @ estimate.boards[view.place][:3, :3]
        scaled = estimate.scale * view.points_m
        by_board = np.concatenate([np.broadcast_to(board, (len(z), 3, 3)), -board @ _cross(scaled)], axis=2)
        blocks.append((self._board_part[view.place], by_board))
        arm = self._problem.arm(view.camera)
        if arm is not None:
            origins, axes = joint_axes(arm, self._joints(estimate, view.shot, arm))
            swept = np.cross(axes[None], world[:, None] - origins[None])  # of a point that the gripper carried
            blocks.append((self._joint_part[view.shot, arm], -np.einsum("ij,nkj->nik", rotation, swept)))
        if self.scale_part is not None:
            blocks.append((self.scale_part, (view.points_m @ board.T)[..., None]))
        columns = np.concatenate([np.arange(part.start, part.stop) for part, _ in blocks])
        points_by_step = np.concatenate([block for _, block in blocks], axis=2)
        return columns, (pixel @ points_by_step).reshape(2 * len(z), len(columns))

    def covariance(self, normal: Matrix, estimate: Estimate) -> Matrix:
        """(size, size), scaled by the misfit where that is larger than expected."""
        if not self.size:
            return np.zeros((0, 0))
        scale = 1.0 / np.sqrt(np.diag(normal) + 1e-300)
        values, vectors = np.linalg.eigh(normal * np.outer(scale, scale))
        good = values > _SINGULAR * values[-1]
        inverse = (vectors[:, good] / values[good]) @ vectors[:, good].T
        observations = sum(2 * len(view.pixels) for view in self._problem.views)
        unknown = self.size - len(self._joint_part) * _ARM_JOINTS  # a joint's correction brings its own observation
        misfit = self.cost(estimate) / max(observations - unknown, 1)
        covariance = max(1.0, misfit) * inverse * np.outer(scale, scale)
        unseen = np.abs(vectors[:, ~good]).max(axis=1, initial=0.0) > 1e-4
        covariance[unseen, unseen] = np.inf
        return covariance


def joint_axes(arm: str, joints: NDArray[np.float64]) -> tuple[Matrix, Matrix]:
    """(6, 3) points on the arm's joint axes and (6, 3) their unit directions, world frame, of a (14,) joint vector."""
    if np.shape(joints) != (NUM_JOINTS,):
        raise CalibrationError(f"joints have shape {np.shape(joints)}, expected ({NUM_JOINTS},)")
    pose = WORLD_FROM_BASE[arm]
    origins, axes = [], []
    for (offset, axis), angle in zip(ARM_CHAIN, joints[ARM_SLICES[arm]], strict=False):
        origins.append(pose[:3, :3] @ offset + pose[:3, 3])
        axes.append(pose[:3, :3] @ axis)
        pose = pose @ make(axis_angle(axis, float(angle)), offset)
    return np.array(origins), np.array(axes)


def _moved(pose: Matrix, step: NDArray[np.float64]) -> Matrix:
    rotation = pose[:3, :3] @ cv2.Rodrigues(step[3:])[0]
    return make(rotation, pose[:3, 3] + pose[:3, :3] @ step[:3])


def _cross(points: Matrix) -> Matrix:
    """(N, 3, 3) matrices that take w to points x w."""
    x, y, z = points.T
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
