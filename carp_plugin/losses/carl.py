r"""The loss of CARL (arXiv 2112.15421): consistent assignment of two views to prototypes, without a teacher.

With s_i = softmax(C z_i) the assignment of view i over all K prototypes (eq. 2 of CARP's paper has the loss):

    L = mean over images of -log <s_1, s_2>  +  entropy_weight * (log K - H(mean of s over batch and views))

There is no temperature, no normalisation of embeddings, no clustering and no momentum encoder. CARP with one block
(B = K) and a teacher that is the student has the same value; there the teacher's half carries no gradient, so CARL's
gradient is twice CARP's.

Shape suffixes: V views, N images of this rank, D embedding size, K prototypes.
"""

from itertools import combinations
from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from carp_plugin.losses.ranks import mean_over_ranks


class CARLLossTerms(NamedTuple):
    """The two terms of the loss and what the entropy was taken of."""

    consistency: Tensor  # (), mean over pairs of views and images of -log <s_i, s_j>
    entropy_gap: Tensor  # (), log K - H(mean_probs), between 0 and log K (nats)
    mean_probs: Tensor  # (K,), mean assignment over the views of all ranks; detached


def carl_loss_func(
    embeddings: Sequence[Tensor], prototypes: Tensor, large: int = 2
) -> CARLLossTerms:
    """The two terms of CARL's loss, separately differentiable.

    Args:
        embeddings: V >= 2 tensors (N, D), one a view, not normalised.
        prototypes: (K, D).
        large: the first so many views are large. Two small ones are not compared with each other; the paper has two
            views, both large.

    Returns:
        CARLLossTerms, in float32 or, if an input is, float64. `consistency` is of this rank's images; `entropy_gap`
        and `mean_probs` are of the views of all ranks.

    Raises:
        ValueError: a shape, a type or a number that does not fit.
    """
    _check(embeddings, prototypes, large)
    dtype = torch.promote_types(prototypes.dtype, torch.float32)
    for view in embeddings:
        dtype = torch.promote_types(dtype, view.dtype)
    with torch.autocast(prototypes.device.type, enabled=False):
        z_VND = torch.stack([view.to(dtype) for view in embeddings])
        log_s_VNK = (z_VND @ prototypes.to(dtype).T).log_softmax(dim=-1)
        pairs = [
            -torch.logsumexp(log_s_VNK[i] + log_s_VNK[j], dim=-1).mean()
            for i, j in combinations(range(len(embeddings)), 2)
            if i < large
        ]
        mean_K = mean_over_ranks(log_s_VNK.exp().mean(dim=(0, 1)))
        # log of mean * K: near uniform, log K and H would be large numbers of a small difference
        tiny = torch.finfo(dtype).tiny
        entropy_gap = (mean_K * mean_K.clamp_min(tiny).mul(len(mean_K)).log()).sum()
    return CARLLossTerms(torch.stack(pairs).mean(), entropy_gap, mean_K.detach())


def _check(embeddings: Sequence[Tensor], prototypes: Tensor, large: int) -> None:
    if len(embeddings) < 2:
        raise ValueError(f"embeddings: expected at least 2 views, received {len(embeddings)}")
    if not 1 <= large <= len(embeddings):
        raise ValueError(
            f"large: expected between 1 and the {len(embeddings)} views, received {large}"
        )
    if prototypes.ndim != 2 or not prototypes.numel():
        raise ValueError(f"prototypes: expected shape (K, D), received {tuple(prototypes.shape)}")
    first = embeddings[0]
    for i, view in enumerate(embeddings):
        if view.ndim != 2 or not len(view) or view.shape[1] != prototypes.shape[1]:
            raise ValueError(
                f"embeddings[{i}]: expected shape (N, {prototypes.shape[1]}) with N >= 1, received {tuple(view.shape)}"
            )
        if view.shape != first.shape:
            raise ValueError(
                f"embeddings[{i}]: expected the shape of embeddings[0], {tuple(first.shape)}, received"
                f" {tuple(view.shape)}"
            )
    for name, tensor in (("embeddings[0]", first), ("prototypes", prototypes)):
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name}: expected a real floating point type, received {tensor.dtype}"
            )
