"""The statistics of scores: a rate with its interval, and two policies compared on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from clamp_ros.contract.errors import ConfigError

Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Confidence interval of a success rate, by default of 95 % (Wilson 1927, JASA 22 (158), 209-212).

    Raises:
        ConfigError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ConfigError(f"{successes} successes of {trials} trials are impossible")
    if trials == 0:
        return 0.0, 1.0
    rate, spread = successes / trials, z * z / trials
    centre = rate + 0.5 * spread
    half = z * math.sqrt(rate * (1.0 - rate) / trials + spread / (4 * trials))
    low, high = (centre - half) / (1.0 + spread), (centre + half) / (1.0 + spread)
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p value that both succeed alike: of pairs that differ, half should favour either.

    The exact conditional test: twice the smaller binomial tail (McNemar 1947, Psychometrika 12, 153-157).

    Raises:
        ConfigError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ConfigError(f"{only_first} and {only_second} discordant pairs are impossible")
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class Paired:
    """Two policies on the same seeds.

    Attributes:
        both, only_first, only_second, neither: numbers of seeds on which so many succeeded.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Mapping[int, bool], second: Mapping[int, bool]) -> Paired:
        """Counts the seeds that both have played; each maps a seed to its success."""
        pairs = [(first[seed], second[seed]) for seed in first.keys() & second.keys()]
        return cls(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def seeds(self) -> int:
        """Number of common seeds."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """Of `mcnemar_exact`."""
        return mcnemar_exact(self.only_first, self.only_second)

    @property
    def difference(self) -> float:
        """The second's success rate less the first's; 0 without common seeds."""
        return (self.only_second - self.only_first) / self.seeds if self.seeds else 0.0

    def interval(self, z: float = Z95) -> tuple[float, float]:
        """Confidence interval of `difference` (Bonett and Price 2012, J. Educ. Behav. Stat. 37 (4), 479-488).

        The adjusted Wald interval: one pair more is thought of for either kind that differs. It keeps its level with
        few seeds, and has a width even where no pair differs.
        """
        if not self.seeds:
            return -1.0, 1.0
        n = self.seeds + 2
        first, second = (self.only_first + 1) / n, (self.only_second + 1) / n
        centre = second - first
        half = z * math.sqrt((first + second - centre * centre) / n)
        return max(-1.0, centre - half), min(1.0, centre + half)
