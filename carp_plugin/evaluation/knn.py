"""Weighted k-nearest-neighbour classification of features: appendix C.3 of the paper, exact and in bounded memory.

A query's neighbours are the k rows of the bank of highest cosine similarity; each votes for its class with
exp(similarity / tau). One search for the largest k serves all of them. The bank is brought to float32 chunk by chunk
and the best k so far are merged, so that memory is the bank's own (float16, or a mapped file) and one chunk.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import faiss
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from rich.progress import track
from torch.utils.data import DataLoader

from carp_plugin.errors import UserError
from carp_plugin.evaluation.store import Features, stream

INDEXES = ("exact", "ivf", "hnsw")

_CHUNK_VALUES = 2**25  # float32 values of a chunk of the bank: 128 MB
_QUERIES = 4096  # queries searched for at once
_VOTES = 2**22  # float64 scores held at once: 32 MB
_RECALL_SAMPLE = 256  # queries on which an approximate index is measured


class Neighbours(NamedTuple):
    """The rows of a bank that are most similar to each query.

    Attributes:
        similarities: (Q, k) float32, cosines in falling order; -inf where an approximate index found fewer than k.
        indices: (Q, k) int64, rows of the bank.
    """

    similarities: np.ndarray
    indices: np.ndarray


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


def evaluate(
    network: nn.Module, train: DataLoader, val: DataLoader, settings: Mapping[str, Any]
) -> KnnResult:
    """k-NN accuracy of a network on the device that it is on; unit features in half precision.

    Args:
        network: images (N, 3, H, W) to features (N, F).
        train: gives (images, labels) of the bank.
        val: gives (images, labels) of the queries.
        settings: ``k``, a list, and ``temperature``.

    Raises:
        ValueError: as :func:`weighted_knn`.
    """
    parameter = next(network.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    networks = {"network": (network, {"features": nn.Identity()})}
    bank, queries = (
        stream(networks, loader, device, f"features of {name} images")["network/features"]
        for loader, name in ((train, "training"), (val, "validation"))
    )
    return weighted_knn(
        bank, queries, settings["k"], settings["temperature"], device=device, title="k-NN"
    )


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

    Equal scores go to the lower class, and neighbours of equal similarity stand in the order of the bank; where more
    of them than fit are equal at the last place of the largest k, the search keeps some of them, the same ones in every
    run. A class without votes has score 0 and can be among the five of the top-5 accuracy, as in the host's classifier.

    Args:
        bank: features (N, F) of any floating type and targets (N,); rows need not be normalised.
        queries: features (Q, F) and targets (Q,).
        k: numbers of neighbours.
        temperature: tau.
        index: ``"exact"``, or ``"ivf"`` or ``"hnsw"``: approximate, on the CPU, with their recall measured.
        device: where to search exactly; None and the CPU use faiss, a card uses torch.
        title: shown before the progress bar; no bar where it is empty, or without a terminal.

    Returns:
        KnnResult: for every k.

    Raises:
        ValueError: a k below 1 or above N, a temperature that is not positive, an unknown index, or sizes that differ.
        UserError: features that are not finite.
    """
    kinds = sorted(set(k))
    _check(bank, queries, kinds, temperature, index)
    recall = None
    if index == "exact":
        found = nearest(bank.feats, queries.feats, kinds[-1], device=device, title=title)
    else:
        found = _approximate(bank.feats, queries.feats, kinds[-1], index)
        sample = torch.linspace(0, len(queries.feats) - 1, min(_RECALL_SAMPLE, len(queries.feats)))
        picked = sample.long().unique()
        true = nearest(bank.feats, queries.feats[picked], kinds[-1], device=device, title=title)
        recall = recall_of(found.indices[picked.numpy()], true.indices)
    classes = int(max(bank.targets.max(), queries.targets.max())) + 1
    top1, top5, predictions = {}, {}, {}
    for kind, guess, rank in _votes(
        found, bank.targets, queries.targets, kinds, temperature, classes
    ):
        top1[kind] = float((rank == 0).mean() * 100)
        top5[kind] = float((rank < min(5, kind)).mean() * 100)
        predictions[kind] = torch.from_numpy(guess)
    return KnnResult(top1, top5, predictions, queries.targets, classes, index, recall)


