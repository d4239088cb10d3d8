"""The loop that both trainings share: batches made ahead, checkpoints, curves, Ctrl-C, a stop at a loss gone wrong."""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clamp_ros.contract.errors import ClampError
from clamp_training import checkpoint
from clamp_training.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")
Batch = dict[str, Any]

_EVALUATIONS = 20
"""Times that a run looks at its held-out data."""


class NonFiniteLossError(ClampError):
    """The loss is NaN or infinite; the weights before the step and the batch's rows are saved."""


class Interruption:
    """Turns Ctrl-C into the end of a run: the step is finished, and what was trained is kept. A second one kills."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interruption:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("stopping after this step; the same command goes on from here")


def prefetched(make: Callable[[int], T], first: int, stop: int, depth: int = 3) -> Generator[T, None, None]:
    """make(first) ... make(stop - 1), each prepared by a thread while the one before is used."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    ended = threading.Event()

    def work() -> None:
        for i in range(first, stop):
            try:
                item: tuple[T | None, BaseException | None] = (make(i), None)
            except BaseException as error:  # handed to the consumer, who raises it
                item = (None, error)
            while not ended.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if ended.is_set() or item[1] is not None:
                return

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(first, stop):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        ended.set()
        thread.join()


def rows_for_step(rng: np.random.Generator, count: int, batch: int) -> NDArray[np.int64]:
    """The rows of a batch: without replacement where the store is large enough."""
    return rng.choice(count, size=batch, replace=count < batch)


def cosine_warmup(step: int, steps: int, warmup_steps: float) -> float:
    """Share of the base learning rate: linear warm-up, then cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1.0, steps - warmup_steps)))


def check_finite(loss: Tensor, folder: Path, step: int, rows: list[int], modules: dict[str, nn.Module]) -> None:
    """Stops a run whose loss is not finite, saving the weights and the batch's rows for a post-mortem.

    Raises:
        NonFiniteLossError: it is not.
    """
    if not torch.isfinite(loss):
        path = folder / f"nonfinite_step_{step}.safetensors"
        checkpoint.save(path, modules, {"step": step, "rows": rows})
        raise NonFiniteLossError(
            f"the loss is {loss.item()} at step {step}; weights and the batch's rows are in {path}"
        )


@dataclass
class Loop:
    """One training run.

    Attributes:
        out: its folder; `checkpoint.safetensors` there is gone on from.
        described: what the run is, as plain values; a checkpoint of another is refused.
        modules: everything that is saved; the first one is trained.
        optimizer: of the trained module.
        steps, samples, seed: length of the run, observations in a batch, seed of every step's random numbers.
        learning_rate: step to learning rate.
        batch: generator of numpy for a step to its batch, with the `rows` it is made of; called ahead, in a thread.
        loss: batch to the loss, and scalars for the curves.
        after_step: called with each step that was taken.
        evaluate: scalars of the held-out data.
        save_every_s: time between checkpoints.
    """

    out: Path
    description: str
    described: dict[str, Any]
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    steps: int
    samples: int
    seed: int
    learning_rate: Callable[[int], float]
    batch: Callable[[np.random.Generator], Batch]
    loss: Callable[[Batch], tuple[Tensor, dict[str, float]]]
    after_step: Callable[[int], None] = lambda _step: None
    evaluate: Callable[[], dict[str, float]] | None = None
    save_every_s: float = 60.0

    def run(self) -> int:
        """Trains to the end, or to Ctrl-C; gives the steps done in all.

        Raises:
            ConfigError: the checkpoint belongs to other settings.
            NonFiniteLossError: the loss is not finite.
        """
        model = next(iter(self.modules.values()))
        first = done = checkpoint.resume(self._checkpoint, self.described, self.modules, self.optimizer)
        batches = prefetched(lambda step: self.batch(np.random.default_rng([self.seed, step])), first, self.steps)
        saved = time.monotonic()
        progress = Progress(self.out, first, self.steps, self.samples, self.description)
        with progress, Interruption() as stop, closing(batches):
            for step, batch in enumerate(batches, start=first):
                model.train()
                checkpoint.seed_step(self.seed, step)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate(step)
                loss, scalars = self.loss(batch)
                check_finite(loss, self.out, step, batch["rows"].tolist(), self.modules)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                self.optimizer.step()
                self.after_step(step)
                done = step + 1
                progress.step(step, scalars)
                if self.evaluate is not None and done % max(1, self.steps // _EVALUATIONS) == 0:
                    progress.write(step, self.evaluate())
                if time.monotonic() - saved > self.save_every_s:
                    self._save(done)
                    saved = time.monotonic()
                if stop.requested:
                    break
        self._save(done)
        return done

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def _save(self, done: int) -> None:
        checkpoint.save(self._checkpoint, self.modules, {"step": done, "experiment": self.described}, self.optimizer)
