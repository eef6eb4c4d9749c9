"""What losses ask of several ranks, with the gradients that the mean of DistributedDataParallel wants.

The convention: the mean over ranks of what each rank returns, and of its gradients, is what one process would have for
the whole batch. The images of a batch are dealt to the ranks in turn, so one process has them in the order image by
image, rank by rank.

Shape suffixes: N rows of this rank, W ranks, D size of a row.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """W; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def mean_over_ranks(own: Tensor) -> Tensor:
    """The mean of a tensor over ranks; its gradient is that of this rank's own, unscaled.

    The average of the ranks' gradients then divides by W.

    Args:
        own: any shape, the same on every rank.

    Returns:
        Of the same shape.
    """
    if world_size() == 1:
        return own
    total = own.detach().clone()
    dist.all_reduce(total)
    return own + (total / world_size() - own).detach()


def gather_rows(own_ND: Tensor) -> Tensor:
    """The rows of all ranks in the order that one process has them: row i of rank r is row i * W + r.

    Its gradient is what all ranks together have for this rank's rows.

    Args:
        own_ND: of as many rows on every rank; any number of dimensions.

    Returns:
        (N * W, D).
    """
    return own_ND if world_size() == 1 else _Gathered.apply(own_ND)


def own_rows(rows: int, device: torch.device) -> Tensor:
    """Where this rank's rows are among those of :func:`gather_rows`: (N,) int64.

    Args:
        rows: N.
        device: of the result.
    """
    return torch.arange(rows, device=device) * world_size() + rank()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_ND: Tensor) -> Tensor:
        own_ND = own_ND.contiguous()
        parts = [torch.empty_like(own_ND) for _ in range(world_size())]
        dist.all_gather(parts, own_ND)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() :: world_size()]
