"""How every command line of `clamp` says what is wrong with it."""

from __future__ import annotations

import argparse
from typing import Any

from clamp_ros.contract.errors import ConfigError


class VerbParser(argparse.ArgumentParser):
    """A parser whose errors are a `ConfigError` of one line that names where to read more."""

    def error(self, message: str) -> Any:
        """Raises the error."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")
