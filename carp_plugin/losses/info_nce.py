r"""InfoNCE with negatives that are kept: the loss of MoCo's queue and of a memory bank.

With unit vectors q (query), k (positive), n_j (negatives) and temperature T:

    L = mean over images of -log exp(q k / T) / (exp(q k / T) + sum_j exp(q n_j / T))

Shape suffixes: N images of this rank, D embedding size, K negatives.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float
) -> Tuple[Tensor, Tensor]:
    """The inner products of queries with what is positive and negative for them, over T.

    Args:
        query: (N, D).
        positive: (N, D); receives no gradient.
        negatives: (K, D), the same for all images, or (N, K, D), their own; they receive no gradient.
        temperature: T > 0.

    Returns:
        (N,) and (N, K), in float32 or, if an input is, float64.

    Raises:
        ValueError: a shape, a type or a number that does not fit.
    """
    _check(query, positive, negatives, temperature)
    dtype = torch.promote_types(torch.promote_types(query.dtype, positive.dtype), torch.float32)
    dtype = torch.promote_types(dtype, negatives.dtype)
    with torch.autocast(query.device.type, enabled=False):
        q_ND = query.to(dtype)
        positive_N = torch.einsum("nd,nd->n", q_ND, positive.detach().to(dtype))
        rows = negatives.detach().to(dtype)
        negative_NK = q_ND @ rows.T if rows.ndim == 2 else torch.einsum("nd,nkd->nk", q_ND, rows)
        return positive_N / temperature, negative_NK / temperature


def info_nce_func(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float = 0.1
) -> Tensor:
    """InfoNCE; at random unit vectors about log(K + 1) + 1 / (2 D T^2).

    Args:
        query, positive, negatives, temperature: see :func:`similarities`.

    Returns:
        ().

    Raises:
        ValueError: a shape, a type or a number that does not fit.
    """
    positive_N, negative_NK = similarities(query, positive, negatives, temperature)
    logits = torch.cat([positive_N[:, None], negative_NK], dim=1)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def _check(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> None:
    if query.ndim != 2 or not query.numel():
        raise ValueError(f"query: expected shape (N, D) with N >= 1, received {tuple(query.shape)}")
    if positive.shape != query.shape:
        raise ValueError(
            f"positive: expected the shape of query, {tuple(query.shape)}, received {tuple(positive.shape)}"
        )
    N, D = query.shape
    fits = negatives.ndim in (2, 3) and negatives.shape[-1] == D
    if not fits or (negatives.ndim == 3 and len(negatives) != N):
        raise ValueError(
            f"negatives: expected shape (K, {D}) or ({N}, K, {D}), received {tuple(negatives.shape)}"
        )
    for name, tensor in (("query", query), ("positive", positive), ("negatives", negatives)):
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name}: expected a real floating point type, received {tensor.dtype}"
            )
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, received {temperature}")
