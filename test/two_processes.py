"""What two processes compute together, started by torchrun from test_processes.py: `two_processes.py OUT`.

Each process holds half of a batch that `batch` draws, and writes what it found to OUT/rank_<rank>.safetensors.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from clamp_training import checkpoint
from clamp_training.contrastive import SigmoidLoss
from clamp_training.loop import NonFiniteLossError, Part, check_finite, mean_gradients, shares
from clamp_training.networks.layers import EncoderBlock
from clamp_training.processes import Processes, joined, leave, share_batch_norms
from clamp_training.sharding import average_whole, clip_gradients, groups, local
from safetensors.torch import save_file
from torch import Tensor, nn

BATCH, WIDTH = 6, 5


def batch() -> list[Tensor]:
    """Image, text and action embeddings (6, 5) of a whole batch."""
    return list(torch.randn(3, BATCH, WIDTH, generator=torch.Generator().manual_seed(0)))


def images() -> Tensor:
    """(6, 3, 4, 4)."""
    return 3.0 + 2.0 * torch.randn(BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(embeddings: list[Tensor], processes: Processes, text: bool = True) -> dict[str, Tensor]:
    loss = SigmoidLoss()
    with torch.no_grad():
        loss.b.fill_(-2.0)  # not so sure that every pair mismatches, or most gradients are next to nothing
    leaves = [e.clone().requires_grad_() for e in embeddings]
    value = loss(leaves[0], leaves[1] if text else None, leaves[2], processes)
    (3.0 * value).backward()
    names = ("image", "text", "action") if text else ("image", "unused", "action")
    out = {name: e.grad for name, e in zip(names, leaves, strict=True) if e.grad is not None}
    assert loss.log_t.grad is not None and loss.b.grad is not None
    return {"loss": value.detach(), "log_t": loss.log_t.grad, "b": loss.b.grad, **out}


def normalised(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A batch norm's output, gradient and running statistics after one training step on x."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * y.detach().roll(1, dims=1)).sum().backward()
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **{key: value.clone() for key, value in module.state_dict().items()}}


class Mean(nn.Module):
    """An objective: the mean of a linear map of {"x": (B, 5)}."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return self.linear(data["x"]).square().mean()


def parts_of(x: Tensor, processes: Processes, accumulate: int) -> list[Part]:
    return [Part(i, {"x": x[samples]}, (0, 0)) for i, samples in shares(len(x), accumulate, processes)]


def averaged(processes: Processes, accumulate: int) -> dict[str, Tensor]:
    """Loss and gradient of a mean over the batch."""
    objective = Mean()
    parts = parts_of(batch()[0], processes, accumulate)
    wrapped = processes.average_gradients(objective, partly_used=False)
    loss = mean_gradients(wrapped, parts, lambda *_: None, processes)["loss"]
    assert objective.linear.weight.grad is not None
    return {"loss": torch.tensor(loss), "weight": objective.linear.weight.grad}


def stopped_by_another(processes: Processes, out: Path, objective: nn.Module) -> bool:
    """Whether a NaN in the last sample, which the last process holds, stops this one, its own batch saved."""
    x = batch()[0]
    x[-1, 0] = math.nan
    parts = parts_of(x, processes, 1)

    def check(value: Tensor, what: str) -> None:
        check_finite(value, out, 4, parts, {"m": objective}, processes, what)

    try:
        mean_gradients(processes.average_gradients(objective, partly_used=False), parts, check, processes)
    except NonFiniteLossError:
        return True
    return False


class Scaled(nn.Module):
    """An objective of a block whose weights can be sharded, an embedding, and a scalar, whose weight cannot."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.scale = EncoderBlock(WIDTH, 1, 3), nn.Parameter(torch.tensor(2.0))
        self.embed = nn.Embedding(3, WIDTH)

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return (self.scale * self.block(data["x"][:, None] + self.embed(torch.tensor([[1]])))).square().mean()


def sharded(processes: Processes, out: Path) -> dict[str, Tensor]:
    """What two steps of Adam make of a model in shares, the norm of its gradient, and how much of it is here."""
    model = Scaled()
    apart = Processes(processes.rank, processes.count, parallel="fsdp")
    wrapped = apart.average_gradients(model, partly_used=True)
    optimizer = torch.optim.Adam(groups(list(model.parameters())), lr=0.1)
    norms = []
    for _ in range(2):
        optimizer.zero_grad()
        mean_gradients(wrapped, parts_of(batch()[0], processes, 6), lambda *_: None, processes)
        if apart.sharded:
            average_whole(model.parameters())
            norms.append(clip_gradients(model.parameters(), 0.5))
        else:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
    here = sum(local(p).numel() for p in model.parameters()) / sum(p.numel() for p in model.parameters())
    path = out / f"sharded_{processes.count}.safetensors"
    checkpoint.save(path, {"m": model}, {}, optimizer, write=processes.first)
    return {"norms": torch.stack(norms).detach(), "share": torch.tensor(here)}


def main() -> None:
    out = Path(sys.argv[1])
    with joined() as processes:
        half = slice(processes.rank * BATCH // 2, (processes.rank + 1) * BATCH // 2)
        found = loss_and_gradients([e[half] for e in batch()], processes)
        pair = loss_and_gradients([e[half] for e in batch()], processes, text=False)
        found |= {f"without_text_{key}": value for key, value in pair.items()}
        model = nn.Sequential(nn.BatchNorm2d(3))
        share_batch_norms(model, processes)
        found |= {f"norm_{key}": value for key, value in normalised(model, images()[half]).items()}
        rows = torch.arange(3 * (processes.rank + 1)).reshape(-1, 3)
        for dtype in (torch.int16, torch.float16, torch.int64):
            found[f"rows_{dtype}".replace("torch.", "")] = processes.gather_rows(rows.to(dtype))
        for accumulate in (2, 6):
            mean = averaged(processes, accumulate)
            found |= {f"mean_{accumulate}_{key}": value for key, value in mean.items()}
        found |= {f"sharded_{key}": value for key, value in sharded(processes, out).items()}
        found["stopped"] = torch.tensor(stopped_by_another(processes, out, Mean()))
        apart = Processes(processes.rank, processes.count, parallel="fsdp")
        found["stopped_sharded"] = torch.tensor(stopped_by_another(apart, out / "apart", Scaled()))
        found["any"] = torch.tensor(processes.any(processes.rank == 1, False))
        save_file(found, out / f"rank_{processes.rank}.safetensors")


if __name__ == "__main__":
    main()
    leave(0)
