"""Faults of leaders and teleoperation, played while a person's hands move the simulated robot by emulated leaders."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from faults.matrix import Expect, Fault
from faults.robot_faults import (
    FOREVER,
    OVERHEATING,
    OVERLOAD,
    ROLL,
    WRIST,
    bus,
    each,
    fail,
    plug_in,
    power_off,
    restart_motor,
    share_id,
    silence,
    unplug,
)
from faults.sim_faults import call, first_position, joints, other_name, send, shorter, unchanged
from faults.stack import AGAIN_S, Stack
from hardware_emulation.motor import Joint, Servo

from clamp_ros.arm.registers import XM540_W270
from clamp_ros.contract.interfaces import (
    CONTROL_ENABLE,
    CONTROL_ESTOP,
    CONTROL_RESET,
    SIM_RESET,
    TELEOP_DISCARD,
    TELEOP_STOP,
    TELEOP_TARGETS,
)

HOLD, GO_ON, EITHER, END = Expect.HOLD, Expect.GO_ON, Expect.EITHER, Expect.END
S = 1_000_000_000
GLITCH_TICKS, PUSH_TICKS = 1000.0, 250.0
Action = Callable[[Stack], None]
again: Action = Stack.teleoperate


def turn(side: str, ticks: float) -> Action:
    """A leader's waist is elsewhere from one reading to the next."""

    def act(stack: Stack) -> None:
        with stack.bus(side).lock:
            stack.bus(side)[1].joint.shaft += ticks

    return act


def exchange(side: str, model: int) -> Action:
    """A motor is exchanged, with the cable out, and the cable put back."""

    def act(stack: Stack) -> None:
        leader = stack.bus(side)
        unplug(side)(stack)
        stack.spin(1.0)
        with leader.lock:
            place = leader.servos.index(leader[WRIST])
            leader.servos[place] = Servo(WRIST, model, Joint(leader.servos[place].joint.shaft))
        plug_in(side)(stack)

    return act


def leader_faults() -> list[Fault]:
    """Of each leader: the followers stop where they are while it is not read, and its name is in the log."""
    faults: list[Fault] = []
    for side in ("left", "right"):
        gone = f"{side} leader: "
        clean = each(bus(side, drop=0, corrupt=0, cut=0, delay_s=0.0), again)
        faults += [
            Fault(f"{side} leader silent", bus(side, drop=FOREVER), HOLD, gone, clean),
            Fault(f"{side} leader silent for a moment", lambda stack, s=side: _briefly(stack, s), EITHER, "", again),
            Fault(f"{side} leader corrupt", bus(side, corrupt=FOREVER), HOLD, gone, clean),
            Fault(f"{side} leader sends half packets", bus(side, cut=FOREVER), HOLD, gone, clean),
            Fault(f"{side} leader replies 100 ms late", bus(side, delay_s=0.1), HOLD, gone, clean),
            Fault(f"{side} leader's wrist motor silent", silence(side, (WRIST,), True), HOLD, gone,
                  each(silence(side, (WRIST,), False), again)),
            Fault(f"{side} leader's elbow overloaded", fail(side, OVERLOAD), HOLD, f"{gone}.*overload", again),
            Fault(f"{side} leader's elbow too hot", fail(side, OVERHEATING), HOLD, f"{gone}.*overheating", again),
            Fault(f"{side} leader's motor restarts", lambda stack, s=side: restart_motor(stack, s), EITHER, "", again),
            Fault(f"{side} leader without power", power_off(side), HOLD, gone, each(silence(side, (), False), again)),
            Fault(f"{side} leader unplugged", unplug(side), HOLD, gone, each(plug_in(side), again)),
            Fault(f"{side} leader's wrist of another model", exchange(side, XM540_W270.number), HOLD,
                  f"{gone}.*model number 1120", each(_own_wrist(side), again)),
            Fault(f"{side} leader's motors share an id", share_id(side, True), HOLD, gone,
                  each(share_id(side, False), again)),
            Fault(f"{side} leader torn away", turn(side, GLITCH_TICKS), HOLD, f"{side}/waist is .* from its leader",
                  again),
            Fault(f"{side} leader pushed", turn(side, PUSH_TICKS), GO_ON, ""),
        ]  # fmt: skip
    return faults


