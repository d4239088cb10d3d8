"""Recycle Cans: put at least two of three soda cans into the trash bins (paper Section IV-A, real world)."""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.bins import BIN_HEIGHT_M, BIN_INNER_RADIUS_M, BINS, CAN_HEIGHT_M, CANS, add_bin, add_can
from clamp_ros.sim.tasks.task import (
    Task,
    at_rest,
    gripped_by,
    gripper_distances_m,
    object_pose,
    place,
    tilt_rad,
    touched_by_robot,
    touching,
)

WANTED = 2
"""So many cans make the task done, one less partly."""
HANDS_OFF_M = 0.08
REACHING_M = 0.15
LIFTED_M = 0.03
_UPRIGHT_RAD = np.deg2rad(5.0)
_REST_M_S = 0.005
_REST_RAD_S = 0.1


class RecycleCans(Task):
    """Two bins at the top right of the workspace, three cans in its centre, turned by +-45 degrees."""

    name = "recycle_cans"
    description = "Pick up the cans and place them in the trash bins."
    max_seconds = 50.0
    objects = (*BINS, *CANS)
    moved, goal = "red_can", "blue_bin"
    stages = ("idle", "reaching", "grasped", "lifted", "one in", "two in", "done")
    partial_stage = "one in"

    bins_m = ((0.075, 0.18), (0.245, 0.18))
    bin_jitter_m = 0.008
    cans_m = ((-0.13, -0.06), (0.0, -0.06), (0.13, -0.06))
    can_jitter_m = (0.015, 0.03)
    can_yaw_rad = np.deg2rad(45.0)

    def add_object(self, spec: mujoco.MjSpec, name: str) -> None:
        """A bin or a can in its colour."""
        (add_bin if name in BINS else add_can)(spec, name)

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Bins side by side and cans in a row, each in any order, from places that vary by a few centimetres."""
        for names, places, jitter, yaw in (
            (tuple(BINS), self.bins_m, (self.bin_jitter_m, self.bin_jitter_m), np.pi),
            (tuple(CANS), self.cans_m, self.can_jitter_m, self.can_yaw_rad),
        ):
            for (x, y), index in zip(places, rng.permutation(len(names)), strict=True):
                dx, dy = (float(rng.uniform(-most, most)) for most in jitter)
                place(model, data, names[index], (x + dx, y + dy), float(rng.uniform(-yaw, yaw)))

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """At least two cans lie in bins for good: they and the bins at rest on the table, hands off."""
        inside = cans_inside(model, data)
        return (
            len(inside) >= WANTED
            and all(at_rest(model, data, name, _REST_M_S, _REST_RAD_S) for name in (*BINS, *inside))
            and all(min(gripper_distances_m(data, can).values()) >= HANDS_OFF_M for can in inside)
            and not any(touched_by_robot(touching(model, data, name)) for name in (*BINS, *inside))
        )

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """How far the episode is: index into `stages`, from the state alone."""
        if inside := cans_inside(model, data):
            if len(inside) < WANTED:
                return 4
            return 6 if self.success(model, data) else 5
        near = [can for can in CANS if min(gripper_distances_m(data, can).values()) < REACHING_M]
        gripped = [can for can in near if gripped_by(touching(model, data, can)) is not None]
        if any(data.body(can).xpos[2] > TABLE_TOP_M + LIFTED_M for can in gripped):
            return 3
        return 2 if gripped else int(bool(near))

    def hopeless(self, data: mujoco.MjData) -> bool:
        """A can that has fallen leaves others, and those in a bin may lie as they like."""
        return False


def cans_inside(model: mujoco.MjModel, data: mujoco.MjData) -> list[str]:
    """Cans whose middle is in a bin that stands on the table, and that touch nothing but bins and cans."""
    return [
        can for can in CANS
        if any(in_bin(data, can, name) and _stands(model, data, name) for name in BINS)
        and touching(model, data, can) <= {*BINS, *CANS}
    ]  # fmt: skip


def _stands(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> bool:
    return (
        tilt_rad(data, name) < _UPRIGHT_RAD
        and abs(float(data.body(name).xpos[2]) - TABLE_TOP_M) < 0.004
        and "world" in touching(model, data, name)
    )


def can_middle(data: mujoco.MjData, can: str) -> np.ndarray:
    """(3,) world position of a can's middle."""
    pose = object_pose(data, can)
    return pose[:3, 3] + 0.5 * CAN_HEIGHT_M * pose[:3, 2]


def in_bin(data: mujoco.MjData, can: str, name: str) -> bool:
    """Whether a can's middle is within a bin, below its rim."""
    pose = object_pose(data, name)
    x, y, z = pose[:3, :3].T @ (can_middle(data, can) - pose[:3, 3])
    return bool(np.hypot(x, y) < np.interp(z, (0.0, BIN_HEIGHT_M), BIN_INNER_RADIUS_M) and 0.0 < z < BIN_HEIGHT_M)
