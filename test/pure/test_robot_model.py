"""The simulated robot against Menagerie's figures and forward kinematics."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import mujoco
import numpy as np
import pytest

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import JOINT_NAMES, LOWER_LIMITS, REST_POSE, UPPER_LIMITS
from clamp_ros.sim import robot_model
from clamp_ros.sim.meshes import package_mesh_folder
from clamp_ros.sim.robot_model import COLLISION_GROUP, TABLE_TOP_M, VISUAL_GROUP, build_robot_spec

DATA = Path(__file__).parents[1] / "data"
FIGURES = json.loads((DATA / "aloha2_model_figures.json").read_text())
SAMPLES = json.loads((DATA / "aloha2_fk_samples.json").read_text())["samples"]
LOOKS = ["primitive", pytest.param("mesh", marks=pytest.mark.skipif(
    package_mesh_folder() is None, reason="robosuite-models is not installed"))]


@pytest.fixture(scope="module", params=LOOKS)
def model(request: pytest.FixtureRequest) -> mujoco.MjModel:
    return build_robot_spec(request.param).compile()


def rotation_angle(a: np.ndarray, b: np.ndarray) -> float:
    r = a.T @ b
    sine = 0.5 * np.linalg.norm([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    return math.atan2(sine, 0.5 * (np.trace(r) - 1.0))


def test_forward_kinematics_equals_menagerie(model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    for sample in SAMPLES:
        data.qpos[:] = sample["qpos"]
        mujoco.mj_kinematics(model, data)
        for arm in ("left", "right"):
            site, want = data.site(f"{arm}/gripper"), sample[arm]
            assert np.linalg.norm(site.xpos - want["gripper_site_pos_m"]) < 1e-4
            angle = rotation_angle(site.xmat.reshape(3, 3), np.reshape(want["gripper_site_mat"], (3, 3)))
            assert math.degrees(angle) < 0.01


def test_bodies_equal_the_figures(model: mujoco.MjModel) -> None:
    assert len(FIGURES["bodies"]) == model.nbody - 1
    for figure in FIGURES["bodies"]:
        body = model.body(figure["name"])
        assert model.body(int(body.parentid[0])).name == figure["parent"]
        np.testing.assert_allclose(body.mass, figure["mass_kg"], atol=1e-9)
        np.testing.assert_allclose(body.inertia, figure["inertia_kgm2"], atol=1e-12)
        np.testing.assert_allclose(body.ipos, figure["com_m"], atol=1e-9)
        np.testing.assert_allclose(body.iquat, figure["inertia_quat_wxyz"], atol=1e-6)
        np.testing.assert_allclose(body.pos, figure["pos_m"], atol=1e-9)
        np.testing.assert_allclose(body.quat, figure["quat_wxyz"], atol=1e-6)


def test_joints_and_actuators_equal_the_figures(model: mujoco.MjModel) -> None:
    assert [model.joint(i).name for i in range(model.njnt)] == [j["name"] for j in FIGURES["joints"]]
    for figure in FIGURES["joints"]:
        joint = model.joint(figure["name"])
        assert joint.limited
        np.testing.assert_allclose(joint.range, figure["range"], atol=1e-9)
        np.testing.assert_allclose(joint.axis, figure["axis"], atol=1e-9)
        np.testing.assert_allclose(joint.damping[:1], figure["damping"])
        np.testing.assert_allclose(joint.armature, figure["armature"])
        np.testing.assert_allclose(joint.frictionloss, figure["frictionloss"])
    assert tuple(model.actuator(i).name for i in range(model.nu)) == JOINT_NAMES
    for i, figure in enumerate(FIGURES["actuators"]):
        actuator = model.actuator(figure["name"])
        assert model.joint(int(actuator.trnid[0])).name == figure["target"]
        np.testing.assert_allclose(actuator.ctrlrange, figure["ctrlrange"])
        np.testing.assert_allclose(actuator.ctrlrange, (LOWER_LIMITS[i], UPPER_LIMITS[i]))
        np.testing.assert_allclose(actuator.gainprm[:3], figure["gainprm"])
        np.testing.assert_allclose(actuator.biasprm[:3], figure["biasprm"])


def test_sites_cameras_equalities_and_options_equal_the_figures(model: mujoco.MjModel) -> None:
    for figure in FIGURES["sites"]:
        site = model.site(figure["name"])
        assert model.body(int(site.bodyid[0])).name == figure["body"]
        np.testing.assert_allclose(site.pos, figure["pos_m"])
    for figure in FIGURES["cameras"]:
        camera = model.camera(figure["name"])
        np.testing.assert_allclose(camera.pos, figure["pos_m"], atol=1e-9)
        np.testing.assert_allclose(camera.quat, figure["quat_wxyz"], atol=1e-6)
        np.testing.assert_allclose(camera.fovy, figure["fovy_deg"])
    assert model.neq == len(FIGURES["equalities"])
    for i, figure in enumerate(FIGURES["equalities"]):
        assert model.joint(int(model.eq_obj1id[i])).name == figure["joint1"]
        assert model.joint(int(model.eq_obj2id[i])).name == figure["joint2"]
        np.testing.assert_allclose(model.eq_data[i][:5], figure["data"])
    assert model.opt.timestep == FIGURES["timestep_s"]
    assert model.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
    assert model.opt.impratio == 10.0


def test_geometry_groups_keep_drawing_and_collision_apart(model: mujoco.MjModel) -> None:
    finger_geoms = [model.geom(i) for i in range(model.ngeom)
                    if model.body(int(model.geom_bodyid[i])).name.endswith("_finger_link")]
    assert len(finger_geoms) == 4 * 5
    for geom in finger_geoms:
        assert bool(geom.contype[0]) == (geom.group[0] == COLLISION_GROUP)
        assert geom.group[0] in (VISUAL_GROUP, COLLISION_GROUP)
    table = model.geom("table")
    assert table.pos[2] + table.size[2] == pytest.approx(TABLE_TOP_M)


def test_the_arms_hold_the_rest_pose_without_contacts(model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    data.ctrl[:] = REST_POSE
    data.qpos[:] = np.concatenate([np.append(REST_POSE[i:i + 7], REST_POSE[i + 6]) for i in (0, 7)])
    for _ in range(500):
        mujoco.mj_step(model, data)
    assert data.ncon == 0
    assert np.abs(data.qpos[:7] - REST_POSE[:7]).max() < 0.04  # the servos' own sag under gravity
    np.testing.assert_allclose(data.qpos[:8], data.qpos[8:], atol=1e-3)


def test_fingers_grasp_and_lift_a_cube(model: mujoco.MjModel) -> None:
    """Both looks' fingers hold a 3 cm, 50 g cube while the forearm is raised by 10 cm or more."""
    look = "mesh" if model.nmesh > 2 else "primitive"
    spec = build_robot_spec(look)
    start = np.array(REST_POSE)
    start[6] = start[13] = 0.030
    qpos = np.concatenate([np.append(start[i:i + 7], start[i + 6]) for i in (0, 7)])
    bare = mujoco.MjData(model)
    bare.qpos[:] = qpos
    mujoco.mj_kinematics(model, bare)
    site = bare.site("left/gripper")
    cube = spec.worldbody.add_body(name="cube", pos=site.xpos, quat=(math.cos(-0.05), 0.0, math.sin(0.05), 0.0))
    cube.add_freejoint()
    cube.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.015,) * 3, mass=0.05)
    held = spec.compile()
    data = mujoco.MjData(held)
    data.qpos[:16] = qpos
    data.ctrl[:] = start
    held.opt.gravity[:] = 0.0
    data.ctrl[6] = 0.002
    for _ in range(400):  # close around the floating cube
        mujoco.mj_step(held, data)
    held.opt.gravity[2] = -9.81
    mujoco.mj_forward(held, data)
    before = data.body("cube").xpos.copy()
    offset = before - data.site("left/gripper").xpos
    data.ctrl[1] = -1.4
    for _ in range(1000):
        mujoco.mj_step(held, data)
    data_offset = data.body("cube").xpos - data.site("left/gripper").xpos
    assert np.linalg.norm(data.body("cube").xpos - before) > 0.10
    assert np.linalg.norm(data_offset) < np.linalg.norm(offset) + 0.02


