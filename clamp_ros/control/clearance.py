"""How near the arms are to each other, to the table and to themselves, from MuJoCo's model of the robot.

The shapes are those of `sim.robot_model` in its look "primitive": boxes and cylinders around the links, the fingers'
hulls, the table's top. Held objects, cables, cameras' mounts and the frame around the table are not in it. MuJoCo is
imported when the first `Clearance` is made; nothing else of the robot's command path needs it.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import GRIPPER_INDICES, JOINT_NAMES, joint_vector

_TOLERANCE_M = 1e-6
"""Nearer by less than this is not nearer: what the distances' own rounding may be."""
_PATH_STEP_RAD = 0.02
_FIXED_LINKS = ("base_link", "shoulder_link")
_LINKS = (
    *_FIXED_LINKS, "upper_arm_link", "upper_forearm_link", "lower_forearm_link", "wrist_link", "gripper_base",
    "left_finger_link", "right_finger_link",
)  # fmt: skip
_RANKS = {link: min(rank, _LINKS.index("gripper_base")) for rank, link in enumerate(_LINKS)}
_TABLE = "table"


@dataclass(frozen=True)
class ClearanceConfig:
    """How near is too near. Below zero the shapes may overlap by so much: they are outlines, not the parts."""

    enabled: bool = param(True, "refuse commands that bring an arm too near to something; needs mujoco")
    arm_arm_m: float = param(0.02, "from one arm to the other", unit="m", minimum=0.0, maximum=0.2)
    arm_table_m: float = param(
        0.01, "from an arm's links to the table, fingers excepted", unit="m", minimum=-0.01, maximum=0.2
    )
    finger_table_m: float = param(
        0.001, "from the fingers to the table: they take things from it", unit="m", minimum=-0.01, maximum=0.2
    )
    arm_self_m: float = param(
        -0.005, "between links of one arm that no joint joins; leaning back, experts pass at 3 mm", unit="m",
        minimum=-0.02, maximum=0.2,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)


class Nearest(NamedTuple):
    """The smallest of all distances: metres, negative where shapes overlap, and the names of the two bodies."""

    distance_m: float
    first: str
    second: str


