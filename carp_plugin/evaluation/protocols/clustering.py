"""Clusters against classes: k-means on unit features, and the prototypes that a method learned.

k-means is fitted on the very images that are scored, whose labels it does not see, as deep clustering has it (Xie et
al., 2016; Caron et al., 2018). NMI has the arithmetic mean for its norm; AMI and ARI are adjusted for chance.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import faiss
import numpy as np
import torch
import torch.nn as nn
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    homogeneity_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix

from carp_plugin.errors import UserError
from carp_plugin.evaluation.prototypes import assign, has_prototypes, prototypes_of
from carp_plugin.evaluation.search import unit_rows
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.evaluation.store import Features
from carp_plugin.partition import random_partition
from carp_plugin.settings.protocols import Clustering

_ROWS = 4096  # assigned at once
_BLOCKS = 32  # of a partition that are scored: AMI of many clusters takes a second
_PARTITIONS = 4  # random ones
_CONSTANT = 1e-5  # difference of unit rows that is one of rounding


class Start(NamedTuple):
    """What k-means found from one start.

    Attributes:
        clusters: (N,) int64, which of k each row is in.
        objective: mean cosine of the rows with the centroids of their clusters.
    """

    clusters: NDArray[np.int64]
    objective: float


def besides(model: Optional[nn.Module]) -> Tuple[str, ...]:
    """Features that are read besides the columns': of a method with prototypes, what it compares them with."""
    return ("projector",) if has_prototypes(model) else ()


def measure(images: Images, settings: Clustering) -> Dict[str, Result]:
    """k-means of every column; the prototypes stand with the first column of their network.

    Args:
        images: labelled.
        settings: of the protocol.

    Raises:
        UserError: features that are not finite, or images of one class.
    """
    rows = images.val if settings.images == "val" else images.train
    found: Dict[str, Result] = {}
    for column in images.columns:
        result = clustering(
            rows[column], settings.k, settings.starts, settings.iterations, images.seed
        )
        network = column.split("/")[0]
        z = rows.get(f"{network}/projector")
        first = not any(other.startswith(f"{network}/") for other in found)
        if first and z is not None and has_prototypes(images.model):
            result = _with_prototypes(result, images, network, z)
        details = {"images": settings.images, **result.details}
        found[column] = Result(result.scores, result.per_image, details, result.remarks)
    return found


def clustering(
    features: Features,
    k: Optional[Sequence[int]] = None,
    starts: int = 5,
    iterations: int = 50,
    seed: int = 0,
) -> Result:
    """Spherical k-means on unit rows, of several starts the one of highest objective, against the classes.

    Args:
        features: (N, F) that are clustered and the labels (N,) that they are scored by.
        k: numbers of clusters; None is the number of classes that the images have.
        starts: of k-means, each with a seed of its own.
        iterations: of each.
        seed: of the first start.

    Returns:
        Result: for every k ``accuracy`` under the best assignment of clusters to classes, one to one, so that images of
        surplus clusters are wrong; ``purity``, many to one; ``NMI``, ``AMI``, ``ARI``. Details: every start, and the
        deviation over starts.

    Raises:
        UserError: features that are not finite, images of one class, or a k above N.
    """
    rows = unit_rows(features.feats).numpy()
    labels = _classes(features.targets)
    classes = int(labels.max()) + 1
    kinds = list(dict.fromkeys(k or [classes]))
    if max(kinds) > len(rows):
        raise UserError(
            f"clustering.k holds {max(kinds)}, and {len(rows)} images are clustered; give smaller ones."
        )
    remarks: List[str] = []
    if classes == len(rows):
        remarks.append("warning: every image is a class of its own, which any clustering tells.")
    if np.abs(rows - rows[0]).max() < _CONSTANT:
        remarks.append("warning: the features are the same for every image.")
    scores: Dict[str, float] = {}
    per_image: Dict[str, np.ndarray] = {}
    details: Dict[str, Any] = {}
    for some in kinds:
        tried = [kmeans(rows, some, iterations, seed + start) for start in range(starts)]
        all_scores = [agreement(labels, one.clusters) for one in tried]
        best = max(range(starts), key=lambda start: tried[start].objective)
        right = matched(labels, tried[best].clusters)
        per_image[f"accuracy (k = {some})"] = right
        scores.update({f"{name} (k = {some})": value for name, value in all_scores[best].items()})
        objectives = [one.objective for one in tried]
        details[str(some)] = _spread(objectives, all_scores, len(np.unique(tried[best].clusters)))
    return Result(scores, per_image, {"classes": classes, "k": details}, tuple(remarks))


def kmeans(rows: NDArray[np.float32], k: int, iterations: int = 50, seed: int = 0) -> Start:
    """Spherical k-means by faiss: centroids are brought to unit length, rows go to that of highest cosine.

    Args:
        rows: (N, F) unit rows, N >= k.
        k: clusters; some may end without a row.
        iterations: of Lloyd's algorithm.
        seed: of the rows that it starts from.
    """
    model = faiss.Kmeans(
        rows.shape[1],
        k,
        niter=iterations,
        seed=seed % 2**31,
        spherical=True,
        min_points_per_centroid=1,  # fewer than 39 rows a cluster are no reason to say so
        max_points_per_centroid=len(rows),  # all rows, no sample of them
    )
    model.train(rows)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(np.asarray(model.centroids))
    parts = [index.search(rows[at : at + _ROWS], 1) for at in range(0, len(rows), _ROWS)]
    cosines, clusters = (np.concatenate(arrays)[:, 0] for arrays in zip(*parts))
    return Start(clusters, float(cosines.mean(dtype=np.float64)))


