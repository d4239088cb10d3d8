"""The three-pair SigLIP loss of the encoders (paper Equations 1 to 3), in blocks over the processes of a run.

The paper prints ``1 / (1 + exp(l (-t x.y + b)))`` with b = -10 at the start; with that sign every pair would begin as
a confident match. SigLIP's own form is used: logits ``t x.y + b`` and loss ``-log sigmoid(l * logits)``.

A batch of B samples lies on W processes, b = B / W on each. As in SigLIP (Zhai et al. 2023, Section 3.3) no process
ever holds the B x B logits: embeddings travel around the ring of processes, and each meets its own against one
visitor's at a time, a b x b block. Since the loss is a sum over pairs, its gradient is a sum over blocks, known as soon
as a block is: it travels along with the embeddings it belongs to and comes home with them, so nothing is kept for a
backward pass.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clamp_training.processes import ALONE, Processes

Pairs = tuple[tuple[int, int], ...]
"""Which modalities are paired: the first of a pair stays, the second travels."""

_ROUNDING = 1e-5
"""Cosines this near are the same."""


class SigmoidLoss(nn.Module):
    """Learnt temperature (as its logarithm) and bias, shared by the three pairs; t starts at 10, b at -10."""

    def __init__(self) -> None:
        super().__init__()
        self.log_t = nn.Parameter(torch.tensor(math.log(10.0)))
        self.b = nn.Parameter(torch.tensor(-10.0))

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, D) and (B', D) embeddings, normalised here, to logits (B, B')."""
        return self.log_t.exp() * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T + self.b

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of one modality pair over a batch: matched on the diagonal, mismatched elsewhere, divided by B.

        The formula as it is printed, with the whole matrix; `forward` computes the same in blocks.
        """
        logits = self.logits(x, y)
        labels = 2.0 * torch.eye(len(x), device=x.device, dtype=logits.dtype) - 1.0
        return -F.logsigmoid(labels * logits).sum() / len(x)

    def forward(self, image: Tensor, text: Tensor | None, action: Tensor, processes: Processes = ALONE) -> Tensor:
        """See `blockwise`, which is given this module's temperature and bias."""
        return blockwise([image, action] if text is None else [image, text, action], self.log_t, self.b, processes)


def blockwise(embeddings: list[Tensor], log_t: Tensor, b: Tensor, processes: Processes = ALONE) -> Tensor:
    """The mean of every modality pair's loss over the batch that lies on all processes.

    Args:
        embeddings: this process's share of each modality, (B / W, D) and not normalised; three, or two without text.
        log_t: logarithm of the temperature.
        b: bias.
        processes: of the run; each calls this with as many samples.

    Returns:
        The whole batch's loss, the same on every process. Its gradients are exact: of log_t and b they are the whole
        batch's, of the embeddings those of this process's samples, wherever their partners lie. Differentiable once.
    """
    pairs: Pairs = tuple((i, j) for i in range(len(embeddings)) for j in range(i + 1, len(embeddings)))
    normal = torch.stack([F.normalize(e.float(), dim=-1) for e in embeddings])
    return cast(Tensor, _Ring.apply(normal, log_t.float(), b.float(), pairs, processes))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, here: Tensor, log_t: Tensor, b: Tensor, pairs: Pairs, processes: Processes) -> Tensor:
        t = log_t.exp()
        visitors = torch.stack([here[1:], torch.zeros_like(here[1:])])  # embeddings, and their gradients so far
        gradient = torch.zeros_like(here)
        sums = here.new_zeros(3)  # loss, gradients of log_t and b
        for hop in range(processes.count):
            for i, j in pairs:
                visitor = visitors[0, j - 1]
                cosine = here[i] @ visitor.T
                labels = torch.full_like(cosine, -1.0)
                if hop == 0:  # the visitors are our own: matched pairs are on the diagonal
                    labels.fill_diagonal_(1.0)
                agreement = labels * (t * cosine + b)
                slope = -labels * torch.sigmoid(-agreement)  # of the loss, by the logits
                gradient[i] += t * slope @ visitor
                visitors[1, j - 1] += t * slope.T @ here[i]
                sums += torch.stack([-F.logsigmoid(agreement).sum(), t * (slope * cosine).sum(), slope.sum()])
            visitors = _passed_on(visitors, processes)
        gradient[1:] += visitors[1]  # home again
        scale = 1.0 / (len(pairs) * here.shape[1] * processes.count)
        loss, by_log_t, by_b = processes.total(sums) * scale
        ctx.save_for_backward(gradient * scale, by_log_t, by_b)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        gradient, by_log_t, by_b = ctx.saved_tensors
        return outer[0] * gradient, outer[0] * by_log_t, outer[0] * by_b, None, None


def _passed_on(tensor: Tensor, processes: Processes) -> Tensor:
    """Gives a tensor to the next process of the ring and returns the one of the process before."""
    if processes.count == 1:
        return tensor
    received = torch.empty_like(tensor)
    to, source = (processes.rank + 1) % processes.count, (processes.rank - 1) % processes.count
    operations = [
        distributed.P2POp(distributed.isend, tensor.contiguous(), to),
        distributed.P2POp(distributed.irecv, received, source),
    ]
    for request in distributed.batch_isend_irecv(operations):
        request.wait()
    return received


def recall(scores: Tensor, k: int) -> float:
    """Recall@k of retrieval by cosines (N, N), whose diagonal holds the matched pairs: rows ask, columns are found.

    Of equal scores, such as those of equal texts, a random order is assumed, and its mean returned: constant scores
    give chance, k / N. Scores within rounding are equal.
    """
    ahead = scores - scores.diagonal()[:, None]
    equal = ahead.abs() <= _ROUNDING
    better = (ahead > _ROUNDING).sum(dim=1)
    return float(((k - better) / equal.sum(dim=1)).clamp(0.0, 1.0).mean())
