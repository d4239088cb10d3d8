"""`clamp up`: runs the graph of `clamp_ros.bringup.graph` where there is no `ros2 launch`, by the same rules.

Each node is a process in a session of its own, so that Ctrl-C reaches it once, through here. Logs are prefixed with the
node's name. A node that may be restarted is; the death of any other ends the system with an exit code that is not 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TextIO

from clamp_ros.bringup.graph import EXIT_CONFIGURATION, GRAPHS, RESTART_DELAY_S, RESTARTS, Argument, Node
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.interfaces import ESTOP_SIGNAL
from clamp_ros.ros import environment, messages
from clamp_ros.ros.printer import LAST_WORDS_S, Printer
from clamp_ros.ros.terminal import STOP, single_keys

GRACE_S = 10.0
"""How long nodes may take to end after the signal, before they are killed."""
_OWN_NAME = "clamp"
_STARTED_AGAIN = re.compile(r"^\[clamp\] +(\w+ (?:was killed by|ended with exit code) -?\w+); starting it again", re.M)
_COLORS = (36, 33, 35, 32, 34)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def command(node: Node) -> list[str]:
    """The command line that starts a node."""
    line = [sys.executable, "-m", node.module, "--ros-args", "-r", f"__node:={node.name}"]
    for name, value in node.parameters.items():
        line += ["-p", f"{name}:={json.dumps(value)}"]
    for source, target in node.remaps.items():
        line += ["-r", f"{source}:={target}"]
    for path in node.files:
        line += ["--params-file", str(path)]
    return line


def parse_arguments(words: Sequence[str]) -> dict[str, str]:
    """``name:=value`` words as a mapping.

    Raises:
        ConfigError: a word has another form, or a name comes twice.
    """
    given: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or not name:
            raise ConfigError(f"{word!r} is not a launch argument, expected name:=value")
        if name in given:
            raise ConfigError(f"launch argument {name} is given twice")
        given[name] = value
    return given


def describe(arguments: Sequence[Argument]) -> str:
    """The launch arguments as text for ``--help``."""
    lines = []
    for argument in arguments:
        lines.append(f"  {argument.name}:={argument.default or '(empty)'}")
        lines.append(f"      {argument.doc}" + (f"; one of {', '.join(argument.choices)}" if argument.choices else ""))
    return "\n".join(lines)


def deaths(log: str) -> list[str]:
    """The nodes that died and were started again, in words, from what a `Runner` has written to a file."""
    return _STARTED_AGAIN.findall(log)


def graph_name(words: Sequence[str]) -> tuple[str, list[str]]:
    """The graph that the first word names, by default the policy's, and the words after it.

    Raises:
        ConfigError: there is no such graph.
    """
    if not words or ":=" in words[0]:
        return "policy", list(words)
    if words[0] not in GRAPHS:
        near = difflib.get_close_matches(words[0], GRAPHS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"systems are: {', '.join(GRAPHS)}"
        raise ConfigError(f"{words[0]!r} is not a launch argument, expected name:=value, nor a system; {hint}")
    return words[0], list(words[1:])


def up(
    words: Sequence[str],
    make: Callable[[Mapping[str, str]], Sequence[Node]] | None = None,
    beside: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> int:
    """Runs a graph until it is told to stop, or a node that it cannot do without dies.

    Args:
        words: launch arguments, ``name:=value``; unless `make` is given, after the graph's name or for the policy's.
        make: the graph.
        beside: what goes on while it runs.

    Returns:
        The exit code: 0 after a stop that was asked for, 2 where the user must mend something, else 1.

    Raises:
        ClampError: the arguments are wrong, or ROS cannot start here.
    """
    if make is None:
        name, words = graph_name(words)
        make = GRAPHS[name][1]
    nodes = make(parse_arguments(words))
    environment.prepare()
    messages.ensure()
    with beside():
        # what goes on beside reads the terminal's keys itself
        return Runner(nodes, terminal=_own_terminal() if beside is contextlib.nullcontext else None).run()


@dataclass
class _Process:
    node: Node
    popen: subprocess.Popen[bytes]
    output: IO[bytes]
    pidfd: int
    restarts: int
    unfinished_line: bytes = b""


class Runner:
    """Runs nodes as processes: logs, signals, restarts, exit code. One thread, which sleeps until something happens.

    Its log has another thread: a terminal that takes nothing keeps neither the nodes nor the emergency stop waiting.

    Attributes:
        nodes: what it runs.
    """

    def __init__(self, nodes: Sequence[Node], output: TextIO | None = None, terminal: int | None = None) -> None:
        """Prepares to run `nodes`, logging to `output`, by default standard output.

        Args:
            nodes: what to run.
            output: takes the log.
            terminal: descriptor of the one whose space bar is the emergency stop, if any.
        """
        self.nodes = tuple(nodes)
        self._terminal = terminal
        stream = output or sys.stdout
        self._color = stream.isatty() and "NO_COLOR" not in os.environ
        self._printer = Printer(stream)
        self._prefixes = self._make_prefixes()
        self._selector = selectors.DefaultSelector()
        self._processes: dict[str, _Process] = {}
        self._due: list[tuple[float, Node, int]] = []
        self._stopping = False
        self._kill_at: float | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Starts every node, and returns the exit code once all have ended."""
        self._printer.start()
        with _signals() as wakeup, single_keys(self._terminal):
            self._selector.register(wakeup, selectors.EVENT_READ, None)
            if self._terminal is not None:
                self._selector.register(self._terminal, selectors.EVENT_READ, self._terminal)
                self._say("space bar: emergency stop, until `clamp stop --release`")
            try:
                for node in self.nodes:
                    self._start(node, 0)
                while self._processes or (self._due and not self._stopping):
                    self._step(wakeup)
            finally:  # a defect here must not leave arms moving
                self._kill()
                self._selector.close()
                self._printer.close(LAST_WORDS_S)
        return self._exit_code

    def _step(self, wakeup: socket.socket) -> None:
        for key, _ in self._selector.select(self._timeout()):
            if key.data is self._terminal and key.data is not None:
                self._hear(key.data)
            elif key.data is None:
                self._stop(signal.Signals(wakeup.recv(1)[0]))
            elif key.fd == key.data.pidfd:
                self._end(key.data)
            elif key.data.node.name in self._processes:  # not ended by an earlier event of this batch
                self._read(key.data)
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at and self._processes:
            self._say(f"{', '.join(self._processes)} did not end within {GRACE_S:g} s and is killed")
            self._exit_code = self._exit_code or 1
            self._kill()
        if not self._stopping:
            due, self._due = [d for d in self._due if d[0] <= now], [d for d in self._due if d[0] > now]
            for _, node, restarts in due:
                self._start(node, restarts)

    def _timeout(self) -> float | None:
        times = [due for due, _, _ in self._due] if not self._stopping else []
        if self._kill_at is not None:
            times.append(self._kill_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _start(self, node: Node, restarts: int) -> None:
        popen = subprocess.Popen(
            command(node),
            env={**os.environ, "PYTHONUNBUFFERED": "1", "RCUTILS_COLORIZED_OUTPUT": "1" if self._color else "0"},
            start_new_session=True, preexec_fn=die_with_parent, bufsize=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        output = popen.stdout
        assert output is not None  # noqa: S101 (it is a pipe)
        os.set_blocking(output.fileno(), False)
        process = _Process(node, popen, output, os.pidfd_open(popen.pid), restarts)
        self._processes[node.name] = process
        self._selector.register(output, selectors.EVENT_READ, process)
        self._selector.register(process.pidfd, selectors.EVENT_READ, process)

    def _read(self, process: _Process) -> bool:
        """Passes on some lines that a node has written; false where there is nothing more for now."""
        data = process.output.read(65536)
        if not data:
            if data is not None:  # the end
                self._selector.unregister(process.output)
            return False
        *lines, process.unfinished_line = (process.unfinished_line + data).split(b"\n")
        for line in lines:
            self._write(process.node.name, line)
        return True

    def _end(self, process: _Process) -> None:
        """Takes note of a node's death: the last words, and whether it is started again."""
        with contextlib.suppress(ProcessLookupError):  # its children; it is not reaped yet, so the number is its own
            os.killpg(process.popen.pid, signal.SIGKILL)
        code = process.popen.wait()
        if process.output in self._selector.get_map():
            while self._read(process):
                pass
        if process.output in self._selector.get_map():  # a child that outlived it holds the other end
            self._selector.unregister(process.output)
        if process.unfinished_line:
            self._write(process.node.name, process.unfinished_line)
        self._selector.unregister(process.pidfd)
        os.close(process.pidfd)
        process.output.close()
        del self._processes[process.node.name]
        if not self._stopping:
            self._restart_or_stop(process, code)

    def _restart_or_stop(self, process: _Process, code: int) -> None:
        node, deaths = process.node, process.restarts + 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if node.restarts(code, deaths):
            self._say(f"{node.name} {how}; starting it again ({deaths} of {RESTARTS})")
            self._due.append((time.monotonic() + RESTART_DELAY_S, node, deaths))
            return
        self._say(f"{node.name} {how}, and the system cannot go on without it; stopping")
        self._exit_code = EXIT_CONFIGURATION if code == EXIT_CONFIGURATION else 1
        self._stop(signal.SIGTERM)  # not SIGINT, for which a node that is still importing has nothing but a traceback

    def _stop(self, number: signal.Signals) -> None:
        """Passes a signal on to every node; the second one kills them."""
        if self._stopping:
            self._kill()
            return
        self._stopping = True
        self._kill_at = time.monotonic() + GRACE_S
        for process in self._processes.values():
            process.popen.send_signal(number)

    def _hear(self, terminal: int) -> None:
        """A key was pressed: the space bar stops the arms at once."""
        if os.tcgetpgrp(terminal) != os.getpgrp():
            return  # in the background, keys are another's
        keys = os.read(terminal, 64)
        if not keys:
            self._selector.unregister(terminal)
        elif STOP.encode() in keys:
            for process in self._processes.values():
                if process.node.takes_stop:
                    process.popen.send_signal(ESTOP_SIGNAL)
                    self._say(f"emergency stop sent to {process.node.name}; `clamp stop --release` leaves it")

    def _kill(self) -> None:
        self._stopping, self._kill_at = True, None
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGKILL)

    def _make_prefixes(self) -> dict[str, str]:
        names = [*(node.name for node in self.nodes), _OWN_NAME]
        width = max(map(len, names))
        plain = {name: f"[{name}]{'':{width - len(name)}} " for name in names}
        if not self._color:
            return plain
        return {name: f"\033[{_COLORS[i % len(_COLORS)]}m{plain[name]}\033[0m" for i, name in enumerate(names)}

    def _say(self, text: str) -> None:
        self._write(_OWN_NAME, text.encode())

    def _write(self, name: str, line: bytes) -> None:
        self._printer.write(self._prefixes[name] + line.decode(errors="replace"))


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """SIGINT and SIGTERM as bytes to read from a socket, so that one `select` waits for everything."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    fd = signal.set_wakeup_fd(writer.fileno())
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(fd)
        reader.close()
        writer.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _own_terminal() -> int | None:
    """Standard input, if it is a terminal and its keys are meant for us."""
    terminal = sys.stdin.fileno()
    try:
        return terminal if os.tcgetpgrp(terminal) == os.getpgrp() else None
    except OSError:
        return None


def die_with_parent() -> None:
    """In the child: SIGTERM when this process dies, however it dies, so that no node is left without supervision.

    A key's signal waits until the node is ready for it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {ESTOP_SIGNAL})
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
