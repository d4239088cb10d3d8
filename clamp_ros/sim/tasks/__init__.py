"""The simulated tasks, by name."""

from __future__ import annotations

from clamp_ros.sim.tasks.drawer_open import DrawerOpen, DrawerOpenEasy
from clamp_ros.sim.tasks.insert import CanOpenerInCaddy, PenInContainer, ScrewdriverInCaddy
from clamp_ros.sim.tasks.mug_on_plate import MugOnPlate, MugOnPlateEasy, RealMugOnPlate
from clamp_ros.sim.tasks.plate_on_rack import PlateOnRack, RealPlateOnRack
from clamp_ros.sim.tasks.recycle_cans import RecycleCans
from clamp_ros.sim.tasks.task import Task
from clamp_ros.sim.tasks.two_drawers import CloseDrawers, OpenDrawers

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        MugOnPlate,
        MugOnPlateEasy,
        DrawerOpen,
        DrawerOpenEasy,
        PenInContainer,
        CanOpenerInCaddy,
        ScrewdriverInCaddy,
        PlateOnRack,
        OpenDrawers,
        CloseDrawers,
        RealMugOnPlate,
        RealPlateOnRack,
        RecycleCans,
    )
}

__all__ = ["TASKS", "Task"]
