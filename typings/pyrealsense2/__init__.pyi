# The SDK's module is compiled and brings no type information: everything in it is Any to the type checker.
from typing import Any

def __getattr__(name: str) -> Any: ...
