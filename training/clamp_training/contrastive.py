"""The three-pair SigLIP loss of the encoders (paper Equations 1 to 3).

The paper prints ``1 / (1 + exp(l (-t x.y + b)))`` with b = -10 at the start; with that sign every pair would begin as
a confident match. SigLIP's own form is used: logits ``t x.y + b`` and loss ``-log sigmoid(l * logits)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        """Loss of one modality pair over a batch: matched on the diagonal, mismatched elsewhere, divided by B."""
        logits = self.logits(x, y)
        labels = 2.0 * torch.eye(len(x), device=x.device, dtype=logits.dtype) - 1.0
        return -F.logsigmoid(labels * logits).sum() / len(x)

    def forward(self, image: Tensor, text: Tensor, action: Tensor) -> Tensor:
        """The mean of the image-text, image-action and text-action losses."""
        return (self.pair(image, text) + self.pair(image, action) + self.pair(text, action)) / 3.0
