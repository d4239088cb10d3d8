"""A simulated episode played again through the running system, from its own seed, ends as it ended."""

from __future__ import annotations

import numpy as np
import pytest

from clamp_ros.bringup.replay import replay_in_simulation
from clamp_ros.bringup.session import own_domain
from clamp_ros.contract.errors import RecordError, SimulationError
from clamp_ros.contract.interfaces import CONTROL_SOURCE
from clamp_ros.demos import DemoConfig, Demonstrator
from clamp_ros.record.episode import Episode
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.replay import load_commands
from clamp_ros.record.writer import EpisodeWriter
from clamp_ros.sim.tasks.assets import check_assets

CONFIG = DemoConfig("mug_on_plate_easy", cameras=("front_left",), image_rate_hz=1, look="primitive")


@pytest.mark.slow
def test_a_replayed_episode_from_the_same_seed_is_a_success(tmp_path):
    assert Demonstrator(CONFIG).demonstrate(3, tmp_path / "demo")["success"]
    with own_domain():
        done = replay_in_simulation({"bag": str(tmp_path / "demo")}, tmp_path / "log.txt", tmp_path / "again")
    assert done.success, (tmp_path / "log.txt").read_text()
    assert done.bag is not None
    with Episode.open(done.bag) as again:
        assert (again.metadata.task, again.metadata.seed, again.metadata.outcome) == (CONFIG.task, 3, "success")
        assert again.metadata.audit["topics"], "the verdict of the live audit is in the bag"
        assert len(again.stamps_ns(CONTROL_SOURCE.name)) >= 1, "and whose targets these were"
        commands = again.commands.positions
    demonstrated = load_commands(tmp_path / "demo")[1].positions
    # the gate let everything pass: wherever the demonstration went, the arms were told to go
    far = [np.abs(commands - pose).max(axis=1).min() for pose in demonstrated[::10]]
    assert max(far) < 0.05
    assert np.allclose(commands[-1], demonstrated[-1], atol=1e-6)


def test_a_bag_whose_objects_have_changed_is_refused(tmp_path):
    from sample_bag import write_episode

    def put_box(mass_kg: float) -> None:
        geom = f'<geom type="box" size=".04 .04 .04" pos="0 0 .04" mass="{mass_kg}"/>'
        (tmp_path / "mug.xml").write_text(f'<mujoco><worldbody><body name="mug">{geom}</body></worldbody></mujoco>')

    put_box(0.2)
    assets = check_assets("mug_on_plate", str(tmp_path))
    writer = EpisodeWriter(tmp_path / "bag", EpisodeMetadata(task="mug_on_plate", seed=1, extra={"assets": assets}))
    write_episode(writer)
    bag = {"bag": str(writer.close("success"))}
    put_box(0.21)
    with pytest.raises(RecordError, match=r"other objects than .* holds now: mug changed, came or went; bring back"):
        replay_in_simulation(bag, tmp_path / "log.txt")
    (tmp_path / "mug.xml").unlink()
    with pytest.raises(SimulationError, match="nothing that mug_on_plate uses"):
        replay_in_simulation(bag, tmp_path / "log.txt")


def test_a_bag_that_no_simulation_can_lay_out_is_refused(tmp_path):
    from sample_bag import write_episode

    writer = EpisodeWriter(tmp_path / "bag", EpisodeMetadata(task="mug_on_plate"))
    write_episode(writer)
    with pytest.raises(RecordError, match="with seed None; a simulation needs one of"):
        replay_in_simulation({"bag": str(writer.close("success"))}, tmp_path / "log.txt")
