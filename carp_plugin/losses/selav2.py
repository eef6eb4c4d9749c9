"""SeLa v2 (Caron et al., NeurIPS 2020, arXiv 2006.09882, appendix D): labels of equal clusters and the loss.

Functions of tensors only. Once an epoch the images get the labels that minimise the loss under the condition that all
clusters are equally large (Asano et al., ICLR 2020): an optimal transport of n images to K prototypes,

    max_P <P, S> + eps H(P),  rows sum to 1 / n, columns to 1 / K,  S = z c^T,

whose solution is P = diag(u) exp(S / eps) diag(v). u follows from v, so that the plan of a million images is K numbers:
no n x K tensor is kept. Sinkhorn and Knopp's iteration finds v; a pass of it goes over chunks of rows.

The plan of softmax(S / T)^lambda is the same with eps = T / lambda: what differs is a factor of each row, which u
absorbs. eps = 0.05 at T = 0.1 is lambda 2; the lambda 25 of the first SeLa is eps = 0.004.

Shape suffixes: n images of this rank's share, N images of a batch, V views, D embedding size, K prototypes.

Across ranks each holds its share of the rows; one K-vector (two at the start) is reduced an iteration, and every rank
finds the same v.
"""

from __future__ import annotations

import math
from typing import Iterator, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from carp_plugin.losses.ranks import world_size

#: Bytes of the plan that are held at once.
CHUNK_BYTES = 64 * 2**20


def selav2_loss_func(
    cosines: Sequence[Tensor], labels: Sequence[Tensor], temperature: float = 0.1
) -> Tensor:
    """-sum_k y_k log softmax(z.c_k / T), mean over views and images, then over heads.

    Args:
        cosines: of each head (V, N, K): unit embeddings times unit prototypes; K may differ between heads.
        labels: of each head, the same for every view: (N,) int64, or (N, K) of rows that sum to 1.
        temperature: T > 0.

    Returns:
        (), in float32 or, if an input is, float64.

    Raises:
        ValueError: no head, another number of labels than of heads, or a shape that does not fit.
    """
    if not cosines or len(cosines) != len(labels):
        raise ValueError(
            "cosines, labels: expected one of each a head and at least one head, received "
            f"{len(cosines)} and {len(labels)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, received {temperature}")
    losses = []
    for h, (scores_VNK, y) in enumerate(zip(cosines, labels)):
        fits = scores_VNK.ndim == 3 and y.shape in (scores_VNK.shape[1:2], scores_VNK.shape[1:])
        if not fits:
            raise ValueError(
                f"cosines[{h}], labels[{h}]: expected shapes (V, N, K) and (N,) or (N, K), received "
                f"{tuple(scores_VNK.shape)} and {tuple(y.shape)}"
            )
        with torch.autocast(scores_VNK.device.type, enabled=False):
            logits = scores_VNK.to(_wide(scores_VNK.dtype)).flatten(0, 1) / temperature
            every = y.repeat(len(scores_VNK), *[1] * (y.ndim - 1))
            losses.append(F.cross_entropy(logits, every if y.ndim == 1 else every.to(logits)))
    return torch.stack(losses).mean()


class Plan(NamedTuple):
    """An optimal transport of all images to K prototypes.

    Attributes:
        log_v_K: (K,) logarithms of v, up to a constant; float32 or, of float64 inputs, float64.
        iterations: that were taken.
        error: max_k |K column sum - 1| of the plan of this v, whose rows sum to 1 / n exactly.
    """

    log_v_K: Tensor
    iterations: int
    error: float


@torch.no_grad()
def sinkhorn_plan(
    z_nD: Tensor,
    prototypes_KD: Tensor,
    epsilon: float,
    *,
    max_iterations: int = 100,
    tolerance: float = 0.01,
) -> Plan:
    """Sinkhorn and Knopp's iteration over the rows of all ranks, until columns are equal within the tolerance.

    It begins, as SwAV's, with u = 1: v_k = 1 / (K sum_i exp(S_ik / eps)); each further iteration makes rows sum to
    1 / n and corrects v. With tolerance 0 and 3 iterations it is SwAV's three.

    Args:
        z_nD: unit rows of this rank's share, any number of them.
        prototypes_KD: unit rows, the same on every rank.
        epsilon: eps > 0.
        max_iterations: at least 1.
        tolerance: largest error that is good enough, >= 0.

    Raises:
        ValueError: shapes or numbers that do not fit.
    """
    _check(z_nD, prototypes_KD, epsilon)
    if max_iterations < 1 or not tolerance >= 0:
        raise ValueError(
            "max_iterations, tolerance: expected at least 1 and at least 0, received "
            f"{max_iterations} and {tolerance}"
        )
    K = len(prototypes_KD)
    images = _sum_of_ranks(torch.tensor(len(z_nD), dtype=torch.float64, device=z_nD.device))
    log_v_K = -_log_of_columns(z_nD, prototypes_KD, epsilon)
    for iteration in range(1, max_iterations + 1):
        sums_K = torch.zeros(K, dtype=torch.float64, device=z_nD.device)
        for log_plan in _log_plans(z_nD, prototypes_KD, epsilon, log_v_K):
            sums_K += log_plan.exp_().sum(dim=0, dtype=torch.float64)
        shares_K = _sum_of_ranks(sums_K) * (K / images)
        error = float((shares_K - 1).abs().max())
        if iteration == max_iterations or error <= tolerance:  # of this v
            break
        log_v_K = log_v_K - shares_K.clamp_min(torch.finfo(torch.float64).tiny).log()
    return Plan(log_v_K.to(_wide(z_nD.dtype)), iteration, error)


