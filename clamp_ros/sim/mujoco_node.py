"""The simulated robot and cameras as a ROS 2 node, with the topics of the hardware.

Joint commands come in; joint states, pictures, transforms and the clock go out, all stamped on the 20 ms grid of
control. Where the machine is too slow for real time, simulated time is slow, and every node agrees on it: /clock never
passes the stamp of pictures that are still being drawn; while commands flow it waits for the one that is due; and it
goes no further than `policy_latency_s` past pictures whose views, or whose action chunk, are still being made.

A reset puts the clock back to the episode's start: nodes that see time run back begin a new episode.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from clamp_ros.contract.errors import ClampError, ContractError, SimulationError
from clamp_ros.contract.interfaces import (
    ACTION_CHUNK,
    CLOCK,
    JOINT_COMMANDS,
    JOINT_STATES,
    OBSERVATION,
    SIM_PAUSE,
    SIM_RESET,
    SIM_STEP,
    TASK_STATE,
    TOPICS,
    VIEWS,
    camera_info_topic,
    color_topic,
    depth_topic,
    gripper_frame,
    object_frame,
    optical_frame,
)
from clamp_ros.contract.robot import ARMS, CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.ros.convert import (
    camera_info_message,
    image_message,
    joint_state_message,
    joints_from_message,
    stamp_ns,
    time_message,
)
from clamp_ros.ros.params import declare
from clamp_ros.ros.run import Health, advertise, run_node, serve, subscribe
from clamp_ros.ros.sender import SoleSender
from clamp_ros.ros.tf import TfBroadcaster
from clamp_ros.sim.simulation import START_NS, Picture, Simulation, SimulationConfig
from clamp_ros.sim.world import checked_action

_FUTURE_NS = 5 * CONTROL_PERIOD_NS
"""A command that is due later than this was meant for the episode before a reset."""
_FLOWING_NS = 10 * CONTROL_PERIOD_NS
_ANSWER_S = 120.0


class Commands:
    """The newest joint command, shared by the executor, which receives it, and the simulation, which waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._target = np.array(REST_POSE)
        self._due_ns = 0

    def put(self, target: NDArray[np.float64], due_ns: int) -> None:
        """Takes a (14,) target that is due at a ROS time."""
        with self._changed:
            self._target, self._due_ns = target, due_ns
            self._changed.notify_all()

    def get(self, now_ns: int, wait_s: float) -> tuple[NDArray[np.float64], bool]:
        """The target, and whether it is one that was due before now though commands flow, after waiting for a newer."""
        with self._changed:
            flowing = now_ns - self._due_ns <= _FLOWING_NS and self._due_ns > 0
            if flowing and wait_s > 0.0:
                self._changed.wait_for(lambda: self._due_ns >= now_ns, wait_s)
            return self._target, flowing and self._due_ns < now_ns

    def silent_s(self, now_ns: int) -> float:
        """How long ago the newest target was due, in simulated seconds, if that is too long; else 0."""
        with self._changed:
            silent_ns = now_ns - self._due_ns if self._due_ns > 0 else 0
        return silent_ns / 1e9 if silent_ns > _FLOWING_NS else 0.0

    def clear(self) -> None:
        """A new episode: the arms are at rest, and stay there until they are told otherwise."""
        with self._changed:
            self._target, self._due_ns = np.array(REST_POSE), 0


class Work:
    """What another node makes of pictures, shared by the executor, which hears of it, and the simulation.

    Attributes:
        answered: whether the newest that was waited for came; a node that is not there need not be waited for. One
            that was there is still there in the next episode.
    """

    def __init__(self, allowed_ns: int) -> None:
        """Nothing is being made. `allowed_ns`: how much simulated time may pass between a stamp and what is made."""
        self._changed = threading.Condition()
        self._allowed_ns = allowed_ns
        self._stamp_ns: int | None = None
        self.answered = False

    def begin(self, stamp_ns: int) -> None:
        """Something is being made of the pictures of a stamp; only the newest counts."""
        with self._changed:
            self._stamp_ns = stamp_ns

    def end(self, stamp_ns: int) -> None:
        """It is there, or something newer."""
        with self._changed:
            self.answered = True
            if self._stamp_ns is not None and stamp_ns >= self._stamp_ns:
                self._stamp_ns = None
                self._changed.notify_all()

    def wait(self, now_ns: int, wait_s: float, interrupted: Callable[[], bool]) -> bool:
        """Waits until time may go on from now, or is interrupted; false after `wait_s`, when it is given up."""
        with self._changed:
            if self._changed.wait_for(lambda: interrupted() or not self._overdue(now_ns), wait_s):
                return True
            self._stamp_ns, self.answered = None, False
            return False

    def _overdue(self, now_ns: int) -> bool:
        return self._stamp_ns is not None and now_ns - self._stamp_ns >= self._allowed_ns

    def wake(self) -> None:
        """Has a wait look again whether it is interrupted."""
        with self._changed:
            self._changed.notify_all()

    def clear(self) -> None:
        """It will not come: given up, of the episode before, or the end. Nobody need wait for it."""
        with self._changed:
            self._stamp_ns = None
            self._changed.notify_all()


