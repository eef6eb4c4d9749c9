"""Weighted k-nearest-neighbour classification of features: appendix C.3 of the paper.

A query's neighbours are the k rows of the bank of highest cosine similarity; each votes for its class with
exp(similarity / tau). One search for the largest k serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch

from carp_plugin.errors import UserError
from carp_plugin.evaluation.search import Found, Neighbours, search
from carp_plugin.evaluation.shape import Images, Result, by_column
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.protocols import Neighbours as Votes

_VOTES = 2**20  # float64 scores held at once: 8 MB


#: Classes among which the first five are no feat.
FEW = 5


def measure(images: Images, settings: Votes) -> Dict[str, Result]:
    """Accuracies of every column, for every default k that the training images suffice for.

    Args:
        images: labelled.
        settings: of the protocol.

    Raises:
        UserError: a k that was given is larger than the bank.
    """

    def of_column(train: Features, val: Features) -> Result:
        kinds = fitting(settings.k, len(train.feats))
        if "k" in settings.model_fields_set and set(kinds) != set(settings.k):
            raise UserError(
                f"--knn.k {max(settings.k)} is larger than the bank of {len(train.feats)} training images; give "
                "smaller ones."
            )
        found = weighted_knn(train, val, kinds, settings.temperature, device=images.device)
        return as_result(found, [k for k in settings.k if k not in kinds])

    return by_column(images, of_column)


def fitting(k: Sequence[int], bank: int) -> List[int]:
    """The numbers of neighbours that a bank has; all of it where it has none of them."""
    return [some for some in k if some <= bank] or [bank]


def as_result(found: KnnResult, left_out: Sequence[int] = ()) -> Result:
    """In the shape of every protocol; the headline is k = 20, which the paper found best, or the first k."""
    kinds = sorted(found.top1, key=lambda k: k != 20)
    scores = {f"top1 (k = {k})": found.top1[k] for k in kinds}
    if found.classes > FEW:
        scores.update({f"top5 (k = {k})": found.top5[k] for k in kinds})
    per_image = {f"top1 (k = {k})": found.correct[k] for k in kinds}
    listed = ", ".join(map(str, left_out))
    said = (f"k = {listed} left out: there are not so many training images.",) if left_out else ()
    return Result(scores, per_image, {"k": kinds}, said)


@dataclass(frozen=True)
class KnnResult:
    """Accuracies and predictions for every k.

    Attributes:
        top1: k -> percent of the queries whose class has most votes.
        top5: k -> percent whose class is among the min(5, k) with most votes.
        predictions: k -> (Q,) int64 classes.
        targets: (Q,) int64 classes of the queries.
        classes: number of classes, of bank and queries together.
        index: how neighbours were searched for.
        recall: share of the true neighbours that an approximate index found, on a sample; None where it is exact.
    """

    top1: Dict[int, float]
    top5: Dict[int, float]
    predictions: Dict[int, torch.Tensor]
    targets: torch.Tensor
    classes: int
    index: str = "exact"
    recall: Optional[float] = None

    @property
    def accuracy(self) -> Dict[str, List[float]]:
        """``{"20": [top-1, top-5]}`` in percent, as json takes it."""
        return {str(k): [self.top1[k], self.top5[k]] for k in self.top1}

    @property
    def correct(self) -> Dict[int, np.ndarray]:
        """k -> (Q,) bool: which queries were classified correctly."""
        return {k: (found == self.targets).numpy() for k, found in self.predictions.items()}


def weighted_knn(
    bank: Features,
    queries: Features,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    *,
    index: str = "exact",
    device: Optional[torch.device] = None,
    title: str = "",
) -> KnnResult:
    """Classifies queries by the weighted votes of their nearest neighbours, for several k in one search.

    Args:
        bank: features (N, F) of any floating type and targets (N,); rows need not be normalised.
        queries: features (Q, F) and targets (Q,).
        k: numbers of neighbours.
        temperature: tau.
        index: ``"exact"``, or ``"ivf"`` or ``"hnsw"``, whose recall is measured.
        device: where to search exactly; None and the CPU use faiss, a card uses torch.
        title: shown before the progress bar; no bar where it is empty, or without a terminal.

    Returns:
        KnnResult: for every k.

    Raises:
        ValueError: a k below 1 or above N, a temperature that is not positive, an unknown index, or shapes that differ.
        UserError: features that are not finite.
    """
    found = search(
        bank.feats, queries.feats, max(k, default=0), index=index, device=device, title=title
    )
    return classify(found, bank.targets, queries.targets, k, temperature)


def classify(
    found: Found,
    bank_targets: torch.Tensor,
    targets: torch.Tensor,
    k: Sequence[int],
    temperature: float = 0.07,
) -> KnnResult:
    """The votes of neighbours that were searched for already; so several temperatures need one search.

    Equal scores go to the lower class, and neighbours of equal similarity stand in the order of the bank; where more
    of them than fit are equal at the last place of the largest k, the search keeps some of them, the same ones in every
    run. A class without votes has score 0 and can be among the five of the top-5 accuracy, as in the host's classifier.

    Args:
        found: from :func:`carp_plugin.evaluation.search.search`, for the largest k at least.
        bank_targets: (N,) int64.
        targets: (Q,) int64, of the queries.
        k: numbers of neighbours.
        temperature: tau.

    Raises:
        ValueError: a k that was not searched for, a temperature that is not positive, or shapes that differ.
    """
    neighbours, kinds = found.neighbours, sorted(set(k))
    rows, most = neighbours.indices.shape
    if not kinds or kinds[0] < 1 or kinds[-1] > most:
        raise ValueError(f"k must lie between 1 and the {most} neighbours found, got {list(k)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if len(targets) != rows or neighbours.indices.max() >= len(bank_targets):
        raise ValueError(
            f"targets do not fit the features: {len(targets)} for {rows} queries, {len(bank_targets)} for the bank"
        )
    classes = int(max(bank_targets.max(), targets.max())) + 1
    top1, top5, predictions = {}, {}, {}
    for kind, guess, rank in _votes(neighbours, bank_targets, targets, kinds, temperature, classes):
        top1[kind] = float((rank == 0).mean() * 100)
        top5[kind] = float((rank < min(5, kind)).mean() * 100)
        predictions[kind] = torch.from_numpy(guess)
    return KnnResult(top1, top5, predictions, targets, classes, found.kind, found.recall)


def _votes(
    found: Neighbours,
    bank_targets: torch.Tensor,
    targets: torch.Tensor,
    kinds: List[int],
    temperature: float,
    classes: int,
) -> Iterator[Tuple[int, np.ndarray, np.ndarray]]:
    """For every k: the predicted classes (Q,) and the ranks (Q,) of the true ones, 0 the first; votes in float64."""
    labels, truth = bank_targets.numpy()[found.indices], targets.numpy()
    guesses = {k: np.empty(len(truth), dtype=np.int64) for k in kinds}
    ranks = {k: np.empty(len(truth), dtype=np.int64) for k in kinds}
    few = max(1, _VOTES // classes)
    for at in range(0, len(truth), few):
        here = slice(at, at + few)
        similarities = found.similarities[here].astype(np.float64)
        # exp(s / tau) up to a factor of the query, which changes no ranking and cannot overflow
        weights = np.exp((similarities - similarities[:, :1]) / temperature)
        cells = labels[here] + classes * np.arange(len(similarities))[:, None]
        own = truth[here, None]
        scores = np.zeros(len(similarities) * classes)
        for low, k in zip([0, *kinds], kinds):
            part = slice(low, k)
            scores += np.bincount(
                cells[:, part].ravel(), weights[:, part].ravel(), minlength=len(scores)
            )
            table = scores.reshape(-1, classes)
            mine = np.take_along_axis(table, own, axis=1)
            before = (table == mine) & (np.arange(classes) < own)
            guesses[k][here] = table.argmax(axis=1)
            ranks[k][here] = (table > mine).sum(axis=1) + before.sum(axis=1)
    for k in kinds:
        yield k, guesses[k], ranks[k]
