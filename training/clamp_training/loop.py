"""The loop that both trainings share: batches made ahead, checkpoints, curves, Ctrl-C, a stop at a loss gone wrong.

A step's batch is chosen as a whole, and computed in equal parts: several a process where memory is short
(`accumulate`), one or more on each of many processes. Random numbers are of two kinds. Those of the data (rows, noise,
augmentation) are drawn for the whole batch from (seed, step). Those inside the networks (dropout) are drawn a part,
from (seed, step, part). So a run is the same run on one process or many, and goes on with another number of them,
within rounding. Two things depend by their nature on how a batch is cut: dropout, unless `accumulate` is a multiple of
each number of processes, and batch norm, which is over one part of every process.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clamp_ros.contract.errors import ClampError, ConfigError
from clamp_training import checkpoint
from clamp_training.meter import Meter
from clamp_training.processes import ALONE, Processes, moved
from clamp_training.progress import Progress
from clamp_training.sharding import average_whole, clip_gradients, gathered

log = logging.getLogger(__name__)

T = TypeVar("T")
Batch = dict[str, Any]

_EVALUATIONS = 20
"""Times that a run looks at its held-out data."""


class NonFiniteLossError(ClampError):
    """The loss or its gradient is NaN or infinite; the weights before the step and the batch are saved."""


class Interruption:
    """Turns Ctrl-C into the end of a run: the step is finished, and what was trained is kept. A second one kills.

    Of many processes none is killed by a second one: after the terminal's, each gets another from torchrun.
    """

    def __init__(self, processes: Processes) -> None:
        self.requested = False
        self._processes = processes

    def __enter__(self) -> Interruption:
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self.requested and self._processes.count == 1:
            raise KeyboardInterrupt
        if self.requested:
            return
        self.requested = True
        log.warning("stopping after this step; the same command goes on from here")


def prefetched(make: Callable[[int], T], first: int, stop: int, workers: int = 1) -> Generator[T, None, None]:
    """make(first) ... make(stop - 1) in this order, prepared by threads while those before are used."""
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for i in range(first, stop):
                while len(ahead) < 2 + workers and i + len(ahead) < stop:
                    ahead.append(pool.submit(make, i + len(ahead)))
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def rows_for_step(rng: np.random.Generator, count: int, batch: int) -> NDArray[np.int64]:
    """The rows of a batch: without replacement where the store is large enough."""
    return rng.choice(count, size=batch, replace=count < batch)


def cosine_warmup(step: int, steps: int, warmup_steps: float) -> float:
    """Share of the base learning rate: linear warm-up, then cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1.0, steps - warmup_steps)))


@dataclass
class Part:
    """One of the equal parts of a step's batch.

    Attributes:
        index: its number among the parts of all processes.
        batch: its samples.
        seed: of the run, and the step.
    """

    index: int
    batch: Batch
    seed: tuple[int, int]

    def seed_torch(self) -> None:
        """Seeds what the networks draw, so that computing a part twice gives the same."""
        checkpoint.seed_torch(*self.seed, self.index)


def shares(batch: int, accumulate: int, processes: Processes) -> list[tuple[int, slice]]:
    """The parts of a batch that are this process's: their numbers, and their places in the batch.

    There are `accumulate` parts, or the next multiple that all processes can share.

    Raises:
        ConfigError: the batch cannot be divided so.
    """
    count = math.lcm(max(1, accumulate), processes.count)
    if batch % count or accumulate < 1:
        raise ConfigError(
            f"a batch of {batch} cannot be divided into {count} equal parts (accumulate {accumulate}, "
            f"{processes.count} processes); choose a batch that is a multiple"
        )
    each, size = count // processes.count, batch // count
    mine = range(processes.rank * each, (processes.rank + 1) * each)
    return [(i, slice(i * size, (i + 1) * size)) for i in mine]


Check = Callable[[Tensor, str], None]
"""Stops the run if a value, of which all processes have the same, is not finite; its name is for the message."""


def mean_gradients(objective: nn.Module, parts: list[Part], check: Check, processes: Processes) -> dict[str, float]:
    """Gradients of a loss that is a mean over samples: `objective` maps a part's batch to the part's mean.

    `objective` is wrapped by `Processes.average_gradients`. Returns the whole batch's loss, named `loss`.
    """
    total = 0.0
    for i, part in enumerate(parts):
        part.seed_torch()
        with ExitStack() as stack:
            if i < len(parts) - 1 and isinstance(objective, DistributedDataParallel):
                stack.enter_context(objective.no_sync())
            loss = objective(moved(part.batch, processes.device))
            mean = processes.total(loss) / processes.count
            check(mean, "loss")
            (loss / len(parts)).backward()
        total += mean.item() / len(parts)
    return {"loss": total}


