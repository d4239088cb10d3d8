"""Seeds as people write them, `1000000-1000049 2000007`, and as lists of ranges in files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from clamp_ros.contract.errors import ConfigError

FIRST_SEED = 1_000_000
"""Where unseen seeds begin: far from those that demonstrations are made from."""
Ranges = list[tuple[int, int]]
"""First and last seed of each range, both included."""


def parse_seeds(words: Sequence[str]) -> list[int]:
    """Seeds of words such as `7`, `10-19` and `3,5-9`, in that order.

    Raises:
        ConfigError: a word is neither a number nor a range, or two of them overlap.
    """
    seen: list[tuple[str, range]] = []
    for part in (part for word in words for part in word.split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ConfigError(f"{part!r} is neither a seed nor a range of seeds; expected such as 7 or 1000000-1000049")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"the seeds {part} end before they begin; expected {last}-{first}")
        for other, seeds in seen:
            if first < seeds.stop and seeds.start <= last:
                raise ConfigError(f"the seeds {part} and {other} overlap; an episode counts once, so name each once")
        seen.append((part, range(first, last + 1)))
    if not seen:
        raise ConfigError("there are no seeds; expected such as 1000000-1000049")
    return [seed for _, seeds in seen for seed in seeds]


def ranges(seeds: Iterable[int]) -> Ranges:
    """Different seeds as ranges, in order."""
    out: Ranges = []
    for seed in sorted(set(seeds)):
        if out and seed == out[-1][1] + 1:
            out[-1] = (out[-1][0], seed)
        else:
            out.append((seed, seed))
    return out


def within(seeds: Iterable[int], known: Iterable[Sequence[int]]) -> list[int]:
    """Those of the seeds that lie in one of the ranges."""
    spans = [(first, last) for first, last in known]
    return [seed for seed in seeds if any(first <= seed <= last for first, last in spans)]


def seeds_text(seeds: Iterable[int]) -> str:
    """Seeds in words, as `parse_seeds` takes them."""
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges(seeds))
