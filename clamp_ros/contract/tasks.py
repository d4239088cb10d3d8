"""The names of the simulated tasks, for command lines and launch files that must not load a simulator to offer them.

`sim.tasks.TASKS` holds what each of them is; a test holds the two equal.
"""

from __future__ import annotations

TASK_NAMES: tuple[str, ...] = (
    "mug_on_plate",
    "mug_on_plate_easy",
    "drawer_open",
    "drawer_open_easy",
    "pen_in_container",
    "can_opener_in_caddy",
    "screwdriver_in_caddy",
    "plate_on_rack",
    "open_drawers",
    "close_drawers",
    "real_mug_on_plate",
    "real_plate_on_rack",
    "recycle_cans",
)
