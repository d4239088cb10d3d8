"""The simulated ALOHA 2 cell as a MuJoCo specification: two arms, their table, floor and lights.

Bodies, inertias, joints, actuators, sites and contact figures are those of MuJoCo Menagerie's ALOHA 2, kept in
`aloha2.json`. The look is separate from the mechanics: `mesh` takes the robot's meshes from the installed
`robosuite-models` package (full meshes collide, light copies are drawn), `primitive` needs nothing but MuJoCo.

The aluminium frame around Menagerie's table is left out: its upright would hide a quarter of the front-left camera's
picture, and nothing of a task touches it. Geometry groups are Menagerie's: 2 is drawn, 3 collides and is not drawn.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import ARMS, JOINT_NAMES
from clamp_ros.sim import meshes
from clamp_ros.sim.cameras import DEFAULT_CAMERAS, add_cameras
from clamp_ros.sim.figures import figures

_log = logging.getLogger(__name__)

LOOKS = ("auto", "mesh", "primitive")
VISUAL_GROUP = 2
COLLISION_GROUP = 3

TABLE_HALF_SIZE_M = (0.61, 0.37)
TABLE_TOP_M = -0.0009
FLOOR_M = -0.75
FINGER_JOINTS = tuple(f"{arm}/{finger}" for arm in ARMS for finger in ("left_finger", "right_finger"))

_BLACK = (0.17, 0.17, 0.18, 1.0)
_FINGER_BLACK = (0.10, 0.10, 0.11, 1.0)
_ALUMINIUM = (0.55, 0.56, 0.58, 1.0)
_GEOM_TYPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}
_JOINT_TYPES = {"hinge": mujoco.mjtJoint.mjJNT_HINGE, "slide": mujoco.mjtJoint.mjJNT_SLIDE}


def build_robot_spec(look: str = "auto", robot_model: Path | None = None) -> mujoco.MjSpec:
    """Builds robot, table, floor, lights and the default cameras; tasks add their objects before it is compiled.

    Args:
        look: `mesh`, `primitive`, or `auto`: meshes where robosuite-models is installed, else primitives.
        robot_model: a Menagerie `aloha` folder (or its aloha.xml) to take the two arms from instead; `look` is then
            of no effect.

    Raises:
        SimulationError: meshes were asked for and are not installed, or `robot_model` is not an ALOHA 2.
    """
    if look not in LOOKS:
        raise SimulationError(f"look is {look!r}, expected one of {', '.join(LOOKS)}")
    if robot_model is not None:
        spec = _load_menagerie(Path(robot_model))
    else:
        assets = meshes.package_mesh_folder() if look != "primitive" else None
        if assets is None and look == "mesh":
            raise SimulationError("look is 'mesh', but robosuite-models is not installed; pip install "
                                  "robosuite-models, or use look 'primitive'")
        if assets is None and look == "auto":
            _log.info("robosuite-models is not installed: the robot is drawn from boxes and cylinders")
        spec = _build_robot(assets)
    spec.modelname = "aloha2_cell"
    _add_surroundings(spec)
    add_cameras(spec, DEFAULT_CAMERAS.values())
    return spec


def _build_robot(assets: Path | None) -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    option = figures()["option"]
    spec.option.timestep = option["timestep_s"]
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = option["impratio"]
    spec.compiler.autolimits = True
    spec.compiler.degree = False
    spec.add_material(name="black", rgba=_BLACK, specular=0.4, shininess=0.4)
    spec.add_material(name="finger", rgba=_FINGER_BLACK, specular=0.1)
    _add_assets(spec, assets)
    for body in figures()["bodies"]:
        _add_body(spec, body, assets is not None)
    _add_joints_and_actuators(spec)
    for site in figures()["sites"]:
        spec.body(site["body"]).add_site(name=site["name"], pos=site["pos_m"], quat=site["quat_wxyz"], group=4)
    for camera in figures()["cameras"]:
        spec.body(camera["body"]).add_camera(
            name=camera["name"], pos=camera["pos_m"], quat=camera["quat_wxyz"], fovy=camera["fovy_deg"]
        )
    return spec


def _add_assets(spec: mujoco.MjSpec, assets: Path | None) -> None:
    """Meshes as `name` (full, for collision) and `name/light` (to draw); without assets, the two finger hulls."""
    if assets is None:
        hull = np.array(figures()["finger_hull_m"])
        for side, mirror in (("left", 1.0), ("right", -1.0)):
            mesh = spec.add_mesh(name=_finger_mesh(side))
            mesh.uservert = (hull * (mirror, 1.0, 1.0)).ravel()
        return
    for name in sorted({geom["mesh"] for geoms in figures()["mesh_geoms"].values() for geom in geoms}):
        full = meshes.load_package_mesh(name, assets)
        _add_mesh(spec, name, full)
        _add_mesh(spec, _light(name), meshes.decimated(full))


def _add_mesh(spec: mujoco.MjSpec, name: str, mesh: meshes.Mesh) -> None:
    asset = spec.add_mesh(name=name)
    asset.uservert = mesh.vertices.ravel()
    asset.userface = mesh.faces.ravel()
    asset.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX  # CAD shells are not watertight; bodies state their own


def _light(name: str) -> str:
    return f"{name}/light"


def _finger_mesh(side: str) -> str:
    return f"vx300s_8_custom_finger_{side}"


def _add_body(spec: mujoco.MjSpec, figure: dict[str, Any], with_meshes: bool) -> None:
    name = figure["name"]
    body = spec.body(figure["parent"]).add_body(
        name=name, pos=figure["pos_m"], quat=figure["quat_wxyz"], mass=figure["mass_kg"], ipos=figure["com_m"],
        iquat=figure["inertia_quat_wxyz"], inertia=figure["inertia_kgm2"], explicitinertial=True,
    )
    link = name.partition("/")[2]
    if link.endswith("_finger_link"):
        _add_finger(body, link, with_meshes)
    elif with_meshes:
        for geom in figures()["mesh_geoms"].get(link, ()):
            _add_pair(body, geom, mesh=geom["mesh"], light=_light(geom["mesh"]), material="black")
    else:
        for geom in figures()["primitive_geoms"].get(link, ()):
            size = (*geom["size_m"], 0.0, 0.0)[:3]
            body.add_geom(type=_GEOM_TYPES[geom["type"]], size=size, pos=geom["pos_m"], quat=geom["quat_wxyz"],
                          material="black", group=VISUAL_GROUP, density=0.0)


def _add_pair(body: Any, placement: dict[str, Any], *, mesh: str, light: str, material: str, **contact: Any) -> None:
    """A light mesh to draw and a full one to collide, at one place."""
    place = {"pos": placement["pos_m"], "quat": placement["quat_wxyz"], "type": mujoco.mjtGeom.mjGEOM_MESH,
             "density": 0.0}
    body.add_geom(meshname=light, material=material, group=VISUAL_GROUP, contype=0, conaffinity=0, **place)
    body.add_geom(meshname=mesh, group=COLLISION_GROUP, **place, **contact)


def _add_finger(body: Any, link: str, with_meshes: bool) -> None:
    contact = figures()["finger_contact"]
    mesh = _finger_mesh(link.partition("_")[0])
    _add_pair(
        body, figures()["mesh_geoms"][link][0], mesh=mesh, light=_light(mesh) if with_meshes else mesh,
        material="finger", condim=contact["condim"], friction=contact["friction"], solref=contact["solref"],
        solimp=(*contact["solimp"], 0.5, 2.0),
    )
    for pos in figures()["finger_tips_m"][link]:
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(contact["tip_radius_m"], 0.0, 0.0), pos=pos,
                      group=COLLISION_GROUP, density=0.0)


def _add_joints_and_actuators(spec: mujoco.MjSpec) -> None:
    for joint in figures()["joints"]:
        spec.body(joint["body"]).add_joint(
            name=joint["name"], type=_JOINT_TYPES[joint["type"]], axis=joint["axis"],
            range=joint["range"], damping=joint["damping"], armature=joint["armature"],
            frictionloss=joint["frictionloss"], actfrcrange=joint["actuatorfrcrange"],
        )
    for actuator in figures()["actuators"]:
        spec.add_actuator(
            name=actuator["name"], target=actuator["target"], trntype=mujoco.mjtTrn.mjTRN_JOINT,
            ctrlrange=actuator["ctrlrange"], gaintype=mujoco.mjtGain.mjGAIN_FIXED,
            gainprm=np.pad(actuator["gainprm"], (0, 7)), biastype=mujoco.mjtBias.mjBIAS_AFFINE,
            biasprm=np.pad(actuator["biasprm"], (0, 7)),
        )
    for equality in figures()["equalities"]:
        added = spec.add_equality(type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT,
                                  name1=equality["joint1"], name2=equality["joint2"])
        added.data[:5] = equality["data"]  # its length differs between releases of MuJoCo
    for first, second in figures()["excludes"]:
        spec.add_exclude(bodyname1=first, bodyname2=second)


def _load_menagerie(path: Path) -> mujoco.MjSpec:
    """The arms of a Menagerie folder, checked for our names, with light meshes to draw."""
    file = path / "aloha.xml" if path.is_dir() else path
    try:
        spec = mujoco.MjSpec.from_file(str(file))
    except (ValueError, OSError, mujoco.FatalError) as error:
        raise SimulationError(f"robot_model {file} cannot be read: {error}; give the path of MuJoCo Menagerie's "
                              "aloha folder") from None
    actuators = tuple(actuator.name for actuator in spec.actuators)
    wanted = {"joint": (*(a["target"] for a in figures()["actuators"]), *FINGER_JOINTS),
              "site": [f"{arm}/gripper" for arm in ARMS], "camera": [f"wrist_cam_{arm}" for arm in ARMS]}
    missing = [f"{kind} {name}" for kind, names in wanted.items() for name in names
               if getattr(spec, kind)(name) is None]
    if missing or actuators != JOINT_NAMES:
        raise SimulationError(f"robot_model {file} is not an ALOHA 2 with joint position actuators; missing {missing}, "
                              f"actuators {list(actuators)}, expected {list(JOINT_NAMES)}")
    for element in (*spec.keys, *spec.lights):  # keyframes do not fit once objects are added; the cell has lights
        spec.delete(element)
    _lighten(spec, file.parent / (spec.meshdir or ""))
    return spec


def _lighten(spec: mujoco.MjSpec, mesh_folder: Path) -> None:
    """Gives every drawn-only geom of an STL mesh a light copy of it."""
    made: set[str] = set()
    for geom in spec.geoms:
        mesh = spec.mesh(geom.meshname) if geom.meshname else None
        if mesh is None or geom.contype or geom.conaffinity or not mesh.file.lower().endswith(".stl"):
            continue
        name = geom.meshname
        if name not in made:
            made.add(name)
            full = meshes.load_stl(mesh_folder / mesh.file)
            scaled = meshes.Mesh(full.vertices * np.asarray(mesh.scale), full.faces)
            _add_mesh(spec, _light(name), meshes.decimated(scaled))
        geom.meshname = _light(name)


def _add_surroundings(spec: mujoco.MjSpec) -> None:
    """Table, floor and lights, the same for every look, so that policies see one cell."""
    visual = spec.visual
    visual.headlight.ambient[:] = 0.35
    visual.headlight.diffuse[:] = 0.35
    visual.headlight.specular[:] = 0.0
    visual.map.znear = 0.01
    visual.map.zfar = 50.0
    spec.stat.center = (0.0, -0.1, 0.2)
    spec.stat.extent = 0.6
    spec.stat.meansize = 0.05
    world = spec.worldbody
    # No texture on the floor: in software OpenGL it would cost as much as the rest of the picture.
    spec.add_material(name="floor", rgba=(0.34, 0.36, 0.39, 1.0), specular=0.0)
    spec.add_material(name="table", rgba=(0.70, 0.66, 0.60, 1.0), specular=0.05, shininess=0.1)
    spec.add_material(name="table_frame", rgba=_ALUMINIUM, specular=0.3)
    box = mujoco.mjtGeom.mjGEOM_BOX
    world.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(3.0, 3.0, 0.05), pos=(0.0, 0.0, FLOOR_M),
                   material="floor")
    x, y = TABLE_HALF_SIZE_M
    world.add_geom(name="table", type=box, size=(x, y, 0.1), pos=(0.0, 0.0, TABLE_TOP_M - 0.1), group=COLLISION_GROUP)
    drawn = {"contype": 0, "conaffinity": 0, "group": VISUAL_GROUP, "density": 0.0}
    world.add_geom(type=box, size=(x, y, 0.015), pos=(0.0, 0.0, TABLE_TOP_M - 0.015), material="table", **drawn)
    leg = 0.5 * (TABLE_TOP_M - 0.03 - FLOOR_M)
    for sx in (-1.0, 1.0):
        for sy in (-1.0, 1.0):
            world.add_geom(type=box, size=(0.03, 0.03, leg), material="table_frame",
                           pos=(sx * (x - 0.04), sy * (y - 0.04), FLOOR_M + leg), **drawn)
        for rail_x in (0.43, 0.60):  # the rails that carry an arm, whose base stands 20 mm above the table
            world.add_geom(type=box, size=(0.01, y, 0.5 * (0.02 - TABLE_TOP_M)), material="table_frame",
                           pos=(sx * rail_x, 0.0, 0.5 * (0.02 + TABLE_TOP_M)), **drawn)
    for pos, direction, diffuse in (
        ((0.6, -0.8, 2.5), (-0.25, 0.3, -1.0), 0.35),
        ((-0.7, 0.6, 2.5), (0.3, -0.25, -1.0), 0.25),
    ):
        world.add_light(type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, pos=pos, dir=direction, diffuse=(diffuse,) * 3,
                        specular=(0.1,) * 3, castshadow=False)
