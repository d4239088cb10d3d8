"""Weights that lie in shares on many processes (FSDP: each holds a slice of every tensor, of its gradient and moments).

Where a whole tensor is needed it is gathered: by a layer while it computes, and here for what leaves the run. A saved
checkpoint holds whole tensors, so that any number of processes goes on from it, sharded or not. What gathers is to be
called by every process alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.models.resnet.modeling_resnet import ResNetStage

from clamp_training.networks.layers import DecoderBlock, EncoderBlock

_GATHERED_ALONE = (EncoderBlock, nn.Embedding, ResNetStage)
"""Modules whose weights are gathered for their forward pass and dropped after it. Whatever is not within one is
gathered by the whole network, for a whole step."""


def shard(module: nn.Module, device: torch.device, whole: Iterable[nn.Parameter] = ()) -> None:
    """Shares a network's parameters out over all processes, in place; its `forward` then gathers what it needs.

    Args:
        module: on the device, the same on every process.
        device: of this process.
        whole: parameters that stay as they are: frozen ones that another network reads too. So do scalars, whose
            gradients `average_whole` is for.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    stay = {*whole, *(p for p in module.parameters() if not p.dim())}
    for part in module.modules():
        # a decoder's keys and values are computed outside of its forward pass: its cross-attention is the network's
        alone = [part.self_attention, part.mlp] if isinstance(part, DecoderBlock) else [part]
        for layer in alone:
            gathered = isinstance(layer, _GATHERED_ALONE) or layer is not part
            if gathered and not stay.issuperset(layer.parameters()):
                fully_shard(layer, mesh=mesh, ignored_params=stay)
    fully_shard(module, mesh=mesh, ignored_params=stay)


def full(value: Tensor) -> Tensor:
    """The whole of a tensor of which this process may hold a share."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole copies of tensors on the CPU, where they are kept; one at a time, lest a device hold more than a share."""
    out = {}
    for key, value in tensors.items():
        whole = full(value.detach())
        if keep:
            out[key] = whole.to("cpu", copy=True).contiguous()
    return out


def local(value: Tensor) -> Tensor:
    """This process's share of a tensor, or all of it."""
    return value.to_local() if isinstance(value, DTensor) else value


def like(target: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, shared out as `target` is; a scalar, such as an optimiser's count of steps, stays whole."""
    if not isinstance(target, DTensor) or not value.dim():
        return value
    there = value.to(target.device)
    return distribute_tensor(there, target.device_mesh, target.placements, src_data_rank=None)


def groups(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """An optimiser's groups: parameters in shares and whole ones are not to be mixed.

    Each knows the `places` of its parameters in the sequence, by which the optimiser's state is saved.
    """
    places: dict[bool, list[int]] = {}
    for i, parameter in enumerate(parameters):
        places.setdefault(isinstance(parameter, DTensor), []).append(i)
    return [{"params": [parameters[i] for i in mine], "places": mine} for mine in places.values()]


def average_whole(parameters: Iterable[nn.Parameter]) -> None:
    """Averages over the processes the gradients of parameters that are not sharded; the others' are already."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales gradients so that their norm over all processes is at most the limit; gives the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    shares = nn.utils.get_total_norm([local(g) for g in gradients if isinstance(g, DTensor)]).square()
    distributed.all_reduce(shares)
    rest = nn.utils.get_total_norm([g for g in gradients if not isinstance(g, DTensor)]).square()
    norm = (shares + rest.to(shares.device)).sqrt()
    for gradient in gradients:
        local(gradient).mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
