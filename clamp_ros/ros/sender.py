"""Who sends on a topic that only one node may send on."""

from __future__ import annotations

from rclpy.node import Node

from clamp_ros.contract.interfaces import Topic


class SoleSender:
    """Watches that a topic has one publisher: whoever listens to two of them obeys neither.

    How many there are is looked at with every message; their names, which takes a hundred times as long, when that
    changes, and whenever `look` is called.
    """

    def __init__(self, node: Node, topic: Topic, name: str | None = None) -> None:
        """Watches by a node.

        Args:
            node: whose view of the graph counts.
            topic: the topic.
            name: of the only node that may send; None: any, but alone.
        """
        self._node, self._topic, self._name = node, topic, name
        self._count, self._fault = 0, ""

    def fault(self) -> str:
        """Why nothing on the topic can be trusted now; empty where it can."""
        if self._node.count_publishers(self._topic.name) != self._count:
            self.look()
        return self._fault

    def look(self) -> None:
        """Looks at the senders' names."""
        names = sorted(info.node_name for info in self._node.get_publishers_info_by_topic(self._topic.name))
        self._count = len(names)
        if self._name is not None and names not in ([], [self._name]):
            self._fault = f"{self._topic.name} is {self._name}'s alone, but comes from {', '.join(names)}"
        elif len(names) > 1:
            self._fault = f"{self._topic.name} comes from {len(names)} senders ({', '.join(names)}); one may send"
        else:
            self._fault = ""
