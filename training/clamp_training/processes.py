"""The processes of one run: started by `torchrun` there are many, otherwise one; the code that trains is the same.

Each process takes its share of every batch, and averages gradients with the others. It holds the whole model ('ddp',
DistributedDataParallel) or, where that is too large, a share of it ('fsdp', see `sharding`). The first process alone
writes: checkpoints, curves, progress. Nothing that a training run computes may depend on how many there are; what does
so by nature (batch norm) is computed over all of them.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from clamp_ros.contract.errors import ConfigError
from clamp_training.sharding import gathered, shard

PARALLEL = ("ddp", "fsdp")
_TIMEOUT = timedelta(minutes=30)
"""The others wait this long for one that encodes a store or looks at held-out data."""


@dataclass(frozen=True)
class Processes:
    """Which of `count` processes this is, the device it computes on, and how the model lies on them (PARALLEL)."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    parallel: str = "ddp"

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share of the model alone."""
        return self.count > 1 and self.parallel == "fsdp"

    @property
    def saves(self) -> bool:
        """Whether this process takes part in saving: the first writes; from all the others shares are gathered."""
        return self.first or self.sharded

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; not differentiable."""
        value = value.detach().clone()
        if self.count > 1:
            distributed.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in some process."""
        if self.count == 1:
            return list(flags)
        return (self.total(torch.tensor(flags, dtype=torch.float32, device=self.device)) > 0).tolist()

    def wait(self) -> None:
        """Returns once every process has come here."""
        self.any(False)

    def average_gradients(self, module: nn.Module, partly_used: bool, whole: Iterable[nn.Parameter] = ()) -> nn.Module:
        """The module, with its gradients averaged over the processes during every backward pass; sharded in place.

        `partly_used` says that a backward pass may leave parameters without a gradient; `whole` are not to be sharded.
        """
        module.to(self.device)
        if self.count == 1:
            return module
        if self.sharded:
            shard(module, self.device, whole)
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, find_unused_parameters=partly_used
        )

    def unsharded(self, module: nn.Module) -> nn.Module:
        """What `whole` needs, made before a module is sharded: a copy on the first process's CPU."""
        return copy.deepcopy(module).cpu() if self.sharded and self.first else module

    @contextmanager
    def whole(self, module: nn.Module, unsharded: nn.Module) -> Iterator[nn.Module | None]:
        """The module with all of its weights, on the first process; None on the others, which must come here too."""
        if not self.sharded:
            yield module if self.first else None
            return
        state = gathered(module.state_dict(), self.first)
        if not self.first:
            yield None
            return
        unsharded.load_state_dict(state)
        yield unsharded.to(self.device)
        unsharded.cpu()

    def gather_rows(self, mine: Tensor) -> Tensor:
        """Every process's rows (N_i, ...) of one dtype and width, concatenated in the order of the processes."""
        if self.count == 1:
            return mine
        counts = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(mine)
        out = []
        for rank, count in enumerate(self.total(counts).tolist()):
            part = mine.to(self.device) if rank == self.rank else mine.new_empty(count, *mine.shape[1:])
            raw = part.contiguous().view(torch.uint8) if part.dtype in (torch.int16, torch.float16) else part
            raw = raw.to(self.device)
            distributed.broadcast(raw, rank)
            out.append(raw.view(mine.dtype).to(mine.device))
        return torch.cat(out)


ALONE = Processes()


@contextmanager
def joined(parallel: str = "ddp") -> Iterator[Processes]:
    """The processes that `torchrun` started this one with, joined for the duration; `ALONE` but for its GPU otherwise.

    Raises:
        ConfigError: there are more processes on this machine than GPUs, or `parallel` is unknown.
    """
    if parallel not in PARALLEL:
        raise ConfigError(f"parallel is {parallel!r}, expected one of {', '.join(map(repr, PARALLEL))}")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU, which has {torch.cuda.device_count()}; "
                "start no more processes than GPUs, or hide them by CUDA_VISIBLE_DEVICES= to train on the CPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if count == 1:
        yield Processes(device=device, parallel=parallel)
        return
    if rank:
        logging.getLogger().setLevel(logging.ERROR)  # what the first process says is true of all
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(rank, count, device, parallel)
    finally:
        distributed.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends this process: one of many at once, without the interpreter's own end.

    torch keeps the process group in caches and as default of functions, and with it threads, which now and then meet
    the interpreter half gone and abort the process, whose run was finished and well.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def default_threads() -> int:
    """This process's share of the machine's cores."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def moved(value: Any, device: torch.device) -> Any:
    """A batch on a device: tensors within dicts and dataclasses; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value


class _Total(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        distributed.all_reduce(value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, as if one held them; torch's own runs on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w); every process has as many images."""
        if not self.training:
            return super().forward(input)
        x, axes = input.float(), (0, 2, 3)
        count = x.numel() / x.shape[1] * distributed.get_world_size()
        mean = cast(Tensor, _Total.apply(x.sum(axes))) / count
        centred = x - mean[:, None, None]
        variance = cast(Tensor, _Total.apply(centred.square().sum(axes))) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            cast(Tensor, self.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.running_var).lerp_(variance * count / (count - 1), momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)
        scaled = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (scaled * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def share_batch_norms(module: nn.Module, processes: Processes) -> None:
    """Replaces every batch norm of a module in place by one over all processes, with the same state."""
    if processes.count == 1:
        return
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(parent, name, shared)