@torch.no_grad()
def soft_labels(z_ND: Tensor, prototypes_KD: Tensor, epsilon: float, log_v_K: Tensor) -> Tensor:
    """Rows of the plan, scaled to sum to 1: softmax_k(z.c_k / eps + log v_k), (N, K).

    Raises:
        ValueError: shapes or numbers that do not fit.
    """
    _check(z_ND, prototypes_KD, epsilon)
    return _log_plan(z_ND, prototypes_KD, epsilon, log_v_K).exp_()


@torch.no_grad()
def hard_labels(
    z_nD: Tensor,
    prototypes_KD: Tensor,
    epsilon: float,
    log_v_K: Tensor,
    order_K: Tensor,
    places_n: Optional[Tensor] = None,
) -> Tensor:
    """The largest entry of every row of the plan: (n,) int64.

    Of entries that are equal to rounding the one is taken that comes first in `order_K` turned by the image's place:
    images whose embeddings are all the same are dealt out in turn, not all to the first prototype.

    Args:
        z_nD: unit rows.
        prototypes_KD: unit rows.
        epsilon: eps > 0.
        log_v_K: of the plan.
        order_K: int64, a random permutation of the prototypes.
        places_n: int64, numbers of the images in the whole set; None counts from 0.

    Raises:
        ValueError: shapes or numbers that do not fit.
    """
    _check(z_nD, prototypes_KD, epsilon)
    K = len(prototypes_KD)
    if places_n is None:
        places_n = torch.arange(len(z_nD), device=z_nD.device)
    if order_K.shape != (K,) or places_n.shape != (len(z_nD),):
        raise ValueError(
            f"order_K, places_n: expected shapes ({K},) and ({len(z_nD)},), received {tuple(order_K.shape)} and "
            f"{tuple(places_n.shape)}"
        )
    # entries are sums of numbers of up to 1 / eps, in the type of the computation
    tie = 64 * torch.finfo(_wide(z_nD.dtype)).eps * max(1.0, 1.0 / epsilon)
    labels, at = torch.empty_like(places_n), 0
    for log_plan in _log_plans(z_nD, prototypes_KD, epsilon, log_v_K):
        rows = slice(at, at + len(log_plan))
        best_n1 = log_plan.amax(dim=1, keepdim=True)
        turned = (order_K.int() + (places_n[rows, None] % K).int()).remainder_(K)
        turned.masked_fill_(log_plan < best_n1 - tie, K)
        labels[rows] = turned.argmin(dim=1)
        at = rows.stop
    return labels


# ---------------------------------------------------------------------------------------- helpers


def _log_plan(z_ND: Tensor, prototypes_KD: Tensor, epsilon: float, log_v_K: Tensor) -> Tensor:
    """log of the plan's rows, each of which sums to 1: (N, K)."""
    with torch.autocast(z_ND.device.type, enabled=False):
        dtype = _wide(z_ND.dtype)
        scores = z_ND.to(dtype) @ prototypes_KD.to(dtype).T
        return scores.div_(epsilon).add_(log_v_K.to(dtype)).log_softmax(dim=1)


def _log_plans(
    z_nD: Tensor, prototypes_KD: Tensor, epsilon: float, log_v_K: Tensor
) -> Iterator[Tensor]:
    """:func:`_log_plan` of chunk after chunk of rows."""
    for some in z_nD.split(_rows_of_chunk(z_nD, prototypes_KD)):
        if len(some):
            yield _log_plan(some, prototypes_KD, epsilon, log_v_K)


def _log_of_columns(z_nD: Tensor, prototypes_KD: Tensor, epsilon: float) -> Tensor:
    """log sum_i exp(S_ik / eps) over the rows of all ranks: (K,) float64. At eps = 0.004 the sum itself overflows."""
    found = torch.full((len(prototypes_KD),), -math.inf, dtype=torch.float64, device=z_nD.device)
    for some in z_nD.split(_rows_of_chunk(z_nD, prototypes_KD)):
        if len(some):
            with torch.autocast(z_nD.device.type, enabled=False):
                dtype = _wide(z_nD.dtype)
                scores = (some.to(dtype) @ prototypes_KD.to(dtype).T).div_(epsilon)
            found = torch.logaddexp(found, scores.logsumexp(dim=0).double())
    if world_size() == 1:
        return found
    largest = found.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return _sum_of_ranks((found - largest).exp()).log() + largest


def _rows_of_chunk(z_nD: Tensor, prototypes_KD: Tensor) -> int:
    size = torch.finfo(_wide(z_nD.dtype)).bits // 8
    return max(
        1, CHUNK_BYTES // (4 * size * len(prototypes_KD))
    )  # scores, their softmax, places, a mask


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _sum_of_ranks(tensor: Tensor) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def _check(z_nD: Tensor, prototypes_KD: Tensor, epsilon: float) -> None:
    shapes: Tuple[Tuple[int, ...], ...] = (tuple(z_nD.shape), tuple(prototypes_KD.shape))
    if (
        z_nD.ndim != 2
        or prototypes_KD.ndim != 2
        or shapes[0][1] != shapes[1][1]
        or not shapes[1][0]
    ):
        raise ValueError(
            f"z_nD, prototypes_KD: expected shapes (n, D) and (K, D) with K >= 1, received {shapes[0]} and {shapes[1]}"
        )
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a number above 0, received {epsilon}")