def _briefly(stack: Stack, side: str) -> None:
    """For longer than the followers go on, and for less than ends it."""
    bus(side, drop=FOREVER)(stack)
    stack.spin(1.5 if stack.patient else 0.3)
    bus(side, drop=0)(stack)


def _own_wrist(side: str) -> Action:
    """The motor that belongs there."""

    def act(stack: Stack) -> None:
        exchange(side, stack.bus(side)[ROLL].model.number)(stack)

    return act


def target_faults() -> list[Fault]:
    """Targets beside those of the teleoperation node."""
    nan, reset = float("nan"), each(call(CONTROL_RESET), again)

    def targets(change: Callable[[Any], None], ahead_ns: int = 0) -> Action:
        return joints(TELEOP_TARGETS, change, ahead_ns)

    return [
        Fault("target with NaN", targets(first_position(nan)), EITHER, "teleop target.*not finite", again),
        Fault("target with a wrong name", targets(other_name), EITHER, "teleop target.*left_wrist_spin", again),
        Fault("target of 13 joints", targets(shorter), EITHER, "teleop target.*13", again),
        Fault("target that jumps by 2 rad", targets(first_position(2.0)), EITHER, "rad from the last command", again),
        Fault("target 5 s old", targets(unchanged, -5 * S), EITHER, "teleop target refused.*older", again),
        Fault("target 10 s ahead", targets(unchanged, 10 * S), EITHER, "teleop target refused.*future", again),
        Fault("emergency stop", call(CONTROL_ESTOP), HOLD, "stopped: emergency stop", reset, prompt=True),
        Fault("control disabled", call(CONTROL_ENABLE, data=False), HOLD, "disabled",
              each(call(CONTROL_ENABLE, data=True), again), prompt=True),
        Fault("stopped by its operator", call(TELEOP_STOP, data=True), HOLD, "idle", again),
        Fault("discarded by its operator", call(TELEOP_DISCARD), HOLD, "idle", again),
        Fault("simulation reset", call(SIM_RESET), HOLD, "time ran back", again),
    ]  # fmt: skip


def _until_idle(stack: Stack) -> None:
    """The new node has said that nothing is teleoperated."""
    stack.spin(AGAIN_S, lambda: stack.seen.status.get("teleop") == "idle")


def node_faults() -> list[Fault]:
    """Nodes that die, hang, or are too slow."""
    stop, go, kill = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
    old = "newest teleop target is .* old"
    return [
        Fault("teleop_node hung", send("teleop_node", stop), HOLD, old, each(send("teleop_node", go), again)),
        Fault("teleop_node too slow", lambda stack: stack.starve("teleop_node", 0.02), EITHER, old, again,
              patience_s=25.0),
        Fault("control_node hung", send("control_node", stop), HOLD, "no joint commands|nobody tells the arms",
              each(send("control_node", go), again)),
        Fault("recorder_node hung", send("recorder_node", stop), GO_ON, "nothing heard of recorder_node",
              send("recorder_node", go)),
        Fault("recorder_node killed", send("recorder_node", kill), GO_ON, "recorder_node was killed by SIGKILL"),
        Fault("teleop_node killed", send("teleop_node", kill), HOLD, "teleop_node was killed by SIGKILL",
              each(_until_idle, again)),
        Fault("control_node killed", send("control_node", kill), END, "control_node was killed by SIGKILL, and the"),
    ]  # fmt: skip


def teleop_faults() -> list[Fault]:
    """All, those after which the system has to be started anew last."""
    return [*leader_faults(), *target_faults(), *node_faults()]
