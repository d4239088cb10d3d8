"""A user's own objects in place of ours: taken over with what the task needs, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import mujoco
import numpy as np
import pytest

from clamp_ros import cli
from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import REST_POSE
from clamp_ros.demos.recording import DemoConfig, Demonstrator
from clamp_ros.evaluate import IN_PROCESS, ROS, settings_of
from clamp_ros.record.episode import Episode
from clamp_ros.rollout import RolloutConfig
from clamp_ros.sim.simulation import Simulation, SimulationConfig
from clamp_ros.sim.tasks.drawer_open import knob, opening_m
from clamp_ros.sim.tasks.task import touching
from clamp_ros.sim.world import World

WALLS = "".join(
    f'<geom type="box" size=".002 .016 .036" pos="{0.036 * np.cos(a):.4f} {0.036 * np.sin(a):.4f} .042" '
    f'euler="0 0 {np.degrees(a):.1f}" mass=".01" material="green"/>'
    for a in np.arange(8) * np.pi / 4
)
MUG = f"""<mujoco>
  <default><geom friction="1 .005 .0005" condim="6"/></default>
  <asset><material name="green" rgba=".1 .6 .2 1"/></asset>
  <worldbody>
    <body name="mug" pos="1 2 3">
      <freejoint/>
      <geom name="floor" type="cylinder" size=".036 .003" pos="0 0 .003" mass=".1" material="green"/>
      {WALLS}
    </body>
  </worldbody>
