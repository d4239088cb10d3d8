"""Single keys from a terminal."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator

ENTER = ("\n", "\r")
"""What the Enter key, and a foot pedal set to it, send."""
STOP = " "
"""The key that is the emergency stop in every terminal of ours, and nothing else in any."""


@contextlib.contextmanager
def single_keys(descriptor: int | None) -> Iterator[None]:
    """Has a terminal hand over each key at once, without showing it; Ctrl-C stays what it is.

    Args:
        descriptor: the terminal's; nothing changes for None, or for what is none.
    """
    if descriptor is None or not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSANOW)  # not once all is written: the terminal may take nothing
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