def agreement(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> Dict[str, float]:
    """Clusters against classes, in percent; both are (N,)."""
    table = contingency_matrix(labels, clusters)
    return {
        "accuracy": 100 * float(matched(labels, clusters).mean()),
        "AMI": 100 * float(adjusted_mutual_info_score(labels, clusters)),
        "NMI": 100 * float(normalized_mutual_info_score(labels, clusters)),
        "ARI": 100 * float(adjusted_rand_score(labels, clusters)),
        "purity": 100 * float(table.max(axis=0).sum() / len(labels)),
    }


def matched(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) which images are right under the assignment of clusters to classes, one to one, that is best for them."""
    kinds, places = np.unique(clusters, return_inverse=True)
    names, truths = np.unique(labels, return_inverse=True)
    table = np.zeros((len(kinds), len(names)), dtype=np.int64)
    np.add.at(table, (places, truths), 1)
    matches = np.full(len(kinds), -1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    matches[rows] = columns
    return matches[places] == truths


def prototype_scores(
    labels: NDArray[np.int64],
    z: torch.Tensor,
    prototypes: torch.Tensor,
    block: Optional[int] = None,
    seed: int = 0,
    device: Optional[torch.device] = None,
) -> Tuple[Dict[str, float], Dict[str, Any]]:
    """How the assignment to prototypes follows the classes: in the whole set, and within blocks of random partitions.

    Args:
        labels: (N,).
        z: (N, D) embeddings; their lengths do not matter.
        prototypes: (K, D).
        block: B, prototypes in a block; None scores the whole set alone.
        seed: of the partitions.
        device: where logits are computed.

    Returns:
        Scores in percent, and what they are of: the prototypes that are used, and mean and deviation over blocks.
    """
    K = len(prototypes)
    whole = assign(z, prototypes, torch.arange(K)[None], device)[:, 0]
    scores = _follows(labels, whole)
    details: Dict[str, Any] = {"number": K, "used": len(np.unique(whole))}
    if block is None or block >= K:
        return scores, details
    found: List[Dict[str, float]] = []
    for step in range(_PARTITIONS):
        blocks = random_partition(seed, step, K).view(-1, block)[:_BLOCKS]
        places = assign(z, prototypes, blocks, device)
        found += [_follows(labels, column) for column in places.T]
    means = {name: [one[name] for one in found] for name in ("AMI", "NMI")}
    details["blocks"] = {
        "size": block,
        "partitions": _PARTITIONS,
        "scored": len(found),
        **{name: _mean_and_deviation(values) for name, values in means.items()},
    }
    scores.update({f"{name}, blocks": float(np.mean(values)) for name, values in means.items()})
    return scores, details


def _with_prototypes(result: Result, images: Images, network: str, z: Features) -> Result:
    """A result with the scores of the network's prototypes behind its own."""
    model: Any = images.model
    labels = _classes(z.targets)
    block = getattr(model, "partition_size", None)
    scores, details = dict(result.scores), dict(result.details)
    embeddings = unit_rows(z.feats)
    for name, rows in prototypes_of(model, network, embeddings.shape[1]).items():
        if not bool(torch.isfinite(rows).all()):
            raise UserError("the prototypes hold values that are not finite: the network diverged.")
        found, details[name] = prototype_scores(
            labels, embeddings, rows, block, images.seed, images.device
        )
        scores.update({f"{measured} ({name})": value for measured, value in found.items()})
    return Result(scores, result.per_image, details, result.remarks)


def _follows(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> Dict[str, float]:
    return {
        "AMI": 100 * float(adjusted_mutual_info_score(labels, clusters)),
        "NMI": 100 * float(normalized_mutual_info_score(labels, clusters)),
        "ARI": 100 * float(adjusted_rand_score(labels, clusters)),
        "homogeneity": 100 * float(homogeneity_score(labels, clusters)),
    }


def _classes(targets: torch.Tensor) -> NDArray[np.int64]:
    """(N,) classes from 0 on, those without an image left out.

    Raises:
        UserError: there is one class.
    """
    labels = np.unique(targets.numpy(), return_inverse=True)[1].astype(np.int64)
    if labels.max() == 0:
        raise UserError("clustering is scored by classes, and the images have one; give two.")
    return labels


def _spread(
    objectives: Sequence[float], scores: Sequence[Dict[str, float]], used: int
) -> Dict[str, Any]:
    """All starts as json takes them."""
    over = {name: _mean_and_deviation([one[name] for one in scores]) for name in scores[0]}
    return {"used": used, "objectives": list(objectives), "over_starts": over}


def _mean_and_deviation(values: Sequence[float]) -> Dict[str, float]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "deviation": deviation}
