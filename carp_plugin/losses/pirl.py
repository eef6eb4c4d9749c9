r"""The loss of PIRL (Misra and van der Maaten, CVPR 2020): an image and its patches against a memory of all images.

With the memory's row m_i of image i, and K rows m_k drawn from it:

    L = (1 - w) l(f(image), m_i) + w l(g(patches), m_i)

where l is InfoNCE, or noise-contrastive estimation with h = exp(v m / T) / Z and Pn = 1 / n over n images:

    l = -log h_i / (h_i + K Pn) - sum_k log K Pn / (h_k + K Pn)
      = -log sigmoid(a_i) - sum_k log sigmoid(-a_k),  a = v m / T - log Z - log(K / n)

Z is n times the mean of exp(v m / T) over the first batch, and stays what it was.

Shape suffixes: N images of this rank, D embedding size, K negatives, n training images.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from carp_plugin.losses.info_nce import info_nce_func, similarities
from carp_plugin.losses.ranks import mean_over_ranks


def nce_func(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    temperature: float,
    log_z: Tensor,
    images: int,
) -> Tensor:
    """Noise-contrastive estimation against a uniform noise, mean over images.

    Args:
        query: (N, D), unit rows.
        positive: (N, D), rows of the memory.
        negatives: (K, D) or (N, K, D), rows of the memory.
        temperature: T > 0.
        log_z: (), log Z.
        images: n >= 1.

    Returns:
        ().

    Raises:
        ValueError: a shape, a type or a number that does not fit.
    """
    if images < 1:
        raise ValueError(f"images: expected at least 1, received {images}")
    positive_N, negative_NK = similarities(query, positive, negatives, temperature)
    shift = log_z.to(positive_N.dtype) + math.log(negative_NK.shape[1] / images)
    own_N = F.logsigmoid(positive_N - shift)
    return -(own_N + F.logsigmoid(shift - negative_NK).sum(dim=1)).mean()


@torch.no_grad()
def log_normaliser(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, images: int
) -> Tensor:
    """log Z of a batch, over the images of all ranks: log n plus the log of the mean of exp(v m / T).

    Args:
        query, positive, negatives, temperature, images: see :func:`nce_func`.

    Returns:
        ().
    """
    positive_N, negative_NK = similarities(query, positive, negatives, temperature)
    every = torch.cat([positive_N[:, None], negative_NK], dim=1)
    most = (
        1 / temperature
    )  # of unit rows: the same on every rank, so that the means can be averaged
    return mean_over_ranks((every - most).exp().mean()).log() + most + math.log(images)


def pirl_loss_func(
    image: Tensor,
    patches: Tensor,
    memory: Tensor,
    negatives: Tensor,
    temperature: float = 0.07,
    patch_weight: float = 0.5,
    *,
    log_z: Optional[Tensor] = None,
    images: int = 1,
) -> Tensor:
    """The weighted mean of the losses of images and patches; with a patch_weight of 0 it is instance discrimination.

    Args:
        image: (N, D), unit rows f(image).
        patches: (N, D), unit rows g(patches).
        memory: (N, D), the images' own rows; they receive no gradient.
        negatives: (K, D) or (N, K, D), rows of the memory; an image's own may be among them.
        temperature: T > 0.
        patch_weight: w, from 0 to 1.
        log_z: () for noise-contrastive estimation; None is InfoNCE.
        images: n, for noise-contrastive estimation.

    Returns:
        ().

    Raises:
        ValueError: a shape, a type or a number that does not fit.
    """
    if not 0 <= patch_weight <= 1:
        raise ValueError(f"patch_weight: expected a number from 0 to 1, received {patch_weight}")

    def of(query: Tensor) -> Tensor:
        if log_z is None:
            return info_nce_func(query, memory, negatives, temperature)
        return nce_func(query, memory, negatives, temperature, log_z, images)

    return (1 - patch_weight) * of(image) + patch_weight * of(patches)


def moved_memory(memory: Tensor, embedding: Tensor, momentum: float) -> Tensor:
    """Rows of the memory moved towards embeddings, and of unit length: normalise(m momentum + (1 - momentum) f).

    Args:
        memory: (N, D), unit rows.
        embedding: (N, D), unit rows.
        momentum: from 0, where the memory is the last embedding, to 1, where it never moves.

    Raises:
        ValueError: a shape or a number that does not fit.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number from 0 to 1, received {momentum}")
    if memory.shape != embedding.shape:
        raise ValueError(
            f"embedding: expected the shape of memory, {tuple(memory.shape)}, received {tuple(embedding.shape)}"
        )
    return F.normalize(momentum * memory + (1 - momentum) * embedding.to(memory.dtype), dim=-1)
