"""What the loss does not tell: whether assignments depend on the image, and how many prototypes are in use.

A constant output can have a loss below that of uniform assignments, so a falling loss proves no learning.
These numbers are for logging: no gradient, no communication, and on a few blocks only.

Shape suffixes as in `carp_plugin.losses.carp`: R rows of all views, C blocks looked at, B prototypes in a
block, D embedding size, K prototypes.
"""

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from carp_plugin.losses.carp import check_partition


class AssignmentStatistics(NamedTuple):
    """0-dim tensors, in float32 or, if an input is, float64."""

    information: Tensor  # mean over blocks of H(mean_row p) - mean_row H(p), nats, 0 to log B
    prototypes_used: Tensor  # fraction of prototypes that some row has as the first of its block


@torch.no_grad()
def assignment_statistics(
    embeddings: Sequence[Tensor],
    prototypes: Tensor,
    permutation: Tensor,
    partition_size: int,
    *,
    max_blocks: int = 8,
) -> AssignmentStatistics:
    """How informative the assignments of this rank's views are, on the first blocks of the partition.

    The first blocks of a random partition are a random sample of the prototypes, so the numbers are
    unbiased estimates of those over all blocks. `information` is the mutual information between row and
    prototype: 0 for any output that does not depend on the image (uniform, one-hot or in between), at
    most log B, and at most log R. `prototypes_used` is at most R / B.

    Args:
        embeddings: views, each (N, D), of this rank.
        prototypes: (K, D).
        permutation: (K,) int64, as given to the loss.
        partition_size: B, divides K.
        max_blocks: how many blocks to look at, at most.

    Raises:
        ValueError: no views, a shape or a type that does not fit, or max_blocks < 1.
    """
    if len(embeddings) < 1:
        raise ValueError("embeddings: expected at least 1 view, received 0")
    for i, view in enumerate(embeddings):
        if view.ndim != 2 or view.shape[0] < 1 or view.shape[1:] != prototypes.shape[1:]:
            raise ValueError(
                f"embeddings[{i}]: expected shape (N, D) with N >= 1 and the D of the prototypes"
                f" {tuple(prototypes.shape)}, received {tuple(view.shape)}"
            )
    if max_blocks < 1:
        raise ValueError(f"max_blocks: expected at least 1, received {max_blocks}")
    blocks = min(max_blocks, check_partition(permutation, partition_size, prototypes))
    with torch.autocast(prototypes.device.type, enabled=False):
        chosen = prototypes.index_select(0, permutation[: blocks * partition_size])
        h_RD = torch.cat(list(embeddings))
        dtype = torch.promote_types(torch.promote_types(h_RD.dtype, chosen.dtype), torch.float32)
        logits_RCB = (h_RD.to(dtype) @ chosen.to(dtype).T).view(-1, blocks, partition_size)
        probs_RCB = logits_RCB.softmax(dim=-1)
        return _statistics(probs_RCB)


def _statistics(probs_RCB: Tensor) -> AssignmentStatistics:
    mean_CB = probs_RCB.mean(dim=0)
    information = _entropy(mean_CB).mean() - _entropy(probs_RCB).mean()
    winner_CR = probs_RCB.argmax(dim=-1).T
    used_CB = torch.zeros_like(mean_CB).scatter_(1, winner_CR, 1.0)
    return AssignmentStatistics(information, used_CB.mean())


def _entropy(p: Tensor) -> Tensor:
    """H(p) in nats over the last axis; 0 log 0 is 0."""
    return torch.special.entr(p).sum(dim=-1)
