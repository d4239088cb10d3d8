"""Lines for a terminal: in order where it takes them, counted where it does not, and nobody waits."""

from __future__ import annotations

import io
import os
import threading

from clamp_ros.ros.printer import Printer


def test_lines_come_out_whole_and_in_order():
    output = io.StringIO()
    printer = Printer(output)
    printer.start()
    for i in range(100):
        printer.write(f"line {i}")
    printer.close(10.0)
    assert output.getvalue().splitlines() == [f"line {i}" for i in range(100)]


def test_what_a_stuck_terminal_does_not_take_is_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(Printer, "LIMIT", 10)
    reader, writer = os.pipe()
    taken: list[bytes] = []
    with os.fdopen(writer, "w") as output:
        printer = Printer(output)
        printer.start()
        line = "x" * 1000
        for _ in range(500):  # a pipe holds 64 KB
            printer.write(line)
        assert printer._thread.is_alive() and printer._dropped, "it waits, and nobody for it"
        drain = threading.Thread(target=lambda: taken.extend(iter(lambda: os.read(reader, 65536), b"")))
        drain.start()
        while printer._lines:
            os.sched_yield()
        printer.write("after")
        printer.close(10.0)
        assert not printer._thread.is_alive()
    drain.join(10.0)
    os.close(reader)
    *lines, last = b"".join(taken).decode().splitlines()
    dropped = [int(text.split()[1]) for text in lines if text.endswith("lines were dropped: the terminal took none")]
    assert last == "after" and set(lines) - {line} and dropped
    assert lines.count(line) + sum(dropped) == 500


def test_an_output_that_is_gone_holds_nobody_up():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        printer = Printer(output)
        printer.start()
        printer.write("nobody reads this")
        printer.close(10.0)
        assert not printer._thread.is_alive()
        printer.write("nor this")
