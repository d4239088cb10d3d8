"""The simulated tasks, by name."""

from __future__ import annotations

from clamp_ros.sim.tasks.drawer_open import DrawerOpen
from clamp_ros.sim.tasks.insert import CanOpenerInCaddy, PenInContainer, ScrewdriverInCaddy
from clamp_ros.sim.tasks.mug_on_plate import MugOnPlate, MugOnPlateEasy
from clamp_ros.sim.tasks.plate_on_rack import PlateOnRack
from clamp_ros.sim.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        MugOnPlate,
        MugOnPlateEasy,
        DrawerOpen,
        PenInContainer,
        CanOpenerInCaddy,
        ScrewdriverInCaddy,
        PlateOnRack,
    )
}

__all__ = ["TASKS", "Task"]
