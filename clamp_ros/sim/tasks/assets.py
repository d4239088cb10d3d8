"""Objects of the user's own in place of ours: a folder of MJCF files, such as those of aloha_sim.

`<folder>/<object>.xml` holds one body of that name in its worldbody, which takes the place of our object of that name;
objects without a file stay ours. Its frame is as in `objects`: origin in the middle of the underside, z up, x along its
handle or length. It needs colliding geoms; a free joint is optional. A chest named `drawer` also needs the slide joints
`drawer/top` and `drawer/bottom` along x, each of a body of that name, and sites `drawer/top_knob`,
`drawer/bottom_knob` in the middle of what a hand pulls.

Success is judged by the sizes of our objects. Mug, bowl, banana and chest may be half as large to half as large again;
all others hold or enter something, and must agree with ours within 15 % (at least 4 mm). Experts are made for our
objects, and may fail on others; `clamp demos score --assets` tells.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.tasks.drawer import DRAWERS, drawer_joint, knob_site
from clamp_ros.sim.tasks.drawer_open import OPEN_M
from clamp_ros.sim.tasks.task import Task

ANY_SIZE = ("mug", "bowl", "banana", "drawer")
"""Objects whose success depends on their pose and contacts alone, or on sites of their own."""
_ANY_SIZE_SHARE, _SAME_SIZE_SHARE = 0.5, 0.15
_LEAST_SLACK_M = 0.004
_UNDERSIDE_M = 0.005
_MASS_SHARE = 5.0
"""So many times heavier or lighter than ours at most: beyond that, grippers slip or things fly off."""


def add_objects(spec: mujoco.MjSpec, task: Task, folder: Path | None = None) -> dict[str, Any]:
    """Adds a task's objects to a model that holds the robot and the table.

    Args:
        spec: the model.
        task: whose objects.
        folder: of objects in place of ours; None for ours.

    Returns:
        What was taken from the folder, for a bag's metadata: `folder`, and `sha256` by object; empty for ours alone.

    Raises:
        SimulationError: the folder is missing, holds none of the task's objects, or one that the task cannot use.
    """
    files = {} if folder is None else _files(folder, task)
    for name in task.objects:
        if name in files:
            _add(spec, task, name, files[name])
        else:
            task.add_object(spec, name)
    if folder is None:
        return {}
    return {"folder": str(folder.resolve()), "sha256": {name: _digest(file) for name, file in files.items()}}


def check_assets(task: str, folder: str) -> dict[str, Any]:
    """Refuses a folder that does not fit a task, before processes are started that would each refuse it.

    Returns what `add_objects` does.

    Args:
        task: a name of `sim.tasks.TASKS`.
        folder: see `add_objects`; empty for our own objects.

    Raises:
        SimulationError: see `add_objects`.
    """
    return add_objects(mujoco.MjSpec(), TASKS[task](), Path(folder) if folder else None)


def _files(folder: Path, task: Task) -> dict[str, Path]:
    if not folder.is_dir():
        raise SimulationError(f"assets {folder} is no folder; name one that holds MJCF files of objects, as mug.xml")
    files = {name: folder / f"{name}.xml" for name in task.objects if (folder / f"{name}.xml").is_file()}
    if not files:
        there = ", ".join(sorted(file.name for file in folder.glob("*.xml"))[:8]) or "no .xml file"
        wanted = ", ".join(f"{name}.xml" for name in task.objects)
        raise SimulationError(
            f"assets {folder} has {there}, and nothing that {task.name} uses; rename a file to one of {wanted}"
        )
    return files


def _add(spec: mujoco.MjSpec, task: Task, name: str, file: Path) -> None:
    child = _read(file)
    bodies = child.worldbody.bodies
    if len(bodies) != 1 or bodies[0].name != name:
        found = ", ".join(repr(body.name) for body in bodies) or "none"
        raise _unfit(file, f"its worldbody has bodies {found}", f"exactly one, named {name!r}")
    body = bodies[0]
    for joint in body.joints:
        if joint.type != mujoco.mjtJoint.mjJNT_FREE:
            raise _unfit(file, f"its body has joint {joint.name!r}, which is not a free one", "a free joint, or none")
        child.delete(joint)
    body.pos, body.quat = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)
    body.add_freejoint(name=name)
    _check(child, task, name, file)
    attached = spec.worldbody.add_frame().attach_body(body, _prefix(name), "")
    # what tasks ask for by name, and nothing else, keeps its name
    attached.name = attached.joints[0].name = name
    if name == "drawer":
        for drawer in DRAWERS:
            spec.body(_prefix(name) + drawer_joint(drawer)).name = drawer_joint(drawer)
            spec.joint(_prefix(name) + drawer_joint(drawer)).name = drawer_joint(drawer)
            spec.site(_prefix(name) + knob_site(drawer)).name = knob_site(drawer)


def _prefix(name: str) -> str:
    return f"{name}:"


def _read(file: Path) -> mujoco.MjSpec:
    """The file's model, with the paths of its meshes and textures made absolute."""
    try:
        child = mujoco.MjSpec.from_file(str(file))
    except (ValueError, OSError) as error:
        raise SimulationError(f"assets: {file} is no MJCF file that MuJoCo can read: {error}") from error
    for part, folder in ((child.meshes, child.meshdir), (child.textures, child.texturedir)):
        for asset in part:
            if asset.file:
                asset.file = str((file.parent / folder / asset.file).resolve())
    child.meshdir = child.texturedir = ""
    return child