class MujocoNode(Node):
    """Publishes a `Simulation`, which runs in a thread of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__("mujoco_node", **options)
        self._config = declare(self, SimulationConfig, settable=("seed",))
        self._config.camera_configs()  # contradictions are told before anything starts
        self._health = Health(self)
        self._commands = Commands()
        self._silent = False
        allowed_ns = round(1e9 * (self._config.image_latency_s + self._config.policy_latency_s))
        self._views, self._chunk = Work(allowed_ns), Work(allowed_ns)
        self._requests: queue.SimpleQueue[tuple[Callable[[Simulation], str], Future[str]]] = queue.SimpleQueue()
        self._paused = self._config.paused
        self._now_ns = START_NS
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._outputs = {topic.name: advertise(self, topic) for topic in TOPICS if self._publishes(topic.name)}
        self._broadcaster = TfBroadcaster(self)
        self._sender = SoleSender(self, JOINT_COMMANDS)
        subscribe(self, JOINT_COMMANDS, self._on_command)
        subscribe(self, VIEWS, self._on_views)
        subscribe(self, OBSERVATION, self._on_observation)
        subscribe(self, ACTION_CHUNK, self._on_chunk)
        serve(self, SIM_RESET, self._on_reset)
        serve(self, SIM_PAUSE, self._on_pause)
        serve(self, SIM_STEP, self._on_step)
        self.create_timer(0.1, self._check_thread, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._thread = threading.Thread(target=self._run, name="simulation")
        self._thread.start()

    def _publishes(self, topic: str) -> bool:
        names = {CLOCK.name, JOINT_STATES.name, TASK_STATE.name}
        for camera in self._config.cameras:
            names |= {color_topic(camera), depth_topic(camera), camera_info_topic(camera)}
        return topic in names

    # The executor's thread.

    def _on_command(self, message: JointState) -> None:
        if (fault := self._sender.fault()):
            self._health.fault("foreign_commands", f"{fault}; the arms hold")
            return
        due_ns = stamp_ns(message.header.stamp)
        if due_ns - self._now_ns > _FUTURE_NS:
            ahead_s = (due_ns - self._now_ns) / 1e9
            self._health.fault("refused_commands", f"joint command is {ahead_s:.2f} s ahead of the clock and refused")
            return
        try:
            self._commands.put(checked_action(joints_from_message(message, "joint command")), due_ns)
        except (ContractError, SimulationError) as error:
            self._health.fault("refused_commands", f"{error}; the arms hold")

    def _on_views(self, message: Image) -> None:
        self._views.end(stamp_ns(message.header.stamp))

    def _on_observation(self, message: Header) -> None:
        stamp = stamp_ns(message.stamp)
        if stamp == 0:
            self._chunk.clear()
        elif stamp <= self._now_ns:  # else it is of the episode before a reset
            self._chunk.begin(stamp)

    def _on_chunk(self, message: JointTrajectory) -> None:
        self._chunk.end(stamp_ns(message.header.stamp))

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        seed = self.get_parameter("seed").get_parameter_value().integer_value
        return self._ask(lambda simulation: self._reset(simulation, seed), response)

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        def pause(simulation: Simulation) -> str:
            self._paused = request.data
            simulation.pacer.restart()
            return "paused" if request.data else "running"

        return self._ask(pause, response)

    def _on_step(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def step(simulation: Simulation) -> str:
            if not self._paused:
                raise SimulationError("the simulation runs; pause it with /sim/pause before it can be stepped")
            self._step(simulation)
            return f"time is {self._now_ns / 1e9:.2f} s"

        return self._ask(step, response)

    def _ask(self, request: Callable[[Simulation], str], response: Any) -> Any:
        """Has the simulation's thread do something between two ticks, and answers with what came of it."""
        future: Future[str] = Future()
        self._requests.put((request, future))
        for work in (self._views, self._chunk):  # this thread, which hears of views and chunks, is now waiting itself
            work.wake()
        try:
            response.message, response.success = future.result(_ANSWER_S), True
        except (ClampError, TimeoutError) as error:
            response.message, response.success = str(error) or "the simulation does not answer", False
        return response

    def _check_thread(self) -> None:
        if self._failure is not None:
            raise self._failure

    # The simulation's thread.

    def _run(self) -> None:
        try:
            simulation = Simulation(self._config)
            try:
                self._reset(simulation, self._config.seed)
                while not self._stop.is_set():
                    self._serve(simulation)
                    if not self._paused and simulation.pacer.wait_s(time.monotonic()) <= 0.0:
                        self._step(simulation)
            finally:
                simulation.close()
        except BaseException as error:
            self._failure = error  # the executor's thread raises it, and the process ends
            while not self._requests.empty():
                self._requests.get()[1].set_exception(SimulationError(f"the simulation has failed: {error}"))

    def _serve(self, simulation: Simulation) -> None:
        """Does what was asked for, and waits until the next tick is due."""
        wait_s = 0.1 if self._paused else simulation.pacer.wait_s(time.monotonic())
        try:
            request, future = self._requests.get(timeout=min(wait_s, 0.1)) if wait_s else self._requests.get_nowait()
        except queue.Empty:
            return
        try:
            future.set_result(request(simulation))
        except ClampError as error:
            future.set_exception(error)

    def _reset(self, simulation: Simulation, seed: int) -> str:
        simulation.reset(seed)
        self._send_fixed_frames(simulation)
        self._commands.clear()
        self._views.clear()
        self._chunk.clear()
        self._publish(simulation)
        return json.dumps({"seed": seed})

    def _step(self, simulation: Simulation) -> None:
        if not self._paused and not self._policy_is_done(simulation.stamp_ns):
            return
        wait_s = 0.0 if self._paused else self._config.command_wait_s
        target, late = self._commands.get(simulation.stamp_ns, wait_s)
        if late:
            self._health.count("late_commands")
        self._mind_silence(simulation.stamp_ns)
        simulation.step(target)
        simulation.pacer.ticked(time.monotonic())
        self._publish(simulation)

    def _mind_silence(self, now_ns: int) -> None:
        """Says when nobody tells the arms where to be any more: nothing else hears of a control node that hangs."""
        silent_s = self._commands.silent_s(now_ns)
        text = f"no joint commands for {silent_s:.1f} s, the arms hold; does control_node hang?" if silent_s else None
        if text is not None and not self._silent:
            self.get_logger().warning(text)
        self._silent = text is not None
        self._health.hold("commands", text)

    def _policy_is_done(self, now_ns: int) -> bool:
        """Waits for what is being made of pictures; false if a request came meanwhile, which has to be served first."""
        wait_s = self._config.policy_wait_s
        for work, made in ((self._views, "views"), (self._chunk, "action chunk")):
            if not work.wait(now_ns, wait_s, lambda: not self._requests.empty()) and wait_s > 0.0:
                self._health.fault(f"late {made}", f"no {made} within {wait_s:g} s; time goes on")
        return self._requests.empty()

    def _send_fixed_frames(self, simulation: Simulation) -> None:
        cameras = simulation.cameras.values()
        self._broadcaster.send_static(
            [(camera.frame, optical_frame(camera.name), camera.frame_from_camera) for camera in cameras], START_NS
        )

    def _publish(self, simulation: Simulation) -> None:
        self._now_ns = simulation.stamp_ns
        self._outputs[CLOCK.name].publish(ClockMessage(clock=time_message(self._now_ns)))
        for sample in simulation.joint_samples():
            message = joint_state_message(sample.positions, sample.stamp_ns, sample.velocities)
            self._outputs[JOINT_STATES.name].publish(message)
            frames = [(WORLD_FRAME, gripper_frame(arm), world_from_gripper(arm, sample.positions)) for arm in ARMS]
            self._broadcaster.send(frames, sample.stamp_ns)
        poses = simulation.world.object_poses()
        self._broadcaster.send([(WORLD_FRAME, object_frame(name), pose) for name, pose in poses.items()], self._now_ns)
        state = simulation.task_state()
        if state is not None:
            self._outputs[TASK_STATE.name].publish(String(data=json.dumps(state)))
            self._health.gauge("real_time_factor", simulation.pacer.factor)
        pictures = simulation.pictures()
        for picture in pictures:
            self._publish_picture(picture)
        if pictures:
            if self._views.answered:
                self._views.begin(pictures[0].stamp_ns)
            self._health.sample("draw_wait_ms", simulation.draw_wait_ms)

    def _publish_picture(self, picture: Picture) -> None:
        camera, stamp = picture.camera, picture.stamp_ns
        frame = optical_frame(camera.name)
        info = camera_info_message(camera.pinhole, stamp, frame)
        self._outputs[camera_info_topic(camera.name)].publish(info)
        color = image_message(picture.color, "rgb8", stamp, frame)
        self._outputs[color_topic(camera.name)].publish(color)
        depth = image_message(picture.depth_mm, "16UC1", stamp, frame)
        self._outputs[depth_topic(camera.name)].publish(depth)

    def close(self) -> None:
        """Stops the simulation's thread and its processes."""
        self._stop.set()
        self._views.clear()
        self._chunk.clear()
        self._thread.join()


def main() -> int:
    """Entry point of the executable `mujoco_node`."""
    return run_node(MujocoNode)


if __name__ == "__main__":
    sys.exit(main())
