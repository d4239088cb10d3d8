"""Plate on Rack: stand the plate in one of a drying rack's dividers (paper Section IV-A)."""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.contract.robot import ARMS
from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.rack import PEG_HEIGHT_M, SLOT_M, STANDING_M, add_deep_plate, add_rack, slot_middles_m
from clamp_ros.sim.tasks.task import (
    Task,
    at_rest,
    gripped_by,
    object_pose,
    place,
    tilt_rad,
    touched_by_robot,
    touching,
)

MOST_LEAN_RAD = np.deg2rad(30.0)
"""A plate in its divider leans on the pegs by 10 to 20 degrees."""
HANDS_OFF_M = 0.11
"""Fingertips are at least this far from the plate's middle, whose rim is at 0.086 m."""
REACHING_M = 0.16
LIFTED_M = 0.03
_UPRIGHT_RAD = np.deg2rad(5.0)
_REST_M_S = 0.005
_REST_RAD_S = 0.05


class PlateOnRack(Task):
    """A rack in the top half of the workspace, turned by +-86.4 degrees, and a plate in the bottom half."""

    name = "plate_on_rack"
    description = "Pick up the plate and place it on the rack."
    max_seconds = 40.0
    objects = ("plate", "rack")
    moved, goal = "plate", "rack"
    stages = ("idle", "reaching", "grasped", "lifted", "above rack", "placed", "done")

    rack_region_m = ((-0.12, 0.12), (0.10, 0.16))
    plate_region_m = ((-0.20, 0.20), (-0.18, -0.10))
    rack_yaw_rad = np.deg2rad(86.4)

    def add_object(self, spec: mujoco.MjSpec, name: str) -> None:
        """The plate is a deep one, which fingers get under the rim of."""
        {"plate": add_deep_plate, "rack": add_rack}[name](spec)

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Uniform in a 24 x 6 cm region for the rack and 40 x 8 cm for the plate."""
        for name, region, yaw in (
            ("rack", self.rack_region_m, self.rack_yaw_rad),
            ("plate", self.plate_region_m, np.pi),
        ):
            x, y = (float(rng.uniform(*axis)) for axis in region)
            place(model, data, name, (x, y), float(rng.uniform(-yaw, yaw)))

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """The plate stands between two dividers and touches the rack alone; at rest on the table, hands off."""
        middle = plate_middle(data)
        return (
            self._stands(model, data)
            and "world" in touching(model, data, "rack")
            and not touched_by_robot(touching(model, data, "rack"))
            and min(float(np.linalg.norm(data.site(f"{arm}/gripper").xpos - middle)) for arm in ARMS) >= HANDS_OFF_M
            and tilt_rad(data, "rack") < _UPRIGHT_RAD
            and abs(float(data.body("rack").xpos[2]) - TABLE_TOP_M) < 0.004
            and all(at_rest(model, data, name, _REST_M_S, _REST_RAD_S) for name in self.objects)
        )

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """How far the episode is: index into `stages`, from the state alone."""
        if self.success(model, data):
            return 6
        if self._stands(model, data):
            return 5
        contacts, middle = touching(model, data, "plate"), plate_middle(data)
        if gripped_by(contacts) is not None:
            if "world" in contacts:
                return 2
            beside = float(np.linalg.norm(middle[:2] - data.body("rack").xpos[:2]))
            if beside < 0.10 and middle[2] > TABLE_TOP_M + PEG_HEIGHT_M:
                return 4
            return 3 if middle[2] > TABLE_TOP_M + LIFTED_M else 2
        return int(min(np.linalg.norm(data.site(f"{arm}/gripper").xpos - middle) for arm in ARMS) < REACHING_M)

    def _stands(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        rack, plate = object_pose(data, "rack"), object_pose(data, "plate")
        middle = rack[:3, :3].T @ (plate_middle(data) - rack[:3, 3])
        face = rack[:3, :3].T @ plate[:3, 2]
        off_slot = float(np.abs(slot_middles_m() - middle[0]).min())
        return (
            touching(model, data, "plate") == {"rack"}
            and abs(float(face[0])) > np.cos(MOST_LEAN_RAD)
            and off_slot < 0.5 * SLOT_M
            and abs(float(middle[1])) < 0.03
            and abs(float(middle[2]) - STANDING_M) < 0.015
        )


class RealPlateOnRack(PlateOnRack):
    """As the paper does it on the robot: a rack turned by +-45 degrees; a plate grasped is partial success."""

    name = "real_plate_on_rack"
    partial_stage = "lifted"
    rack_yaw_rad = np.deg2rad(45.0)


def plate_middle(data: mujoco.MjData) -> np.ndarray:
    """(3,) world position of the plate's middle, half its height above its underside."""
    pose = object_pose(data, "plate")
    return pose[:3, 3] + 0.013 * pose[:3, 2]
