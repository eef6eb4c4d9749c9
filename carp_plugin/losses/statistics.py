"""What the loss does not tell: whether assignments and features depend on the image, and what prototypes are in use.

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
    perplexity: Tensor  # exp of the entropy of the rows' firsts, mean over blocks: 1 to min(B, R) prototypes


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

    The first blocks of a random partition are a random sample of the prototypes, so the numbers are unbiased
    estimates of those over all blocks. `information` is the mutual information between row and prototype: 0 for any
    output that does not depend on the image (uniform, one-hot or in between), at most log B, and at most log R.
    `prototypes_used` is at most R / B. `perplexity` counts the prototypes that rows have as their firsts, a rare one
    as a part of one; unlike the entropy of the mean assignment, which is largest for uniform assignments too, it
    falls to 1 whenever all rows agree.

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
    share = torch.full_like(winner_CR, 1 / len(probs_RCB), dtype=probs_RCB.dtype)
    share_CB = torch.zeros_like(mean_CB).scatter_add_(1, winner_CR, share)
    used = (share_CB > 0).to(share_CB.dtype).mean()
    return AssignmentStatistics(information, used, _entropy(share_CB).exp().mean())


def _entropy(p: Tensor) -> Tensor:
    """H(p) in nats over the last axis; 0 log 0 is 0."""
    return torch.special.entr(p).sum(dim=-1)


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023): the exponential of the entropy of the normalised singular values.

    1 where all rows point the same way, F where they spread evenly over all F directions, and never more than min(R,
    F): a rank of few rows says little about a space of many dimensions. Rows are taken as they are, not centred.

    Args:
        features: (R, F), any floating point type, on any device.

    Returns:
        float: 0 for features that are all 0, NaN where one is not finite.

    Raises:
        ValueError: not a matrix, or an empty one.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"features: expected shape (R, F), received {tuple(features.shape)}")
    wide_RF = features.detach().to("cpu", torch.float64)
    if not wide_RF.isfinite().all():
        return float("nan")
    if wide_RF.shape[0] > wide_RF.shape[1]:
        wide_RF = wide_RF.T
    # The Gram matrix of the shorter side has the squares; in float64 they keep what float32 features hold.
    singular = torch.linalg.eigvalsh(wide_RF @ wide_RF.T).clamp_min(0).sqrt()
    total = singular.sum()
    return float(_entropy(singular / total).exp()) if total > 0 else 0.0


@torch.no_grad()
def largest_logit(embeddings: Tensor, prototypes: Tensor, *, rows: int = 8192) -> float:
    """The largest finite |<z, c>| over embeddings and prototypes, without an R x K tensor.

    Args:
        embeddings: (R, D); rows that are not finite are left out.
        prototypes: (K, D).
        rows: prototypes at a time.

    Returns:
        float: NaN where no logit is finite.
    """
    dtype = torch.promote_types(prototypes.dtype, torch.float32)
    h_RD = embeddings[embeddings.isfinite().all(dim=1)].to(dtype)
    if not len(h_RD):
        return float("nan")
    largest = []
    with torch.autocast(h_RD.device.type, enabled=False):
        for some in prototypes.split(rows):
            logits = (h_RD @ some.to(dtype).T).abs()
            largest.append(logits[logits.isfinite()])
    kept = [float(some.max()) for some in largest if some.numel()]
    return max(kept, default=float("nan"))
