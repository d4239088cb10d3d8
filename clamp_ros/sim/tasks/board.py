"""A ChArUco board on the table in place of a task's objects, for a session of `clamp calibrate` without a robot.

It is not in `TASKS`, since there is nothing to do: the simulation's parameter `board` lays it out, by the seed.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.board import Board
from clamp_ros.geometry.transforms import apply, axis_angle, make, quat_xyzw_from_rotation, wxyz_from_xyzw
from clamp_ros.sim.robot_model import VISUAL_GROUP
from clamp_ros.sim.tasks.task import Task

BODY = "charuco"
FACE_DOWN = np.diag([1.0, -1.0, -1.0])
"""world_from_board of a board on the table: its z, into the board, points down, its x along the world's."""
_LEANS_DEG = ((0.0, 0.0), (20.0, 0.0), (0.0, 20.0), (-20.0, 10.0))
PLACES = len(_LEANS_DEG)
_CLEARANCE_M = 0.01
_LEANING_M = 0.1


class BoardOnTable(Task):
    """The default board, moved by whoever resets the simulation."""

    name = "calibration_board"
    description = "Look at the board."
    max_seconds = 3600.0
    objects = ()
    moved = ""
    goal = None
    stages = ("board lies",)

    def __init__(self) -> None:
        self._board = Board()

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        """Adds the board, which nothing touches."""
        add_board(spec, self._board)

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Lays the board at a place: flat, or leaning towards a side."""
        lay(model, data, board_place(self._board, _drawn(rng)))

    def success(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """Never: there is nothing to do."""
        return False

    def progress(self, model: mujoco.MjModel, data: mujoco.MjData) -> int:
        """None."""
        return 0


def place_of_seed(seed: int) -> int:
    """The number of the place, of PLACES, at which a simulation that is reset with a seed lays the board."""
    return _drawn(np.random.default_rng(seed))


def _drawn(rng: np.random.Generator) -> int:
    return int(rng.integers(PLACES))


def add_board(spec: mujoco.MjSpec, board: Board) -> None:
    """A plate whose face is a textured square mesh in the board's frame, half a square of white around the chess."""
    margin = 0.5 * board.square_m
    image = board.image(64 / board.square_m, margin)
    texture = spec.add_texture(name=BODY, type=mujoco.mjtTexture.mjTEXTURE_2D, width=image.shape[1],
                               height=image.shape[0], nchannel=3)  # fmt: skip
    texture.data = np.repeat(image[..., None], 3, axis=2).tobytes()
    material = spec.add_material(name=BODY, specular=0.0, shininess=0.0, emission=0.3)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = BODY
    x0, y0, (width, height) = -margin, -margin, board.size_m
    x1, y1 = width + margin, height + margin
    corners = np.array([(x0, y0, 0.0), (x1, y0, 0.0), (x1, y1, 0.0), (x0, y1, 0.0)])
    mesh = spec.add_mesh(name=BODY, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
    # the face looks along -z, out of the board
    below = corners + np.array((0.0, 0.0, 0.004))
    mesh.uservert = np.concatenate([corners, below]).ravel()
    mesh.userface = np.array([(0, 2, 1), (0, 3, 2), (4, 5, 6), (4, 6, 7)]).ravel()
    mesh.usertexcoord = np.array([(0, 0), (1, 0), (1, 1), (0, 1)] * 2, dtype=float).ravel()
    mesh.userfacetexcoord = mesh.userface
    body = spec.worldbody.add_body(name=BODY, mocap=True, pos=(0.0, 0.0, _CLEARANCE_M))
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=BODY, material=BODY, group=VISUAL_GROUP,
                  contype=0, conaffinity=0, density=0.0)  # fmt: skip


def board_place(board: Board, number: int) -> NDArray[np.float64]:
    """(4, 4) world_from_board of a place on the table, the board leaning on something where it is not flat."""
    lean = number % len(_LEANS_DEG)
    roll, pitch = np.deg2rad(_LEANS_DEG[lean])
    rotation = axis_angle((0, 0, 1), 0.15 * (number - 1)) @ axis_angle((1, 0, 0), roll) @ axis_angle((0, 1, 0), pitch)
    centre = np.array([0.02 * (number - 1), -0.02 * number, _CLEARANCE_M + _LEANING_M * (lean != 0)])
    pose = make(rotation @ FACE_DOWN, centre)
    return make(pose[:3, :3], apply(pose, (-0.5 * board.size_m[0], -0.5 * board.size_m[1], 0.0)))


def lay(model: mujoco.MjModel, data: mujoco.MjData, world_from_board: NDArray[np.float64]) -> None:
    """Puts the board somewhere."""
    place = model.body(BODY).mocapid[0]
    data.mocap_pos[place] = world_from_board[:3, 3]
    data.mocap_quat[place] = wxyz_from_xyzw(quat_xyzw_from_rotation(world_from_board[:3, :3]))
