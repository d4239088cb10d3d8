"""Gathers what arrives message by message into the observations that a policy is asked about.

Views and colour images are matched by stamp with a bounded wait; proprioception is the joint state at that stamp; the
history is the commands before it. The newest observation wins. Pure and single-threaded: the policy node feeds it from
topics, a parity test from a bag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.camera.sync import FrameSynchronizer
from clamp_ros.contract.observation import Observation
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.policy.history import ActionHistory, StampedVectors

VIEWS = "views"
CLOUD = "cloud"
"""The source names of the tiled views and of the cloud, beside the cameras'."""
_JOINTS_HORIZON_NS = 2_000_000_000
_JOINTS_GAP_NS = 5 * CONTROL_PERIOD_NS


class ObservationAssembler:
    """Builds observations; see the module.

    Attributes:
        sync: the synchronizer of views and colour images, for its counters.
    """

    def __init__(
        self,
        rgb_cameras: Sequence[str],
        timeout_ns: int,
        tolerance_ns: int = CONTROL_PERIOD_NS // 2,
        cloud: bool = False,
    ) -> None:
        """An assembler with nothing gathered.

        Args:
            rgb_cameras: whose colour images an observation holds.
            timeout_ns: how long views wait for them.
            tolerance_ns: how far apart the stamps of one observation's images may lie.
            cloud: whether an observation holds the cloud, source `CLOUD`, as well.
        """
        self.sync: FrameSynchronizer[tuple[int, NDArray[Any]]] = FrameSynchronizer(
            (VIEWS, *((CLOUD,) if cloud else ()), *rgb_cameras), tolerance_ns, timeout_ns
        )
        self._joints = StampedVectors(_JOINTS_HORIZON_NS)
        self._history = ActionHistory()
        self._images: dict[str, tuple[int, NDArray[Any]]] | None = None
        self._episode_begun = False

    def reset(self) -> None:
        """Forgets everything, as after time ran back; the next observation begins an episode."""
        self.sync.reset()
        self._joints.clear()
        self._history.start()
        self._images = None
        self.begin_episode()

    def begin_episode(self) -> None:
        """Voids every command before the next observation that is taken: its history is all zeros."""
        self._episode_begun = False

    def add_joints(self, stamp_ns: int, joints: ArrayLike) -> None:
        """Takes in (14,) measured positions."""
        self._joints.push(stamp_ns, joints)

    def add_command(self, stamp_ns: int, action: ArrayLike) -> None:
        """Takes in a (14,) command by the time it was due."""
        self._history.push(stamp_ns, action)

    def add_image(self, source: str, stamp_ns: int, image: NDArray[Any], now_ns: int) -> None:
        """Takes in what a source saw: a camera's colour, `VIEWS` or `CLOUD`; now_ns: see `FrameSynchronizer.add`."""
        self._images = self.sync.add(source, stamp_ns, (stamp_ns, image), now_ns) or self._images

    def waiting_ns(self) -> int | None:
        """Stamp of the observation that `take` would give, or None while joint states have not caught up with it."""
        if self._images is None:
            return None
        stamp_ns, newest_ns = self._images[VIEWS][0], self._joints.newest_ns
        return stamp_ns if newest_ns is not None and newest_ns >= stamp_ns else None

    def take(self) -> Observation | None:
        """The newest complete observation, once; None while there is none.

        Raises:
            ContractError: joint states around its stamp are missing, or a value breaks the contract; it is dropped.
        """
        stamp_ns = self.waiting_ns()
        if stamp_ns is None or self._images is None:
            return None
        images, self._images = self._images, None
        joints = self._joints.interpolated(stamp_ns, _JOINTS_GAP_NS)
        if not self._episode_begun:
            self._history.start(stamp_ns)
            self._episode_begun = True
        return Observation(
            stamp_ns=stamp_ns,
            views=np.ascontiguousarray(images[VIEWS][1]),
            colors={source: image for source, (_, image) in images.items() if source not in (VIEWS, CLOUD)},
            joint_positions=joints.astype(np.float32),
            action_history=self._history.rows(stamp_ns),
            cloud=np.ascontiguousarray(images[CLOUD][1]) if CLOUD in images else None,
        )