class Clearance:
    """Distances of the robot's shapes for a joint vector. Bound to one thread.

    Attributes:
        count: how many pairs of shapes are watched.
    """

    def __init__(self, config: ClearanceConfig | None = None) -> None:
        """Builds the model, milliseconds.

        Raises:
            ConfigError: mujoco is not installed.
        """
        config = config or ClearanceConfig()
        self._mujoco, self._model = _robot()
        model = self._model
        self._data = self._mujoco.MjData(model)
        joints = model.actuator_trnid[[model.actuator(name).id for name in JOINT_NAMES], 0]
        self._qpos = model.jnt_qposadr[joints]
        self._right_fingers = self._qpos[list(GRIPPER_INDICES)] + 1  # mirror images of the left ones
        self._pairs, self._limits = _pairs(self._mujoco, model, config)
        self.count = len(self._pairs)
        self._first, self._second = self._pairs.T
        on_table = self._first == model.geom(_TABLE).id
        self._arms, self._table = np.flatnonzero(~on_table), np.flatnonzero(on_table)
        radii = model.geom_rbound
        self._radii = radii[self._second] + np.where(on_table, 0.0, radii[self._first])
        self._table_top_m = float(model.geom(_TABLE).pos[2] + model.geom(_TABLE).size[2])

    def shortfalls(self, joints: ArrayLike) -> NDArray[np.float64]:
        """(count,) metres by which each pair is nearer than its limit; 0 where it is not.

        Raises:
            ContractError: not (14,) finite numbers.
        """
        return np.maximum(self._limits - self._distances(joints, 0.0), 0.0)

    def says(self, joints: ArrayLike, pair: int) -> str:
        """A pair's distance in words."""
        distance_m = self._distances(joints, 1.0, np.array([pair]))[pair]
        first, second = self._names(pair)
        return f"{second} is {1e3 * distance_m:.1f} mm from {first}, limit {1e3 * self._limits[pair]:.1f} mm"

    def nearest(self, joints: ArrayLike, reach_m: float = 0.3) -> Nearest | None:
        """The two bodies that are nearest to each other, or None if none are nearer than `reach_m`."""
        distances = self._distances(joints, reach_m)
        pair = int(distances.argmin())
        return Nearest(float(distances[pair]), *self._names(pair)) if distances[pair] < reach_m else None

    def refuses_path(self, start: ArrayLike, end: ArrayLike, rest_s: float = 0.0) -> str | None:
        """Why the straight way in joint space is not free, or None. What is too near at the start may stay so.

        Args:
            start, end: (14,) where it begins and ends.
            rest_s: sleep after each of its hundred or so poses, for the sake of other threads: this one holds the GIL.

        Raises:
            ContractError: not (14,) finite numbers.
        """
        first, last = joint_vector(start, "start"), joint_vector(end, "end")
        allowed = self.shortfalls(first) + _TOLERANCE_M
        for share in np.linspace(0.0, 1.0, 1 + int(np.ceil(np.abs(last - first).max() / _PATH_STEP_RAD)))[1:]:
            joints = first + share * (last - first)
            nearer = self.shortfalls(joints) - allowed
            if nearer.max() > 0.0:
                return self.says(joints, int(nearer.argmax()))
            time.sleep(rest_s)
        return None

    def _names(self, pair: int) -> tuple[str, str]:
        first, second = (self._model.body(self._model.geom_bodyid[geom]).name for geom in self._pairs[pair])
        return (_TABLE if first == "world" else first), second

    def _distances(
        self, joints: ArrayLike, reach_m: float, pairs: NDArray[np.intp] | None = None
    ) -> NDArray[np.float64]:
        """(count,) distances in metres; those of other pairs, and those beyond limit and reach, are as good as any."""
        values = joint_vector(joints)
        self._data.qpos[self._qpos] = values
        self._data.qpos[self._right_fingers] = values[list(GRIPPER_INDICES)]
        self._mujoco.mj_kinematics(self._model, self._data)
        reach = np.maximum(self._limits, reach_m)
        distances = np.full(self.count, np.inf)
        if pairs is None:
            pairs = np.flatnonzero(self._at_least() < reach)
        distance, first, second = self._mujoco.mj_geomDistance, self._first, self._second
        for pair in pairs.tolist():
            distances[pair] = distance(self._model, self._data, first[pair], second[pair], reach[pair], None)
        return distances

    def _at_least(self) -> NDArray[np.float64]:
        """(count,) lower bounds of the distances, from the shapes' spheres and the plane of the table's top."""
        centres = self._data.geom_xpos
        bounds = np.empty(self.count)
        arms, table = self._arms, self._table
        apart = centres[self._first[arms]] - centres[self._second[arms]]
        bounds[arms] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
        bounds[table] = centres[self._second[table], 2] - self._table_top_m
        return bounds - self._radii


@functools.cache
def _robot() -> tuple[Any, Any]:
    """MuJoCo, and the compiled model of the robot; it is shared: do not change it."""
    try:
        import mujoco
    except ImportError:
        raise ConfigError(
            "keeping arms clear of each other and of the table needs mujoco, which is not installed: pip install "
            "'clamp_ros[hardware]' (or [sim]); or set the parameter safety.clearance.enabled (arm_node: "
            "clearance.enabled) to false to go without"
        ) from None
    from clamp_ros.sim.robot_model import build_robot_spec

    return mujoco, build_robot_spec("primitive").compile()


def _pairs(mujoco: Any, model: Any, config: ClearanceConfig) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """(count, 2) geoms of each pair, the table first, and (count,) limits."""
    tips = model.geom_type == mujoco.mjtGeom.mjGEOM_SPHERE  # contact points on the fingers' hulls, a millimetre wide
    collide = ((model.geom_contype | model.geom_conaffinity) != 0) & ~tips
    shapes = [(geom, *model.body(model.geom_bodyid[geom]).name.split("/")) for geom in np.flatnonzero(collide).tolist()]
    links = [(geom, arm, link) for geom, arm, *rest in shapes for link in rest]
    table = int(model.geom(_TABLE).id)
    pairs: list[tuple[int, int]] = []
    limits: list[float] = []
    for i, (geom, arm, link) in enumerate(links):
        if link not in _FIXED_LINKS:
            pairs.append((table, geom))
            limits.append(config.finger_table_m if link.endswith("_finger_link") else config.arm_table_m)
        for other, other_arm, other_link in links[:i]:
            if other_arm != arm:
                pairs.append((other, geom))
                limits.append(config.arm_arm_m)
            elif abs(_RANKS[link] - _RANKS[other_link]) > 1:
                pairs.append((other, geom))
                limits.append(config.arm_self_m)
    return np.array(pairs), np.array(limits)