def test_an_unknown_look_is_refused() -> None:
    with pytest.raises(SimulationError, match="'shiny', expected one of auto, mesh, primitive"):
        build_robot_spec("shiny")


def test_without_meshes_auto_falls_back_and_mesh_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robot_model.meshes, "package_mesh_folder", lambda: None)
    assert build_robot_spec("auto").compile().nmesh == 2
    with pytest.raises(SimulationError, match="pip install robosuite-models"):
        build_robot_spec("mesh")


def write_menagerie_like(folder: Path, damping_scale: float = 1.0, leave_out: str = "") -> Path:
    """A small aloha.xml in Menagerie's form: its bodies, joints and actuators, a keyframe, a light, one STL visual."""
    def text(values: object) -> str:
        return " ".join(str(v) for v in np.atleast_1d(np.asarray(values)))

    root = ET.Element("mujoco", model="aloha")
    ET.SubElement(root, "compiler", angle="radian", meshdir="assets", autolimits="true")
    ET.SubElement(root, "option", cone="elliptic", impratio="10")
    asset = ET.SubElement(root, "asset")
    ET.SubElement(asset, "mesh", file="block.stl", scale="0.001 0.001 0.001")
    default = ET.SubElement(ET.SubElement(root, "default"), "default", {"class": "visual"})
    ET.SubElement(default, "geom", type="mesh", contype="0", conaffinity="0", density="0", group="2")
    world = ET.SubElement(root, "worldbody")
    ET.SubElement(world, "light", name="stage", pos="0 0 2")
    elements = {"world": world}
    for b in FIGURES["bodies"]:
        pose = {"pos": text(b["pos_m"]), "quat": text(b["quat_wxyz"])}
        e = ET.SubElement(elements[b["parent"]], "body", pose, name=b["name"])
        ET.SubElement(e, "inertial", pos=text(b["com_m"]), quat=text(b["inertia_quat_wxyz"]), mass=text(b["mass_kg"]),
                      diaginertia=text(b["inertia_kgm2"]))
        ET.SubElement(e, "geom", {"class": "visual", "mesh": "block"})
        ET.SubElement(e, "geom", type="mesh", mesh="block", group="3")
        elements[b["name"]] = e
    for j in FIGURES["joints"]:
        ET.SubElement(elements[j["body"]], "joint", name=j["name"], type=j["type"], axis=text(j["axis"]),
                      range=text(j["range"]), damping=text(j["damping"] * damping_scale))
    for s in FIGURES["sites"]:
        if s["name"] != leave_out:
            ET.SubElement(elements[s["body"]], "site", name=s["name"], pos=text(s["pos_m"]))
    for c in FIGURES["cameras"]:
        ET.SubElement(elements[c["body"]], "camera", name=c["name"], pos=text(c["pos_m"]), quat=text(c["quat_wxyz"]))
    included = ET.Element("mujoco")
    actuators = ET.SubElement(included, "actuator")
    for a in FIGURES["actuators"]:
        ET.SubElement(actuators, "position", name=a["name"], joint=a["target"], kp=text(a["gainprm"][0]),
                      ctrlrange=text(a["ctrlrange"]))
    keys = ET.SubElement(included, "keyframe")
    ET.SubElement(keys, "key", name="home", qpos=text(np.zeros(16)))
    ET.SubElement(root, "include", file="joint_position_actuators.xml")
    (folder / "assets").mkdir(parents=True)
    ET.ElementTree(included).write(folder / "joint_position_actuators.xml")
    corners = np.array([[x, y, z] for x in (0, 10) for y in (0, 10) for z in (0, 10)], dtype="<f4")
    faces = [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6), (0, 2, 6),
             (0, 6, 4), (1, 5, 7), (1, 7, 3)]
    stl = b"\0" * 80 + len(faces).to_bytes(4, "little")
    for face in faces:
        stl += np.zeros(3, "<f4").tobytes() + corners[list(face)].tobytes() + b"\0\0"
    (folder / "assets" / "block.stl").write_bytes(stl)
    ET.ElementTree(root).write(folder / "aloha.xml")
    return folder