</mujoco>"""
PLAIN = '<mujoco><worldbody><body name="mug">{}</body></worldbody></mujoco>'
BOX = '<geom type="box" size="{0} {0} .040" pos="0 0 {1}" mass="{2}"/>'


def folder(tmp_path: Path, **files: str) -> Path:
    for name, content in files.items():
        (tmp_path / f"{name}.xml").write_text(content)
    return tmp_path


def easy(assets: Path) -> World:
    return World("mug_on_plate_easy", cameras={}, look="primitive", assets=assets)


def test_the_users_mug_stands_in_for_ours_and_the_task_is_judged_with_it(tmp_path: Path) -> None:
    world, ours = easy(folder(tmp_path, mug=MUG)), World("mug_on_plate_easy", cameras={}, look="primitive")
    assert float(world.model.body("mug").mass[0]) == pytest.approx(0.18)
    assert float(ours.model.body("mug").mass[0]) != pytest.approx(0.18)
    assert world.model.body("plate").mass == ours.model.body("plate").mass
    world.reset(0)
    ours.reset(0)
    np.testing.assert_allclose(world.object_poses()["mug"][:2, 3], ours.object_poses()["mug"][:2, 3], atol=1e-3)
    assert not world.success()
    plate, mug = (world.model.joint(name).qposadr[0] for name in ("plate", "mug"))
    world.data.qpos[mug : mug + 3] = world.data.qpos[plate : plate + 3] + np.array([0.0, 0.0, 0.008])
    for _ in range(40):
        world.step(REST_POSE)
    assert touching(world.model, world.data, "mug") == {"plate"}
    assert world.success()


def test_what_was_taken_is_told_and_changes_with_the_file(tmp_path: Path) -> None:
    assets = folder(tmp_path, mug=MUG, banana="not used, and never read")
    told = easy(assets).assets
    assert told["folder"] == str(tmp_path) and list(told["sha256"]) == ["mug"]
    folder(tmp_path, mug=MUG.replace('mass=".1"', 'mass=".11"'))
    assert easy(assets).assets["sha256"] != told["sha256"]
    assert World("mug_on_plate_easy", cameras={}, look="primitive", assets="").assets == {}


def test_the_live_simulation_tells_it_for_the_bags(tmp_path: Path) -> None:
    assets = folder(tmp_path, mug=MUG)
    simulation = Simulation(
        SimulationConfig(task="mug_on_plate_easy", look="primitive", cameras=(), assets=str(assets))
    )
    simulation.reset(0)
    state = simulation.task_state()
    simulation.close()
    assert state is not None
    assert json.loads(json.dumps(state))["assets"] == easy(assets).assets


def test_a_demonstration_tells_it_in_its_bag(tmp_path: Path) -> None:
    assets = folder(tmp_path, mug=MUG)
    config = DemoConfig("mug_on_plate_easy", ("front_left",), 1, "primitive", assets=str(assets))
    row = Demonstrator(config).demonstrate(0, tmp_path / "bag")
    assert row["success"], row["reason"]
    with Episode.open(tmp_path / "bag") as episode:
        assert episode.metadata.extra["assets"] == easy(assets).assets


def test_an_evaluation_with_other_objects_is_another_evaluation() -> None:
    for way in (IN_PROCESS, ROS):
        assert "assets" not in settings_of(RolloutConfig(), way)
        assert settings_of(RolloutConfig(assets="/a"), way)["assets"] == "/a"


def test_meshes_beside_the_file_are_found(tmp_path: Path) -> None:
    corners = np.array([(x, y, z) for x in (-0.036, 0.036) for y in (-0.036, 0.036) for z in (0.0, 0.08)])
    (tmp_path / "shapes").mkdir()
    obj = "".join(f"v {x} {y} {z}\n" for x, y, z in corners) + "".join(
        f"f {a} {b} {c}\n"
        for a, b, c in ((1, 2, 4), (1, 4, 3), (5, 7, 8), (5, 8, 6), (1, 5, 6), (1, 6, 2), (3, 4, 8), (3, 8, 7),
                        (1, 3, 7), (1, 7, 5), (2, 6, 8), (2, 8, 4))
    )  # fmt: skip
    (tmp_path / "shapes" / "block.obj").write_text(obj)
    head = '<compiler meshdir="shapes"/><asset><mesh name="block" file="block.obj"/></asset>'
    body = PLAIN.format('<geom type="mesh" mesh="block" mass=".2"/>').replace("<mujoco>", f"<mujoco>{head}")
    world = easy(folder(tmp_path, mug=body))
    world.reset(0)
    assert world.object_poses()["mug"][2, 2] > 0.999
    before = world.assets["sha256"]
    (tmp_path / "shapes" / "block.obj").write_text(obj.replace("0.08", "0.081"))
    assert easy(tmp_path).assets["sha256"] != before


@pytest.mark.parametrize(("files", "message"), [
    ({}, r"has no \.xml file, and nothing that mug_on_plate_easy uses; rename a file to one of plate\.xml, mug\.xml"),
    ({"mugg": MUG}, r"has mugg\.xml, and nothing that mug_on_plate_easy uses"),
    ({"mug": "<mujoco"}, r"mug\.xml is no MJCF file that MuJoCo can read"),
    ({"mug": "<mujoco><worldbody/></mujoco>"}, r"its worldbody has bodies none; expected exactly one, named 'mug'"),
    ({"mug": MUG.replace('"mug"', '"cup"')}, r"its worldbody has bodies 'cup'; expected exactly one, named 'mug'"),
    ({"mug": MUG.replace("</worldbody>", '<body name="lid"/></worldbody>')}, r"bodies 'mug', 'lid'"),
    ({"mug": MUG.replace("<freejoint/>", '<joint name="spin" type="hinge"/>')}, r"joint 'spin', which is not a free"),
    ({"mug": PLAIN.format('<inertial pos="0 0 0" mass=".2" diaginertia=".01 .01 .01"/>')}, r"none of its geoms collid"),
    ({"mug": PLAIN.format('<geom type="box" size=".03 .03 .04" contype="0" conaffinity="0" mass=".2"/>')},
     r"none of its geoms collides with robot and table; expected one or more with contype"),
    ({"mug": PLAIN.format('<geom type="box" size=".03 .03 .04" contype="2" conaffinity="2" mass=".2"/>')
      .replace("<worldbody>", '<worldbody><geom type="plane" size="1 1 1"/>')}, r"collides with robot and"),
    ({"mug": PLAIN.format(BOX.format(0.039, 0.04, 0.2).replace("/>", ' group="3"/>'))}, r"none of its geoms is drawn"),
    ({"mug": PLAIN.format(BOX.format(0.075, 0.04, 0.2))}, r"it measures 150 mm along y; expected 41 to 122 mm"),
    ({"mug": PLAIN.format(BOX.format(0.039, 0.0, 0.2))}, r"its lowest point is at z = -40 mm; expected 0"),
    ({"mug": PLAIN.format(BOX.format(0.039, 0.04, 5.0))}, r"its mass is 5\.000 kg; expected 0\.\d+ to \d"),
    ({"plate": PLAIN.replace('"mug"', '"plate"').format('<geom type="cylinder" size=".07 .01" pos="0 0 .01"/>')},
     r"it measures 140 mm along x; expected 157 to 213 mm: mug_on_plate_easy is judged by that"),
])
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        easy(folder(tmp_path, **files))


def test_demonstrations_and_evaluations_refuse_before_they_start_processes(tmp_path: Path) -> None:
    (tmp_path / "mug.xml").write_text(PLAIN.format(BOX.format(0.039, 0.04, 5.0)))
    with pytest.raises(SimulationError, match=r"its mass is 5\.000 kg"):
        DemoConfig("mug_on_plate_easy", assets=str(tmp_path))
    words = ["eval", "--artifact", "mug_on_plate_easy", "--task", "mug_on_plate_easy", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--assets", str(tmp_path)]) != 0
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_an_error() -> None:
    with pytest.raises(SimulationError, match=r"assets /nowhere/at/all is no folder"):
        easy(Path("/nowhere/at/all"))


SLIDE = """<body name="drawer/{0}" pos="0 0 {1}">
  <joint name="drawer/{0}" type="slide" axis="1 0 0" range="0 .12" damping="4" frictionloss="1"/>
  <geom type="box" size=".08 .09 .02" mass=".3"/>
  <geom type="capsule" size=".006" fromto=".10 0 -.012 .10 0 .012" mass=".01"/>
  <site name="drawer/{0}_knob" pos=".10 0 0"/>
