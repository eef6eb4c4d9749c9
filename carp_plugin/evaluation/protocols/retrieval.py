"""Retrieval on labelled images, leave one out: each validation image asks for the others of its class."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from carp_plugin.errors import UserError
from carp_plugin.evaluation.ranking import Ties, average_precision, hit_at, similarities, ties
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.protocols import Retrieval

_LAST = np.iinfo(np.int32).min  # of the query itself, which stands behind all others


def measure(images: Images, settings: Retrieval) -> Dict[str, Result]:
    """Mean average precision and recall of every column, on the validation images.

    Args:
        images: labelled.
        settings: of the protocol.

    Raises:
        UserError: features that are not finite, or no class with two images.
    """
    return {
        column: retrieval(images.val[column], settings.ranks, images.device)
        for column in images.columns
    }


def retrieval(
    features: Features, ranks: Sequence[int] = (1, 5, 10), device: Optional[torch.device] = None
) -> Result:
    """Every image is a query; all others are ranked by cosine similarity, those of its class are its positives.

    Args:
        features: (N, F) and labels (N,); an image that is alone in its class is no query, and stays among the others.
        ranks: k of recall@k, the share of queries with a positive among the first k (Jégou et al., 2011; Song et al.,
            2016).
        device: where similarities are computed.

    Returns:
        Result: ``mAP`` over all N - 1 places, and ``recall@k``, each with its value for every query. Details: the same
        by chance, that is the expectation over all orders.

    Raises:
        UserError: features that are not finite, or no class with two images.
    """
    labels = features.targets.numpy()
    counts = np.bincount(labels)
    queries = np.flatnonzero(counts[labels] > 1)
    alone = len(labels) - len(queries)
    if not len(queries):
        raise UserError(
            "retrieval needs a class with two validation images or more, of which one asks for the other."
        )
    rows = features.feats[torch.from_numpy(queries)]
    found: List[List[float]] = []
    for start, block in similarities([features.feats], rows, device):
        for values, query in zip(block, queries[start:]):
            values[query] = _LAST
            positive = labels == labels[query]
            positive[query] = False
            found.append(_measures(ties(values, positive), ranks))
    chance = _by_chance(labels[queries], counts, ranks)
    names = ["mAP", *(f"recall@{k}" for k in ranks)]
    per_image = {name: np.array(column) for name, column in zip(names, zip(*found))}
    scores = {name: 100 * float(np.mean(values)) for name, values in per_image.items()}
    remarks = []
    if alone:
        are = (
            "is alone in its class and asks" if alone == 1 else "are alone in their classes and ask"
        )
        remarks.append(f"{alone} of {len(labels)} images {are} for nothing.")
    details = {"queries": len(queries), "chance": dict(zip(names, chance))}
    return Result(scores, per_image, details, tuple(remarks))


def _measures(ranking: Ties, ranks: Sequence[int]) -> List[float]:
    return [average_precision(ranking), *(hit_at(ranking, k) for k in ranks)]


def _by_chance(
    labels: NDArray[np.int64], counts: NDArray[np.int64], ranks: Sequence[int]
) -> List[float]:
    """The measures where all images are equally similar, in percent."""
    others = counts.sum() - 1.0
    kinds, queries = np.unique(labels, return_counts=True)
    each = [
        _measures(Ties(np.zeros(1), np.array([others]), np.array([counts[kind] - 1.0])), ranks)
        for kind in kinds
    ]
    return [100 * float(np.average(values, weights=queries)) for values in zip(*each)]