def test_a_menagerie_folder_is_taken_with_its_own_figures_and_our_cell(tmp_path: Path) -> None:
    folder = write_menagerie_like(tmp_path / "aloha", damping_scale=2.0)
    spec = build_robot_spec(robot_model=folder)
    spec.worldbody.add_body(name="mug").add_freejoint()
    spec.body("mug").add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.02, 0.0, 0.0))
    model = spec.compile()  # the keyframe would not fit the mug's joint
    assert model.joint("left/waist").damping[0] == pytest.approx(11.52)
    assert model.nkey == 0 and model.geom("table").id >= 0
    drawn = [i for i in range(model.ngeom) if model.geom_dataid[i] >= 0 and model.geom_group[i] == VISUAL_GROUP]
    assert {model.mesh(int(model.geom_dataid[i])).name for i in drawn} == {"block/light"}
    light = model.mesh("block/light")
    np.testing.assert_allclose(np.ptp(model.mesh_vert[light.vertadr[0]:][: light.vertnum[0]], axis=0), 0.01, atol=1e-6)
    assert build_robot_spec(robot_model=folder / "aloha.xml").compile().nu == 14


def test_a_folder_that_is_not_the_robot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="give the path of MuJoCo Menagerie's aloha folder"):
        build_robot_spec(robot_model=tmp_path)
    folder = write_menagerie_like(tmp_path / "aloha", leave_out="right/gripper")
    with pytest.raises(SimulationError, match="missing \\['site right/gripper'\\]"):
        build_robot_spec(robot_model=folder)
