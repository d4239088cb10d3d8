"""The simulation node with real subscribers: what it publishes, what it takes, and what its services do."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from clamp_ros.contract.errors import ConfigError, SimulationError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    CLOCK,
    DIAGNOSTICS,
    JOINT_COMMANDS,
    JOINT_STATES,
    OBSERVATION,
    SIM_PAUSE,
    SIM_RESET,
    SIM_STEP,
    TASK_STATE,
    TF,
    TF_STATIC,
    TOPICS,
    VIEWS,
    Topic,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
)
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.geometry.tf_tree import TfTree
from clamp_ros.ros.convert import (
    array_from_image,
    chunk_message,
    header_message,
    image_message,
    joint_state_message,
    joints_from_message,
    pinhole_from_camera_info,
    stamp_ns,
    transform_from_message,
)
from clamp_ros.ros.run import advertise, subscribe
from clamp_ros.sim.mujoco_node import MujocoNode
from clamp_ros.sim.randomise import Randomiser
from clamp_ros.sim.simulation import START_NS, SimulationConfig
from clamp_ros.sim.world import World

TIMEOUT_S = 60.0
CAMERAS = ("front_left", "wrist_left")


def topic(name: str) -> Topic:
    return next(t for t in TOPICS if t.name == name)


class Cell:
    """The node under test, and a node that hears everything it says."""

    def __init__(self, ros: Any, **parameters: Any) -> None:
        self.ros = ros
        self.peer = ros.node("peer")
        self.heard: dict[str, list[Any]] = {}
        names = [color_topic(c) for c in CAMERAS] + [depth_topic(c) for c in CAMERAS]
        names += [camera_info_topic(c) for c in CAMERAS]
        for t in (CLOCK, JOINT_STATES, TF, TF_STATIC, TASK_STATE, DIAGNOSTICS, *map(topic, names)):
            self.heard[t.name] = []
            subscribe(self.peer, t, self.heard[t.name].append)
        self.commands = advertise(self.peer, JOINT_COMMANDS)
        values = {"look": "primitive", "width": 64, "height": 48, "cameras": list(CAMERAS), "render_workers": 1,
                  "real_time_factor": 0.0, "paused": True, "command_wait_s": 0.0, **parameters}
        self.node = ros.add(MujocoNode(parameter_overrides=[Parameter(k, value=v) for k, v in values.items()]))
        self.until(lambda: self.joints and self.commands.get_subscription_count(), "the first joint state")

    @property
    def joints(self) -> list[Any]:
        return self.heard[JOINT_STATES.name]

    @property
    def time_ns(self) -> int:
        return stamp_ns(self.joints[-1].header.stamp) if self.joints else 0

    def until(self, condition: Any, what: str) -> None:
        self.ros.spin_until(condition, TIMEOUT_S, what)

    def trigger(self, service: Any) -> Any:
        return self.ros.call(self.peer, Trigger, service.name, timeout_s=TIMEOUT_S)

    def pause(self, paused: bool) -> Any:
        return self.ros.call(self.peer, SetBool, SIM_PAUSE.name, SetBool.Request(data=paused), TIMEOUT_S)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.trigger(SIM_STEP).success

    def status(self) -> dict[str, str]:
        for message in reversed(self.heard[DIAGNOSTICS.name]):
            for status in message.status:
                if status.name == "mujoco_node":
                    return {"message": status.message, **{v.key: v.value for v in status.values}}
        return {}


def test_everything_is_published_on_the_control_grid(ros: Any) -> None:
    cell = Cell(ros)
    assert cell.time_ns == START_NS
    cell.step(6)
    cell.until(lambda: len(cell.joints) == 7 and all(len(cell.heard[depth_topic(c)]) == 2 for c in CAMERAS), "7 ticks")
    assert [stamp_ns(m.header.stamp) for m in cell.joints] == [START_NS + i * CONTROL_PERIOD_NS for i in range(7)]
    np.testing.assert_allclose(joints_from_message(cell.joints[-1]), REST_POSE, atol=0.04)
    assert stamp_ns(cell.heard[CLOCK.name][-1].clock) == START_NS + 6 * CONTROL_PERIOD_NS
    for camera in CAMERAS:
        cell.until(lambda c=camera: all(len(cell.heard[t(c)]) == 2 for t in (color_topic, camera_info_topic)), camera)
        config = SimulationConfig(width=64, height=48).camera_configs()[camera]
        for i in range(2):
            color, depth, info = (cell.heard[t(camera)][i] for t in (color_topic, depth_topic, camera_info_topic))
            assert {stamp_ns(m.header.stamp) for m in (color, depth, info)} == {START_NS + 5 * i * CONTROL_PERIOD_NS}
            assert {m.header.frame_id for m in (color, depth, info)} == {optical_frame(camera)}
            assert array_from_image(color, "rgb8").shape == (48, 64, 3)
            assert array_from_image(depth, "16UC1").max() > 300
            assert pinhole_from_camera_info(info) == config.pinhole


def test_transforms_of_cameras_grippers_and_objects(ros: Any) -> None:
    cell = Cell(ros)
    cell.step(2)
    cell.until(lambda: cell.heard[TF_STATIC.name] and len(cell.heard[TF.name]) >= 6, "transforms")
    tree = TfTree()
    for name, static in ((TF.name, False), (TF_STATIC.name, True)):
        for message in cell.heard[name]:
            for transform in message.transforms:
                parent, child, stamp, pose = transform_from_message(transform)
                tree.set_transform(parent, child, stamp, pose, static)
    joints = joints_from_message(cell.joints[1])
    stamp = START_NS + CONTROL_PERIOD_NS
    gripper = world_from_gripper("left", joints)
    np.testing.assert_allclose(tree.lookup("world", "left/gripper", stamp), gripper, atol=1e-9)
    camera = SimulationConfig().camera_configs()["wrist_left"]
    want = gripper @ camera.frame_from_camera
    np.testing.assert_allclose(tree.lookup("world", optical_frame("wrist_left"), stamp), want, atol=1e-9)
    assert tree.lookup("world", optical_frame("front_left"), stamp)[2, 3] == pytest.approx(0.70)
    assert abs(tree.lookup("world", "object/mug", stamp)[2, 3]) < 0.1


def test_commands_move_the_arms_and_bad_ones_do_not(ros: Any) -> None:
    cell = Cell(ros)
    target = np.array(REST_POSE)
    target[0] = 0.3
    cell.commands.publish(joint_state_message(target, cell.time_ns))
    held = cell.node._commands
    cell.until(lambda: held.get(0, 0.0)[0][0] == 0.3, "the command")
    cell.step(50)
    cell.until(lambda: len(cell.joints) == 51, "a second of joint states")
    assert joints_from_message(cell.joints[-1])[0] == pytest.approx(0.3, abs=0.05)

    def bad(change: Any) -> Any:
        message = joint_state_message(np.array(REST_POSE), cell.time_ns)
        change(message)
        return message

    def rename(message: Any) -> None:
        message.name = ["panda/joint1", *message.name[1:]]

    def set_position(value: float) -> Any:
        return lambda message: message.position.__setitem__(0, value)

    def far_ahead(message: Any) -> None:
        message.header.stamp.sec += 10

    cell.commands.publish(joint_state_message(target, cell.time_ns))
    cell.until(lambda: held._due_ns == cell.time_ns, "a command after a second of none")
    cell.step()
    for count, change in enumerate((rename, set_position(float("nan")), set_position(3.5), far_ahead), start=1):
        cell.commands.publish(bad(change))
        cell.until(lambda n=count: cell.status().get("refused_commands") == str(n), f"refusal {count}")
    assert "ahead of the clock" in cell.status()["message"]
    cell.step(9)
    cell.until(lambda: len(cell.joints) == 61, "joint states")
    assert joints_from_message(cell.joints[-1])[0] == pytest.approx(0.3, abs=0.05)


def test_of_two_senders_of_commands_neither_is_followed(ros: Any) -> None:
    cell = Cell(ros)
    other = ros.node("other")
    commands = advertise(other, JOINT_COMMANDS)
    cell.until(lambda: cell.node.count_publishers(JOINT_COMMANDS.name) == 2, "the second sender")
    target = np.array(REST_POSE)
    target[0] = 0.3

    def refused() -> bool:
        for publisher in (cell.commands, commands):
            publisher.publish(joint_state_message(target, cell.time_ns))
        return int(cell.status().get("foreign_commands", "0")) > 3

    cell.until(refused, "their commands to be refused")
    assert "comes from 2 senders" in cell.status()["message"]
    assert cell.node._commands.get(0, 0.0)[0] == pytest.approx(REST_POSE)


def test_pause_run_and_step(ros: Any) -> None:
    cell = Cell(ros)
    assert cell.pause(False).message == "running"
    cell.until(lambda: cell.time_ns >= START_NS + 20 * CONTROL_PERIOD_NS, "time to pass")
    refused = cell.trigger(SIM_STEP)
    assert not refused.success and "pause it with /sim/pause" in refused.message
    assert cell.pause(True).success
    answer = cell.trigger(SIM_STEP)
    assert answer.success and answer.message.startswith("time is ")
    before = float(answer.message.split()[2])
    after = float(cell.trigger(SIM_STEP).message.split()[2])
    assert after == pytest.approx(before + 0.02, abs=0.011)
    assert float(cell.status().get("real_time_factor", 0.0)) >= 0.0


def test_a_reset_takes_the_seed_and_puts_the_clock_back(ros: Any) -> None:
    cell = Cell(ros)
    target = np.array(REST_POSE)
    target[7] = 0.4
    cell.commands.publish(joint_state_message(target, cell.time_ns))
    cell.until(lambda: cell.node._commands.get(0, 0.0)[0][7] == 0.4, "the command")
    cell.step(15)
    cell.node.set_parameters([Parameter("seed", value=11)])
    answer = cell.trigger(SIM_RESET)
    assert answer.success and json.loads(answer.message) == {"seed": 11}
    cell.until(lambda: len(cell.joints) == 17, "the new episode")
    assert cell.time_ns == START_NS
    cell.step(5)
    cell.until(lambda: len(cell.joints) == 22, "ticks of the new episode")
    assert joints_from_message(cell.joints[-1])[7] == pytest.approx(0.0, abs=0.02)  # the old command is void
    cell.until(lambda: json.loads(cell.heard[TASK_STATE.name][-1].data)["time_s"] == 0.1, "task state")
    assert json.loads(cell.heard[TASK_STATE.name][-1].data)["seed"] == 11


def test_a_randomised_scene_is_told_at_every_reset(ros: Any) -> None:
    """Camera poses as drawn for the seed, on /tf_static; what is randomised, in the task state."""
    cell = Cell(ros, randomise_camera=1.0, seed=4)

    def told() -> list[tuple[float, float, float]]:
        moves = [t for m in cell.heard[TF_STATIC.name] for t in m.transforms]
        places = [t.transform.translation for t in moves if t.child_frame_id == optical_frame("front_left")]
        return [(p.x, p.y, p.z) for p in places]

    cell.until(told, "the cameras' poses")
    cell.node.set_parameters([Parameter("seed", value=5)])
    assert cell.trigger(SIM_RESET).success
    cell.until(lambda: len(told()) > 1 and cell.heard[TASK_STATE.name], "the cameras' new poses")
    config = SimulationConfig(look="primitive", cameras=CAMERAS, randomise_camera=1.0)
    draw = Randomiser(config.randomisation, World(config.task, look="primitive").model, config.camera_configs())
    np.testing.assert_allclose(told()[0], draw.scene(4).cameras["front_left"].position_m)
    np.testing.assert_allclose(told()[-1], draw.scene(5).cameras["front_left"].position_m)
    assert json.loads(cell.heard[TASK_STATE.name][-1].data)["randomised"]["camera"] == 1.0


def test_it_says_when_nobody_tells_the_arms_where_to_be_any_more(ros: Any) -> None:
    cell = Cell(ros)
    cell.step(12)
    cell.commands.publish(joint_state_message(REST_POSE, cell.node._now_ns))
    cell.until(lambda: cell.node._commands._due_ns > 0, "the command")
    cell.step(10)
    assert "no joint commands" not in cell.node._health.status().message
    cell.step(2)
    assert "no joint commands for 0.2 s, the arms hold" in cell.node._health.status().message
    cell.commands.publish(joint_state_message(REST_POSE, cell.node._now_ns))
    cell.until(lambda: cell.node._commands._due_ns == cell.node._now_ns, "the command after the silence")
    cell.step()
    assert "no joint commands" not in cell.node._health.status().message


def test_the_clock_waits_for_the_command_that_is_due_while_commands_flow(ros: Any) -> None:
    cell = Cell(ros, command_wait_s=1.0)
    cell.commands.publish(joint_state_message(REST_POSE, cell.time_ns))
    cell.until(lambda: not cell.node._commands.get(START_NS, 0.0)[1] and cell.node._commands._due_ns, "the command")
    cell.pause(False)
    for i in range(5):  # each tick is made as soon as its command is there
        cell.until(lambda n=i: cell.time_ns >= START_NS + (n + 1) * CONTROL_PERIOD_NS, f"tick {i + 1}")
        assert cell.time_ns <= START_NS + (i + 2) * CONTROL_PERIOD_NS
        cell.commands.publish(joint_state_message(REST_POSE, START_NS + (i + 1) * CONTROL_PERIOD_NS))


@pytest.mark.parametrize("made", ["views", "chunk"])
def test_the_clock_waits_for_what_is_being_made_of_the_pictures(ros: Any, made: str) -> None:
    cell = Cell(ros, policy_wait_s=60.0, policy_latency_s=0.06)
    views, chunks = advertise(cell.peer, VIEWS), advertise(cell.peer, ACTION_CHUNK)
    observations = advertise(cell.peer, OBSERVATION)
    cell.until(lambda: all(p.get_subscription_count() for p in (views, chunks, observations)), "discovery")

    def show(tick: int) -> None:
        image = np.zeros((1, 1, 4), np.float32)
        views.publish(image_message(image, "32FC4", START_NS + tick * CONTROL_PERIOD_NS, "world"))

    def reach(tick: int) -> None:
        cell.until(lambda: cell.time_ns >= START_NS + tick * CONTROL_PERIOD_NS, f"tick {tick}")
        for _ in range(20):  # and it stays there, though it may run
            ros.executor.spin_once(timeout_sec=0.01)
            assert cell.time_ns == START_NS + tick * CONTROL_PERIOD_NS

    cell.until(lambda: cell.heard[depth_topic("wrist_left")], "the first pictures")
    if made == "views":
        show(0)
        cell.until(lambda: cell.node._views.answered, "the first views")
        cell.pause(False)
        reach(8)  # pictures of tick 5, and three ticks
        show(5)
        reach(13)
        assert cell.trigger(SIM_RESET).success
        reach(3)  # who made views is still there: the next episode waits for its first ones
    else:
        observations.publish(header_message(START_NS, "world"))
        cell.until(lambda: cell.node._chunk._stamp_ns == START_NS, "the observation")
        cell.pause(False)
        reach(3)
        chunk = ActionChunk(START_NS, np.tile(REST_POSE, (CHUNK_SIZE, 1)))
        chunks.publish(chunk_message(chunk))
        cell.until(lambda: cell.time_ns > START_NS + 10 * CONTROL_PERIOD_NS, "time to go on")


def test_the_clock_does_not_wait_for_a_chunk_that_will_not_come(ros: Any) -> None:
    cell = Cell(ros, policy_wait_s=60.0, policy_latency_s=0.0)
    observations = advertise(cell.peer, OBSERVATION)
    cell.until(lambda: observations.get_subscription_count(), "discovery")
    observations.publish(header_message(START_NS, "world"))
    cell.until(lambda: cell.node._chunk._stamp_ns == START_NS, "the observation")
    cell.pause(False)
    observations.publish(header_message(0, "world"))
    cell.until(lambda: cell.time_ns > START_NS + 10 * CONTROL_PERIOD_NS, "time to go on")
    assert "late action chunk" not in cell.status()


def test_a_request_is_served_while_the_clock_waits(ros: Any) -> None:
    cell = Cell(ros, policy_wait_s=600.0, policy_latency_s=0.0)
    observations = advertise(cell.peer, OBSERVATION)
    cell.until(lambda: observations.get_subscription_count(), "discovery")
    observations.publish(header_message(START_NS, "world"))
    cell.until(lambda: cell.node._chunk._stamp_ns == START_NS, "the observation")
    cell.pause(False)
    assert cell.trigger(SIM_RESET).success
    cell.until(lambda: cell.time_ns > START_NS + 10 * CONTROL_PERIOD_NS, "the new episode")


def test_the_clock_waits_no_longer_than_it_may(ros: Any) -> None:
    cell = Cell(ros, policy_wait_s=0.05, policy_latency_s=0.0)
    observations = advertise(cell.peer, OBSERVATION)
    cell.until(lambda: observations.get_subscription_count(), "discovery")
    observations.publish(header_message(START_NS, "world"))
    cell.until(lambda: cell.node._chunk._stamp_ns == START_NS, "the observation")
    cell.pause(False)
    cell.until(lambda: cell.status().get("late action chunk") == "1", "the report")
    cell.until(lambda: cell.time_ns > START_NS + 10 * CONTROL_PERIOD_NS, "time to go on")


def test_mistakes_are_told_before_anything_starts(ros: Any) -> None:
    with pytest.raises(ConfigError, match="image_rate_hz is 30"):
        MujocoNode(parameter_overrides=[Parameter("image_rate_hz", value=30)])
    with pytest.raises(ConfigError, match="did you mean 'image_rate_hz'"):
        MujocoNode(parameter_overrides=[Parameter("image_rate", value=10)])


def test_a_simulation_that_cannot_be_built_ends_the_node(ros: Any) -> None:
    ros.add(MujocoNode(parameter_overrides=[Parameter("task", value="mug_in_sink")]))
    with pytest.raises(SimulationError, match="there is no task 'mug_in_sink'"):
        ros.spin_until(lambda: False, TIMEOUT_S, "the failure")


def drawing_processes() -> list[int]:
    """Process ids of this process's render workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == os.getpid() and b"clamp_ros.sim.render_worker" in command:
            found.append(int(folder.name))
    return found


def test_a_dead_drawing_process_ends_the_node(ros: Any) -> None:
    cell = Cell(ros)
    cell.until(lambda: cell.heard[depth_topic("front_left")], "a picture")
    (worker,) = drawing_processes()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(SimulationError, match="ended with code -9"):
        cell.pause(False)
        cell.until(lambda: False, "the failure")


def test_closing_the_node_ends_its_processes(ros: Any) -> None:
    cell = Cell(ros)
    assert drawing_processes()
    cell.node.close()
    assert not drawing_processes()