def _check(child: mujoco.MjSpec, task: Task, name: str, file: Path) -> None:
    """Whether an object can be used, before it is in the model.

    Raises:
        SimulationError: it cannot, and why.
    """
    try:
        model = child.compile()
    except ValueError as error:
        raise SimulationError(f"assets: {file} does not compile: {error}") from error
    if name == "drawer":
        _check_drawers(model, file)
    ours_spec = mujoco.MjSpec()
    task.add_object(ours_spec, name)
    ours = ours_spec.compile()
    box, our_box = _box(model, file), _box(ours, file)
    share = _ANY_SIZE_SHARE if name in ANY_SIZE else _SAME_SIZE_SHARE
    for axis, size, our_size in zip("xyz", np.diff(box, axis=0)[0], np.diff(our_box, axis=0)[0], strict=True):
        slack = max(share * our_size, _LEAST_SLACK_M)
        if abs(size - our_size) > slack:
            raise _unfit(
                file, f"it measures {1000 * size:.0f} mm along {axis}",
                f"{1000 * (our_size - slack):.0f} to {1000 * (our_size + slack):.0f} mm: {task.name} is judged by that",
            )  # fmt: skip
    if abs(box[0, 2]) > _UNDERSIDE_M:
        raise _unfit(file, f"its lowest point is at z = {1000 * box[0, 2]:.0f} mm", "0: the frame's origin is there")
    mass, our_mass = float(model.body_mass.sum()), float(ours.body_mass.sum())
    if not our_mass / _MASS_SHARE <= mass <= our_mass * _MASS_SHARE:
        low, high = our_mass / _MASS_SHARE, our_mass * _MASS_SHARE
        raise _unfit(file, f"its mass is {mass:.3f} kg", f"{low:.3f} to {high:.3f} kg")
    if not (model.geom_group[model.geom_bodyid > 0] < 3).any():
        raise _unfit(file, "none of its geoms is drawn", "at least one of group 0, 1 or 2")


def _check_drawers(model: mujoco.MjModel, file: Path) -> None:
    wanted = [(mujoco.mjtObj.mjOBJ_SITE, "site", knob_site(d)) for d in DRAWERS]
    for kind, word in ((mujoco.mjtObj.mjOBJ_JOINT, "joint"), (mujoco.mjtObj.mjOBJ_BODY, "body")):
        wanted += [(kind, word, drawer_joint(d)) for d in DRAWERS]
    missing = [f"{word} {name!r}" for kind, word, name in wanted if mujoco.mj_name2id(model, kind, name) < 0]
    if missing:
        raise _unfit(file, f"it has no {', no '.join(missing)}", "these, by which opening and closing are judged")
    for drawer in DRAWERS:
        joint = model.joint(drawer_joint(drawer))
        if joint.type[0] != mujoco.mjtJoint.mjJNT_SLIDE or joint.axis[0] < 0.99 or joint.range[1] < 1.2 * OPEN_M:
            raise _unfit(
                file, f"joint {joint.name!r} has axis {joint.axis.tolist()} and range {joint.range.tolist()}",
                f"a slide along x that opens at least {1.2 * OPEN_M} m",
            )  # fmt: skip


def _box(model: mujoco.MjModel, file: Path) -> NDArray[np.float64]:
    """(2, 3) lowest and highest corner of what collides, in the frame of the model's one object."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    geoms = np.flatnonzero((((model.geom_contype | model.geom_conaffinity) & 1) != 0) & (model.geom_bodyid > 0))
    if not len(geoms):
        raise _unfit(file, "none of its geoms collides with robot and table", "one or more with contype, conaffinity 1")
    corners = np.stack(np.meshgrid(*[(-1.0, 1.0)] * 3), axis=-1).reshape(-1, 3)
    points = [
        (model.geom_aabb[g, :3] + corners * model.geom_aabb[g, 3:]) @ data.geom_xmat[g].reshape(3, 3).T
        + data.geom_xpos[g]
        for g in geoms
    ]
    return np.stack([np.min(points, axis=(0, 1)), np.max(points, axis=(0, 1))])


def _digest(file: Path) -> str:
    """Of the file and the meshes and textures that it names."""
    child = _read(file)
    digest = hashlib.sha256(file.read_bytes())
    for named in sorted({asset.file for asset in (*child.meshes, *child.textures) if asset.file}):
        digest.update(Path(named).read_bytes())
    return digest.hexdigest()


def _unfit(file: Path, found: str, wanted: str) -> SimulationError:
    return SimulationError(f"assets: {file} cannot be used: {found}; expected {wanted}")
