"""The sampler's noise: in process and through ROS the same for the same episode."""

from __future__ import annotations

import numpy as np


def episode_noise(seed: int, episode: int = 0) -> np.random.Generator:
    """The source of the sampler's noise for the n-th episode after a seed.

    Episodes must not share their noise: chunks are drawn from a distribution, and one unlucky draw would fail them all.
    """
    return np.random.default_rng([seed, 2 + episode])


class EpisodeNoise:
    """Other noise in every episode that is inferred in, and the same again after the same seed."""

    def __init__(self, seed: int) -> None:
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Begins anew: the next episode is the first after the seed."""
        self._seed, self._count, self._episode = seed, 0, -1
        self._rng = episode_noise(seed)

    def of(self, episode: int) -> np.random.Generator:
        """The source for an episode; numbers of episodes grow, and those in which nothing is inferred do not count."""
        if episode != self._episode:
            self._rng = episode_noise(self._seed, self._count)
            self._episode, self._count = episode, self._count + 1
        return self._rng
