"""Transforms on /tf and /tf_static: a listener that fills a `TfTree`, and a broadcaster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import ArrayLike
from rclpy.node import Node

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.interfaces import TF, TF_STATIC
from clamp_ros.geometry.tf_tree import TfTree
from clamp_ros.ros.convert import transform_from_message, transform_message
from clamp_ros.ros.run import Health, advertise, ahead_of_clock_s, interface_type, on_time_jump_back, subscribe


class TfListener:
    """Keeps `tree` up to date. A jump of the node's clock into the past clears what moves, as in tf2_ros."""

    def __init__(
        self,
        node: Node,
        health: Health,
        *,
        history_s: float = 10.0,
        on_update: Callable[[], None] | None = None,
    ) -> None:
        """Subscribes.

        Args:
            node: the node whose executor delivers the messages.
            health: counts transforms that are refused (`tf_refused`), from the future (`tf_from_the_future`) or older
                than the history (`tf_too_old`).
            history_s: seconds of history kept.
            on_update: called after each message was taken in, say to retry a lookup that came too early.
        """
        self.tree = TfTree(history_s)
        self._node = node
        self._health = health
        self._on_update = on_update
        subscribe(node, TF, lambda message: self._take(message, static=False))
        subscribe(node, TF_STATIC, lambda message: self._take(message, static=True))
        self._jump = on_time_jump_back(node, self.tree.clear)

    def _take(self, message: Any, static: bool) -> None:
        for transform in message.transforms:
            try:
                parent, child, stamp, pose = transform_from_message(transform)
            except ContractError as error:
                self._health.fault("tf_refused", str(error))
                continue
            ahead_s = 0.0 if static else ahead_of_clock_s(self._node, stamp)
            if ahead_s:
                self._health.fault("tf_from_the_future", f"transform of {child!r} is {ahead_s:.2f} s ahead of time")
            elif not self.tree.set_transform(parent, child, stamp, pose, static):
                self._health.fault("tf_too_old", f"transform of {child!r} is older than the history and was ignored")
        if self._on_update is not None:
            self._on_update()


class TfBroadcaster:
    """Publishes transforms. Static ones are latched: a late joiner gets all of them."""

    def __init__(self, node: Node) -> None:
        """Advertises /tf and /tf_static."""
        self._message = interface_type(TF.type)
        self._publisher = advertise(node, TF)
        self._static_publisher = advertise(node, TF_STATIC)
        self._static: dict[str, Any] = {}

    def send(self, transforms: Iterable[tuple[str, str, ArrayLike]], stamp: int) -> None:
        """Publishes (parent, child, parent_from_child (4, 4)) at a stamp in ns, in one message."""
        self._publisher.publish(self._message(transforms=[transform_message(*t, stamp) for t in transforms]))

    def send_static(self, transforms: Iterable[tuple[str, str, ArrayLike]], stamp: int) -> None:
        """Publishes fixed transforms together with all those sent before."""
        for parent, child, pose in transforms:
            self._static[child] = transform_message(parent, child, pose, stamp)
        self._static_publisher.publish(self._message(transforms=list(self._static.values())))
