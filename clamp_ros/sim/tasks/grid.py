"""The paper's layout: six objects on a grid of two rows and three columns (Section IV-A).

"Top" is the row farther from the operator (positive y). Cells are far enough apart that no two objects overlap at any
jitter and rotation, and each cell can be reached by an arm standing at either end of the table.
"""

from __future__ import annotations

import mujoco
import numpy as np

from clamp_ros.sim.tasks.task import place

COLUMNS_X_M = (-0.19, 0.0, 0.19)
TOP_Y_M = 0.14
BOTTOM_Y_M = -0.14
JITTER_M = 0.015


def place_on_grid(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    rng: np.random.Generator,
    top: tuple[str, ...],
    bottom: tuple[str, ...],
    max_yaw_rad: float,
) -> None:
    """Puts three objects in the top cells and three in the bottom cells, each row in a random order.

    Positions are jittered by up to JITTER_M along each axis, yaw is uniform within +-max_yaw_rad.
    """
    for row, y in ((top, TOP_Y_M), (bottom, BOTTOM_Y_M)):
        for column, index in enumerate(rng.permutation(len(row))):
            dx, dy = rng.uniform(-JITTER_M, JITTER_M, 2)
            yaw = float(rng.uniform(-max_yaw_rad, max_yaw_rad))
            place(model, data, row[index], (COLUMNS_X_M[column] + dx, y + dy), yaw)
