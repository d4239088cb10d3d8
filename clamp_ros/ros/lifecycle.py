"""A lifecycle node that starts by itself, or leaves that to a lifecycle manager, and says why it could not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from clamp_ros.contract.errors import ClampError
from clamp_ros.ros.run import Health


class ManagedNode(LifecycleNode, ABC):
    """What lifecycle nodes share: `load` on configuring, `release` on cleaning up and on shutting down.

    Where `load` raises, rclpy would drop the error without a word. Here it is logged, held on /diagnostics, the
    transition fails, and a node that starts by itself ends with it.
    """

    health: Health

    def __init__(self, name: str, **options: Any) -> None:
        """Declares nothing; set `health`, and call `start_by_itself` where no manager starts the node."""
        super().__init__(name, **options)
        self._failure: Exception | None = None

    @abstractmethod
    def load(self) -> None:
        """Makes what the node needs while it is configured."""

    @abstractmethod
    def release(self) -> None:
        """Gives back what `load` made, or a part of it; may be called twice."""

    def start_by_itself(self) -> None:
        """Configures and activates as soon as the node is spun."""
        self._autostart = self.create_timer(0.0, self._start, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _start(self) -> None:
        self._autostart.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        elif self._failure is not None:
            raise self._failure

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads."""
        try:
            self.load()
        except Exception as error:
            self._failure = error
            text = str(error) if isinstance(error, ClampError) else f"{type(error).__name__}: {error}"
            self.get_logger().error(text)
            self.health.hold("configuring", text, error=True)
            self.release()
            return TransitionCallbackReturn.FAILURE
        self.health.hold("configuring", None)
        return super().on_configure(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases."""
        self.release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases for good."""
        self.release()
        return super().on_shutdown(state)