@dataclass
class Loop:
    """One training run.

    Attributes:
        out: its folder; `checkpoint.safetensors` there is gone on from.
        described: what the run is, as plain values; a checkpoint of another is refused.
        modules: everything that is saved.
        trained: what is trained, with every module that changes between training and evaluation.
        optimizer: of the trained parameters.
        steps, samples, seed: length of the run, observations in a batch, seed of every step's random numbers.
        accumulate: parts that a batch is computed in.
        learning_rate: step to learning rate.
        batch: a step's generator, and which of the whole batch's samples are wanted, to these; the generator's numbers
            must not depend on which. Called ahead, in threads.
        gradients: leaves the whole batch's gradients in the trained parameters, on every process; returns scalars for
            the curves.
        processes: of the run.
        after_step: called with each step that was taken.
        evaluate: scalars of the held-out data; called by every process, though the first one's answer counts alone.
        save_every_s: time between checkpoints.
        clip_norm: the norm that a step's gradient is scaled down to, 0 for no limit.
        bf16: whether matrices are multiplied in bfloat16; for the utilisation that is shown.
        loaders: threads that prepare batches.
    """

    out: Path
    description: str
    described: dict[str, Any]
    modules: dict[str, nn.Module]
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    samples: int
    accumulate: int
    seed: int
    learning_rate: Callable[[int], float]
    batch: Callable[[np.random.Generator, slice], Batch]
    gradients: Callable[[list[Part], Check], dict[str, float]]
    processes: Processes = ALONE
    after_step: Callable[[int], None] = lambda _step: None
    evaluate: Callable[[], dict[str, float]] | None = None
    save_every_s: float = 60.0
    clip_norm: float = 0.0
    bf16: bool = False
    loaders: int = 1

    def run(self) -> int:
        """Trains to the end, or to Ctrl-C; gives the steps done in all.

        Raises:
            ConfigError: the checkpoint belongs to other settings, or the batch cannot be shared out.
            NonFiniteLossError: the loss is not finite.
        """
        mine = shares(self.samples, self.accumulate, self.processes)
        first = done = checkpoint.resume(self._checkpoint, self.described, self.modules, self.optimizer)

        def prepared(step: int) -> list[Part]:
            key = (self.seed, step)
            return [Part(i, self.batch(np.random.default_rng(key), samples), key) for i, samples in mine]

        with ExitStack() as stack:
            progress = None
            if self.processes.first:
                progress = stack.enter_context(Progress(self.out, first, self.steps, self.samples, self.description))
            stop = stack.enter_context(Interruption(self.processes))
            batches = stack.enter_context(closing(prefetched(prepared, first, self.steps, self.loaders)))
            saved, meter = time.monotonic(), Meter(self.processes.device, self.bf16)
            timed, seconds = 0, 0.0
            for step in range(first, self.steps):
                began = time.perf_counter()
                parts = next(batches)
                waited = time.perf_counter() - began
                with meter.step(step == first):
                    scalars = self._step(step, parts)
                done = step + 1
                if progress is not None:
                    taken = time.perf_counter() - began
                    if step > first:  # the first compiles, warms up and is counted
                        timed, seconds = timed + 1, seconds + taken
                    costs = {"loader_wait_percent": 100.0 * waited / taken, **meter.scalars(taken)}
                    progress.step(step, {**scalars, **costs})
                if self.evaluate is not None and done % max(1, self.steps // _EVALUATIONS) == 0:
                    held_out = self.evaluate()
                    if progress is not None:
                        progress.write(step, held_out)
                due = self.processes.first and time.monotonic() - saved > self.save_every_s
                stopping, saving = self.processes.any(stop.requested, due)
                if saving:
                    self._save(done)
                    saved = time.monotonic()
                if stopping:
                    break
        if timed:
            log.info("%s: %s", self.description, meter.describe(1e3 * seconds / timed, self.samples))
        self._save(done)
        self.processes.wait()
        return done

    def _step(self, step: int, parts: list[Part]) -> dict[str, float]:
        def check(value: Tensor, what: str) -> None:
            check_finite(value, self.out, step, parts, self.modules, self.processes, what)

        self.trained.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        scalars = self.gradients(parts, check)
        if self.processes.sharded:
            average_whole(self.trained.parameters())
            norm = clip_gradients(self.trained.parameters(), self.clip_norm or math.inf)
        else:
            norm = nn.utils.clip_grad_norm_(self.trained.parameters(), self.clip_norm or math.inf)
        check(norm, "gradient's norm")
        self.optimizer.step()
        self.after_step(step)
        return scalars

    @property
    def _checkpoint(self) -> Path:
        return self.out / checkpoint.NAME

    def _save(self, done: int) -> None:
        if self.processes.saves:
            record = {"step": done, "experiment": self.described}
            checkpoint.save(self._checkpoint, self.modules, record, self.optimizer, write=self.processes.first)


def check_finite(
    value: Tensor,
    folder: Path,
    step: int,
    parts: list[Part],
    modules: dict[str, nn.Module],
    processes: Processes = ALONE,
    what: str = "loss",
) -> None:
    """Stops a run at a value that is not finite, saving the weights and this process's batch for a post-mortem.

    Raises:
        NonFiniteLossError: it is not.
    """
    if torch.isfinite(value):
        return
    name = f"nonfinite_step_{step}" + ("" if processes.first else f"_process_{processes.rank}")
    batch = {f"part_{part.index}/{key}": x for part in parts for key, x in checkpoint.flat(part.batch).items()}
    weights: dict[str, Tensor] = {}
    if processes.saves:
        for key, module in modules.items():
            whole = gathered(module.state_dict(), processes.first)  # it is the same everywhere
            weights |= {f"{key}/{k}": value for k, value in whole.items()}
    checkpoint.save(folder / f"{name}.safetensors", {}, {"step": step}, tensors={**weights, **batch})
    raise NonFiniteLossError(
        f"the {what} is {value.item()} at step {step}; the weights and the batch are in {folder / name}.safetensors"
    )
