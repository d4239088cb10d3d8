"""Command lines of commands with verbs of their own, such as `clamp demos` and `clamp bag`."""

from __future__ import annotations

import argparse
from typing import Any

from clamp_ros.contract.errors import ConfigError


class VerbParser(argparse.ArgumentParser):
    """A parser whose description keeps its lines, and whose errors are a `ConfigError` of one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> Any:
        """Raises the error."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")
