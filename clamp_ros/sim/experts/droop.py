"""Where to send an arm so that gravity takes it to where it should be.

The arms' position servos have no integral term: at rest, a joint hangs below its target by its gravity torque over the
servo's stiffness, about a centimetre at the fingertips. A teleoperator makes up for it by leading with the hand; an
expert does the same for its waypoints. It is a smooth function of the pose alone, with no feedback in it.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.robot import ARM_JOINTS, ARM_SLICES, JOINT_NAMES, REST_POSE
from clamp_ros.sim.experts.ik import forward, solve

_BEARS_WEIGHT = np.array([joint in ("shoulder", "elbow", "wrist_angle") for joint in ARM_JOINTS], dtype=np.float64)
"""The other joints turn about the links' length: their sag is nil, but enough to roll a wrist that stands straight."""


class Droop:
    """Gravity's effect on the arms of a model, with empty hands.

    Args:
        model: a model whose actuators are named `contract.robot.JOINT_NAMES`.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        actuators = [model.actuator(name).id for name in JOINT_NAMES]
        joints = model.actuator_trnid[actuators, 0]
        self._qpos, self._dof = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._stiffness = model.actuator_gainprm[actuators, 0]

    def lead(
        self,
        arm: str,
        world_from_gripper: NDArray[np.float64],
        planar: bool = False,
        near: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """(4, 4) pose to command, so that the gripper comes to rest at world_from_gripper; `planar` as in `solve`.

        Of several solutions, the one in the branch of the pose `near` (4, 4), in the arm's plane, counts; else of rest.

        Raises:
            SimulationError: the pose is out of reach.
        """
        columns = ARM_SLICES[arm]
        seed = REST_POSE[columns][: len(ARM_JOINTS)]
        if near is not None:
            seed = solve(arm, near, seed, planar=True)
        wanted = solve(arm, world_from_gripper, seed, planar=planar)
        self._data.qpos[self._qpos] = REST_POSE
        self._data.qpos[self._qpos[columns][: len(ARM_JOINTS)]] = wanted
        mujoco.mj_fwdPosition(self._model, self._data)
        torque = np.zeros(self._model.nv)
        mujoco.mj_rne(self._model, self._data, 0, torque)
        sag = (torque[self._dof] / self._stiffness)[columns][: len(ARM_JOINTS)]
        pose, _ = forward(arm, wanted + _BEARS_WEIGHT * sag)
        return pose
