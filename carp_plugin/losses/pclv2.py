"""The loss of PCL (Li et al., ICLR 2021, arXiv 2005.04966): images against a queue, and against clusters' prototypes.

Functions of tensors only. L = L_inst + (1 / M) sum_m L_proto^m over M clusterings of the training images;
L_inst is :func:`carp_plugin.losses.info_nce.info_nce_func`.

Shape suffixes: N images of this rank, D embedding size, K clusters of one clustering, P images of
the global batch (N of every rank), J candidates for negatives, n training images.

Across ranks the mean over ranks of what each returns is what one process would return for the concatenated batch, as
DistributedDataParallel averages gradients: every rank compares its images with the same columns. Nothing is sent here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: alpha of the concentration, which keeps small clusters from looking dense.
ALPHA = 10.0

#: Concentrations are brought within these quantiles of their own.
QUANTILES = (0.1, 0.9)


class Negatives(NamedTuple):
    """Prototypes that an image is told from besides those of its batch.

    Attributes:
        columns_J: (J,) int64, numbers of prototypes, each once.
        kept_J: (J,) bool, which of them count.
    """

    columns_J: Tensor
    kept_J: Tensor


def negatives_of(positives_P: Tensor, order_K: Tensor, count: int) -> Negatives:
    """The first `count` prototypes of a random order that no image of the batch belongs to, or as many as there are.

    A draw without replacement, in shapes that do not depend on values: an accelerator need not wait.

    Args:
        positives_P: int64, clusters of the global batch, the same on every rank.
        order_K: int64, a random permutation of the clusters, the same on every rank.
        count: r >= 0.

    Raises:
        ValueError: count < 0, or tensors that are not of one axis.
    """
    if count < 0:
        raise ValueError(f"count: expected at least 0, received {count}")
    if positives_P.ndim != 1 or order_K.ndim != 1:
        raise ValueError(
            "positives_P, order_K: expected one axis each, received shapes "
            f"{tuple(positives_P.shape)} and {tuple(order_K.shape)}"
        )
    columns_J = order_K[: count + len(positives_P)]  # positives are at most P of them
    positive_K = torch.zeros_like(order_K, dtype=torch.bool)
    positive_K[positives_P] = True
    free_J = ~positive_K[columns_J]
    return Negatives(columns_J, free_J & (free_J.cumsum(0) <= count))


def prototype_loss_func(
    query_ND: Tensor,
    centroids_KD: Tensor,
    concentrations_K: Tensor,
    positives_P: Tensor,
    own_N: Tensor,
    negatives: Negatives,
) -> Tensor:
    r"""ProtoNCE of one clustering: cross-entropy over columns j of (q_i . c_j) / phi_j, the target the image's own.

    The columns are the prototypes of all images of the batch, then the negatives. Every column has a temperature of
    its own, phi_j. Two images of one cluster have two columns of the same prototype, of which the other's counts as a
    negative: with m such columns the loss is at least log m, as in the authors' code.

    Args:
        query_ND: unit rows of this rank's images.
        centroids_KD: unit rows; they receive no gradient.
        concentrations_K: phi > 0.
        positives_P: int64, clusters of the global batch.
        own_N: int64, where this rank's images are in it.
        negatives: of :func:`negatives_of`.

    Returns:
        (), the mean over this rank's images, in float32 or, if an input is, float64.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_rows("query_ND", query_ND)
    K = len(centroids_KD)
    if centroids_KD.ndim != 2 or centroids_KD.shape[1] != query_ND.shape[1]:
        raise ValueError(
            f"centroids_KD: expected shape (K, {query_ND.shape[1]}), received {tuple(centroids_KD.shape)}"
        )
    if concentrations_K.shape != (K,):
        raise ValueError(
            f"concentrations_K: expected shape ({K},), received {tuple(concentrations_K.shape)}"
        )
    if own_N.shape != (len(query_ND),) or len(positives_P) < len(query_ND):
        raise ValueError(
            f"positives_P, own_N: expected at least {len(query_ND)} positives, and {len(query_ND)} places among them, "
            f"received {len(positives_P)} and {tuple(own_N.shape)}"
        )
    with torch.autocast(query_ND.device.type, enabled=False):
        q_ND, c_KD, phi_K = (_wide(t) for t in (query_ND, centroids_KD, concentrations_K))
        columns = torch.cat([positives_P, negatives.columns_J])
        logits = (q_ND @ c_KD.detach()[columns].to(q_ND.dtype).T) / phi_K.detach()[columns]
        left_out = torch.cat([torch.zeros_like(positives_P, dtype=torch.bool), ~negatives.kept_J])
        logits = logits.masked_fill(left_out, -math.inf)
        return F.cross_entropy(logits, own_N)


def concentration_func(
    distances_n: Tensor, clusters_n: Tensor, num_clusters: int, temperature: float
) -> Tensor:
    r"""Concentration of every cluster: phi = sum_z ||v_z - c|| / (Z log(Z + alpha)) of its Z members, alpha = 10.

    The distances are to the centroid as k-means leaves it, not brought to unit length. A cluster of less than two
    members has none and gets the largest. Then phi is clipped to its 10th and 90th percentile, and scaled so that its
    mean is T.

    Clusters of copies, whose phi is 0, get the smallest that is not: a temperature of 0 has no softmax. Where all are
    0, as for constant embeddings or clusters of one, nothing tells clusters apart and every phi is T.

    Args:
        distances_n: Euclidean distances (not squared) of the images to their centroids, >= 0.
        clusters_n: int64, from 0 to num_clusters - 1.
        num_clusters: K >= 1.
        temperature: T > 0.

    Returns:
        (K,), of the distances' type.

    Raises:
        ValueError: shapes that do not fit, or a number out of range.
    """
    if distances_n.ndim != 1 or distances_n.shape != clusters_n.shape or not len(distances_n):
        raise ValueError(
            "distances_n, clusters_n: expected the same number of images, at least 1, received shapes "
            f"{tuple(distances_n.shape)} and {tuple(clusters_n.shape)}"
        )
    if num_clusters < 1 or not temperature > 0:
        raise ValueError(
            f"num_clusters, temperature: expected at least 1 and above 0, received {num_clusters} and {temperature}"
        )
    members_K = torch.bincount(clusters_n, minlength=num_clusters).to(distances_n.dtype)
    total_K = torch.zeros_like(members_K).index_add_(0, clusters_n, distances_n)
    several_K = members_K > 1
    phi_K = total_K / members_K.clamp_min(1) / (members_K + ALPHA).log()
    phi_K = torch.where(several_K, phi_K, torch.zeros_like(phi_K))
    if not bool((phi_K > 0).any()):  # nan passes on
        return torch.full_like(phi_K, temperature) if bool((phi_K == 0).all()) else phi_K
    smallest = phi_K[phi_K > 0].min()
    phi_K = torch.where(several_K, phi_K.clamp_min(smallest), phi_K.max())
    low, high = torch.quantile(phi_K, phi_K.new_tensor(QUANTILES))
    phi_K = phi_K.clamp(low, high)
    return temperature * phi_K / phi_K.mean()


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: logits of half precision are coarse."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or not len(rows) or not rows.is_floating_point():
        raise ValueError(
            f"{name}: expected shape (N, D) with N >= 1 and a real floating point type, received "
            f"{tuple(rows.shape)} and {rows.dtype}"
        )