</body>"""
CHEST = f"""<mujoco><worldbody><body name="drawer">
  <geom type="box" size=".075 .1 .003" pos="0 0 .003" mass=".8"/>
  <geom type="box" size=".075 .1 .003" pos="0 0 .127" mass=".2"/>
  {SLIDE.format("bottom", 0.036)}{SLIDE.format("top", 0.098)}
</body></worldbody></mujoco>"""


def test_a_chest_is_judged_by_its_own_joints_and_knobs(tmp_path: Path) -> None:
    world = World("open_drawers", cameras={}, look="primitive", assets=folder(tmp_path, drawer=CHEST))
    world.reset(0)
    pose = world.object_poses()["drawer"]
    expected = pose[:3, :3] @ np.array([0.10, 0.0, 0.098]) + pose[:3, 3]
    np.testing.assert_allclose(knob(world.data, "top"), expected, atol=1e-6)
    for drawer in ("top", "bottom"):
        world.data.qpos[world.model.joint(f"drawer/{drawer}").qposadr[0]] = 0.07
    for _ in range(25):
        world.step(REST_POSE)
    mujoco.mj_fwdPosition(world.model, world.data)
    assert opening_m(world.model, world.data, "top") == pytest.approx(0.07, abs=0.002)
    assert world.success()


@pytest.mark.parametrize(("change", "message"), [
    (("drawer/top_knob", "handle"), r"it has no site 'drawer/top_knob'; expected these, by which opening"),
    (('joint name="drawer/bottom"', 'joint name="lower"'), r"no joint 'drawer/bottom'"),
    (('range="0 .12"', 'range="0 .04"'), r"range \[0.0, 0.04\]; expected a slide along x that opens at least"),
    (('axis="1 0 0"', 'axis="0 1 0"'), r"axis \[0.0, 1.0, 0.0\]"),
])
def test_a_chest_that_cannot_be_judged_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        World("drawer_open", cameras={}, look="primitive", assets=folder(tmp_path, drawer=CHEST.replace(*change)))


def test_the_commands_take_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demos", "score", "--task", "mug_on_plate_easy", "--seeds", "1", "--controls", "0", "--look", "primitive"]
    out = str(tmp_path / "r.jsonl")
    assert cli.main([*words, "--out", out, "--assets", str(tmp_path / "none")]) != 0
    assert "is no folder; name one that holds MJCF files" in capsys.readouterr().err
    assert cli.main([*words, "--out", out, "--assets", str(folder(tmp_path, mug=MUG))]) == 0
    (row,) = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert row["assets"] == str(tmp_path)
    assert row["success"], row["reason"]