def _check(
    bank: Features, queries: Features, kinds: List[int], temperature: float, index: str
) -> None:
    if not kinds or kinds[0] < 1 or kinds[-1] > len(bank.feats):
        raise ValueError(
            f"k must lie between 1 and the {len(bank.feats)} rows of the bank, got {kinds}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if index not in INDEXES:
        raise ValueError(f"index must be one of {', '.join(INDEXES)}, got {index!r}")
    for name, (feats, targets) in (("bank", bank), ("queries", queries)):
        if feats.dim() != 2 or len(feats) != len(targets) or len(feats) == 0:
            raise ValueError(
                f"{name}: expected features (N, F) and targets (N,) with N > 0, "
                f"got {tuple(feats.shape)} and {tuple(targets.shape)}"
            )
    if bank.feats.shape[1] != queries.feats.shape[1]:
        raise ValueError(
            f"bank and queries differ in features: {bank.feats.shape[1]} and {queries.feats.shape[1]}"
        )


def nearest(
    bank: torch.Tensor,
    queries: torch.Tensor,
    k: int,
    *,
    device: Optional[torch.device] = None,
    chunk: Optional[int] = None,
    title: str = "",
) -> Neighbours:
    """The k rows of highest cosine similarity, exactly (to float32).

    Args:
        bank: (N, F), any floating type.
        queries: (Q, F).
        k: at most N.
        device: a card searches with torch's products, anything else with faiss.
        chunk: rows of the bank in float32 at once; None takes 128 MB of them.
        title: as for :func:`weighted_knn`.
    """
    on_card = device is not None and device.type == "cuda"
    similarities = np.empty((len(queries), 0), dtype=np.float32)
    best = Neighbours(similarities, np.empty((len(queries), 0), dtype=np.int64))
    for start, rows in _chunks(bank, chunk or max(1, _CHUNK_VALUES // bank.shape[1]), title):
        rows = rows.to(device) if on_card else rows
        parts = []
        for at in range(0, len(queries), _QUERIES):
            block = _unit(queries[at : at + _QUERIES])
            some = (_torch_top if on_card else _faiss_top)(rows, block, min(k, len(rows)))
            done = Neighbours(*(array[at : at + _QUERIES] for array in best))
            parts.append(_merged(done, Neighbours(some.similarities, some.indices + start), k))
        best = Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts)))
    return best


def _faiss_top(rows: torch.Tensor, queries: torch.Tensor, k: int) -> Neighbours:
    # The kernel of faiss.IndexFlatIP without the index, which would be a copy of the rows.
    return Neighbours(*faiss.knn(queries.numpy(), rows.numpy(), k, faiss.METRIC_INNER_PRODUCT))


def _torch_top(rows: torch.Tensor, queries: torch.Tensor, k: int) -> Neighbours:
    few = max(1, _CHUNK_VALUES // len(rows))
    parts = [(part.to(rows.device) @ rows.T).topk(k) for part in queries.split(few)]
    return Neighbours(
        torch.cat([part.values for part in parts]).cpu().numpy(),
        torch.cat([part.indices for part in parts]).cpu().numpy(),
    )


def _merged(best: Neighbours, new: Neighbours, k: int) -> Neighbours:
    """The k best of two sets of neighbours; those of ``new`` lie behind those of ``best`` in the bank."""
    equal = (new.similarities[:, 1:] == new.similarities[:, :-1]).any(axis=1)
    if equal.any():
        order = np.lexsort((new.indices[equal], -new.similarities[equal]), axis=-1)
        new.indices[equal] = np.take_along_axis(new.indices[equal], order, axis=1)
    similarities = np.concatenate([best.similarities, new.similarities], axis=1)
    indices = np.concatenate([best.indices, new.indices], axis=1)
    # Both are sorted, so that a stable sort only merges them and leaves equals in the order of the bank.
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return Neighbours(
        np.take_along_axis(similarities, order, axis=1), np.take_along_axis(indices, order, axis=1)
    )


def _approximate(bank: torch.Tensor, queries: torch.Tensor, k: int, kind: str) -> Neighbours:
    """Neighbours from an index in half precision: inverted lists (nlist = sqrt N, of which 1/16 are probed) or HNSW."""
    N, dim = bank.shape
    half = faiss.ScalarQuantizer.QT_fp16
    if kind == "ivf":
        lists = max(1, min(int(N**0.5), N // 39))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, lists, half, faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = max(8, lists // 16)
        picked = torch.linspace(0, N - 1, min(N, 64 * lists)).long().unique()
        index.train(_unit(bank[picked]).numpy())
    else:
        index = faiss.IndexHNSWSQ(dim, half, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = max(128, 2 * k)
        index.train(_unit(bank[:1]).numpy())
    for _, rows in _chunks(bank, max(1, _CHUNK_VALUES // dim), "building the index"):
        index.add(rows.numpy())
    parts = [index.search(_unit(block).numpy(), k) for block in queries.split(_QUERIES)]
    similarities, indices = (np.concatenate(arrays) for arrays in zip(*parts))
    similarities[indices < 0] = -np.inf
    return Neighbours(similarities, indices)


def recall_of(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours (Q, k) that were found, the mean over the queries."""
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, true)]))


def _chunks(bank: torch.Tensor, size: int, title: str) -> Iterator[Tuple[int, torch.Tensor]]:
    """The bank as unit rows in float32, a chunk at a time, each with the number of its first row."""
    starts = range(0, len(bank), size)
    shown = title and sys.stdout.isatty() and len(starts) > 1
    for start in track(starts, description=title, disable=not shown, transient=True):
        yield start, _unit(bank[start : start + size])


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows in float32 on the CPU, brought to unit length; a copy."""
    rows = F.normalize(rows.cpu().float())
    if not bool(torch.isfinite(rows).all()):
        raise UserError(
            "the features hold values that are not finite, so that they have no neighbours: the network has diverged."
        )
    return rows


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
