"""Faults of buses, motors, cameras and disk, played against the robot's graph over emulated servos and recordings."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from typing import Any

from faults.matrix import Expect, Fault
from faults.sim_faults import message_faults, node_faults, operator_faults
from faults.stack import Stack
from hardware_emulation.motor import Joint, Servo

from clamp_ros.arm.registers import XC430_W150
from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.interfaces import ARMS_REBOOT, ARMS_TORQUE

HOLD, GO_ON, EITHER, END = Expect.HOLD, Expect.GO_ON, Expect.EITHER, Expect.END
ELBOW, ROLL, WRIST = 4, 6, 8
OVERLOAD, OVERHEATING = 0x20, 0x04
FOREVER = 10**9
_TRIES = 5
Action = Callable[[Stack], None]


def bus(side: str, **values: Any) -> Action:
    """Sets what a bus does with replies."""

    def act(stack: Stack) -> None:
        with stack.bus(side).lock:
            for name, value in values.items():
                setattr(stack.bus(side), name, value)

    return act


def silence(side: str, motors: tuple[int, ...], silent: bool) -> Action:
    """Motors that neither take nor answer instructions."""

    def act(stack: Stack) -> None:
        with stack.bus(side).lock:
            for motor in motors or range(1, 10):
                stack.bus(side)[motor].silent = silent

    return act


def each(*actions: Action) -> Action:
    """One after the other."""

    def act(stack: Stack) -> None:
        for action in actions:
            action(stack)

    return act


def torque(stack: Stack) -> None:
    """Leaves a fault, as an operator does: again, where a late answer is still on the wire."""
    answer = ""
    for _ in range(_TRIES):
        answer = stack.call(ARMS_TORQUE, data=True)
        if answer == "holding":
            return
        stack.spin(0.3)
    raise ClampError(f"/arms/torque: {answer}")


def reboot(stack: Stack) -> None:
    """Restarts motors with errors."""
    stack.call(ARMS_REBOOT)


def fail(side: str, bits: int) -> Action:
    """A hardware error of the elbow."""

    def act(stack: Stack) -> None:
        with stack.bus(side).lock:
            stack.bus(side)[ELBOW].fail(bits)

    return act


def restart_motor(stack: Stack, side: str) -> None:
    """A motor loses its power for a moment."""
    with stack.bus(side).lock:
        stack.bus(side)[ROLL].power_up()


def power_off(side: str) -> Action:
    """The 12 V of an arm go off: no answers, no torque."""

    def act(stack: Stack) -> None:
        with stack.bus(side).lock:
            for servo in stack.bus(side).servos:
                servo.power_up()
                servo.silent = True

    return act


def unplug(side: str) -> Action:
    """The USB cable of an arm is pulled."""
    return lambda stack: stack.bus(side).unplug()


def plug_in(side: str) -> Action:
    """And put back."""

    def act(stack: Stack) -> None:
        assert stack.emulator is not None
        stack.bus(side).replug()
        stack.emulator.serve(stack.bus(side))
        stack.link(side)

    return act


def other_model(side: str) -> Action:
    """A motor is exchanged for one of another model, under way, and an operator tries to go on."""

    def act(stack: Stack) -> None:
        arm = stack.bus(side)
        with arm.lock:
            place = arm.servos.index(arm[WRIST])
            arm.kept = arm.servos[place]  # pyright: ignore[reportAttributeAccessIssue]
            arm.servos[place] = Servo(WRIST, XC430_W150.number, Joint(arm.servos[place].joint.shaft))
        stack.spin(1.0, lambda: any("fault" in text for _, text in stack.seen.said[-5:]))
        stack.call(ARMS_TORQUE, data=True)

    return act


def own_model(side: str) -> Action:
    """And back."""

    def act(stack: Stack) -> None:
        arm = stack.bus(side)
        with arm.lock:
            arm.servos[arm.servos.index(arm[WRIST])] = arm.kept  # pyright: ignore[reportAttributeAccessIssue]
        torque(stack)

    return act


def share_id(side: str, there: bool) -> Action:
    """A second motor with an id that is taken comes, or goes."""

    def act(stack: Stack) -> None:
        arm = stack.bus(side)
        with arm.lock:
            arm.collide = there
            if there:
                arm.servos.append(Servo(ROLL, arm[ROLL].model.number, Joint(500.0)))
            else:
                arm.servos.pop()

    return act


def twin(side: str) -> Action:
    """It comes under way, and an operator tries to go on."""

    def act(stack: Stack) -> None:
        share_id(side, True)(stack)
        stack.spin(1.5, lambda: any("fault" in text for _, text in stack.seen.said[-5:]))
        stack.call(ARMS_TORQUE, data=True)

    return act


def bus_faults() -> list[Fault]:
    """Of each bus."""
    faults: list[Fault] = []
    for side in ("left", "right"):
        device = f"ttyDXL_{side}"
        gone = f"{side} arm's bus does not answer|{device}"
        clean = each(bus(side, drop=0, corrupt=0, cut=0, delay_s=0.0), torque)
        faults += [
            Fault(f"{side} bus silent", bus(side, drop=FOREVER), HOLD, gone, clean, True),
            Fault(f"{side} bus silent for a moment", lambda stack, s=side: _briefly(stack, s), EITHER, gone),
            Fault(f"{side} bus corrupt", bus(side, corrupt=FOREVER), HOLD, gone, clean, True),
            Fault(f"{side} bus sends half packets", bus(side, cut=FOREVER), HOLD, gone, clean, True),
            Fault(f"{side} bus replies 100 ms late", bus(side, delay_s=0.1), HOLD, gone, clean, True),
            Fault(f"{side} wrist motor silent", silence(side, (WRIST,), True), HOLD, gone,
                  each(silence(side, (WRIST,), False), torque), True),
            Fault(f"{side} elbow overloaded", fail(side, OVERLOAD), HOLD, f"{side} elbow.*overload", reboot, True),
            Fault(f"{side} elbow too hot", fail(side, OVERHEATING), HOLD, f"{side} elbow.*overheating", reboot, True),
            Fault(f"{side} motor restarts", lambda stack, s=side: restart_motor(stack, s), HOLD,
                  f"{side} forearm_roll.*(torque|watchdog)", torque),
            Fault(f"{side} arm without power", power_off(side), HOLD, gone,
                  each(silence(side, (), False), torque), True),
            Fault(f"{side} USB unplugged", unplug(side), HOLD, f"{device}.*gone|{gone}",
                  each(plug_in(side), torque), True),
            Fault(f"{side} wrist of another model", other_model(side), HOLD, "model number 1070, expected 1020",
                  own_model(side)),
            Fault(f"{side} motors share an id", twin(side), HOLD, "motor 6 .*(share the id|Check power.*ids)",
                  each(share_id(side, False), torque)),
        ]  # fmt: skip
    return faults


def _briefly(stack: Stack, side: str) -> None:
    """For longer than the arms go on, and for less than makes it a fault."""
    bus(side, drop=FOREVER)(stack)
    stack.spin(0.75 if stack.patient else 0.2)
    bus(side, drop=0)(stack)


def play_recording(recording: str) -> Action:
    """The camera front_left becomes another one."""

    def act(stack: Stack) -> None:
        stack.show("front_left", recording)
        stack.reopen()

    return act


def camera_faults() -> list[Fault]:
    """Of one camera; what was planned before may run out."""
    good = play_recording("good")
    return [
        Fault("camera unplugged", play_recording("nothing"), HOLD, "there is no file|run out", good, patience_s=20.0),
        Fault("camera frozen", play_recording("frozen"), EITHER, "sent a frame again|nothing new", good,
              patience_s=20.0),
        Fault("camera 1.2 s late", play_recording("late"), HOLD, r"\blate\b|s old", good, patience_s=20.0),
        Fault("camera of another size", play_recording("size"), HOLD, "is not possible with.*it offers", good,
              patience_s=20.0),
        Fault("camera with another lens", play_recording("lens"), HOLD, "has fx 80.0", good, patience_s=20.0),
        Fault("camera on USB 2", play_recording("usb2"), GO_ON, "is on USB 2.1", good, patience_s=20.0),
        Fault("camera loses 2 of 3 frames", play_recording("drops"), EITHER, "lost .* frame", good, patience_s=20.0),
        Fault("cameras covered", each(_cover, Stack.reopen), HOLD, "see nothing", each(_uncover, Stack.reopen),
              patience_s=20.0),
    ]  # fmt: skip


def _cover(stack: Stack) -> None:
    for camera in ("front_left", "back_right"):
        stack.show(camera, "dark")


def _uncover(stack: Stack) -> None:
    for camera in ("front_left", "back_right"):
        stack.show(camera, "good")


def disk(full: bool) -> Action:
    """The disk takes nothing more of the recorder, or everything."""

    def act(stack: Stack) -> None:
        pid = stack.nodes()["recorder_node"]
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 << 10 if full else hard, hard))

    return act


def disk_faults() -> list[Fault]:
    """Of the recorder's disk: the arms do not care."""
    return [Fault("disk full", disk(True), GO_ON, "recording of .* failed.*(too large|space)", disk(False))]


def parent_killed(stack: Stack) -> None:
    """Whoever supervises the nodes dies."""
    os.kill(stack.pid, signal.SIGKILL)


def robot_faults() -> list[Fault]:
    """All that are played against the robot's graph, those after which it has to be started anew last."""
    return [
        *operator_faults(), *bus_faults(), *camera_faults(), *disk_faults(), *message_faults(robot=True),
        *node_faults(robot=True), Fault("clamp up killed", parent_killed, END, ""),
    ]  # fmt: skip
